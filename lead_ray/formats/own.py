"""This package's own JSON: all that Labels holds, exactly.

{"format": "lead_ray labels", "version": 1, "schema": {...}, "images": [{"file", "size", "points": [[x, y] or null],
 "marks": [0, 1 or 2], "box": [x, y, width, height] or absent, "confidence": [...] or absent}]}
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats import jsons
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, schema_from_json, schema_to_json

VERSION = 1


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    head = {"format": "lead_ray labels", "version": VERSION, "schema": schema_to_json(schema)}
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ',\n"images": ')
        jsons.write_list(file, (image_to_json(image) for image in images))
        file.write("}\n")


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    content = jsons.load(path)
    if not isinstance(content, dict) or not isinstance(content.get("schema"), dict):
        raise ValueError(f"{path}: no 'schema'; is it a file of another format?")
    if content.get("version", VERSION) > VERSION:
        raise ValueError(f"{path}: version {content['version']} is newer than this program's {VERSION}: update it")
    images = [image_from_json(where, entry) for where, entry in jsons.entries(str(path), content, "images")]
    try:
        found = schema_from_json(content["schema"])
    except ValueError as error:
        raise ValueError(f"{path}: schema: {error}") from None
    return Labels(schema=found, images=tuple(images))


def image_to_json(image: LabelledImage) -> dict:
    """One image, as JSON can hold it."""
    pairs = zip(image.points, image.marks, strict=True)
    entry = {
        "file": image.file,
        "size": list(image.size),
        "points": [[jsons.number(x), jsons.number(y)] if mark else None for (x, y), mark in pairs],
        "marks": image.marks.tolist(),
    }
    if image.box is not None:
        entry["box"] = list(image.box)
    if image.confidence is not None:
        entry["confidence"] = [jsons.number(value) for value in image.confidence]
    return entry


def image_from_json(where: str, entry: dict) -> LabelledImage:
    """What image_to_json() gave. Raises: ValueError naming what is wrong."""
    points = jsons.field(where, entry, "points", list)
    marks = [Mark.VISIBLE if point else Mark.MISSING for point in points]
    if "marks" in entry:
        marks = [int(mark) for mark in jsons.numbers(where, entry, "marks")]
    if len(points) != len(marks):
        raise ValueError(f"{where}: 'points' and 'marks' must be as many, got {len(points)} and {len(marks)}")
    if wrong := set(marks) - set(Mark):
        raise ValueError(f"{where}: 'marks' must be 0 (missing), 1 (occluded) or 2 (visible), got {min(wrong)}")
    try:
        placed = [[np.nan, np.nan] if point is None else [float(value) for value in point] for point in points]
        found = np.array(placed, np.float32).reshape(len(marks), 2)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: 'points' must be pairs of numbers, or null, got {points}") from None
    width, height = jsons.numbers(where, entry, "size", 2)
    box = tuple(jsons.numbers(where, entry, "box", 4)) if entry.get("box") is not None else None
    confidence = entry.get("confidence")
    if confidence is not None:
        confidence = np.array(jsons.numbers(where, entry, "confidence", len(marks)), np.float32)
    return LabelledImage(
        file=jsons.field(where, entry, "file", str),
        size=(int(width), int(height)),
        points=found,
        marks=np.array(marks, np.uint8),
        box=box,
        confidence=confidence,
    )
