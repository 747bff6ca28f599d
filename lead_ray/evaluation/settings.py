"""What is to be measured, on what: the settings of `lead-ray evaluate`, and the names of its results."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lead_ray import features, metrics, storage
from lead_ray.artefacts import digest, plain
from lead_ray.evaluation.matching import Matching
from lead_ray.images import shards
from lead_ray.models import weights
from lead_ray.models.reduce import Method
from lead_ray.readouts.settings import ReadOut, RegressionSettings, named

Features = Literal["learned", "untrained", "colour", "pca", "random-projection", "nmf"]
REDUCTIONS: dict[str, Method] = {"pca": "pca", "random-projection": "random", "nmf": "nmf"}
LATER_READOUT = ("shrinkage", "head", "width", "precision")  # fields that came after there were results
BIRD_PARTS = 15
"""Points of CUB's birds, which have no eyes' distance to go by."""


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """What a reduction that learns nothing is fitted to: images without landmarks."""

    dim: int = 64
    """Channels of the reduced map."""
    images: int = 1000
    """At most so many; the first ones of a shuffle."""
    data: Path | None = None
    """Prepared folder to take them from; if not given the one that is measured on."""
    split: str = "train"
    seed: int = 0
    """Of the shuffle, a random projection, and the start of non-negative factors."""

    def __post_init__(self):
        for name in ("dim", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"reduce.{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured, on what."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run's folder, or a file of encoder weights."""
    task: Literal["regression", "matching"]
    data: Path
    """Prepared folder with landmarks."""
    features: Features = "learned"
    """The run's own, or a floor: the same network untrained, or raw colour patches; or stage 1's hypercolumns reduced
    without learning, as `reduce` says (nmf: LEAD's Table 1)."""
    reduce: Reduce = field(default_factory=Reduce)
    train_split: str = "train"
    """Where regression finds its annotated images."""
    test_split: str = "test"
    """What the error is measured on."""
    validation: float = 0.0
    """Above 0: this share of the training split, chosen by a hash of the person or the image, is measured on in place
    of test_split, and regressors learn from the rest. For choices: the test images stay unseen."""
    limit: int | None = None
    """Only the first so many test images."""
    margin: int | None = None
    """Pixels cropped from every side before the network; if not given its own: 20, and 15 for DVE's SmallNet."""
    annotations: int | tuple[int, ...] | None = None
    """Annotated images for regression; all if not given. Several numbers: a result of each, fitted together."""
    copies: int = 0
    """Warped copies of each annotated image to train on in its place (DVE's limited-annotation protocol)."""
    copies_in_all: int = 0
    """In place of `copies`: as many of each as make that many together (CL's make 1,000)."""
    seeds: tuple[int, ...] = (0,)
    """Repeats. Regression: which images are annotated, and the regressor's start; matching: the warps."""
    eyes: tuple[int, int] | None = None
    """Points whose distance is 100 %; if not given, 0 1 of 5 landmarks and 36 45 of 68. Images that do not show both
    are skipped, and counted. 15 landmarks are a bird's: without eyes regression gives percentages of correct points."""
    readout: ReadOut = "ours"
    """How landmarks are read out. ours: as `regression` says. paper: CL's, its stop on MAFL (120 epochs).
    paper-limited: CL's for a few images in warped copies (1,000 epochs). sce-mae: paper with a block of convolutions in
    place of one, as SCE-MAE has it: its errors are not comparable with the others', and the result says so. Of
    `regression` these take the grid, the precision, `epochs` if above 0, and but for paper-limited `epoch_steps`."""
    regression: RegressionSettings = field(default_factory=RegressionSettings)
    matching: Matching = field(default_factory=Matching)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""

    def __post_init__(self):
        for name, least in (("limit", 1), ("copies", 0), ("copies_in_all", 0), ("margin", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        for name, values in (("seeds", self.seeds), ("annotations", self.counts())):
            if not values:
                raise ValueError(f"{name} must hold at least one number, got none")
        if any(count is not None and count < 1 for count in self.counts()):
            raise ValueError(f"annotations must be >= 1, got {self.annotations}")
        if self.copies_in_all and (self.copies or self.annotations is None):
            raise ValueError(f"copies_in_all={self.copies_in_all} needs annotations, and takes the place of copies")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is a share of the training split in [0, 1), got {self.validation}")
        if self.validation and self.test_split not in ("test", self.train_split):
            raise ValueError(f"validation measures on {self.train_split}: leave test_split={self.test_split} out")
        self.regressor()  # checks that the epochs fit the schedule

    @property
    def folder(self) -> Path:
        """Where results and cached features go: the run's folder, or beside the weights."""
        return self.run if storage.is_folder(self.run) else self.run.with_suffix("")

    def counts(self) -> Sequence[int | None]:
        """Numbers of annotated images; None: all."""
        return self.annotations if isinstance(self.annotations, tuple) else (self.annotations,)

    def each(self) -> "list[Evaluate]":
        """These settings with every one of their numbers of annotated images."""
        if self.task == "matching":
            return [self]
        in_all = self.copies_in_all
        return [
            replace(self, annotations=count, copies=ceil(in_all / count) if in_all else self.copies, copies_in_all=0)
            for count in self.counts()
        ]

    def regressor(self) -> RegressionSettings:
        """The settings that `readout` stands for."""
        return named(self.readout, self.regression)

    def eyes_among(self, points: int) -> tuple[int, int] | None:
        """The points whose distance is 100 %, of so many; None: a bird's.

        Raises: ValueError if they are not given and `points` does not tell.
        """
        usual = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS, BIRD_PARTS: None}
        if self.eyes is None and points not in usual:
            raise ValueError(f"data={self.data} has {points} landmarks: name two whose distance is 100 % with --eyes")
        return self.eyes or usual[points]

    def margin_of(self, side: int) -> int:
        """Pixels to crop from images of this side.

        Raises: ValueError if the network wants another side, and no margin is given.
        """
        if self.margin is not None:
            return self.margin
        own = weights.read_card(self.run).view
        if own.side not in (None, side):
            raise ValueError(
                f"data={self.data} has images of {side} pixels, this network is for {own.side}: prepare them with "
                f"--size {own.side}, or say with --margin what to crop"
            )
        if self.task == "matching" and own.side is None:
            return self.matching.margin
        return own.margin


def result_name(settings: Evaluate, manifest: shards.Manifest) -> str:
    """The file name of a result, without its suffix: it depends on all that the result does."""
    measured = {"data": manifest.fingerprint, "run": weights.fingerprint(settings.run)}
    matters = told(settings) | measured | {"device": None}
    if settings.features in REDUCTIONS:
        matters["reduce"] = _reduce_matters(settings)
    few = f"-{settings.annotations}" if settings.annotations else ""
    return f"{settings.task}-{manifest.dataset}-{settings.features}{few}-{digest(matters)}"


def told(settings: Evaluate) -> dict[str, Any]:
    """Settings as a result keeps them.

    Without what each() has spelt out, and what changes nothing: results keep the names that they had before there was
    such a field.
    """
    unused = {"copies_in_all"}
    unused |= {name for name, nothing in (("margin", None), ("validation", 0.0)) if getattr(settings, name) == nothing}
    if settings.features not in REDUCTIONS:
        unused.add("reduce")
    kept = {name: value for name, value in plain(settings).items() if name not in unused}
    usual, given = plain(RegressionSettings()), kept["regression"]
    kept["regression"] = {
        name: value for name, value in given.items() if name not in LATER_READOUT or value != usual[name]
    }
    return kept


def features_name(settings: Evaluate, split: str, count: int, margin: int) -> str:
    """The file name of cached features of a split's first `count` images."""
    kind = settings.features
    measured = {
        "data": shards.read_manifest(settings.data).fingerprint,
        "run": weights.fingerprint(settings.run),
        "split": split,
        "images": count,
        "features": kind,
    }
    if margin != features.MARGIN:
        measured["margin"] = margin
    if kind in REDUCTIONS:
        measured["reduce"] = _reduce_matters(settings)
    return f"{split}-{kind}-{digest(measured)}.safetensors"


def reduction_name(settings: Evaluate, margin: int) -> str:
    """The file name of a fitted reduction."""
    measured = {"run": weights.fingerprint(settings.run), "margin": margin, "reduce": _reduce_matters(settings)}
    return f"encoder-{settings.features}-{digest(measured)}.safetensors"


def _reduce_matters(settings: Evaluate) -> dict[str, Any]:
    """The images that a reduction is fitted to matter, not where they lie."""
    source = shards.read_manifest(settings.reduce.data or settings.data).fingerprint
    return plain(settings.reduce) | {"data": source, "method": REDUCTIONS[settings.features]}
