"""What pictures are made of: finished results with their points, and images with a network's features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray import features, geometry
from lead_ray.artefacts import atomic, read_json
from lead_ray.evaluation.details import details
from lead_ray.images import shards
from lead_ray.models import weights

IOD = "% of inter-ocular distance"
FORMATS = (".png", ".svg", ".pdf", ".jpg")


@dataclass(frozen=True, kw_only=True)
class Picture(ABC):
    """What every picture needs."""

    out: Path
    """File to write; its ending says which format: .png, .svg, .pdf or .jpg."""
    dpi: int = 130
    """Pixels an inch, of .png and .jpg."""
    title: str | None = None
    """In place of the picture's own, where it has one; an empty one leaves it out."""

    def __post_init__(self):
        if self.out.suffix not in FORMATS:
            raise ValueError(f"out must end in one of {', '.join(FORMATS)}, got {self.out}")
        if not 30 <= self.dpi <= 1200:
            raise ValueError(f"dpi must be in 30..1200, got {self.dpi}")

    @abstractmethod
    def figure(self) -> Figure:
        """The picture."""

    def said(self, own: str) -> str:
        """The title: the user's, if there is one."""
        return own if self.title is None else self.title

    def make(self) -> None:
        """Draw, write, and say what is seen."""
        figure = self.figure()
        with atomic(self.out) as temporary:
            figure.savefig(temporary, format=self.out.suffix[1:], dpi=self.dpi)
        print(f"{self.out}: {figure.get_label()}")


@dataclass(frozen=True)
class Result:
    """One result of `lead-ray evaluate`, its arrays read when asked for."""

    path: Path
    content: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, path: Path, *, task: str | None = None) -> "Result":
        """Raises: ValueError if it is no result, or of another task."""
        content = read_json(path)
        if not isinstance(content, dict) or "settings" not in content or "task" not in content:
            raise ValueError(f"{path} is not a result of lead-ray evaluate: give files RUN/eval/*.json")
        if task is not None and content["task"] != task:
            raise ValueError(f"{path} is of {content['task']}: this picture is made of {task} results")
        return cls(path, content)

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The points and errors of the first seed."""
        return details(self.path)

    @property
    def run(self) -> Path:
        return Path(self.content["settings"]["run"])

    @property
    def system(self) -> str:
        """What was measured, in words: the stage, or the floor."""
        kind = self.content["features"]
        return stage(self.run) if kind == "learned" else kind

    @property
    def annotated(self) -> int:
        return self.content["annotations"]

    @property
    def unit(self) -> str:
        """What 100 % is of the errors in `arrays`: the eyes' distance, or for birds the crop's side."""
        return IOD if "error" in self.content else "% of the crop's side"

    def crops(self, rows: Sequence[str]) -> UInt8[Tensor, "n 3 h w"]:
        """What the network saw of the images with these ids."""
        settings = self.content["settings"]
        split = settings["train_split"] if settings.get("validation") else settings["test_split"]
        images = shards.load(Path(settings["data"]), split)
        place = {name: number for number, name in enumerate(images.ids)}
        if missing := [row for row in rows if row not in place]:
            raise ValueError(f"{settings['data']} holds no image {missing[0]!r}: the data of {self.path} have changed")
        return geometry.crop_images(images.pixels[[place[row] for row in rows]], margin=self.margin)

    @property
    def margin(self) -> int:
        kept = self.content["settings"].get("margin")
        return features.MARGIN if kept is None else kept

    def points(self, name: str, visible: bool = False) -> Float[Tensor, "n k 2"]:
        """Points by their name in details(), in pixels of crops(); on request NaN where they are not visible."""
        points = torch.from_numpy(self.arrays[name]).float() - self.margin
        shown = torch.from_numpy(self.arrays["visible"]).unsqueeze(-1)
        return points.where(shown, torch.nan) if visible else points


def read_all(paths: Sequence[Path], task: str | None = None) -> list[Result]:
    """Raises: ValueError if there is none, or as Result.read()."""
    if not paths:
        raise ValueError("name at least one result, RUN/eval/*.json")
    return [Result.read(path, task=task) for path in paths]


def same_images(results: Sequence[Result]) -> None:
    """Raises: ValueError if results are not of the same images, in one order."""
    for other in results[1:]:
        if other.arrays["ids"].tolist() != results[0].arrays["ids"].tolist():
            raise ValueError(f"{other.path} is of other images than {results[0].path}: they must be the same here")


def stage(run: Path) -> str:
    """What a run's network is: stage 1's hypercolumns or stage 2's map."""
    return {"trunk": "stage 1", "dense": "stage 2"}.get((card := weights.read_card(run)).kind, card.kind)


def name_all(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    """A name for each result that no other has: the user's, or the system, with the run's where systems are alike.

    Raises: ValueError if the user's are not as many.
    """
    return named(names, [result.system for result in results], [result.run.name for result in results])


def named(names: Sequence[str], systems: Sequence[str], runs: Sequence[str]) -> list[str]:
    """name_all() of systems and runs."""
    if names:
        if len(names) != len(systems) or len(set(names)) < len(names):
            raise ValueError(f"names must be {len(systems)} different ones, got {list(names)}")
        return list(names)
    alike = {system for system in systems if systems.count(system) > 1}
    given = [f"{s} ({run})" if s in alike else s for s, run in zip(systems, runs, strict=True)]
    if len(set(given)) < len(given):
        raise ValueError(f"results are alike ({', '.join(given)}): name each with --names")
    return given


@dataclass(frozen=True)
class Sample:
    """Evenly spaced images of a prepared split, as the network sees them."""

    crops: UInt8[Tensor, "n 3 h w"]
    points: Float[Tensor, "n k 2"]
    """Landmarks in pixels of the crops, NaN where they are not visible."""

    @classmethod
    def read(cls, data: Path, split: str, count: int) -> "Sample":
        """Raises: ValueError if the split has fewer images."""
        images = shards.load(data, split)
        if not 1 <= count <= len(images.ids):
            raise ValueError(f"images must be in 1..{len(images.ids)}, those of {split} in {data}, got {count}")
        rows = torch.linspace(0, len(images.ids) - 1, count, dtype=torch.float64).round().long()
        points = geometry.crop_points(torch.from_numpy(images.landmarks)[rows], margin=features.MARGIN)
        shown = torch.from_numpy(images.visible)[rows].unsqueeze(-1)
        crops = geometry.crop_images(images.pixels[rows], margin=features.MARGIN)
        return cls(crops, points.where(shown, torch.nan))

    def blocks(self, run: Path) -> list[Tensor]:
        """A run's features of these images, finest first."""
        return [block.float() for block in features.extract(weights.load(run), self.crops, cropped=True)]
