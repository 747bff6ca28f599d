"""Landmarks of people and of models in the files of other tools: one module a format.

    formats.write("coco", labels, "landmarks.json")
    labels = formats.read("deeplabcut", "CollectedData_me.csv", images="labeled-data")

A format's module has `write(schema, images, path)`, which goes over the images more than once but keeps none, and
`read(path, schema, size_of)`. Whatever a tool's convention is, points here are (x, y) pixels, pixel centres at
integers.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lead_ray.formats import jsons
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema


class Format(NamedTuple):
    """A kind of file."""

    title: str
    """For people."""
    suffix: str
    """With its dot; empty: a folder."""
    module: str
    """Below this package."""
    loses: str
    """What it cannot hold; empty: nothing."""


FORMATS = {
    "own": Format("lead_ray", ".json", "own", ""),
    "coco": Format("COCO keypoints", ".json", "coco", ""),
    "csv": Format("CSV, a row an image", ".csv", "table", "category, colours, skeleton, normaliser"),
    "pts": Format("300-W .pts, a file an image", "", "pts", "everything but the points"),
    "cvat": Format("CVAT for images 1.1", ".xml", "cvat", "normaliser, confidence"),
    "label-studio": Format("Label Studio JSON", ".json", "label_studio", "category, colours, skeleton, normaliser"),
    "deeplabcut": Format("DeepLabCut CollectedData", ".csv", "deeplabcut", "all but points, names and likelihood"),
    "sleap": Format("SLEAP labels", ".slp", "sleap", "colours, normaliser, boxes, occlusion"),
}


def write(format: str, labels: Labels, path: Path | str) -> None:
    """Write a file of that format, or for "pts" a folder; a file appears whole or not at all.

    Raises: ValueError for an unknown format, or for a name or number that the format cannot hold.
    """
    stream(format, labels.schema, labels.images, path)


def stream(format: str, schema: Schema, images: Iterable[LabelledImage], path: Path | str) -> None:
    """write() of images that need not be in memory; they are gone over more than once."""
    _module(format).write(schema, images, Path(path))


def read(format: str, path: Path | str, *, schema: Schema | None = None, images: Path | str | None = None) -> Labels:
    """Read a file of that format.

    Args:
        schema: names, and order, of the landmarks where the file has none; colours, skeleton and normaliser where the
            file's names are the same.
        images: folder of the images; their sizes are read there where the file does not state them.
    Raises: FileNotFoundError; ValueError naming the place in the file that is wrong, or what must be given besides.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no labels at {path}")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(
            f"images={str(images)!r} is not a folder: name the one below which the images lie that {path.name} names"
        )
    labels = _module(format).read(path, schema, Sizes(None if images is None else Path(images)))
    if schema is not None and labels.schema.names == schema.names:
        labels = Labels(schema=schema, images=labels.images)
    return labels


def guess(path: Path | str) -> str:
    """The format of a file, from its name and its beginning.

    Raises: FileNotFoundError; ValueError if it is none of FORMATS.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no labels at {path}")
    if path.is_dir():
        return "pts"
    suffix = path.suffix.lower()
    if suffix in (".xml", ".slp"):
        return {".xml": "cvat", ".slp": "sleap"}[suffix]
    if suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return "deeplabcut" if file.read(7) == "scorer," else "csv"
    if suffix == ".json":
        content = jsons.load(path)
        if isinstance(content, list):
            return "label-studio"
        if isinstance(content, dict):
            return "own" if "schema" in content else "coco"
    raise ValueError(
        f"{path}: of which format? `lead-ray convert` takes its name, --format, one of {', '.join(FORMATS)}"
    )


def _module(format: str):
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    return importlib.import_module(f"lead_ray.formats.{FORMATS[format].module}")
