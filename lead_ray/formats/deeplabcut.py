"""DeepLabCut's CollectedData_SCORER.csv: three header rows scorer, bodyparts, coords; a row an image.

An image's path stands in one column, or since DeepLabCut 2.2 in three (labeled-data, folder, file); it is written in
three where it has three parts. A model's points have a column `likelihood` each, as in DeepLabCut's predictions.
Missing points are empty. Sizes come from the images.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats.sizes import Sizes
from lead_ray.formats.table import number, opened
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette

SCORER = "lead_ray"


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    scored, deep, seen = False, True, set()
    for image in images:
        scored |= image.confidence is not None
        deep &= image.file.count("/") == 2
        if image.file in seen:
            raise ValueError(f"{image.file!r} has several objects: this format holds one an image")
        seen.add(image.file)
    coordinates = ("x", "y", "likelihood") if scored else ("x", "y")
    columns = [(name, coordinate) for name in schema.names for coordinate in coordinates]
    index = 3 if deep and seen else 1
    blank = [""] * (index - 1)
    with atomic(path) as temporary, opened(temporary, "w") as file:
        rows = csv.writer(file)
        rows.writerow(["scorer", *blank, *(SCORER for _ in columns)])
        rows.writerow(["bodyparts", *blank, *(name for name, _ in columns)])
        rows.writerow(["coords", *blank, *(coordinate for _, coordinate in columns)])
        for image in images:
            row = image.file.split("/") if index == 3 else [image.file]
            for place, ((x, y), mark) in enumerate(zip(image.points, image.marks, strict=True)):
                row += [x, y] if mark else ["", ""]
                if scored:
                    row.append("" if image.confidence is None else image.confidence[place])
            rows.writerow(row)


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    with opened(path, "r") as file:
        rows = [row for row in csv.reader(file) if row]
    heads = {row[0]: row for row in rows[:4] if row[0] in ("scorer", "individuals", "bodyparts", "coords")}
    if not {"scorer", "bodyparts", "coords"} <= set(heads):
        raise ValueError(f"{path}: must begin with rows scorer, bodyparts and coords")
    first = next((place for place, word in enumerate(heads["coords"]) if word in ("x", "y", "likelihood")), 0)
    if first not in (1, 3):
        raise ValueError(f"{path}: the row coords must name x and y after 1 or 3 columns of the image's path")
    individuals = set(heads.get("individuals", ())[first:])
    if len(individuals) > 1:
        raise ValueError(f"{path}: holds {len(individuals)} individuals; one animal an image is wanted")
    columns: dict[str, dict[str, int]] = {}
    for place in range(first, len(heads["bodyparts"])):
        columns.setdefault(heads["bodyparts"][place], {})[heads["coords"][place]] = place
    if any(not {"x", "y"} <= set(parts) for parts in columns.values()):
        raise ValueError(f"{path}: every body part must have the columns x and y")
    images = [
        _image(f"{path}: row {count}", row, first, columns, size_of)
        for count, row in enumerate(rows[len(heads) :], start=len(heads) + 1)
    ]
    return Labels(schema=Schema(names=tuple(columns), colours=palette(len(columns))), images=tuple(images))


def _image(where: str, row: list[str], first: int, columns: dict[str, dict[str, int]], size_of: Sizes) -> LabelledImage:
    width = max(place for parts in columns.values() for place in parts.values()) + 1
    if len(row) < width:
        raise ValueError(f"{where}: has {len(row)} columns, the header {width}")
    file = "/".join(part.replace("\\", "/") for part in row[:first] if part)
    cells = [[number(where, row[parts[axis]]) for axis in "xy"] for parts in columns.values()]
    points = np.array(cells, np.float32)
    likelihood = [
        number(where, row[parts["likelihood"]]) if "likelihood" in parts else np.nan for parts in columns.values()
    ]
    marks = np.where(np.isfinite(points).all(1), Mark.VISIBLE, Mark.MISSING).astype(np.uint8)
    points[marks == Mark.MISSING] = np.nan
    return LabelledImage(
        file=file,
        size=size_of(file),
        points=points,
        marks=marks,
        confidence=np.array(likelihood, np.float32) if np.isfinite(likelihood).all() else None,
    )
