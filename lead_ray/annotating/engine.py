"""What takes longer than a click, done beside the page in the order of who waits for it.

One thread: first what edits have taught, then proposals for the image on show, then what to offer next, and in the time
that is left the embeddings of all images, a few at a time.
"""

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lead_ray.annotating.curve import Curve
from lead_ray.annotating.embeddings import Embeddings
from lead_ray.annotating.encoded import KEPT, Encoded, Proposer
from lead_ray.annotating.folder import key
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.project import Project
from lead_ray.annotating.state import Outline, outline_to_json, proposals_to_json
from lead_ray.landmarks.labels import Mark

BATCH = 8  # images encoded between two looks at what else is wanted
CANDIDATES = 96  # unlabelled images of which every fit says how sure it is
LONGEST = 10.0  # seconds that this may take after a fit: 68 points cost far more than five
LOOKS = {64 * 4**power for power in range(12)}  # images read after which offers are worth choosing anew


class Engine(threading.Thread):
    """The background of one project."""

    def __init__(
        self,
        project: Project,
        load: Callable[[], Proposer],
        embeddings: Embeddings,
        offers: Offers,
        curve: Curve,
        publish: Callable[[dict[str, Any]], None],
    ):
        """Load: opens the model and its embeddings, in the thread, as it takes seconds. Publish: tells the pages, from
        the thread."""
        super().__init__(name="proposals", daemon=True)
        self._project, self._load, self._publish = project, load, publish
        self._embeddings, self._offers, self._curve = embeddings, offers, curve
        self._wake = threading.Condition()
        self._shown: list[str] = []  # on the pages, the latest last
        self._stale, self._choose, self._over = True, True, False
        self._proposer: Proposer
        self._encoded: Encoded
        self._outline: Outline | None = None  # what was fitted; None: nothing yet
        self._fitted = 0
        self._found: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._left = list(reversed(offers.shuffled))
        self._ahead: list[str] = []
        self._doing = "loading the encoder"

    # What the page's threads call.

    def show(self, name: str) -> list[dict[str, Any]] | None:
        """An image is on show: its proposals if they are there; otherwise they are published once they are."""
        with self._wake:
            self._shown = [*(each for each in self._shown if each != name), name][-4:]
            self._wake.notify()
            return self._found.get(name)

    def refit(self) -> None:
        """Labels have changed."""
        with self._wake:
            self._stale = True
            self._wake.notify()

    def reframe(self, name: str, *, labelled: bool) -> None:
        """Another part of an image is to be looked at."""
        with self._wake:
            self._found.pop(name, None)
            self._stale |= labelled
            self._wake.notify()

    def stop(self) -> None:
        """End after what is being done now."""
        with self._wake:
            self._over = True
            self._wake.notify()

    def status(self) -> dict[str, Any]:
        """What it is doing, and how far it is."""
        total = len(self._offers.shuffled)
        return {"state": self._doing, "read": total - len(self._left), "images": total, "fitted": self._fitted}

    # The thread.

    def run(self) -> None:
        try:
            self._proposer = self._load()
            self._encoded = Encoded(self._proposer, self._project, self._offers, self._publish)
            self._left = [name for name in self._left if name not in self._embeddings]
            while (work := self._next_work()) is not None:
                work()
        except Exception as error:  # whatever it was: the page goes on without proposals, and says so
            traceback.print_exc()
            self._fitted = 0
            self._say(f"no more proposals: {error}")
        self._embeddings.flush()

    def _next_work(self) -> Callable[[], None] | None:
        with self._wake:
            while not self._over:
                if self._stale:
                    self._stale, self._choose = False, True
                    return self._fit
                if (name := self._waiting()) is not None:
                    return partial(self._propose, name)
                if self._choose:
                    self._choose = False
                    return self._refresh
                if self._ahead:
                    return partial(self._propose, self._ahead.pop(0))
                if self._left:
                    return self._embed
                self._say("ready")
                self._wake.wait()
        return None

    def _waiting(self) -> str | None:
        """An image on show that has no proposals yet."""
        if self._outline is None:
            return None
        wanted = (name for name in reversed(self._shown) if name not in self._found and name not in self._offers.broken)
        return next(wanted, None)

    def _fit(self) -> None:
        with self._project.locked() as state:
            outline = state.outline
            labels = self._project.labels() if outline.points else None
        if labels is None or not any((image.marks != Mark.MISSING).any() for image in labels.images):
            self._outline, self._fitted = None, 0
            return
        self._say("learning")
        names = [image.file for image in labels.images]
        for start in range(0, len(names), BATCH):
            self._encoded.add(names[start : start + BATCH])
        self._proposer.fit(labels)
        with self._wake:
            self._found.clear()
        self._outline, self._fitted = outline, sum(name in self._proposer for name in names)
        self._measure()

    def _measure(self) -> None:
        """One more point of the curve."""
        held_out = self._proposer.held_out_error()
        if held_out is not None:
            shown = {"model": self._project.model, "side": self._project.side}
            self._curve.add(
                outline_to_json(self._outline) | shown,
                images=held_out.images,
                error=held_out.error,
                standard_error=held_out.standard_error,
            )
        self._publish({"kind": "curve", "curve": self._curve.points()})
        self._publish({"kind": "status", "status": self.status()})

    def _propose(self, name: str) -> None:
        if self._outline is None or name in self._found:
            return
        self._encoded.add([name])
        if name in self._proposer:
            found = proposals_to_json(self._outline, self._proposer.propose([name])[0])
            if not self._encoded.current(name):
                return  # drawn meanwhile; as it is on show, its turn comes again
            with self._wake:
                self._found[name] = found
                if len(self._found) > KEPT:
                    self._found.popitem(last=False)
            self._publish({"kind": "proposals", "image": key(name), "proposals": found})

    def _refresh(self) -> None:
        doubt: dict[str, float] = {}
        end = time.monotonic() + LONGEST
        if self._outline is not None:
            names = self._offers.candidates(CANDIDATES)
            for start in range(0, len(names), BATCH):
                if self._stale or self._waiting():
                    self._choose = True  # somebody waits; choosing begins again after that
                    return
                if time.monotonic() > end:
                    break
                self._encoded.add(names[start : start + BATCH])
                there = [name for name in names[start : start + BATCH] if name in self._proposer]
                for name, predicted in zip(there, self._proposer.propose(there), strict=True):
                    doubt[name] = float(1 - np.nanmean(predicted.confidence))
        self._offers.refresh(doubt)
        self._ahead = self._offers.ahead()
        self._publish({"kind": "status", "status": self.status()})

    def _embed(self) -> None:
        """The next few of all images."""
        self._say("reading images")
        names = [self._left.pop() for _ in range(min(BATCH, len(self._left)))]
        self._encoded.add(names)
        there = [name for name in names if name in self._proposer]
        if there:
            self._embeddings.add(there, self._proposer.embeddings(there))
        read = len(self._offers.shuffled) - len(self._left)
        if not self._left or read in LOOKS:
            self._choose = True
        if not self._left or read % 64 == 0:
            self._publish({"kind": "status", "status": self.status()})

    def _say(self, what: str) -> None:
        if what != self._doing:
            self._doing = what
            self._publish({"kind": "status", "status": self.status()})
