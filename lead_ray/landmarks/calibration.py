"""How probable it is that a landmark lies where a model says: within a stated radius.

The radius is a share of the distance between two landmarks, or of the box's longer side where the schema names no two.
The probability is a logistic function of the logarithms of two hints, each over the radius: how much the ensemble's
members disagree, and how wide the heat map is; with an offset for every landmark, as some are harder. It is fitted on
errors in images that the read-out had not seen (Platt scaling with two inputs). Everything here is NumPy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

OF_NORMALISER = 0.10  # where face alignment begins to count a failure
OF_BOX = 0.05  # the usual threshold of percentages of correct key points
LEAST = 1e-4  # of the radius: a smaller hint says no more
LEAST_ERRORS = 20  # fewer errors do not calibrate
PENALTY = 1.0  # on squared offsets: as if so much were known of each landmark before

Hints = tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Hints -> probabilities."""

    slopes: tuple[float, float]
    """Of log(spread / radius) and log(width / radius); at most 0: doubt never raises confidence."""
    offsets: tuple[float, ...]
    """One a landmark."""

    def __call__(self, hints: Hints, radius: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
        """Probabilities in [0, 1]. Hints and radius are in one unit."""
        logs = _logs(hints, radius)
        return _sigmoid(np.asarray(self.offsets) + logs @ np.asarray(self.slopes)).astype(np.float32)


def uncalibrated(hints: Hints, radius: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k"]:
    """What the hints alone say: the mass within the radius of a round Gaussian of their root mean square radius."""
    square = hints[0] ** 2 + hints[1] ** 2
    return (1 - np.exp(-(radius[:, None] ** 2) / np.maximum(square, 1e-12))).astype(np.float32)


def fit(
    hints: Hints,
    radius: Float[np.ndarray, " n"],
    near: Bool[np.ndarray, "n k"],
    counted: Bool[np.ndarray, "n k"],
) -> Calibration | None:
    """Fit to points that are near their truth or not; None if too few count.

    The penalised likelihood's maximum by Newton's method. A slope that comes out above 0 is set to 0, the other
    fitted anew.
    """
    counted = counted & np.isfinite(hints[0]) & np.isfinite(hints[1]) & np.isfinite(radius)[:, None]
    if counted.sum() < LEAST_ERRORS:
        return None
    marks = np.nonzero(counted)[1]
    kept = [0, 1]
    logs = _logs(hints, radius)[counted].astype(np.float64)
    truth = near[counted].astype(np.float64)
    # Platt's targets: not quite 0 and 1, so that a few points that are all near do not make certainty.
    target = np.where(truth > 0, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((1 - truth).sum() + 2))
    while True:
        slopes, common, own = _newton(logs[:, kept], marks, near.shape[1], target)
        if not kept or slopes.max() <= 0:
            break
        kept.remove(kept[int(slopes.argmax())])
    found = [0.0, 0.0]
    for place, slope in zip(kept, slopes, strict=True):
        found[place] = float(slope)
    return Calibration(slopes=tuple(found), offsets=tuple((common + own).tolist()))


def _newton(
    logs: np.ndarray, marks: np.ndarray, count: int, target: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Slopes, the common offset, and how each landmark departs from it."""
    used = logs.shape[1]
    inputs = np.concatenate([logs, np.ones((len(logs), 1)), np.eye(count)[marks]], axis=1)
    penalty = np.r_[np.full(used, 1e-2), 1e-6, np.full(count, PENALTY)]
    weights = np.zeros(inputs.shape[1])

    def loss(at: np.ndarray) -> float:
        logit = inputs @ at
        return float((np.logaddexp(0, logit) - target * logit).sum() + (penalty * at**2).sum() / 2)

    for _ in range(50):
        share = _sigmoid(inputs @ weights)
        gradient = inputs.T @ (share - target) + penalty * weights
        curvature = (inputs * (share * (1 - share))[:, None]).T @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6 and loss(weights - length * step) > loss(weights):
            length /= 2
        weights = weights - length * step
        if np.abs(length * step).max() < 1e-9:
            break
    return weights[:used], float(weights[used]), weights[used + 1 :]


def _logs(hints: Hints, radius: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n k 2"]:
    shares = np.stack(hints, axis=-1) / radius[:, None, None]
    return np.log(np.maximum(shares, LEAST))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(logits / 2)) / 2  # overflows nowhere, and NaN, a landmark placed nowhere, stays NaN


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often points were near, among those that were said to be so with about the same probability."""

    said: tuple[float, ...]
    """Mean probability of every bin."""
    found: tuple[float, ...]
    """Share of the bin's points that were near."""
    counts: tuple[int, ...]
    error: float
    """Expected calibration error: mean distance of the two, weighed by the counts."""

    def to_json(self) -> dict[str, Any]:
        return {
            "said": list(self.said),
            "found": list(self.found),
            "counts": list(self.counts),
            "expected_error": self.error,
        }


def reliability(probability: Float[np.ndarray, " m"], near: Bool[np.ndarray, " m"], *, bins: int = 10) -> Reliability:
    """Compare what was said with what was so, in bins that are equally full: none rests on a point or two.

    Raises: ValueError if there is nothing to compare.
    """
    if not len(probability):
        raise ValueError("reliability needs at least one point whose truth is known, got none")
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    said, found = ([float(values[part].mean()) for part in parts] for values in (probability, near))
    counts = [len(part) for part in parts]
    gaps = (count * abs(one - other) for count, one, other in zip(counts, said, found, strict=True))
    error = sum(gaps) / len(order)
    return Reliability(said=tuple(said), found=tuple(found), counts=tuple(counts), error=error)
