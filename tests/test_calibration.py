"""Confidences: the fit against scipy's, what they promise where the truth is known, calibration errors by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lead_ray.landmarks import calibration
from lead_ray.reporting.reliability import figure


def drawn(images: int, seed: int, marks: int = 3):
    """Points whose errors are Rayleigh with a scale that the hints tell, up to noise; radius 1."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(-0.3, 0.7, (images, marks)))
    errors = scale * random.rayleigh(0.8, (images, marks))
    spread, width = (scale * np.exp(random.normal(0, noise, scale.shape)) for noise in (0.3, 0.6))
    return (spread, width), np.ones(images), errors < 1


def test_probabilities_hold_on_points_not_fitted_to():
    hints, radius, near = drawn(200, seed=0)
    found = calibration.fit(hints, radius, near, np.ones_like(near))
    hints, radius, near = drawn(4000, seed=1)
    said = found(hints, radius)
    assert calibration.reliability(said.ravel(), near.ravel()).error < 0.04
    # Doubt tells right from wrong: the least certain fifth is wrong far more often than the most certain.
    order = said.ravel().argsort()
    fifth = len(order) // 5
    assert near.ravel()[order[-fifth:]].mean() > near.ravel()[order[:fifth]].mean() + 0.5


def test_fit_is_the_penalised_maximum():
    """Against a general optimiser on the same likelihood, written out."""
    hints, radius, near = drawn(40, seed=2)
    found = calibration.fit(hints, radius, near, np.ones_like(near))
    logs = np.log(np.stack(hints, -1)).reshape(-1, 2)
    truth = near.ravel()
    target = np.where(truth, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2))
    marks = np.tile(np.arange(3), 40)

    def loss(at):
        logit = logs @ at[:2] + at[2] + at[3:][marks]
        likelihood = (np.logaddexp(0, logit) - target * logit).sum()
        return likelihood + (1e-2 * at[:2] ** 2).sum() / 2 + 1e-6 * at[2] ** 2 / 2 + (at[3:] ** 2).sum() / 2

    best = minimize(loss, np.zeros(6), tol=1e-12).x
    assert max(best[:2]) < 0  # neither slope is held at 0 here
    np.testing.assert_allclose(found.slopes, best[:2], atol=1e-4)
    np.testing.assert_allclose(found.offsets, best[2] + best[3:], atol=1e-4)


def test_doubt_never_raises_confidence():
    """A hint that misleads in a small sample is left out."""
    (spread, width), radius, near = drawn(60, seed=3)
    found = calibration.fit((1 / spread, width), radius, near, np.ones_like(near))
    assert found.slopes[0] == 0 and found.slopes[1] < 0
    found = calibration.fit((1 / spread, 1 / width), radius, near, np.ones_like(near))
    assert found.slopes == (0, 0)
    assert found((spread, width), radius).mean() == pytest.approx(near.mean(), abs=0.05)


def test_only_known_points_count():
    hints, radius, near = drawn(60, seed=4)
    counted = np.random.default_rng(0).random(near.shape) < 0.7
    spoilt = tuple(np.where(counted, hint, np.nan) for hint in hints)
    one, other = (calibration.fit(given_hints, radius, near & counted, counted) for given_hints in (hints, spoilt))
    assert one == other
    few = np.zeros_like(counted)
    few[:5] = True
    assert calibration.fit(hints, radius, near, few) is None


@given(spread=st.floats(0, 10), width=st.floats(0, 10), radius=st.floats(1e-3, 10))
def test_confidences_are_probabilities(spread, width, radius):
    hints = np.array([[spread]]), np.array([[width]])
    made = calibration.Calibration(slopes=(-1.0, -0.5), offsets=(0.3,))
    for said in (made(hints, np.array([radius])), calibration.uncalibrated(hints, np.array([radius]))):
        assert said.dtype == np.float32 and 0 <= said[0, 0] <= 1


def test_by_hand():
    made = calibration.Calibration(slopes=(-2.0, 0.0), offsets=(0.0,))
    said = made((np.array([[0.5]]), np.array([[9.0]])), np.array([1.0]))
    assert said[0, 0] == pytest.approx(4 / 5)  # odds (1/2)^-2
    # Root mean square radius equal to the radius: 1 - 1/e.
    said = calibration.uncalibrated((np.array([[0.6]]), np.array([[0.8]])), np.array([1.0]))
    assert said[0, 0] == pytest.approx(1 - np.exp(-1))
    found = calibration.reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]), bins=2)
    assert found.counts == (2, 2) and found.said == pytest.approx((0.05, 0.975)) and found.found == (0.5, 1.0)
    assert found.error == pytest.approx((0.45 * 2 + 0.025 * 2) / 4)
    with pytest.raises(ValueError, match="at least one point"):
        calibration.reliability(np.zeros(0), np.zeros(0, bool))


def test_the_picture_says_what_it_shows():
    hints, radius, near = drawn(50, seed=5)
    said = calibration.uncalibrated(hints, radius)
    found = calibration.reliability(said.ravel(), near.ravel())
    picture = figure(found.to_json(), "probability that a point is near")
    assert f"calibration error {found.error:.3f}, 150 points" in picture.get_label()
    (panel,) = picture.axes
    np.testing.assert_allclose(panel.lines[1].get_xydata(), np.c_[found.said, found.found])
