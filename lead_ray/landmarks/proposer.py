"""Landmarks proposed while somebody annotates: images are encoded once, the read-out is fitted anew in a second or two.

    proposer = Proposer("runs/stage2-...")
    proposer.add("a.jpg", image)
    proposer.fit(labels)          # of the labelled images that were added
    proposer.propose(["b.jpg"])

From one annotated image it proposes what looks most like its landmarks; from two, what regressors fitted to all of them
say. What the read-out is judged by, members of its ensemble, have seen fewer: its own errors are smaller, the more so
the fewer images there are.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lead_ray.landmarks import readout
from lead_ray.landmarks.framing import Box, Framing, cut
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark
from lead_ray.landmarks.model import encode, input_side
from lead_ray.landmarks.prediction import HeldOut, Judged, Prediction, Scale, View, judge, predictions, truths, whole
from lead_ray.landmarks.readout import Readout
from lead_ray.models import weights
from lead_ray.readouts.ensemble import fit_ensemble

POINTS, MANY = 20, 10
"""Virtual points a landmark, and where there are more than 20 landmarks: a little less exact than fit()'s 32, and
faster."""


class Fitted(NamedTuple):
    """A read-out, and what judges it."""

    readout: Readout
    placed: np.ndarray
    scale: Scale
    judged: Judged | None


class Proposer:
    """Its methods may be called from several threads; propose() does not wait for fit()."""

    def __init__(self, encoder: Path | str, *, framing: Framing | None = None):
        """Raises: FileNotFoundError, ValueError as weights.load()."""
        self.framing = framing or Framing(side=input_side(encoder))
        self._encoder = weights.load(encoder)
        self._held: dict[str, tuple[list[Tensor], View]] = {}
        self._fitted: Fitted | None = None
        self._encoding = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def add(self, name: str, image: Image.Image, box: Box | None = None) -> None:
        """Encode an upright RGB image and keep its features; nothing happens if it is there already.

        Raises: BadImage if the box is none.
        """
        self.add_many([(name, image, box)])

    def add_many(self, images: Iterable[tuple[str, Image.Image, Box | None]]) -> None:
        """add() of several (name, image, box), encoded together."""
        new = {name: (image, box) for name, image, box in images if name not in self._held}
        if not new:
            return
        views = [View(self.framing.frame(image.size, box), box is not None) for image, box in new.values()]
        crops = [cut(image, view.frame) for (image, _), view in zip(new.values(), views, strict=True)]
        with self._encoding:
            blocks = encode(self._encoder, crops)
        for place, (name, view) in enumerate(zip(new, views, strict=True)):
            self._held[name] = [block[place : place + 1].clone() for block in blocks], view

    def forget(self, name: str) -> None:
        """Drop an image's features."""
        self._held.pop(name, None)

    def fit(self, labels: Labels) -> None:
        """Learn from all labelled images that were added; without any, propose nothing."""
        held = self._held
        images = [image for image in labels.images if image.file in held and (image.marks != Mark.MISSING).any()]
        if not images:
            self._fitted = None
            return
        kept = [held[image.file] for image in images]
        blocks, views = _together([blocks for blocks, _ in kept]), [view for _, view in kept]
        self._fitted = learn(blocks, images, views, Scale(schema=labels.schema, framing=self.framing))

    def propose(self, names: Sequence[str]) -> list[Prediction]:
        """Landmarks of images that were added.

        Raises: ValueError before anything was annotated, KeyError for an image that was not added.
        """
        fitted = self._fitted
        if fitted is None:
            raise ValueError("nothing to propose from: annotate an image and call fit()")
        if not names:
            return []
        kept = [self._held[name] for name in names]
        points, hints = whole(fitted.readout.read(_together([blocks for blocks, _ in kept])), fitted.placed)
        calibrated = fitted.judged.calibrated if fitted.judged else None
        return predictions(points, hints, [view for _, view in kept], fitted.scale, calibrated)

    def embeddings(self, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """What images show as a whole, unit vectors: every block's mean, each of length 1 before they are joined."""
        vectors = []
        for name in names:
            means = [block.float().mean((0, 2, 3)) for block in self._held[name][0]]
            vectors.append(torch.cat([mean / mean.norm().clamp(min=1e-12) for mean in means]) / len(means) ** 0.5)
        return torch.stack(vectors).numpy() if vectors else np.zeros((0, sum(self._encoder.channels)), np.float32)

    def held_out_error(self) -> HeldOut | None:
        """Of the last fit: each labelled image's error by those members of the ensemble that had not seen it."""
        fitted = self._fitted
        return fitted.judged.error if fitted is not None and fitted.judged is not None else None


def learn(blocks: list[Tensor], images: Sequence[LabelledImage], views: Sequence[View], scale: Scale) -> Fitted:
    """Fit to annotated images, and judge by members of the ensemble that have not seen them."""
    truth = truths(images, views)
    placed = truth.visible.any(0)
    points, visible = torch.from_numpy(truth.points[:, placed]), torch.from_numpy(truth.visible[:, placed])
    if len(images) == 1:
        return Fitted(readout.fit_matcher(blocks, points, visible), placed, scale, None)
    ensemble, seen = fit_ensemble(blocks, points, visible, points=POINTS if points.shape[1] <= 20 else MANY)
    unseen, hints = whole(ensemble.read_by(blocks, ~seen), placed)
    return Fitted(ensemble, placed, scale, judge(unseen, hints, truth, views, scale))


def _together(several: Sequence[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(level).contiguous(memory_format=torch.channels_last) for level in zip(*several, strict=True)]
