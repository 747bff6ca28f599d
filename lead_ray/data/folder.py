"""Any folder of photographs of one object category, with or without landmarks.

Landmarks come as a COCO keypoints file: `images` [{id, file_name}], `annotations` [{image_id, keypoints:
[x, y, v, ...], bbox: [x, y, width, height]}], one annotation per image. v = 0 says not annotated; 1 and 2
count as visible here.
"""

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lead_ray.data.listing import in_order
from lead_ray.data.rows import Crop, Record

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Your own photographs: the largest centred square of each, or a square around its box."""

    name: ClassVar[str] = "folder"
    raw: Path
    """Folder that is searched with everything below it for jpg, jpeg, png, webp, bmp, tif and tiff files; also
    s3://BUCKET/... or gs://BUCKET/..., of which nothing is copied first. Names that begin with a dot are passed
    over."""
    landmarks: Path | None = None
    """COCO keypoints file, `file_name`s relative to the folder; only images annotated there are taken."""
    boxes: bool = False
    """Crop to the annotations' `bbox` instead of the centre."""
    box_factor: float = 1.25
    """Side of the square over the box's longer side."""
    test_fraction: float = 0.0
    """Share of images that go to the split "test", chosen by a hash of their path; the others are "train"."""

    def __post_init__(self):
        if self.boxes and self.landmarks is None:
            raise ValueError("boxes=True needs landmarks, the COCO file with the boxes")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction must be in [0, 1), got {self.test_fraction}")
        _ = self.crop  # checks box_factor

    @property
    def crop(self) -> Crop:
        return Crop(kind="box", box_factor=self.box_factor) if self.boxes else Crop(kind="centre")

    def records(self) -> Iterator[Record]:
        if not self.raw.is_dir():
            raise FileNotFoundError(f"raw={str(self.raw)!r} is not a folder: name the one that holds the pictures")
        return self.records_of(() if self.landmarks else _below(self.raw))

    def records_of(self, names: Iterable[str]) -> Iterator[Record]:
        """records(), of these names below the folder; with landmarks, of what is annotated."""
        if self.landmarks is not None:
            yield from self._annotated(self.landmarks)
            return
        empty = True
        for name in in_order(filter(is_image, names)):
            empty = False
            yield Record(image_id=name, path=self.raw / name, split=self._split(name))
        if empty:
            raise ValueError(f"raw={str(self.raw)!r} holds no image ({', '.join(sorted(SUFFIXES))})")

    def _split(self, name: str) -> str:
        draw = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8]) / 2**64
        return "test" if draw < self.test_fraction else "train"

    def _annotated(self, file: Path) -> Iterator[Record]:
        if not file.exists():
            raise FileNotFoundError(f"landmarks={str(file)!r} does not exist")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
        names = {}
        for where, image in _entries(file, content, "images"):
            names[_get(where, image, "id", int)] = _get(where, image, "file_name", str)
        annotated: dict[str, dict] = {}
        expected = None
        for where, annotation in _entries(file, content, "annotations"):
            image_id = _get(where, annotation, "image_id", int)
            if image_id not in names:
                raise ValueError(f"{where}: image_id {image_id} is not among the images")
            if names[image_id] in annotated:
                raise ValueError(f"{where}: a second annotation of {names[image_id]}; keep one per image")
            keypoints = _numbers(where, annotation, "keypoints")
            expected = expected or len(keypoints)
            if len(keypoints) % 3 or len(keypoints) != expected:
                raise ValueError(
                    f"{where}: {len(keypoints)} numbers in keypoints, expected "
                    f"{expected if expected % 3 == 0 else 'a multiple of 3'} (x, y, v of each point)"
                )
            triples = np.array(keypoints, np.float32).reshape(-1, 3)
            box = _numbers(where, annotation, "bbox") if "bbox" in annotation or self.boxes else None
            if box is not None and len(box) != 4:
                raise ValueError(f"{where}: bbox must be [x, y, width, height], got {box}")
            annotated[names[image_id]] = {
                "landmarks": triples[:, :2].copy(),
                "visible": triples[:, 2] > 0,
                "box": None if box is None else tuple(box),
            }
        for name in sorted(annotated):
            yield Record(image_id=name, path=self.raw / name, split=self._split(name), **annotated[name])


def is_image(name: str) -> bool:
    """Whether a name, or a path of names, ends as an image's does and is not hidden."""
    shown = not any(part.startswith(".") for part in name.split("/"))
    return shown and posixpath.splitext(name)[1].lower() in SUFFIXES


def _below(folder: Path) -> Iterator[str]:
    """Names of all that is below a folder and not hidden, from there, in no order. Links to folders are not followed.

    As Path.rglob(), which keeps all of them in memory, and looks into hidden folders.
    """
    waiting = [""]
    while waiting:
        at = waiting.pop()
        with suppress(PermissionError), os.scandir(folder / at) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                yield f"{at}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{at}{entry.name}/")


def _entries(file: Path, content: Any, key: str) -> Iterator[tuple[str, dict]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file}: {key!r} must be a list of objects, as in COCO's keypoint files")
    return ((f"{file}: {key}[{position}]", entry) for position, entry in enumerate(entries))


def _get(where: str, entry: dict, key: str, kind: type) -> Any:
    if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool):
        raise ValueError(f"{where}: {key!r} must be {kind.__name__}, got {entry.get(key)!r}")
    return entry[key]


def _numbers(where: str, entry: dict, key: str) -> list[float]:
    values = _get(where, entry, key, list)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{where}: {key!r} must hold numbers only, got {values[:6]}")
    try:
        return [float(value) for value in values]
    except OverflowError as error:  # JSON's integers have no end
        raise ValueError(f"{where}: {key!r} holds a number that is too large: {error}") from None
