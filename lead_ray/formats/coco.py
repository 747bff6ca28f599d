"""COCO keypoints. v = 0, 1, 2 are the marks missing, occluded, visible; coordinates are those of pixel centres.

Colours and the normaliser go into the category, each point's confidence into its annotation, beside COCO's own keys.
Where there is no box, "bbox" is the points', as COCO wants one, and "lead_ray" says so. An image may have several
annotations.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats import jsons
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette, schema_from_json, schema_to_json

OF_POINTS = "of the points"


def is_of_points(annotation: dict) -> bool:
    """Whether its "bbox" is there only because COCO wants one."""
    said = annotation.get("lead_ray")
    return isinstance(said, dict) and said.get("bbox") == OF_POINTS


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    content = schema_to_json(schema)
    category = {
        "id": 1,
        "name": schema.category,
        "supercategory": schema.category,
        "keypoints": list(schema.names),
        "skeleton": [[first + 1, second + 1] for first, second in schema.skeleton],  # COCO counts from 1
        "lead_ray": {"colours": content["colours"], "normaliser": content["normaliser"]},
    }
    numbers = {file: number for number, file in enumerate(dict.fromkeys(image.file for image in images), start=1)}
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "landmarks by lead_ray"},\n"categories": ')
        file.write(json.dumps([category]) + ',\n"images": ')
        jsons.write_list(file, _image_entries(images, numbers))
        file.write(',\n"annotations": ')
        jsons.write_list(file, _annotations(images, numbers))
        file.write("}\n")


def _image_entries(images: Iterable[LabelledImage], numbers: dict[str, int]) -> Iterator[dict]:
    written = 0
    for image in images:
        if numbers[image.file] > written:  # the first of its annotations
            written = numbers[image.file]
            yield {"id": written, "file_name": image.file, "width": image.size[0], "height": image.size[1]}


def _annotations(images: Iterable[LabelledImage], numbers: dict[str, int]) -> Iterator[dict]:
    for number, image in enumerate(images, start=1):
        shown = image.marks != Mark.MISSING
        points = np.where(shown[:, None], image.points, 0)
        keypoints = [
            value
            for (x, y), mark in zip(points, image.marks, strict=True)
            for value in (jsons.number(x), jsons.number(y), int(mark))
        ]
        box = list(image.box) if image.box is not None else _box(image.points[shown])
        entry = {
            "id": number,
            "image_id": numbers[image.file],
            "category_id": 1,
            "keypoints": keypoints,
            "num_keypoints": int(shown.sum()),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        if image.box is None:
            entry["lead_ray"] = {"bbox": OF_POINTS}
        if image.confidence is not None:
            entry["confidence"] = [jsons.number(value) for value in image.confidence]
            entry["score"] = jsons.number(image.confidence.mean())
        yield entry


def _box(points: np.ndarray) -> list[float]:
    """Around the pixels of some points."""
    if not len(points):
        return [0.0, 0.0, 0.0, 0.0]
    low, high = points.min(0), points.max(0)
    return [jsons.number(value) for value in (*(low - 0.5).clip(min=0), *(high - low + 1))]


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    content = jsons.load(path)
    names, sizes = {}, {}
    for where, image in jsons.entries(str(path), content, "images"):
        number = jsons.field(where, image, "id", (int, str))
        names[number] = jsons.field(where, image, "file_name", str)
        if "width" in image and "height" in image:
            sizes[number] = tuple(int(jsons.field(where, image, side, int)) for side in ("width", "height"))
    annotations = list(jsons.entries(str(path), content, "annotations"))
    given = {entry.get("category_id") for _, entry in annotations if "keypoints" in entry}
    if len(given) > 1:
        raise ValueError(f"{path}: annotations of {len(given)} categories; keep one a file")
    found = _schema(path, content, given, schema)
    count, images = None if found is None else len(found.names), []
    for where, entry in annotations:
        if "keypoints" not in entry:
            continue
        number = jsons.field(where, entry, "image_id", (int, str))
        if number not in names:
            raise ValueError(f"{where}: image_id {number!r} is not among the images")
        size = sizes[number] if number in sizes else size_of(names[number])
        images.append(_image(where, entry, names[number], size, count))
        count = len(images[0].marks)
    if found is None:
        found = Schema(
            names=tuple(f"point {place}" for place in range(1, (count or 1) + 1)), colours=palette(count or 1)
        )
    return Labels(schema=found, images=tuple(images))


def _schema(path: Path, content: dict, given: set, schema: Schema | None) -> Schema | None:
    """Of the category that the annotations have; without annotations, of the first that has key points."""
    listed = [entry for _, entry in jsons.entries(str(path), content, "categories")] if "categories" in content else []
    for entry in listed:
        if entry.get("keypoints") and (not given or entry.get("id") in given):
            extra = entry.get("lead_ray") or {}
            return schema_from_json(
                {
                    "category": entry.get("name", "object"),
                    "names": entry["keypoints"],
                    "colours": extra.get("colours") or palette(len(entry["keypoints"])),
                    "skeleton": [[first - 1, second - 1] for first, second in entry.get("skeleton") or ()],
                    "normaliser": extra.get("normaliser"),
                }
            )
    return schema


def _image(where: str, entry: dict, file: str, size: tuple[int, int], count: int | None) -> LabelledImage:
    keypoints = jsons.numbers(where, entry, "keypoints", None if count is None else 3 * count)
    if len(keypoints) % 3:
        raise ValueError(f"{where}: {len(keypoints)} numbers in 'keypoints', expected x, y, v of each point")
    triples = np.array(keypoints, np.float64).reshape(-1, 3)
    marks = triples[:, 2].clip(0, 2).astype(np.uint8)
    box = None
    if entry.get("bbox") is not None and not is_of_points(entry):
        box = tuple(jsons.numbers(where, entry, "bbox", 4))
    confidence = entry.get("confidence")
    if confidence is not None:
        confidence = np.array(jsons.numbers(where, entry, "confidence", len(marks)), np.float32)
    return LabelledImage(
        file=file,
        size=size,
        points=np.where(marks[:, None] > 0, triples[:, :2], np.nan).astype(np.float32),
        marks=marks,
        box=box,
        confidence=confidence,
    )
