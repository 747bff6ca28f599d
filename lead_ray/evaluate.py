"""Errors of a frozen encoder: landmark regression and landmark matching.

python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task matching --data mafl
python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task regression --data mafl --annotations 1 10 100 --seeds 0 1 2
python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task matching --data mafl --features untrained    # a floor
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from lead_ray import features, metrics, regression, shards
from lead_ray.annotated import Draw, annotate
from lead_ray.artefacts import digest, plain, read_json, write_json
from lead_ray.errors import for_people
from lead_ray.machine import environment
from lead_ray.matching import Matching, match_pairs
from lead_ray.models import weights
from lead_ray.models.baselines import ColourPatches, untrained
from lead_ray.regression_settings import ReadOut, RegressionSettings, named
from lead_ray.stage import pick_device

Features = Literal["learned", "untrained", "colour"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured, on what."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run's folder, or a file of encoder weights."""
    task: Literal["regression", "matching"]
    data: Path
    """Prepared folder with landmarks."""
    features: Features = "learned"
    """The run's own, or a floor: the same network untrained, or raw colour patches."""
    train_split: str = "train"
    """Where regression finds its annotated images."""
    test_split: str = "test"
    """What the error is measured on."""
    limit: int | None = None
    """Only the first so many test images."""
    annotations: int | tuple[int, ...] | None = None
    """Annotated images for regression; all if not given. Several numbers: a result of each, fitted together."""
    copies: int = 0
    """Warped copies of each annotated image to train on in its place (DVE's limited-annotation protocol)."""
    copies_in_all: int = 0
    """In place of `copies`: as many of each as make that many together (CL's make 1,000)."""
    seeds: tuple[int, ...] = (0,)
    """Repeats. Regression: which images are annotated, and the regressor's start; matching: the warps."""
    eyes: tuple[int, int] | None = None
    """Points whose distance is 100 %; if not given, 0 1 of 5 landmarks and 36 45 of 68."""
    readout: ReadOut = "ours"
    """How landmarks are read out. ours: as `regression` says. paper: CL's, its stop on MAFL (120 epochs).
    paper-limited: CL's for a few images in warped copies (1,000 epochs). Of `regression` these two take the
    grid, `epochs` if above 0, and paper the `epoch_steps`."""
    regression: RegressionSettings = field(default_factory=RegressionSettings)
    matching: Matching = field(default_factory=Matching)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        for name, least in (("limit", 1), ("copies", 0), ("copies_in_all", 0)):
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
        self.regressor()  # checks that the epochs fit the schedule

    @property
    def folder(self) -> Path:
        """Where results and cached features go: the run's folder, or beside the weights."""
        return self.run if self.run.is_dir() else self.run.with_suffix("")

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

    def eyes_among(self, points: int) -> tuple[int, int]:
        """The points whose distance is 100 %, of so many.

        Raises: ValueError if they are not given and `points` does not tell.
        """
        usual = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS}
        if self.eyes is None and points not in usual:
            raise ValueError(f"data={self.data} has {points} landmarks: name two whose distance is 100 % with --eyes")
        return self.eyes or usual[points]

    def encoder(self) -> nn.Module:
        card = weights.read_card(self.run)
        learned, floor = partial(weights.load, self.run), partial(untrained, card)
        encoder = {"learned": learned, "untrained": floor, "colour": ColourPatches}[self.features]()
        return encoder.eval().to(pick_device(self.device))


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Measure, write the run's eval/<task>-<data>-....json, return its content; a result that exists is read.

    Raises: ValueError if several numbers of annotations are given.
    """
    if len(several := settings.each()) > 1:
        raise ValueError(f"annotations must be one number here, got {settings.annotations}: use evaluate_each()")
    return evaluate_each(several[0])[0]


def evaluate_each(settings: Evaluate) -> list[dict[str, Any]]:
    """evaluate() for every number of annotations; what is missing is measured together."""
    manifest = shards.read_manifest(settings.data)
    several = settings.each()
    paths = [settings.folder / "eval" / f"{_name(single, manifest)}.json" for single in several]
    missing = {path: single for path, single in zip(paths, several, strict=True) if not path.exists()}
    measure = {"regression": _regression, "matching": _matching}[settings.task]
    found = measure(list(missing.values())) if missing else []
    for (path, single), result in zip(missing.items(), found, strict=True):
        head = {"task": single.task, "features": single.features, "data": manifest.dataset}
        write_json(path, {**head, **result, "settings": _plain(single), "environment": environment()})
    return [read_json(path) for path in paths]


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What evaluate() measured, without how and where."""
    return {name: value for name, value in result.items() if name not in ("settings", "environment")}


def _name(settings: Evaluate, manifest: shards.Manifest) -> str:
    measured = {"data": manifest.fingerprint, "run": weights.fingerprint(settings.run)}
    matters = _plain(settings) | measured | {"device": None}
    few = f"-{settings.annotations}" if settings.annotations else ""
    return f"{settings.task}-{manifest.dataset}-{settings.features}{few}-{digest(matters)}"


def _plain(settings: Evaluate) -> dict[str, Any]:
    """Without what each() has spelt out: results keep the names that they had before there was such a field."""
    return {name: value for name, value in plain(settings).items() if name != "copies_in_all"}


def _test_images(settings: Evaluate) -> shards.Images:
    images = shards.load(settings.data, settings.test_split)
    if images.landmarks.shape[1] == 0:
        raise ValueError(f"data={settings.data} has no landmarks: prepare it with --landmarks")
    count = settings.limit or len(images.ids)
    if count > len(images.ids):
        raise ValueError(f"limit must be at most the {len(images.ids)} images of {settings.test_split}, got {count}")
    return shards.Images(**{each.name: getattr(images, each.name)[:count] for each in fields(images)})


def _matching(several: Sequence[Evaluate]) -> list[dict[str, Any]]:
    (settings,) = several
    images = _test_images(settings)
    eyes = settings.eyes_among(images.landmarks.shape[1])
    encoder, device = settings.encoder(), pick_device(settings.device)
    even = len(images.ids) // 2 * 2
    pixels = images.pixels[:even].to(device)
    points, visible = (torch.from_numpy(marks[:even]).to(device) for marks in (images.landmarks, images.visible))
    runs = []
    for seed in settings.seeds:
        how = replace(settings.matching, seed=seed)
        runs.append(match_pairs(pixels, points, encoder, how, eyes=eyes, visible=visible).summary())
    means = {name: fmean(run[name] for run in runs) for name in runs[0]}
    return [{"pairs": even // 2, **means, "errors": [run["cl_diff_error"] for run in runs], "runs": runs}]


def _regression(several: Sequence[Evaluate]) -> list[dict[str, Any]]:
    """Settings that differ in their annotations and copies; all their repeats are fitted together."""
    settings = several[0]
    train, test = shards.load(settings.data, settings.train_split), _test_images(settings)
    eyes = settings.eyes_among(test.landmarks.shape[1])
    encoder, device = settings.encoder(), pick_device(settings.device)
    counts = [single.annotations or len(train.ids) for single in several]
    pairs = zip(counts, several, strict=True)
    draws = [Draw(count, single.copies, seed) for count, single in pairs for seed in settings.seeds]
    everyone = partial(_cached, settings, encoder, train, settings.train_split, device)
    given = annotate(draws, train, encoder, device, everyone)
    test_blocks = _cached(settings, encoder, test, settings.test_split, device)
    truth, visible = features.normalised_landmarks(test).to(device), torch.from_numpy(test.visible).to(device)

    def error(predicted: Tensor) -> float:
        return regression.evaluate(predicted, truth, eyes=eyes, visible=visible).mean

    errors, floors = [], []
    for blocks, sets in given:
        fitted = regression.fit_many(blocks, sets, settings.regressor())
        errors += [error(regressor.predict(test_blocks)) for regressor in fitted]
        floors += [error(regression.mean_face(each.landmarks, len(truth), visible=each.visible)) for each in sets]
    size = len(settings.seeds)
    found = [(errors[first : first + size], floors[first : first + size]) for first in range(0, len(draws), size)]
    return [
        {
            "images": len(test.ids),
            "annotations": count,
            "error": fmean(own),
            "error_std": stdev(own) if size > 1 else None,
            "errors": own,
            "mean_face": fmean(floor),
            "mean_faces": floor,
        }
        for count, (own, floor) in zip(counts, found, strict=True)
    ]


def _cached(
    settings: Evaluate, encoder: nn.Module, images: shards.Images, split: str, device: torch.device
) -> list[Tensor]:
    measured = {
        "data": shards.read_manifest(settings.data).fingerprint,
        "run": weights.fingerprint(settings.run),
        "split": split,
        "images": len(images.ids),
    }
    name = f"{split}-{settings.features}-{digest(measured | {'features': settings.features})}.safetensors"
    return features.cached(settings.folder / "features" / name, encoder, images.pixels.to(device))


def main(arguments: list[str] | None = None) -> None:
    with for_people("evaluate"):
        results = evaluate_each(tyro.cli(Evaluate, args=arguments, description=__doc__))
    for result in results:
        for name, value in numbers(result).items():
            print(f"{name:24} {value:8.3f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
