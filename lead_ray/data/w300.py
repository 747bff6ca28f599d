"""300-W: 68 landmarks on faces of AFW, HELEN, LFPW and iBUG (Sagonas et al., ICCV workshops 2013).

Official folders: `afw`, `helen/trainset`, `helen/testset`, `lfpw/trainset`, `lfpw/testset`, `ibug`, with a `.pts`
file beside each photograph, and `Bounding Boxes` with a MATLAB file for each. Points count from 1. 3,148 faces
train and 689 test, of which 135 are iBUG's: those whose names begin with "image".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from lead_ray.data.celeba import find, lookup, table
from lead_ray.data.crops import Crop
from lead_ray.data.matlab import read
from lead_ray.data.rows import Record

SOURCES = {
    "train": ("afw", "helen/trainset", "lfpw/trainset"),
    "test": ("helen/testset", "lfpw/testset", "ibug"),
}
CROPPED = {"train": "train.txt", "test": "test_common.txt"}
POINTS = 68


@dataclass(frozen=True, kw_only=True)
class W300:
    """300-W: splits "train" and "test", each source in ascending order of name."""

    name: ClassVar[str] = "300w"
    raw: Path
    """Folder with afw/, helen/, lfpw/, ibug/ and, for the official boxes, "Bounding Boxes/"."""
    boxes: Literal["official", "points", "cropped"] = "official"
    """official: `bb_ground_truth` of the MATLAB files (SciPy reads them), as DVE, CL and LEAD do; points: the
    extent of the 68 points, which is what those boxes are said to be; cropped: no box, for a folder of square
    crops with .pts files that train.txt and test_common.txt name, resized whole: not the paper's protocol."""

    @property
    def crop(self) -> Crop:
        if self.boxes == "cropped":
            return Crop(kind="centre", first_pixel=1.0, exact_centres=False)
        return Crop(kind="framed", first_pixel=1.0, exact_centres=False)

    def records(self) -> Iterator[Record]:
        if self.boxes == "cropped":
            for split, file in CROPPED.items():
                for _, (name,) in table(find(self.raw, file), columns=1):
                    yield _record(self.raw, name, split)
            return
        for split, sources in SOURCES.items():
            for source in sources:
                yield from self._source(source, split)

    def _source(self, source: str, split: str) -> Iterator[Record]:
        folder = find(self.raw, source)
        annotated = sorted(folder.glob("image*.pts" if source == "ibug" else "*.pts"))
        if not annotated:
            raise ValueError(f"{folder} holds no .pts file")
        file = self.raw / f"Bounding Boxes/bounding_boxes_{source.replace('/', '_')}.mat"
        boxes = _official(file) if self.boxes == "official" else None
        for path in annotated:
            image = next((found for end in (".jpg", ".png") if (found := path.with_suffix(end)).exists()), None)
            name = (image or path.with_suffix(".jpg")).name
            box = None if boxes is None else lookup(boxes, _key(name), file)
            yield _record(self.raw, f"{source}/{name}", split, box)


def _record(raw: Path, name: str, split: str, box: np.ndarray | None = None) -> Record:
    """`box`: x and y of the first and of the last pixel; None: the extent of the points."""
    path = raw / name
    points = read_points(path.with_suffix(".pts"))
    first, last = (points.min(0), points.max(0)) if box is None else (box[:2], box[2:])
    around = (*first.tolist(), *(last - first + 1).tolist())
    return Record(image_id=name, path=path, split=split, box=around, landmarks=points)


def read_points(path: Path) -> np.ndarray:
    """The points of a .pts file: [68, 2], (x, y), the first pixel at (1, 1).

    Raises: FileNotFoundError, ValueError naming file and line: "version: 1", "n_points: 68", and in braces a line
      with two numbers for each point.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    filled = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    words = [line for _, line in filled]
    if len(words) < 4 or words[1] != ["n_points:", str(POINTS)] or words[2] != ["{"] or words[-1] != ["}"]:
        raise ValueError(f"{path}: expected 'version: 1', 'n_points: {POINTS}', '{{', the points, '}}'")
    if len(words) != POINTS + 4:
        raise ValueError(f"{path}: states {POINTS} points, but {len(words) - 4} lines follow")
    points = np.empty((POINTS, 2), np.float32)
    for point, (number, line) in enumerate(filled[3:-1]):
        try:
            x, y = map(float, line)
        except ValueError:
            raise ValueError(f"{path}, line {number}: expected x and y, got {' '.join(line)!r}") from None
        points[point] = x, y
    return points


def _official(path: Path) -> dict[str, np.ndarray]:
    """_key() of the file name -> bb_ground_truth: x and y of the first and of the last pixel."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: put 300-W's boxes there, or take the points' with --boxes points"
        )
    (entries,) = read(path, "bounding_boxes")
    entries = [entries] if isinstance(entries, dict) else list(entries)
    try:
        return {
            _key(entry["imgName"]): np.asarray(entry["bb_ground_truth"], np.float64).reshape(4) for entry in entries
        }
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: an entry has no imgName or no bb_ground_truth of four numbers ({error})") from None


def _key(name: str) -> str:
    """Without ending and blanks: iBUG has a file "image_092 _01.jpg"."""
    return Path(name).stem.replace(" ", "")
