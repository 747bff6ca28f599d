"""What the page asks for and what it says, in the words of JSON. No network here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lead_ray.annotating import folder, pictures
from lead_ray.annotating.choose import ORDERS, Order
from lead_ray.annotating.curve import Curve
from lead_ray.annotating.engine import Engine
from lead_ray.annotating.hub import Hub
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.pictures import BadImage
from lead_ray.annotating.project import Project
from lead_ray.annotating.state import State, outline_to_json

PAGE = 500  # rows of the list of images in one answer, at most


class Desk:
    """One project as the page sees it. Every method may be called from any thread."""

    def __init__(self, project: Project, offers: Offers, curve: Curve, hub: Hub, engine: Engine | None = None):
        self.project, self._offers, self._curve = project, offers, curve
        self._hub, self._engine = hub, engine
        self._sizes: dict[str, tuple[int, int]] = {}
        self._unlearnt = False  # edits that the read-out does not know yet
        project.listen(self._tell)

    def path(self, key: str) -> Path:
        """Raises: KeyError if there is no such picture."""
        return self.project.pictures.path(self.project.name(key))

    def revision(self) -> int:
        with self.project.locked() as state:
            return state.revision

    def state(self) -> dict[str, Any]:
        """What a page needs to begin."""
        with self.project.locked() as state:
            return {
                "project": self.project.path.name,
                "folder": str(self.project.pictures.root),
                "path": str(self.project.path),
                "revision": state.revision,
                "schema": outline_to_json(state.outline),
                "schemaRevision": state.outline_revision,
                "clicks": {str(point): count for point, count in state.clicks().items()},
                "counts": self._counts(state),
                "orders": list(ORDERS),
                "curve": self._curve.points(),
                "model": self.project.model,
                "status": self._engine.status() if self._engine else None,
            }

    def images(self, *, which: str, search: str, start: int, count: int) -> dict[str, Any]:
        """A page of the list of images.

        Raises: ValueError if `which` is no kind of image.
        """
        kinds = ("all", "todo", "begun", "finished", "skipped", "broken")
        if which not in kinds:
            raise ValueError(f"which must be one of {', '.join(kinds)}, got {which!r}")
        with self.project.locked() as state:
            if which == "all" and not search:  # the whole list, of which only a page is looked at
                names: list[str] | tuple[str, ...] = self.project.pictures.names
            else:
                names = list(self._matching(state, which, search.casefold()))
            rows = [self._row(state, name) for name in names[start : start + min(count, PAGE)]]
        return {"total": len(names), "rows": rows}

    def image(self, key: str) -> dict[str, Any]:
        """One image, to be shown. Raises: KeyError; BadImage with the reason if it cannot be opened."""
        name = self.project.name(key)
        size = self._size(name)
        with self.project.locked() as state:
            content = {
                **self._row(state, name),
                "size": list(size),
                "points": {
                    str(point): {"mark": int(said.mark), "x": said.x, "y": said.y, "revision": said.revision}
                    for point, said in state.placed.get(name, {}).items()
                },
                "box": state.box(name),
                "boxRevision": state.boxes[name].revision if name in state.boxes else 0,
                "takenBack": {str(point): number for point, number in state.taken_back.get(name, {}).items()},
            }
        if self._engine is not None:
            if self._unlearnt:  # the person has left an image half done: what there is of it may be learned from
                self._unlearnt = False
                self._engine.refit()
            content["proposals"] = self._engine.show(name)
        return content

    def next(self, order: Order, after: str | None) -> dict[str, Any]:
        """The image to show after another one; "image" is None when none is left."""
        known = after in self.project.pictures.keys
        offer = self._offers.next(order, after=self.project.name(after) if known else None)
        if offer is None:
            return {"image": None, "reason": "every image is labelled, set aside or broken"}
        return {"image": folder.key(offer.name), "reason": offer.reason}

    def edit(self, content: dict[str, Any]) -> dict[str, Any]:
        """Place points: {"image": key, "points": [...], "request": id}; answers once they are on the disk."""
        name = self.project.name(str(content.get("image")))
        points = content.get("points")
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise ValueError("points must be a list of objects")
        revision = self.project.edit_points(name, points, size=self._size(name), request=_request(content))
        with self.project.locked() as state:
            finished = state.finished(name)
        self._unlearnt = not finished
        if finished and self._engine is not None:
            self._engine.refit()
        return {"revision": revision}

    def edit_box(self, content: dict[str, Any]) -> dict[str, Any]:
        """Say where the object is: {"image": key, "box": [x, y, width, height] | None, "request": id}."""
        if "box" not in content:
            raise ValueError("box must be null or four numbers, and is not there")
        name = self.project.name(str(content.get("image")))
        revision = self.project.edit_box(name, content["box"], size=self._size(name), request=_request(content))
        with self.project.locked() as state:
            labelled = name in state.said
        if self._engine is not None:
            self._engine.reframe(name, labelled=labelled)
        return {"revision": revision}

    def skip(self, content: dict[str, Any]) -> dict[str, Any]:
        """Set an image aside: {"image": key, "skip": bool, "request": id}."""
        if not isinstance(content.get("skip"), bool):
            raise ValueError("skip must be true or false")
        name = self.project.name(str(content.get("image")))
        revision = self.project.skip(name, content["skip"], request=_request(content))
        if self._engine is not None:
            self._engine.refit()
        return {"revision": revision}

    def edit_schema(self, content: dict[str, Any]) -> dict[str, Any]:
        """Change the schema: {"schema": {...}, "base": revision, "request": id}."""
        base = content.get("base")
        if not isinstance(base, int) or not isinstance(content.get("schema"), dict):
            raise ValueError("send the schema and base, the revision that it was changed from")
        revision = self.project.edit_schema(content["schema"], base=base, request=_request(content))
        if self._engine is not None:
            self._engine.refit()
        return {"revision": revision}

    def _tell(self, entry: dict[str, Any]) -> None:
        event = {name: value for name, value in entry.items() if name not in ("time", "size")}
        if "image" in event:
            event["image"] = folder.key(event["image"])
        with self.project.locked() as state:
            self._hub.publish(event | {"counts": self._counts(state)})

    def _size(self, name: str) -> tuple[int, int]:
        if name not in self._sizes:
            try:
                self._sizes[name] = pictures.size(self.project.pictures.path(name))
            except BadImage as error:
                self._offers.broken[name] = str(error)
                raise
        return self._sizes[name]

    def _counts(self, state: State) -> dict[str, int]:
        finished = sum(count == len(state.outline.points) for count in state.said.values())
        return {
            "images": len(self.project.pictures.names),
            "finished": finished,
            "begun": len(state.said) - finished,
            "skipped": len(state.skipped),
            "broken": len(self._offers.broken),
        }

    def _matching(self, state: State, which: str, search: str) -> Iterator[str]:
        for name in self.project.pictures.names:
            if which in ("all", self._kind(state, name)) and search in name.casefold():
                yield name

    def _kind(self, state: State, name: str) -> str:
        if name in self._offers.broken:
            return "broken"
        if name in state.skipped:
            return "skipped"
        if name not in state.said:
            return "todo"
        return "finished" if state.finished(name) else "begun"

    def _row(self, state: State, name: str) -> dict[str, Any]:
        row = {"key": folder.key(name), "name": name, "kind": self._kind(state, name)}
        return row | ({"reason": self._offers.broken[name]} if name in self._offers.broken else {})


def _request(content: dict[str, Any]) -> str | None:
    request = content.get("request")
    if request is not None and (not isinstance(request, str) or not 8 <= len(request) <= 64):
        raise ValueError("request must be a string of 8 to 64 characters")
    return request
