"""CSV: a row an image, columns `file, width, height, box_x, box_y, box_width, box_height` and for each landmark
`NAME_x, NAME_y, NAME_mark` (missing, occluded, visible, or 0, 1, 2), with confidences `NAME_confidence`.

Only `file` and the landmarks' x and y are needed to read one; a point whose x and y are empty, or nan, is missing.
Semicolons with decimal commas are read, too. pandas.read_csv reads what is written.
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
    columns, rows = records(path)
    names = tuple(name[:-2] for name in columns if name.endswith("_x") and f"{name[:-2]}_y" in columns)
    names = tuple(name for name in names if name != "box")
    if "file" not in columns or not names:
        raise ValueError(f"{path}: needs a column file and columns NAME_x, NAME_y of each landmark, has {columns}")
    if schema is not None and set(schema.names) == set(names):
        names = schema.names
    images = tuple(_image(where, row, names, size_of) for where, row in rows)
    return Labels(schema=Schema(names=names, colours=palette(len(names))), images=images)


def records(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """A CSV file's columns, and its rows, each with the words that say where it is.

    Raises: ValueError for a row that has not the header's columns, or a column that comes twice.
    """
    found = []
    with opened(path, "r") as file:
        head = file.readline()
        file.seek(0)
        # Where numbers are written 31,5 spreadsheets separate by semicolons.
        european = ";" in head and "," not in head
        lines = csv.reader(file, delimiter=";" if european else ",")
        try:
            columns = [name.strip() for name in _without_end(next(lines, []), 0)]
            if len(set(columns)) < len(columns):
                twice = next(name for place, name in enumerate(columns) if name in columns[:place])
                raise ValueError(f"{path}: column {twice!r} comes twice")
            for row in filter(any, lines):
                where, row = f"{path}: line {lines.line_num}", _without_end(row, len(columns))
                if len(row) != len(columns):
                    raise ValueError(f"{where}: has {len(row)} columns, the header {len(columns)}")
                fields = zip(columns, row, strict=True)
                if european:
                    fields = ((name, cell if name == "file" else cell.replace(",", ".")) for name, cell in fields)
                found.append((where, dict(fields)))
        except csv.Error as error:
            raise ValueError(f"{path}: line {lines.line_num}: {error}") from None
    return columns, found


def _without_end(row: list[str], least: int) -> list[str]:
    """Without the empty columns that spreadsheets leave at its end."""
    while len(row) > least and not row[-1].strip():
        row = row[:-1]
    return row


def opened(path: Path, mode: str):
    """A CSV file; names of files that are not UTF-8 keep their bytes, a byte order mark is passed over."""
    encoding = "utf-8-sig" if mode == "r" else "utf-8"
    return path.open(mode, encoding=encoding, errors="surrogateescape", newline="")


def number(where: str, text: str | None) -> float:
    """NaN for nothing, or for nan. Raises: ValueError if it is not a number."""
    try:
        return float(text) if text and text.strip() else np.nan
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not a number") from None


def _image(where: str, row: dict, names: tuple[str, ...], size_of: Sizes) -> LabelledImage:
    points = np.array([[number(where, row[f"{name}_{axis}"]) for axis in "xy"] for name in names], np.float32)
    for name, point in zip(names, points, strict=True):
        if np.isfinite(point).sum() == 1:
            raise ValueError(f"{where}: {name} has one of x and y, got {row[f'{name}_x']!r}, {row[f'{name}_y']!r}")
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
    words = {**Mark.__members__, **{str(int(mark)): mark for mark in Mark}}
    meant = word.strip().upper().removesuffix(".0")  # as pandas writes whole numbers beside gaps
    if meant not in words:
        raise ValueError(f"{where}: a mark must be missing, occluded or visible, or 0, 1 or 2, got {word!r}")
    return words[meant]
