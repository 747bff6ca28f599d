"""MTFL: faces of LFW, the net and AFLW with five landmarks (Zhang et al., ECCV 2014); and AFLW_M.

A line of `training.txt` and `testing.txt` is: path, x1..x5, y1..y5, gender, smile, glasses, pose; paths may
have backslashes. Landmarks: left eye, right eye, nose, left and right mouth corner; "left" in the image.
The testing images are AFLW_M's 150x150 crops. Other sizes (LFW's originals have 250x250) are scaled by
their shorter side.

AFLW_M, LEAD's set, trains on other faces: 10,122 of AFLW, cropped likewise, that DVE's authors gave out.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from lead_ray.data.celeba import find, table
from lead_ray.data.crops import Crop
from lead_ray.data.rows import Record

MTFL_CROP = Crop(kind="centre", first_pixel=1.0, exact_centres=False)
"""Landmarks - 1, then x size / 150 (DVE's data_loaders.py at 2085144, 722-799)."""


@dataclass(frozen=True, kw_only=True)
class Mtfl:
    """MTFL as its authors split it: "train" (LFW and the net), "test" (AFLW) and "matching", in file order."""

    name: ClassVar[str] = "mtfl"
    raw: Path
    """Folder with training.txt, testing.txt and the image folders that they name."""
    matching: int = 1000
    """Size of the split "matching": the first testing images with eyes far enough apart; 0: no such split."""
    matching_gap: float = 20.0
    """Least distance of the two eye points for "matching", in pixels of the photograph."""

    def __post_init__(self):
        if self.matching < 0 or self.matching % 2:
            raise ValueError(f"matching must be even (pairs) and >= 0, got {self.matching}")

    @property
    def crop(self) -> Crop:
        return MTFL_CROP

    def records(self) -> Iterator[Record]:
        yield from _listed(find(self.raw, "training.txt"), "train")
        testing = find(self.raw, "testing.txt")
        yield from _listed(testing, "test")
        apart = (
            record
            for record in _listed(testing, "matching")
            if np.linalg.norm(record.landmarks[0] - record.landmarks[1]) >= self.matching_gap
        )
        yield from islice(apart, self.matching)


@dataclass(frozen=True, kw_only=True)
class AflwM:
    """AFLW_M: "train", 10,122 cropped faces of AFLW; "test", MTFL's 2,995 testing images."""

    name: ClassVar[str] = "aflw-m"
    raw: Path
    """Folder with aflw_cropped/ (facedata_cropped.csv and the crops) and MTFL/ (testing.txt and AFLW/)."""

    @property
    def crop(self) -> Crop:
        return MTFL_CROP

    def records(self) -> Iterator[Record]:
        testing = list(_listed(find(self.raw, "MTFL/testing.txt"), "test"))
        yield from _training(find(self.raw, "aflw_cropped/facedata_cropped.csv"), testing)
        yield from testing


def _listed(listing: Path, split: str) -> Iterator[Record]:
    for number, (name, *words) in table(listing, columns=15):
        points = _points(f"{listing}, line {number}", words[:10]).reshape(2, 5).T.copy()
        name = name.replace("\\", "/")
        yield Record(image_id=name, path=listing.parent / name, split=split, landmarks=points)


def _training(listing: Path, testing: list[Record]) -> Iterator[Record]:
    """The rows with set 1: `image_file`, `crop_file` and `set` by their headings, then columns 5 to 14 x1, y1, ...

    Raises: ValueError as well if a photograph of AFLW lies in both splits.
    """
    with open(listing, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    heading = rows[0] if rows else []
    if missing := {"image_file", "crop_file", "set"} - set(heading[:4]):
        raise ValueError(f"{listing}, line 1: no heading {sorted(missing)} among the first four, got {heading[:4]}")
    held_out = {Path(record.image_id).name.split("-")[-1] for record in testing}
    for number, row in enumerate(rows[1:], start=2):
        where = f"{listing}, line {number}"
        if len(row) != len(heading) or len(row) < 14:
            raise ValueError(f"{where}: expected {max(len(heading), 14)} columns, got {len(row)}: {row[:14]}")
        named = dict(zip(heading[:4], row[:4], strict=True))
        if named["set"] != "1":
            continue
        if named["image_file"] in held_out:
            raise ValueError(f"{where}: {named['image_file']} is a training image here and a test image of MTFL")
        name = named["crop_file"]
        points = _points(where, row[4:14]).reshape(5, 2)
        yield Record(image_id=name, path=listing.parent / name, split="train", landmarks=points)


def _points(where: str, words: list[str]) -> np.ndarray:
    try:
        return np.array([float(word) for word in words], np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
