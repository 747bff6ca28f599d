"""A person's landmarks of a category: the schema that names them, and where they lie in each image.

What annotating writes, fitting reads and every file format is converted from and to. Points are (x, y) pixels of the
image as a viewer shows it (EXIF orientation applied), pixel centres at integers.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np

OUTSIDE = 0.5  # of an image's side: where a hidden landmark may be placed beyond its edge
SEVERAL = 3  # images, in all of which the points do not lie in the same corner


class Mark(IntEnum):
    """What is known of a point; the numbers are COCO's."""

    MISSING = 0
    OCCLUDED = 1
    VISIBLE = 2


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The landmarks of a category."""

    category: str = "object"
    names: tuple[str, ...]
    """One a landmark; all different."""
    colours: tuple[str, ...]
    """One a landmark, "#rrggbb"."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of landmarks joined by a line, counted from 0."""
    normaliser: tuple[int, int] | None = None
    """The two landmarks whose distance is 100 % in errors; None: the box's longer side."""

    def __post_init__(self):
        if not self.names or len(set(self.names)) != len(self.names) or not all(self.names):
            raise ValueError(f"names must be different and not empty, got {self.names}")
        if len(self.colours) != len(self.names):
            raise ValueError(f"colours must be as many as the {len(self.names)} names, got {len(self.colours)}")
        for colour in self.colours:
            if len(colour) != 7 or colour[0] != "#" or not set(colour[1:].lower()) <= set("0123456789abcdef"):
                raise ValueError(f"colours must be #rrggbb, got {colour!r}")
        for pair in (*self.skeleton, *([self.normaliser] if self.normaliser else [])):
            if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= point < len(self.names) for point in pair):
                raise ValueError(
                    f"skeleton and normaliser must join two of the landmarks 0 to {len(self.names) - 1}, got {pair}"
                )


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image's landmarks."""

    file: str
    """Path below the folder of images, with forward slashes."""
    size: tuple[int, int]
    """Width and height in pixels, as shown."""
    points: np.ndarray
    """float32 [K, 2]; NaN where missing."""
    marks: np.ndarray
    """uint8 [K], of Mark."""
    box: tuple[float, float, float, float] | None = None
    """x, y, width, height in pixels from the image's corner, so that the whole image is 0, 0, width, height; None: the
    whole image."""
    confidence: np.ndarray | None = None
    """float32 [K] in [0, 1], of points that a model placed; None: a person's."""

    def __post_init__(self):
        if self.points.shape != (len(self.marks), 2):
            raise ValueError(
                f"{self.file}: points must be [{len(self.marks)}, 2] for {len(self.marks)} marks, "
                f"got {list(self.points.shape)}"
            )
        placed = self.points[self.marks != Mark.MISSING]
        if not np.isfinite(placed).all():
            raise ValueError(f"{self.file}: points that are not missing must be finite numbers")
        if self.confidence is not None and self.confidence.shape != self.marks.shape:
            raise ValueError(f"{self.file}: confidence must be [{len(self.marks)}], got {list(self.confidence.shape)}")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The landmarks of a set of images."""

    schema: Schema
    images: tuple[LabelledImage, ...] = field(default=())

    def __post_init__(self):
        for image in self.images:
            if len(image.marks) != len(self.schema.names):
                raise ValueError(
                    f"{image.file}: has {len(image.marks)} points, the schema {len(self.schema.names)} names"
                )

    def by_file(self) -> dict[str, LabelledImage]:
        return {image.file: image for image in self.images}


def plausible(schema: Schema, images: Sequence[LabelledImage]) -> None:
    """Raises: ValueError naming points that no image can have, or an image that comes twice; of annotated images."""
    seen = set()
    for image in images:
        if (image.file, image.box) in seen:
            raise ValueError(f"{image.file} comes twice, and no boxes tell its objects apart")
        seen.add((image.file, image.box))
        width, height = image.size
        outside = np.abs(image.points / image.size - 0.5) > 0.5 + OUTSIDE
        for point in np.flatnonzero(outside.any(1) & (image.marks != Mark.MISSING)):
            x, y = image.points[point]
            raise ValueError(
                f"{schema.names[point]} of {image.file} is at ({x:g}, {y:g}), far outside the image of {width} x "
                f"{height} pixels: points are (x, y) in pixels of the image as a viewer shows it"
            )
    if len(images) >= SEVERAL:
        values = np.concatenate([image.points[image.marks != Mark.MISSING].ravel() for image in images])
        if np.quantile(np.abs(values), 0.95) <= 1:
            raise ValueError("nearly all points lie within a pixel of (0, 0): points are in pixels, not in shares")


def schema_to_json(schema: Schema) -> dict[str, Any]:
    """As JSON can hold it."""
    return {
        "category": schema.category,
        "names": list(schema.names),
        "colours": list(schema.colours),
        "skeleton": [list(pair) for pair in schema.skeleton],
        "normaliser": list(schema.normaliser) if schema.normaliser else None,
    }


def schema_from_json(content: dict[str, Any]) -> Schema:
    """What schema_to_json gave, or a person wrote: colours may be missing, and pairs name landmarks or count from 0.

    Raises: ValueError when a field is missing or of another kind.
    """
    if not isinstance(content.get("names"), list) or not content["names"]:
        raise ValueError(f"not a schema of landmarks: 'names' must be a list of names, got {content.get('names')!r}")
    names = tuple(str(name) for name in content["names"])
    colours = content.get("colours", palette(len(names)))
    normaliser = content.get("normaliser")
    try:
        return Schema(
            category=str(content.get("category", "object")),
            names=names,
            colours=tuple(str(colour) for colour in colours),
            skeleton=tuple(_pair(pair, names) for pair in content.get("skeleton", ())),
            normaliser=None if normaliser is None else _pair(normaliser, names),
        )
    except TypeError as error:
        raise ValueError(f"not a schema of landmarks: {error}") from None


def _pair(content: Any, names: tuple[str, ...]) -> tuple[int, int]:
    """Two landmarks, by name or number."""
    try:
        first, second = (names.index(each) if isinstance(each, str) else int(each) for each in content)
    except (TypeError, ValueError):
        raise ValueError(
            f"a pair of landmarks must be two of {list(names)}, or their numbers, got {content!r}"
        ) from None
    return first, second


def palette(count: int) -> tuple[str, ...]:
    """So many colours, "#rrggbb", neighbours easy to tell apart: hues a golden angle from each other."""
    shades = (colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.75, 0.95) for number in range(count))
    return tuple("#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades)


def unplaced(file: str, size: tuple[int, int], count: int) -> LabelledImage:
    """An image of which no point is known yet."""
    return LabelledImage(
        file=file,
        size=size,
        points=np.full((count, 2), np.nan, np.float32),
        marks=np.zeros(count, np.uint8),
    )


def placed(image: LabelledImage, point: int, x: float, y: float, mark: Mark = Mark.VISIBLE) -> LabelledImage:
    """The same image with one point put there, or taken away with Mark.MISSING."""
    points, marks = image.points.copy(), image.marks.copy()
    points[point] = (np.nan, np.nan) if mark == Mark.MISSING else (x, y)
    marks[point] = mark
    return replace(image, points=points, marks=marks)
