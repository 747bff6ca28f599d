"""Which image the page shows next, in the order that the person chose."""

import random
import threading
from collections.abc import Iterable
from typing import NamedTuple

from lead_ray.annotating.choose import MOST, Order, covering
from lead_ray.annotating.embeddings import Embeddings
from lead_ray.annotating.project import Project

KEPT = 16  # offers computed ahead: what a person labels before the next are there
ENOUGH = 48  # embedded images from which the first choice is made; before that, chance


class Offer(NamedTuple):
    """An image to annotate next."""

    name: str
    reason: str


class Offers:
    """Images nobody has labelled, the most useful first. Every method may be called from any thread."""

    def __init__(self, project: Project, embeddings: Embeddings, *, seed: int = 0):
        self._project, self._embeddings = project, embeddings
        self.shuffled = list(project.pictures.names)
        """All images in the order in which chance offers and the encoder reads them."""
        random.Random(seed).shuffle(self.shuffled)
        self._lock = threading.Lock()
        self._teaching: list[Offer] = []
        self._worst: list[Offer] = []
        self.broken: dict[str, str] = {}
        """Images that cannot be opened, and why."""

    def free(self, name: str) -> bool:
        """Whether it may be offered: nothing was said of it, and it is neither set aside nor broken."""
        with self._project.locked() as state:
            return name not in state.skipped and name not in state.said and name not in self.broken

    def candidates(self, count: int) -> list[str]:
        """Unlabelled images, embedded already, that stand for all of them, in fixed order while nothing changes."""
        pool = self._pool()
        if not pool:
            return []
        vectors = self._embeddings.of(pool)
        return [pool[place] for place in covering(vectors, vectors[:0], count)]

    def refresh(self, disagreement: dict[str, float]) -> None:
        """Choose anew. Disagreement: of candidates that the read-out has seen, in any unit; empty: none yet."""
        if len(self._embeddings) < min(ENOUGH, len(self.shuffled) - len(self.broken)):
            return
        pool = self._pool()
        if not pool:
            return  # all are labelled: what was chosen before is not free, so nothing of it is offered
        vectors = self._embeddings.of(pool)
        with self._project.locked() as state:
            labelled = [name for name in state.said if name in self._embeddings]
        known = self._embeddings.of(labelled) if labelled else vectors[:0]
        reason = "unlike what is labelled so far" if labelled else "like many others"
        teaching = [Offer(pool[place], reason) for place in covering(vectors, known, KEPT)]
        seen = sorted(disagreement, key=disagreement.__getitem__, reverse=True)
        worst = [Offer(name, "the read-outs disagree") for name in seen if self.free(name)]
        with self._lock:
            self._teaching, self._worst = teaching, worst[:KEPT]

    def next(self, order: Order, *, after: str | None = None) -> Offer | None:
        """The image to show after another; None when every image is labelled, set aside or broken."""
        with self._lock:
            ahead = {"teaches": self._teaching, "worst": self._worst}.get(order, [])
        for offer in ahead:
            if offer.name != after and self.free(offer.name):
                return offer
        names = self._project.pictures.names if order == "folder" else self.shuffled
        start = names.index(after) + 1 if order == "folder" and after in names else 0
        reason = "next in the folder" if order == "folder" else "by chance"
        return next((Offer(name, reason) for name in _round(names, start) if name != after and self.free(name)), None)

    def ahead(self) -> list[str]:
        """Images that are likely to be shown soon."""
        with self._lock:
            return [offer.name for offer in (*self._teaching[:3], *self._worst[:2]) if self.free(offer.name)]

    def _pool(self) -> list[str]:
        """Embedded images that are free, at most MOST of them."""
        pool = []
        for name in self.shuffled:
            if name in self._embeddings and self.free(name):
                pool.append(name)
                if len(pool) == MOST:
                    break
        return pool


def _round(names: list[str] | tuple[str, ...], start: int) -> Iterable[str]:
    yield from names[start:]
    yield from names[:start]
