"""MTFL: faces of LFW, the net and AFLW with five landmarks (Zhang et al., ECCV 2014).

A line of `training.txt` and `testing.txt` is: path, x1..x5, y1..y5, gender, smile, glasses, pose; paths may
have backslashes. Landmarks: left eye, right eye, nose, left and right mouth corner; "left" in the image.
The testing images are AFLW_M's 150x150 crops. Other sizes (LFW's originals have 250x250) are scaled by
their shorter side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from lead_ray.data.celeba import find, table
from lead_ray.data.rows import Crop, Record


@dataclass(frozen=True, kw_only=True)
class Mtfl:
    """MTFL: splits "train" (training.txt), "test" (testing.txt) and "matching", each in file order."""

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
        """Landmarks - 1, then x size / 150 (DVE's data_loaders.py at 2085144, 722-799)."""
        return Crop(kind="centre", first_pixel=1.0, exact_centres=False)

    def records(self) -> Iterator[Record]:
        yield from self._listed("training.txt", "train")
        yield from self._listed("testing.txt", "test")
        apart = (
            record
            for record in self._listed("testing.txt", "matching")
            if np.linalg.norm(record.landmarks[0] - record.landmarks[1]) >= self.matching_gap
        )
        yield from islice(apart, self.matching)

    def _listed(self, file: str, split: str) -> Iterator[Record]:
        listing = find(self.raw, file)
        for number, (name, *words) in table(listing, columns=15):
            try:
                values = np.array([float(word) for word in words[:10]], np.float32)
            except ValueError as error:
                raise ValueError(f"{listing}, line {number}: {error}") from None
            name = name.replace("\\", "/")
            yield Record(image_id=name, path=self.raw / name, split=split, landmarks=values.reshape(2, 5).T.copy())
