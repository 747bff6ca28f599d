"""AFLW_R: AFLW's faces in the tighter crops of lmdis-rep (Zhang et al., CVPR 2018), with five landmarks.

The folder is laid out as DVE reads it: `aflw_train_images.txt`, `aflw_train_keypoints.mat`, the same for `test`,
and the crops in `output/`; or as lmdis-rep gave it out, lists in `aflw_data/` and crops in `aflw_images/`. A
MATLAB file holds `gt` [n, 5, 2], (y, x) of left eye, right eye, nose, left and right mouth corner, and `hw`
[n, 2], height and width of each crop. 10,122 training and 2,991 test faces; 132 of the latter are duplicates, says
DVE's README, and count with everyone: a name that is listed again is kept, with a number behind it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lead_ray.data.celeba import find, table
from lead_ray.data.crops import Crop
from lead_ray.data.matlab import read
from lead_ray.data.rows import Record


@dataclass(frozen=True, kw_only=True)
class AflwR:
    """AFLW_R: splits "train" and "test", in file order."""

    name: ClassVar[str] = "aflw-r"
    raw: Path
    """Folder with the two lists, the two MATLAB files (SciPy reads them) and the crops."""

    @property
    def crop(self) -> Crop:
        """All of a crop, squashed to a square; landmarks x size / (width, height).

        Source: DVE, data_loaders.py at 2085144, 289-365.
        """
        return Crop(kind="whole", exact_centres=False)

    def records(self) -> Iterator[Record]:
        folder = find(self.raw, "output", "aflw_images")
        for split in ("train", "test"):
            listing, file = (
                find(self.raw, name, f"aflw_data/{name}")
                for name in (f"aflw_{split}_images.txt", f"aflw_{split}_keypoints.mat")
            )
            names = [name for _, (name,) in table(listing, columns=1)]
            points, sizes = (np.asarray(values) for values in read(file, "gt", "hw"))
            if points.shape != (len(names), 5, 2) or sizes.shape != (len(names), 2):
                raise ValueError(
                    f"{file}: gt must be [{len(names)}, 5, 2] and hw [{len(names)}, 2], as {listing.name} has names, "
                    f"got {list(points.shape)} and {list(sizes.shape)}"
                )
            seen: Counter[str] = Counter()
            for name, place, (height, width) in zip(names, points, sizes.tolist(), strict=True):
                seen[name] += 1
                yield Record(
                    image_id=name if seen[name] == 1 else f"{name} ({seen[name]})",
                    path=folder / name,
                    split=split,
                    landmarks=place[:, ::-1].astype(np.float32),
                    size=(int(width), int(height)),
                )
