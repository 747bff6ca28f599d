"""What a project knows: the points of its schema and where they lie in each image.

The state is a fold over the journal's entries and nothing else, so replaying the journal gives it back. Points have
numbers that never change or come back, so renaming, reordering and adding points keep what was clicked. Of two edits
of one point the later counts; its revision, the number of the entry, tells every page which that was.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lead_ray.landmarks.framing import Box
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema


@dataclass(frozen=True, kw_only=True)
class Point:
    """One landmark of the schema."""

    id: int
    name: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A schema whose points are told apart by number, not by place."""

    category: str = "object"
    points: tuple[Point, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of points' numbers."""
    normaliser: tuple[int, int] | None = None

    def schema(self) -> Schema:
        """The same by place. Raises: ValueError while there are no points."""
        place = {point.id: number for number, point in enumerate(self.points)}
        normaliser = self.normaliser
        return Schema(
            category=self.category,
            names=tuple(point.name for point in self.points),
            colours=tuple(point.colour for point in self.points),
            skeleton=tuple((place[first], place[second]) for first, second in self.skeleton),
            normaliser=(place[normaliser[0]], place[normaliser[1]]) if normaliser else None,
        )

    def renumbered(self, numbers: dict[int, int]) -> "Outline":
        """The same with other numbers for some points."""

        def pair(points: tuple[int, int]) -> tuple[int, int]:
            return numbers.get(points[0], points[0]), numbers.get(points[1], points[1])

        return Outline(
            category=self.category,
            points=tuple(replace(point, id=numbers.get(point.id, point.id)) for point in self.points),
            skeleton=tuple(pair(each) for each in self.skeleton),
            normaliser=pair(self.normaliser) if self.normaliser else None,
        )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What a person said of one point of one image."""

    mark: Mark
    """MISSING: looked for, and not in the image."""
    x: float | None
    y: float | None
    revision: int


@dataclass(frozen=True, kw_only=True)
class Boxed:
    """What a person said of where the object is in one image."""

    box: Box | None
    """None: taken back; the whole image is looked at."""
    revision: int


@dataclass
class State:
    """Everything that edits have said so far."""

    revision: int = 0
    """Number of the last entry; 0: none yet."""
    outline: Outline = field(default_factory=Outline)
    outline_revision: int = 0
    next_point: int = 0
    placed: dict[str, dict[int, Placed]] = field(default_factory=dict)
    """Image -> number of a point -> what was said; taken back: not in it."""
    taken_back: dict[str, dict[int, int]] = field(default_factory=dict)
    """Image -> number of a point -> the revision that took it back."""
    boxes: dict[str, Boxed] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Width and height of every image that was edited, as shown."""
    said: dict[str, int] = field(default_factory=dict)
    """Image -> how many of the schema's points something was said of; above 0."""
    skipped: set[str] = field(default_factory=set)
    requests: dict[str, int] = field(default_factory=dict)
    """Names of requests that were carried out, and their revisions: a page that asks again changes nothing."""

    def apply(self, entry: dict[str, Any]) -> None:
        """Take in one entry of the journal.

        Raises: ValueError if it does not follow the last one, or is of another kind.
        """
        if entry.get("revision") != self.revision + 1:
            raise ValueError(f"the journal's entry after {self.revision} says {entry.get('revision')}: one is lost")
        kinds = {"schema": self._schema, "points": self._points, "box": self._box, "skip": self._skip}
        if entry.get("kind") not in kinds:
            raise ValueError(
                f"entry {entry['revision']} of the journal is {entry.get('kind')!r}: made by a newer version"
            )
        kinds[entry["kind"]](entry)
        self.revision = entry["revision"]
        if entry.get("request"):
            self.requests[entry["request"]] = self.revision

    def _schema(self, entry: dict[str, Any]) -> None:
        self.outline = outline_from_json(entry["schema"])
        self.outline_revision = entry["revision"]
        self.next_point = max(self.next_point, *(point.id + 1 for point in self.outline.points))
        self.said = {}
        for image in self.placed:
            self._count(image)

    def _points(self, entry: dict[str, Any]) -> None:
        image = entry["image"]
        self.sizes[image] = (entry["size"][0], entry["size"][1])
        placed, gone = self.placed.setdefault(image, {}), self.taken_back.setdefault(image, {})
        for each in entry["points"]:
            if each["mark"] is None:
                placed.pop(each["id"], None)
                gone[each["id"]] = entry["revision"]
            else:
                mark = Mark(each["mark"])
                placed[each["id"]] = Placed(mark=mark, x=each["x"], y=each["y"], revision=entry["revision"])
                gone.pop(each["id"], None)
        self._count(image)

    def _box(self, entry: dict[str, Any]) -> None:
        box = None if entry["box"] is None else tuple(entry["box"])
        self.sizes[entry["image"]] = (entry["size"][0], entry["size"][1])
        self.boxes[entry["image"]] = Boxed(box=box, revision=entry["revision"])

    def _skip(self, entry: dict[str, Any]) -> None:
        (self.skipped.add if entry["skip"] else self.skipped.discard)(entry["image"])

    def _count(self, image: str) -> None:
        self.said[image] = len(self.known(image))
        if not self.said[image]:
            del self.said[image]

    def known(self, image: str) -> dict[int, Placed]:
        """What was said of the points that the schema has now."""
        placed = self.placed.get(image, {})
        return {point.id: placed[point.id] for point in self.outline.points if point.id in placed}

    def box(self, image: str) -> Box | None:
        """Where the object is; None: anywhere."""
        said = self.boxes.get(image)
        return said.box if said else None

    def finished(self, image: str) -> bool:
        """Every point of the schema was placed or said to be missing."""
        return bool(self.outline.points) and self.said.get(image) == len(self.outline.points)

    def clicks(self) -> dict[int, int]:
        """Number of every point of the schema -> images in which something was said of it."""
        counts = dict.fromkeys((point.id for point in self.outline.points), 0)
        for image in self.said:
            for point in self.known(image):
                counts[point] += 1
        return counts

    def labels(self, images: set[str] | None = None) -> Labels:
        """What fitting and file formats take: every image with at least one point, of those given.

        Raises: ValueError while the schema has no points.
        """
        schema = self.outline.schema()
        named = sorted(name for name in self.said if images is None or name in images)
        return Labels(schema=schema, images=tuple(self.labelled(name) for name in named))

    def labelled(self, image: str) -> LabelledImage:
        """One image's points in the schema's order; what was not said is missing."""
        count = len(self.outline.points)
        points, marks = np.full((count, 2), np.nan, np.float32), np.zeros(count, np.uint8)
        known = self.known(image)
        for place, point in enumerate(self.outline.points):
            said = known.get(point.id)
            if said is not None and said.mark != Mark.MISSING:
                points[place], marks[place] = (said.x, said.y), said.mark
        return LabelledImage(file=image, size=self.sizes[image], points=points, marks=marks, box=self.box(image))


def outline_to_json(outline: Outline) -> dict[str, Any]:
    return {
        "category": outline.category,
        "points": [{"id": point.id, "name": point.name, "colour": point.colour} for point in outline.points],
        "skeleton": [list(pair) for pair in outline.skeleton],
        "normaliser": list(outline.normaliser) if outline.normaliser else None,
    }


def outline_from_json(content: dict[str, Any]) -> Outline:
    """What outline_to_json gave, and what a page sends.

    Raises: ValueError when a field is missing, of another kind, or points at no point.
    """
    try:
        points = tuple(
            Point(id=int(each["id"]), name=str(each["name"]).strip(), colour=str(each["colour"]).lower())
            for each in content["points"]
        )
        pairs = tuple((int(first), int(second)) for first, second in content.get("skeleton", ()))
        normaliser = (int(ends[0]), int(ends[1])) if (ends := content.get("normaliser")) else None
        category = str(content.get("category", "object")).strip() or "object"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a schema of landmarks: {error!r}") from None
    if len({point.id for point in points}) != len(points):
        raise ValueError("every point of a schema has its own number")
    try:
        outline = Outline(category=category, points=points, skeleton=pairs, normaliser=normaliser)
        outline.schema()  # checks names, colours and pairs
    except KeyError as error:
        raise ValueError(f"skeleton and normaliser join points of the schema; {error} is none") from None
    return outline


def proposals_to_json(outline: Outline, predicted: Any) -> list[dict[str, Any]]:
    """Proposals by number of the point; a point that was never placed anywhere has none."""
    rows = zip(outline.points, predicted.points, predicted.confidence, predicted.spread, strict=True)
    return [
        {
            "id": point.id,
            "x": round(float(place[0]), 2),
            "y": round(float(place[1]), 2),
            "confidence": round(float(confidence), 3),
            "spread": round(float(spread), 2),
        }
        for point, place, confidence, spread in rows
        if np.isfinite(place).all()
    ]
