"""Which images' features are in memory: those that somebody asked for lately, and those of labelled images."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from lead_ray.annotating.folder import key
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.pictures import BadImage, open_rgb
from lead_ray.annotating.project import Project
from lead_ray.landmarks.framing import Box
from lead_ray.landmarks.labels import Labels

KEPT = 256  # images beside the labelled ones


@runtime_checkable
class Proposer(Protocol):
    """lead_ray.landmarks.proposer.Proposer, as far as it is used here."""

    def add_many(self, images: Sequence[tuple[str, Image.Image, Box | None]]) -> None: ...
    def __contains__(self, name: str) -> bool: ...
    def forget(self, name: str) -> None: ...
    def fit(self, labels: Labels) -> None: ...
    def propose(self, names: Sequence[str]) -> list[Any]: ...
    def embeddings(self, names: Sequence[str]) -> Float[np.ndarray, "n d"]: ...
    def held_out_error(self) -> Any: ...


class Encoded:
    """The images of one project that a proposer holds; for one thread."""

    def __init__(self, proposer: Proposer, project: Project, offers: Offers, publish: Callable[[dict[str, Any]], None]):
        self._proposer, self._project, self._offers, self._publish = proposer, project, offers, publish
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._boxes: dict[str, Box | None] = {}

    def add(self, names: Sequence[str]) -> None:
        """Encode those images that are not there yet, or were looked at in another box; what cannot be opened is named
        on the page.
        """
        images = []
        for name in names:
            self._recent[name] = None
            self._recent.move_to_end(name)
            box = self._drawn(name)
            if not self.current(name) and name in self._proposer:
                self._proposer.forget(name)
            self._boxes[name] = box
            if name not in self._proposer and name not in self._offers.broken:
                try:
                    images.append((name, open_rgb(self._project.pictures.path(name)), box))
                except BadImage as error:
                    self._offers.broken[name] = str(error)
                    self._publish({"kind": "broken", "image": key(name), "reason": str(error)})
        if images:
            self._proposer.add_many(images)
        while len(self._recent) > KEPT:
            old, _ = self._recent.popitem(last=False)
            with self._project.locked() as state:
                labelled = old in state.said
            if not labelled and old in self._proposer:
                self._proposer.forget(old)

    def current(self, name: str) -> bool:
        """Whether what was encoded of an image is what its box shows now."""
        return self._boxes.get(name) == self._drawn(name)

    def _drawn(self, name: str) -> Box | None:
        with self._project.locked() as state:
            return state.box(name)
