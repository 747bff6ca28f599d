"""A project's folder, and the one place where its state changes.

PROJECT/
    project.json      which images, which model, and what it is shown
    journal.jsonl     every edit; the truth
    schema.json       the points as they are now, for people and other programs
    features/         what the encoder said of the images; may be deleted
    curve.json        held-out errors by number of labelled images; may be deleted
    exports/          labels in the formats that were asked for
    address           secret part of the page's address
"""

import json
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lead_ray import locks, storage
from lead_ray.annotating import folder
from lead_ray.annotating.journal import Journal
from lead_ray.annotating.state import Outline, State, outline_from_json, outline_to_json
from lead_ray.landmarks.labels import Labels, Mark, schema_to_json

FORMAT_VERSION = 1
SMALLEST = 4  # pixels of a side of a box: less is a click that slipped


class Conflict(ValueError):
    """An edit of something that has changed since the page saw it."""


class Project:
    """Images, journal and state. Every method may be called from any thread."""

    def __init__(self, path: Path, images: Path, *, model: str | None = None, side: int | None = None):
        """Open a project, or begin one.

        model, side: None is what the project was last opened with; another model begins with its own side.
        Raises: FileNotFoundError, ValueError if the images are not there, the journal is damaged, or the project is
          of other images.
        """
        self.path = path
        self.pictures = folder.find(images)
        about = {"format_version": FORMAT_VERSION, "images": str(images.resolve()), "model": model, "side": side}
        stamp = path / "project.json"
        if stamp.exists():
            kept = json.loads(stamp.read_text())
            if kept.get("format_version") != FORMAT_VERSION:
                raise ValueError(f"project={str(path)!r} was made by another version: {stamp}")
            if kept["images"] != about["images"]:
                raise ValueError(
                    f"project={str(path)!r} is of the images in {kept['images']}, not {about['images']}: name another "
                    f"--project, or, if that folder was moved, change it in {stamp}"
                )
            known = kept.get("model")
            if None in (model, known) or model == known:
                about |= {"model": model or known, "side": side or kept.get("side")}
        _write_json(stamp, about)
        self.model: str | None = about["model"]
        self.side: int | None = about["side"]
        self._lock = threading.RLock()
        self._journal = Journal(path / "journal.jsonl")
        self.state = State()
        for entry in self._journal.entries:
            self.state.apply(entry)
        self._present = frozenset(self.pictures.names)
        self._listeners: list[Callable[[dict[str, Any]], None]] = []

    @contextmanager
    def locked(self) -> Iterator[State]:
        """The state, which nobody changes meanwhile."""
        with self._lock:
            yield self.state

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Have every later entry, in order, as soon as it is saved."""
        self._listeners.append(listener)

    def name(self, key: str) -> str:
        """Raises: KeyError if there is no such picture."""
        return self.pictures.names[self.pictures.keys[key]]

    def edit_points(
        self, name: str, points: list[dict[str, Any]], *, size: tuple[int, int], request: str | None = None
    ) -> int:
        """Place points of one image or take them back; returns the revision once that is on the disk.

        Points: {"id", "mark": 0 | 1 | 2 | None, "x", "y", "by"}; None takes back what was said.
        Raises: ValueError if one is not of the schema or lies outside the image.
        """
        with self._lock:
            known = {point.id for point in self.state.outline.points}
            checked = [_checked(point, known, size) for point in points]
            if not checked:
                raise ValueError("an edit holds at least one point")
            return self._append({"kind": "points", "image": name, "size": list(size), "points": checked}, request)

    def edit_box(self, name: str, box: Any, *, size: tuple[int, int], request: str | None = None) -> int:
        """Say where the object is in an image, x, y, width, height from its corner, or take that back with None.

        Raises: ValueError if the box is none, is smaller than SMALLEST or reaches past the image.
        """
        checked = None if box is None else _checked_box(box, size)
        return self._append({"kind": "box", "image": name, "size": list(size), "box": checked}, request)

    def skip(self, name: str, skip: bool, *, request: str | None = None) -> int:
        """Set an image aside, or take it back."""
        return self._append({"kind": "skip", "image": name, "skip": skip}, request)

    def edit_schema(self, content: dict[str, Any], *, base: int, request: str | None = None) -> int:
        """Replace the schema; points without a number of this project's, below 0 in what is sent, get new ones.

        Raises: Conflict if the schema was changed after revision `base`; ValueError as outline_from_json().
        """
        with self._lock:
            if request in self.state.requests:
                return self.state.requests[request]
            if base != self.state.outline_revision:
                raise Conflict("the points were changed in another tab meanwhile: look at them, then change them again")
            outline = _numbered(content, self.state)
            revision = self._append({"kind": "schema", "schema": outline_to_json(outline)}, request)
            _write_json(self.path / "schema.json", schema_to_json(outline.schema()))
            return revision

    def labels(self) -> Labels:
        """Labels of the images that are in the folder and not set aside. Raises: ValueError without a schema."""
        with self._lock:
            return self.state.labels((self.state.said.keys() & self._present) - self.state.skipped)

    def secret(self) -> str:
        """Secret part of the page's address; kept, so that open tabs find a server that was started again."""
        path = self.path / "address"
        kept = path.read_text() if path.exists() else ""
        if len(kept) < 32:
            kept = secrets.token_urlsafe(24)
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(kept)
        return kept

    def close(self) -> None:
        self._journal.close()

    def _append(self, entry: dict[str, Any], request: str | None) -> int:
        with self._lock:
            if request is not None and request in self.state.requests:
                return self.state.requests[request]
            time = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"revision": self.state.revision + 1, "time": time, "request": request, **entry}
            self._journal.append(entry)
            self.state.apply(entry)
            for listener in self._listeners:
                listener(entry)
            return entry["revision"]


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other servers from a project; the lock goes with this process, however it ends.

    Raises: ValueError if another process holds it. What is raised before anything was kept leaves no folder behind.
    """
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    mine = False
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.held(path))
            except ValueError:
                raise ValueError(f"project={str(path)!r} is open in another lead-ray annotate: use its page") from None
            mine = True
            yield
    except BaseException:
        with suppress(OSError):  # somebody else has put something there, or holds it: then it stays
            if mine and new and [each.name for each in path.iterdir()] == [locks.NAME]:
                (path / locks.NAME).unlink()
                for each in new:
                    each.rmdir()
        raise


def _write_json(path: Path, content: dict[str, Any]) -> None:
    storage.write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")


def _checked(point: dict[str, Any], known: set[int], size: tuple[int, int]) -> dict[str, Any]:
    number, mark = point.get("id"), point.get("mark")
    if number not in known:
        raise ValueError(f"point {number} is not in the schema; reload the page")
    if mark is not None and (isinstance(mark, bool) or mark not in list(Mark)):
        raise ValueError(f"mark must be 0 (missing), 1 (occluded), 2 (visible) or null, got {mark!r}")
    checked = {"id": number, "mark": mark, "x": None, "y": None, "by": str(point.get("by", "hand"))[:16]}
    if not mark:
        return checked
    for axis, limit in (("x", size[0]), ("y", size[1])):
        value = point.get(axis)
        # Pixel centres are integers, so the first pixel begins at -0.5.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -0.5 <= value <= limit - 0.5:
            raise ValueError(f"{axis} must be a number from -0.5 to {limit - 0.5}, within the image, got {value!r}")
        checked[axis] = round(float(value), 3)
    return checked


def _checked_box(box: Any, size: tuple[int, int]) -> list[float]:
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(side, int | float) and not isinstance(side, bool) and math.isfinite(side) for side in box)
    ):
        raise ValueError(f"box must be null or four numbers, x, y, width, height, got {box!r}")
    x, y, width, height = (round(float(side), 3) for side in box)
    inside = x >= 0 and y >= 0 and x + width <= size[0] + 1e-3 and y + height <= size[1] + 1e-3
    if min(width, height) < min(SMALLEST, *size) or not inside:
        raise ValueError(
            f"box must have sides of at least {SMALLEST} pixels and lie within the {size[0]}x{size[1]} pixels of the "
            f"image, got {box}"
        )
    return [x, y, width, height]


def _numbered(content: Any, state: State) -> Outline:
    """The schema that a page sends, its new points numbered."""
    sent = outline_from_json(content)
    known = {point.id for point in state.outline.points}
    if gone := [point.name for point in sent.points if point.id >= 0 and point.id not in known]:
        raise Conflict(
            f"{', '.join(gone)}: removed in another tab meanwhile; look at the points, then change them again"
        )
    new = [point.id for point in sent.points if point.id < 0]
    return sent.renumbered(dict(zip(new, range(state.next_point, state.next_point + len(new)), strict=True)))
