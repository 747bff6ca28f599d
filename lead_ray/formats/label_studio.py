"""Label Studio's JSON: a list of tasks with `keypointlabels` in % of the image's sides, measured from its corner.

A person's points are written as annotations, a model's as predictions, which Label Studio shows to be corrected.
Occlusion, which it does not know, goes into a region's `meta.text`. An image may have one object.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats import jsons
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette

OCCLUDED = "occluded"


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        jsons.write_list(file, _tasks(schema, images))


def _tasks(schema: Schema, images: Iterable[LabelledImage]) -> Iterator[dict[str, Any]]:
    seen = set()
    for number, image in enumerate(images, start=1):
        if image.file in seen:
            raise ValueError(f"{image.file!r} has several objects: this format holds one an image")
        seen.add(image.file)
        result = [_point(schema, image, place) for place, mark in enumerate(image.marks) if mark]
        if image.box is not None:
            result.append(_box(schema, image))
        group: dict[str, Any] = {"result": result}
        if image.confidence is not None:
            group |= {"model_version": "lead_ray", "score": jsons.number(image.confidence.mean())}
        kind = "annotations" if image.confidence is None else "predictions"
        yield {"id": number, "data": {"image": image.file}, "annotations": [], "predictions": [], kind: [group]}


def _region(image: LabelledImage, name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    sides = {"original_width": image.size[0], "original_height": image.size[1], "image_rotation": 0}
    return {"id": name, "from_name": "label", "to_name": "image", "type": kind, **sides, "value": value}


def _point(schema: Schema, image: LabelledImage, place: int) -> dict[str, Any]:
    x, y = (100 * (float(at) + 0.5) / side for at, side in zip(image.points[place], image.size, strict=True))
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [schema.names[place]]}
    region = _region(image, f"p{place}", "keypointlabels", value)
    if image.marks[place] == Mark.OCCLUDED:
        region["meta"] = {"text": [OCCLUDED]}
    if image.confidence is not None:
        region["score"] = jsons.number(image.confidence[place])
    return region


def _box(schema: Schema, image: LabelledImage) -> dict[str, Any]:
    sides = (*image.size, *image.size)
    shares = (100 * at / side for at, side in zip(image.box, sides, strict=True))
    value = dict(zip(("x", "y", "width", "height"), shares, strict=True))
    return _region(image, "box", "rectanglelabels", {**value, "rotation": 0, "rectanglelabels": [schema.category]})


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    tasks = [task for _, task in jsons.entries(str(path), {"tasks": jsons.load(path)}, "tasks")]
    groups = [(f"{path}: task {place}", task, *_group(task)) for place, task in enumerate(tasks)]
    names = dict.fromkeys(
        name for _, _, group, _ in groups if group for one in group for name in _labels(one, "keypointlabels")
    )
    if schema is not None:
        if unknown := [name for name in names if name not in schema.names]:
            raise ValueError(f"{path}: labels {unknown} are not in the schema {list(schema.names)}")
        names = dict.fromkeys(schema.names)
    if not names:
        raise ValueError(f"{path}: no keypointlabels in any task")
    found = schema or Schema(names=tuple(names), colours=palette(len(names)))
    images = [
        _image(where, task, group, scored, found, size_of) for where, task, group, scored in groups if group is not None
    ]
    return Labels(schema=found, images=tuple(images))


def _group(task: dict) -> tuple[list[dict] | None, bool]:
    """The regions of a task that count, and whether a model placed them: the last annotation that is not cancelled."""
    kept = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if kept:
        return kept[-1].get("result") or [], False
    guesses = task.get("predictions") or ()
    return (guesses[-1].get("result") or [], True) if guesses else (None, False)


def _labels(region: dict, kind: str) -> list[str]:
    return region.get("value", {}).get(kind) or [] if region.get("type", kind) == kind else []


def _image(where: str, task: dict, regions: list[dict], scored: bool, schema: Schema, size_of: Sizes) -> LabelledImage:
    file = _file(where, task.get("data") or {})
    size = next(
        ((one["original_width"], one["original_height"]) for one in regions if one.get("original_width")), None
    ) or size_of(file)
    points = np.full((len(schema.names), 2), np.nan, np.float32)
    marks = np.zeros(len(schema.names), np.uint8)
    confidence, box = np.zeros(len(schema.names), np.float32), None
    for region in regions:
        value = region.get("value", {})
        if _labels(region, "rectanglelabels"):
            share = jsons.numbers(where, {"box": [value.get(key) for key in ("x", "y", "width", "height")]}, "box", 4)
            box = tuple(part * side / 100 for part, side in zip(share, (*size, *size), strict=True))
        for name in _labels(region, "keypointlabels"):
            place = schema.names.index(name)
            if marks[place]:
                raise ValueError(f"{where}: {file!r} has {name!r} twice; one object an image is wanted")
            share = jsons.numbers(where, {name: [value.get("x"), value.get("y")]}, name, 2)
            points[place] = [part * side / 100 - 0.5 for part, side in zip(share, size, strict=True)]
            hidden = OCCLUDED in (region.get("meta") or {}).get("text", ())
            marks[place] = Mark.OCCLUDED if hidden else Mark.VISIBLE
            confidence[place] = region.get("score") or 0.0
    return LabelledImage(
        file=file, size=size, points=points, marks=marks, box=box, confidence=confidence if scored else None
    )


def _file(where: str, data: dict) -> str:
    """The image's path: of a local file by its `d=`, of an upload without the eight digits that it was given."""
    address = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if not address:
        raise ValueError(f"{where}: data names no image")
    if "/data/local-files/" in address:
        return parse_qs(urlsplit(address).query)["d"][0]
    if "/data/upload/" in address:
        return unquote(address.rpartition("/")[2]).partition("-")[2]
    if "://" in address:
        return unquote(urlsplit(address).path).lstrip("/")
    return address
