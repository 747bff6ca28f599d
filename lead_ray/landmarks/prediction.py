"""Readings in the units of people: pixels of their photographs, confidences, errors in % of a length.

The length is the distance between the two landmarks that the schema names, or else the longer side of the box, which
is the photograph where there is no box. "Normalised" is as in readout.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lead_ray.landmarks import calibration
from lead_ray.landmarks.calibration import Calibration, Hints, Reliability
from lead_ray.landmarks.framing import Frame, Framing
from lead_ray.landmarks.labels import LabelledImage, Mark, Schema
from lead_ray.readouts.ensemble import Reading

SMALLEST = 0.1  # of the box: two predicted landmarks nearer to each other do not set a radius


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's landmarks."""

    points: Float[np.ndarray, "k 2"]
    """Pixels of the image as shown; NaN for a landmark that was annotated nowhere."""
    confidence: Float[np.ndarray, " k"]
    """Probability that the point lies within the radius that the model's card states; 0 for such a landmark."""
    spread: Float[np.ndarray, " k"]
    """Pixels: root mean square distance of the ensemble's members from their mean."""


class View(NamedTuple):
    """How the network saw a photograph."""

    frame: Frame
    boxed: bool
    """Whether the frame lies around a box, not around the whole photograph."""


class Truth(NamedTuple):
    """Annotated landmarks, normalised to their frames."""

    points: Float[np.ndarray, "n k 2"]
    """0 where not visible."""
    visible: Bool[np.ndarray, "n k"]
    """Placed by a person, occluded or not."""


class HeldOut(NamedTuple):
    """The error in images that the read-out had not seen."""

    images: int
    error: float
    """Mean over the images of the mean over their landmarks, % of the length."""
    standard_error: float
    """Of that mean, over the images; NaN for one image."""

    def to_json(self) -> dict[str, Any]:
        return {"images": self.images, "error": self.error, "standard_error": self.standard_error}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What lengths are measured against, for one schema and framing."""

    schema: Schema
    framing: Framing

    @property
    def share(self) -> float:
        """The radius of confidences, as share of the length."""
        return calibration.OF_NORMALISER if self.schema.normaliser else calibration.OF_BOX

    @property
    def words(self) -> str:
        """The length, for people."""
        if self.schema.normaliser is None:
            return "the box's longer side"
        return "the distance between {} and {}".format(*(self.schema.names[place] for place in self.schema.normaliser))

    def boxes(self, views: Sequence[View]) -> Float[np.ndarray, " n"]:
        """The boxes' longer sides, normalised."""
        side = self.framing.side
        return np.array([2 * side / (side - 1) / (self.framing.box_factor if view.boxed else 1) for view in views])

    def lengths(self, truth: Truth, views: Sequence[View]) -> Float[np.ndarray, " n"]:
        """Normalised; NaN where one of the schema's two landmarks is missing or both are in one place."""
        if self.schema.normaliser is None:
            return self.boxes(views)
        first, second = self.schema.normaliser
        length = np.linalg.norm(truth.points[:, first] - truth.points[:, second], axis=-1)
        return np.where(truth.visible[:, first] & truth.visible[:, second] & (length > 0), length, np.nan)

    def radius(self, points: Float[np.ndarray, "n k 2"], views: Sequence[View]) -> Float[np.ndarray, " n"]:
        """The radius of confidences as the predicted points have it, normalised."""
        boxes = self.boxes(views)
        if self.schema.normaliser is None:
            return self.share * boxes
        first, second = self.schema.normaliser
        length = np.linalg.norm(points[:, first] - points[:, second], axis=-1)
        return self.share * np.fmax(length, SMALLEST * boxes)


def truths(images: Sequence[LabelledImage], views: Sequence[View]) -> Truth:
    """Annotations as fitting takes them."""
    visible = np.stack([image.marks != Mark.MISSING for image in images])
    inputs = [
        normalised(view.frame.to_input(image.points), view.frame.side)
        for image, view in zip(images, views, strict=True)
    ]
    return Truth(np.where(visible[..., None], np.stack(inputs), 0).astype(np.float32), visible)


def normalised(points: Float[np.ndarray, "*n 2"], side: int) -> Float[np.ndarray, "*n 2"]:
    """Pixels of the network's input -> [-1, 1]."""
    return 2 * points / (side - 1) - 1


def whole(reading: Reading, placed: Bool[np.ndarray, " k"]) -> tuple[Float[np.ndarray, "n k 2"], Hints]:
    """A reading of only the landmarks that were placed, as points and hints of all; NaN for the others."""

    def spread_out(values: np.ndarray) -> np.ndarray:
        full = np.full((len(values), len(placed), *values.shape[2:]), np.nan, np.float32)
        full[:, placed] = values
        return full

    points, spread, width = (spread_out(values.cpu().numpy()) for values in reading)
    return points, (spread, width)


def predictions(
    points: Float[np.ndarray, "n k 2"],
    hints: Hints,
    views: Sequence[View],
    scale: Scale,
    calibrated: Calibration | None,
) -> list[Prediction]:
    """From normalised points and hints."""
    radius = scale.radius(points, views)
    said = calibrated(hints, radius) if calibrated else calibration.uncalibrated(hints, radius)
    confidence = np.nan_to_num(said, nan=0.0)
    found = []
    for at, spread, sure, view in zip(points, hints[0], confidence, views, strict=True):
        frame = view.frame
        pixels = frame.to_photograph((at + 1) / 2 * (frame.side - 1))
        unit = (frame.side - 1) / 2 * frame.extent / frame.side
        found.append(
            Prediction(points=pixels.astype(np.float32), confidence=sure, spread=(spread * unit).astype(np.float32))
        )
    return found


def held_out(
    points: Float[np.ndarray, "n k 2"], truth: Truth, lengths: Float[np.ndarray, " n"]
) -> tuple[HeldOut | None, Float[np.ndarray, "n k"]]:
    """The mean error of unseen points, None if there is none, and every point's; NaN where either is unknown."""
    errors = 100 * np.linalg.norm(points - truth.points, axis=-1) / lengths[:, None]
    errors = np.where(truth.visible, errors, np.nan)
    known = np.isfinite(errors)
    each = np.where(known, errors, 0).sum(1)[known.any(1)] / known.sum(1)[known.any(1)]
    if not len(each):
        return None, errors
    doubt = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
    return HeldOut(len(each), float(each.mean()), doubt), errors


class Judged(NamedTuple):
    """What unseen images say of a read-out."""

    error: HeldOut | None
    calibrated: Calibration | None
    by_landmark: list[float | None]
    """Mean error of every landmark, %."""
    by_image: list[float | None]
    """And of every image."""
    reliable: Reliability | None
    """Of confidences whose calibration had not seen the image either."""


def judge(
    points: Float[np.ndarray, "n k 2"], hints: Hints, truth: Truth, views: Sequence[View], scale: Scale, folds: int = 5
) -> Judged:
    """Measure unseen points, and calibrate their confidences."""
    lengths = scale.lengths(truth, views)
    error, errors = held_out(points, truth, lengths)
    radius = scale.radius(points, views)
    known = np.isfinite(errors)
    near = known & (np.nan_to_num(errors, nan=np.inf) < 100 * scale.share)
    fold = np.arange(len(points)) % folds
    said = np.full(errors.shape, np.nan)
    for number in range(folds):
        own = (fold == number)[:, None]
        trained = calibration.fit(hints, radius, near, known & ~own)
        if trained is not None:
            said = np.where(own, trained(hints, radius), said)
    told = known & np.isfinite(said)
    reliable = calibration.reliability(said[told], near[told]) if told.any() else None
    means = [
        [float(row[here].mean()) if here.any() else None for row, here in zip(each, there, strict=True)]
        for each, there in ((errors.T, known.T), (errors, known))
    ]
    return Judged(error, calibration.fit(hints, radius, near, known), *means, reliable)
