"""CelebA in the wild: the uncropped photographs of CelebA with a face box and five landmarks each.

Official layout: `Img/img_celeba`, `Anno/list_bbox_celeba.txt`, `Anno/list_landmarks_celeba.txt`, `Eval` and
MAFL's lists as for the aligned set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lead_ray.data.celeba import (
    Partition,
    check_partitions,
    find,
    identities,
    lookup,
    mafl_names,
    numbers,
    pretraining_names,
)
from lead_ray.data.rows import Crop, Record


@dataclass(frozen=True, kw_only=True)
class CelebAWild:
    """CelebA's uncropped photographs, whole or cut around the face box."""

    name: ClassVar[str] = "celeba-wild"
    raw: Path
    """Folder of the unpacked download."""
    partitions: tuple[Partition, ...] = ("train",)
    """Official partitions to take into the split "train"."""
    include_mafl_test: bool = False
    """Keep MAFL's test images: a leak if you then test on MAFL."""
    mafl: bool = False
    """Splits "train" and "test" from MAFL's lists (MAFL in the wild) instead of the partitions."""
    framing: Literal["box", "photo"] = "box"
    """box: a square around the face; photo: the largest centred square, as LEAD pretrains in the wild."""
    box_factor: float = 1.15
    """Side of the square over the box's longer side; LEAD's supplement (section A) draws from 1.1 to 1.2."""

    def __post_init__(self):
        check_partitions(self.partitions)
        _ = self.crop  # checks box_factor

    @property
    def crop(self) -> Crop:
        if self.framing == "photo":
            return Crop(kind="centre")
        return Crop(kind="box", box_factor=self.box_factor)

    def records(self) -> Iterator[Record]:
        boxes_file = find(self.raw, "Anno/list_bbox_celeba.txt", "list_bbox_celeba.txt")
        points_file = find(self.raw, "Anno/list_landmarks_celeba.txt", "list_landmarks_celeba.txt")
        folder = find(self.raw, "Img/img_celeba", "img_celeba")
        boxes, points, identity = numbers(boxes_file, 4), numbers(points_file, 10), identities(self.raw)
        if self.mafl:
            names = mafl_names(self.raw)
        else:
            kept = pretraining_names(self.raw, self.partitions, self.include_mafl_test)
            names = [(name, "train") for name in kept]
        for name, split in names:
            yield Record(
                image_id=name,
                path=folder / name,
                split=split,
                identity=identity.get(name),
                box=tuple(lookup(boxes, name, boxes_file).tolist()),
                landmarks=lookup(points, name, points_file).reshape(5, 2),
            )
