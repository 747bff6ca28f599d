"""Landmarks of any number of images, in parts that an interrupted run does not repeat.

    OUT.parts/plan.json  part-000000.jsonl ...     while it runs: a line an image
    OUT                                            at the end, in the format that was asked for
    OUT.bad.csv                                    images that could not be used, and why

A part is written whole or not at all. Parts are made by this process, or by workers of Ray Data, each of which loads
the model once; images and parts must then lie on storage that every node sees.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lead_ray.artefacts import atomic, digest, read_json, write_json
from lead_ray.data.crops import BadImage
from lead_ray.data.folder import SUFFIXES, is_image
from lead_ray.formats.own import image_from_json, image_to_json
from lead_ray.formats.table import opened
from lead_ray.landmarks import model as landmark_model
from lead_ray.landmarks.framing import Box
from lead_ray.landmarks.labels import LabelledImage, Mark
from lead_ray.landmarks.model import BATCH, LandmarkModel

PART = 512  # images


class Item(NamedTuple):
    """One object to be looked at."""

    file: str
    """Path below the folder, with forward slashes."""
    box: Box | None


class Done(NamedTuple):
    """What a part brought."""

    images: int
    bad: int


def find(images: Path) -> tuple[Path, list[str]]:
    """A folder and the images in it and below it, in order of their names; of one image, its folder and itself.

    Raises: FileNotFoundError; ValueError if there is none.
    """
    if images.is_file():
        return images.parent, [images.name]
    if not images.is_dir():
        raise FileNotFoundError(
            f"images={str(images)!r} is neither a folder nor an image: name what is to be looked at"
        )
    found = []
    for folder, below, files in os.walk(images):
        below[:] = [name for name in below if not name.startswith(".")]
        at = Path(folder).relative_to(images).as_posix()
        found += [name if at == "." else f"{at}/{name}" for name in filter(is_image, files)]
    if not found:
        raise ValueError(f"images={str(images)!r} holds no image ({', '.join(sorted(SUFFIXES))})")
    return images, sorted(found)


def predict_parts(model: Path, root: Path, items: Sequence[Item], parts: Path, *, workers: int = 0) -> Iterator[Done]:
    """Write the parts that are missing; those that are there already come first.

    Workers: of Ray Data; 0: this process.
    """
    slices = [items[first : first + PART] for first in range(0, len(items), PART)]
    card = (model / "card.json").read_text(encoding="utf-8")
    listed = [[str(root.absolute()), card], *([file, list(box or ())] for file, box in items)]
    plan = {"images": len(items), "digest": digest({"items": listed})}
    if not (parts / "plan.json").exists() or read_json(parts / "plan.json") != plan:
        shutil.rmtree(parts, ignore_errors=True)  # of other images, or another model
        write_json(parts / "plan.json", plan)
    missing = []
    for number, some in enumerate(slices):
        if (part := _part(parts, number)).exists():
            bad = sum("error" in json.loads(line) for line in part.read_text(encoding="utf-8").splitlines())
            yield Done(len(some), bad)
        else:
            missing.append({"number": number, "items": json.dumps(some)})
    settings = {"model": model.absolute(), "root": root.absolute(), "parts": parts.absolute()}
    if workers == 0:
        work = PartWriter(**settings) if missing else None
        results: Iterable[dict] = (work(row) for row in missing)
    else:
        from lead_ray.ingest import by_actors

        results = by_actors(PartWriter, settings, missing, workers=workers)
    for result in results:
        yield Done(result["images"], result["bad"])


class PartWriter:
    """Predicts the images of one part at a time."""

    def __init__(self, model: Path, root: Path, parts: Path):
        self.model, self.root, self.parts = landmark_model.load(model), root, parts

    def __call__(self, row: dict) -> dict:
        """{"number", "items": JSON of pairs of file and box} -> {"images", "bad"}, once the part is written."""
        items = [Item(file, None if box is None else tuple(box)) for file, box in json.loads(row["items"])]
        lines = []
        for first in range(0, len(items), BATCH):
            lines += predict_some(self.model, self.root, items[first : first + BATCH])
        with atomic(_part(self.parts, row["number"])) as temporary:
            temporary.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
        return {"images": len(items), "bad": sum("error" in line for line in lines)}


def predict_some(model: LandmarkModel, root: Path, items: Sequence[Item]) -> list[dict]:
    """What a part holds of each image: own.image_to_json(), or {"file", "error"} of one that cannot be used."""
    lines: dict[int, dict] = {}
    sound, sizes, crops, views = [], [], [], []
    for place, item in enumerate(items):
        try:
            picture = landmark_model.upright(root / item.file)
            crop, view = landmark_model.framed(picture, item.box, model.card.framing)
        except BadImage as error:
            lines[place] = {"file": item.file, "error": str(error)}
            continue
        for kept, value in ((sound, place), (sizes, picture.size), (crops, crop), (views, view)):
            kept.append(value)
    found = model.predict_framed(crops, views) if crops else []
    for place, size, prediction in zip(sound, sizes, found, strict=True):
        missing = ~np.isfinite(prediction.points).all(1)
        image = LabelledImage(
            file=items[place].file,
            size=size,
            points=prediction.points,
            marks=np.where(missing, Mark.MISSING, Mark.VISIBLE).astype(np.uint8),
            box=items[place].box,
            confidence=prediction.confidence,
        )
        lines[place] = image_to_json(image)
    return [lines[place] for place in range(len(items))]


class Parts:
    """The images of finished parts; goes over the files anew each time, and keeps nothing."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __iter__(self) -> Iterator[LabelledImage]:
        return (image_from_json(where, line) for where, line in self._lines() if "error" not in line)

    def bad(self) -> Iterator[tuple[str, str]]:
        """File and reason of every image that could not be used."""
        return ((line["file"], line["error"]) for _, line in self._lines() if "error" in line)

    def _lines(self) -> Iterator[tuple[str, dict]]:
        for path in sorted(self.folder.glob("part-*.jsonl")):
            with path.open(encoding="utf-8") as file:
                yield from ((str(path), json.loads(line)) for line in file)


def write_bad(path: Path, bad: Iterable[tuple[str, str]]) -> int:
    """Write OUT.bad.csv, or take away an old one if nothing is bad; returns how many are."""
    bad = list(bad)
    if not bad:
        path.unlink(missing_ok=True)
        return 0
    with atomic(path) as temporary, opened(temporary, "w") as file:
        csv.writer(file).writerows([("file", "reason"), *bad])
    return len(bad)


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.jsonl"
