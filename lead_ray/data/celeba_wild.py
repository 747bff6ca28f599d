"""CelebA in the wild: the uncropped photographs of CelebA with a face box and five landmarks each.

Official layout: `Img/img_celeba`, `Anno/list_bbox_celeba.txt`, `Anno/list_landmarks_celeba.txt`, `Eval` and
MAFL's lists as for the aligned set. LEAD pretrains on the whole photographs and reads landmarks out of two
crops of MAFL's: "MAFL in the wild" and "unaligned MAFL".
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from lead_ray.data.celeba import (
    Partition,
    check_mafl,
    check_partitions,
    find,
    identities,
    lookup,
    mafl_names,
    numbers,
    pretraining_names,
)
from lead_ray.data.crops import Crop
from lead_ray.data.rows import Record


@dataclass(frozen=True, kw_only=True)
class CelebAWild:
    """CelebA's uncropped photographs for pretraining, whole or cut around the face box."""

    name: ClassVar[str] = "celeba-wild"
    raw: Path
    """Folder of the unpacked download."""
    partitions: tuple[Partition, ...] = ("train",)
    """Official partitions to take into the split "train"."""
    include_mafl_test: bool = False
    """Keep MAFL's test images: a leak if you then test on MAFL."""
    leave_out: Literal["mafl"] | None = None
    """mafl: its training images, too."""
    framing: Literal["whole", "photo", "box"] = "whole"
    """whole: all of the photograph, squashed to a square, as CL does (LEAD says "uncropped"); photo: the largest
    centred square; box: a square around the face."""
    box_factor: float = 1.15
    """Side of that square over the box's longer side."""

    def __post_init__(self):
        check_partitions(self.partitions)
        check_mafl(self.include_mafl_test, self.leave_out)
        _ = self.crop  # checks box_factor

    @property
    def crop(self) -> Crop:
        if self.framing == "box":
            return Crop(kind="box", box_factor=self.box_factor)
        return Crop(kind="whole" if self.framing == "whole" else "centre")

    def records(self) -> Iterator[Record]:
        kept = pretraining_names(self.raw, self.partitions, self.include_mafl_test, self.leave_out)
        yield from _photographs(self.raw, [(name, "train") for name in kept])


@dataclass(frozen=True, kw_only=True)
class MaflWild:
    """MAFL in the wild: the face box grown by a tenth to a fifth, drawn for each image (LEAD, supplement A).

    LEAD grows height and width; here the longer side grows and the crop is a square, so that no face is
    squashed. The stored box is the annotated one: the factor of an image is size / its longer side.
    """

    name: ClassVar[str] = "mafl-wild"
    raw: Path
    """Folder of CelebA's unpacked download, with the photographs in the wild and MAFL's lists in MAFL/."""
    train_factor: tuple[float, float] = (1.1, 1.2)
    """Side of the square over the box's longer side: drawn uniformly between these, for training images."""
    test_factor: tuple[float, float] = (1.1, 1.2)
    """The same for test images."""
    seed: int = 0
    """Of the draws; those of an image depend on its name and on this only."""

    def __post_init__(self):
        for name in ("train_factor", "test_factor"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 8:
                raise ValueError(f"{name} must be two numbers, 0 < low <= high <= 8, got {low} {high}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    @property
    def crop(self) -> Crop:
        return Crop(kind="box")

    def records(self) -> Iterator[Record]:
        ranges = {"train": self.train_factor, "test": self.test_factor}
        for record in _photographs(self.raw, mafl_names(self.raw)):
            random = np.random.default_rng([self.seed, zlib.crc32(record.image_id.encode())])
            yield replace(record, box_factor=float(random.uniform(*ranges[record.split])))


@dataclass(frozen=True, kw_only=True)
class MaflUnaligned(MaflWild):
    """Unaligned MAFL: zoomed out 1 to 1.5 times in training, 1 to 2 times in test (LEAD, section 4.4).

    The stored box is the annotated one: the zoom-out factor of an image is size / its longer side.
    """

    name: ClassVar[str] = "mafl-unaligned"
    train_factor: tuple[float, float] = (1.0, 1.5)
    """Side of the square over the box's longer side: drawn uniformly between these, for training images."""
    test_factor: tuple[float, float] = (1.0, 2.0)
    """The same for test images."""


def _photographs(raw: Path, names: list[tuple[str, str]]) -> Iterator[Record]:
    boxes_file = find(raw, "Anno/list_bbox_celeba.txt", "list_bbox_celeba.txt")
    points_file = find(raw, "Anno/list_landmarks_celeba.txt", "list_landmarks_celeba.txt")
    folder = find(raw, "Img/img_celeba", "img_celeba")
    boxes, points, identity = numbers(boxes_file, 4), numbers(points_file, 10), identities(raw)
    for name, split in names:
        yield Record(
            image_id=name,
            path=folder / name,
            split=split,
            identity=identity.get(name),
            box=tuple(lookup(boxes, name, boxes_file).tolist()),
            landmarks=lookup(points, name, points_file).reshape(5, 2),
        )
