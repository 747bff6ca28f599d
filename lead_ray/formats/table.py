"""CSV: a row an image, columns `file, width, height, box_x, box_y, box_width, box_height` and for each landmark
`NAME_x, NAME_y, NAME_mark` (missing, occluded, visible), with confidences `NAME_confidence`.

Only `file` and the landmarks' x and y are needed to read one; an empty x is a missing point. pandas.read_csv reads it.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette

BOX = ("box_x", "box_y", "box_width", "box_height")


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    scored = any(image.confidence is not None for image in images)
    parts = ("x", "y", "mark", "confidence") if scored else ("x", "y", "mark")
    with atomic(path) as temporary, opened(temporary, "w") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "width", "height", *BOX, *(f"{name}_{part}" for name in schema.names for part in parts)])
        for image in images:
            row = [image.file, *image.size, *(image.box or ("",) * 4)]
            for place, ((x, y), mark) in enumerate(zip(image.points, image.marks, strict=True)):
                row += [x, y] if mark else ["", ""]
                row.append(Mark(mark).name.lower())
                if scored:
                    row.append("" if image.confidence is None else image.confidence[place])
            rows.writerow(row)


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    with opened(path, "r") as file:
        rows = csv.DictReader(file)
        columns = list(rows.fieldnames or ())
        names = tuple(name[:-2] for name in columns if name.endswith("_x") and f"{name[:-2]}_y" in columns)
        names = tuple(name for name in names if name != "box")
        if "file" not in columns or not names:
            raise ValueError(f"{path}: needs a column file and columns NAME_x, NAME_y of each landmark, has {columns}")
        if schema is not None and set(schema.names) == set(names):
            names = schema.names
        images = [_image(f"{path}: row {number}", row, names, size_of) for number, row in enumerate(rows, start=2)]
    return Labels(schema=Schema(names=names, colours=palette(len(names))), images=tuple(images))


def opened(path: Path, mode: str):
    """A CSV file; names of files that are not UTF-8 keep their bytes, a byte order mark is passed over."""
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return path.open(mode, encoding=encoding, errors="surrogateescape", newline="")


def number(where: str, text: str | None) -> float:
    """NaN for nothing. Raises: ValueError if it is not a number."""
    try:
        return float(text) if text and text.strip() else np.nan
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number") from None


def _image(where: str, row: dict, names: tuple[str, ...], size_of: Sizes) -> LabelledImage:
    points = np.array([[number(where, row[f"{name}_{axis}"]) for axis in "xy"] for name in names], np.float32)
    marks = np.array([_mark(where, row.get(f"{name}_mark"), point) for name, point in zip(names, points, strict=True)])
    points[marks == Mark.MISSING] = np.nan
    size = [number(where, row.get(side)) for side in ("width", "height")]
    box = [number(where, row.get(side)) for side in BOX]
    confidence = [number(where, row.get(f"{name}_confidence")) for name in names]
    return LabelledImage(
        file=row["file"],
        size=tuple(int(side) for side in size) if np.isfinite(size).all() else size_of(row["file"]),
        points=points,
        marks=marks.astype(np.uint8),
        box=tuple(box) if np.isfinite(box).all() else None,
        confidence=np.array(confidence, np.float32) if np.isfinite(confidence).all() else None,
    )


def _mark(where: str, word: str | None, point: np.ndarray) -> Mark:
    if not word:
        return Mark.VISIBLE if np.isfinite(point).all() else Mark.MISSING
    if word.upper() not in Mark.__members__:
        raise ValueError(f"{where}: a mark must be missing, occluded or visible, got {word!r}")
    return Mark[word.upper()]
