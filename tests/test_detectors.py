"""The closed-form start against the long way, and on blobs whose place is the landmark."""

import numpy
import pytest
import torch
from hypothesis import given as given_by
from hypothesis import strategies as st
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts import detectors
from lead_ray.readouts.correlations import compact, correlations
from lead_ray.readouts.correlations import deviations as deviations_in
from lead_ray.readouts.detectors import _neighbours, fit_detectors, ridge
from lead_ray.readouts.regression import RegressionSettings, fit, mean_face

SIDES, CHANNELS = (24, 12, 6, 3), (5, 4, 3, 6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_blocks(images: int) -> list[torch.Tensor]:
    source = generator(1)
    shapes = [(images, channels, side, side) for channels, side in zip(CHANNELS, SIDES, strict=True)]
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def hypercolumn(blocks, grid: int) -> torch.Tensor:
    return torch.cat([functional.interpolate(block, size=grid, mode="bilinear") for block in blocks], dim=1)


def blob_images(images: int, seed: int, marks: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Noisy features with one channel per landmark that peaks where the landmark is."""
    source = generator(seed)
    landmarks = 1.2 * torch.rand(images, marks, 2, generator=source) - 0.6
    grid = geometry.identity_grid(height=24, width=24)
    distance = (grid - landmarks[:, :, None, None]).square().sum(-1)
    fine = torch.cat([(-distance / 0.02).exp(), torch.zeros(images, 6, 24, 24)], dim=1)
    fine = fine + 0.05 * torch.randn(fine.shape, generator=source)
    return [fine, torch.randn(images, 4, 12, 12, generator=source)], landmarks


def test_correlations_equal_those_of_the_hypercolumn():
    blocks = random_blocks(40)
    deviations = deviations_in(blocks, grid=24)
    got = correlations(blocks, deviations, grid=24)
    centred = hypercolumn([block - block.mean((2, 3), keepdim=True) for block in blocks], 24)
    flat = centred.transpose(0, 1).flatten(1).numpy()
    covariance = flat @ flat.T / flat.shape[1]
    deviation = numpy.sqrt(numpy.diag(covariance))
    numpy.testing.assert_allclose(torch.cat(deviations), deviation, rtol=1e-5)
    numpy.testing.assert_allclose(got, covariance / numpy.outer(deviation, deviation), atol=1e-5)


@given_by(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_bilinear_reading_is_grid_sample(height, width, seed):
    source = generator(seed)
    block = torch.randn(2, 3, height, width, generator=source)
    places = 3 * torch.rand(2, 4, 2, generator=source) - 1.5  # beyond the edges, too
    how = {"padding_mode": "border", "align_corners": False}
    expected = functional.grid_sample(block, places.unsqueeze(1), **how)[:, :, 0].mT
    near, share = _neighbours(places, height, width)
    cells = block.flatten(2).mT.unsqueeze(1).expand(-1, 4, -1, -1)
    got = (cells.gather(2, near.unsqueeze(-1).expand(-1, -1, -1, 3)) * share.unsqueeze(-1)).sum(2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shrinkages", [(1.0,), (0.3, 1.0, 3.0)])
def test_in_the_span_of_few_cells_the_detectors_are_the_same(shrinkages, monkeypatch):
    """Coarse blocks of four images, with more channels than cells: weights, and what they find in other images."""
    source = generator()
    shapes = [(10, 8, 12, 12), (10, 12, 6, 6), (10, 80, 3, 3), (10, 70, 2, 2)]
    blocks = [torch.randn(shape, generator=source) for shape in shapes]
    settings = {"grid": 12, "points": 6, "spread": 0.1, "temperature": 1.0, "folds": 4, "shrinkages": shrinkages}
    given = torch.arange(4), torch.rand(4, 2, 2, generator=source) - 0.5, torch.ones(4, 2, dtype=torch.bool)
    wide = [block.shape[1] for block in compact([block[:4] for block in blocks], deviations_in(blocks, grid=12))[0]]
    assert wide == [8, 12, 36, 16]
    found = fit_detectors(blocks, *given, **settings, generator=generator())
    monkeypatch.setattr(detectors, "compact", lambda blocks, deviations: (blocks, deviations, [None] * len(blocks)))
    expected = fit_detectors(blocks, *given, **settings, generator=generator())
    assert found.shrinkage == expected.shrinkage
    torch.testing.assert_close(found.deviations, expected.deviations)
    for ours, known in zip(found.regressor.weights, expected.regressor.weights, strict=True):
        torch.testing.assert_close(ours, known, rtol=1e-4, atol=1e-4)
    others = [block[4:] for block in blocks]
    torch.testing.assert_close(found.regressor.predict(others), expected.regressor.predict(others), rtol=0, atol=1e-4)


@pytest.mark.parametrize("copies", [1, 3])
def test_ridge_error_equals_refitting_without_each_image(copies):
    source = generator()
    inputs = torch.randn(2, 9, 4, generator=source, dtype=torch.float64)
    landmarks = torch.randn(9, 2, 2, generator=source, dtype=torch.float64)
    visible = torch.ones(9, 2, dtype=torch.bool)
    visible[3, 1] = False
    of = torch.arange(9) // copies
    found = ridge(inputs, landmarks, visible, None if copies == 1 else of)
    errors = []
    for mark in range(2):
        used = visible[:, mark].numpy()
        x, y = inputs[mark].numpy()[used], landmarks[:, mark].numpy()[used]
        # The penalty that was chosen, recovered from the normal equations of the full fit.
        centred = x - x.mean(0)
        gram, right = centred.T @ centred, centred.T @ (y - y.mean(0))
        linear = found.linear[mark].numpy()
        penalty = ((right - gram @ linear) * linear).sum() / (linear**2).sum()
        for image in range(len(x)):
            keep = of.numpy()[used] != of.numpy()[used][image]
            # Leverage counts the mean as one more, unpenalised, parameter.
            design = numpy.c_[x[keep] - x.mean(0), numpy.ones(keep.sum())]
            ridge_part = numpy.diag([penalty] * 4 + [0])
            solution = numpy.linalg.solve(design.T @ design + ridge_part, design.T @ y[keep])
            errors.append(numpy.linalg.norm(y[image] - numpy.r_[x[image] - x.mean(0), 1] @ solution))
    assert found.error == pytest.approx(numpy.mean(errors), rel=1e-6)


def test_ridge_of_a_landmark_that_one_image_shows():
    inputs, landmarks = torch.randn(2, 6, 3, generator=generator()), torch.randn(6, 2, 2, generator=generator())
    visible = torch.ones(6, 2, dtype=torch.bool)
    visible[2:, 1] = False
    found = ridge(inputs, landmarks, visible, torch.arange(6) // 2)
    assert found.linear.isfinite().all() and found.bias.isfinite().all()
    # Of a single image, copies judge each other: there is nothing else.
    alone = ridge(inputs[:, :3], landmarks[:3], visible[:3], torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(alone, ridge(inputs[:, :3], landmarks[:3], visible[:3]))


def test_copies_do_not_judge_each_other():
    """Features that tell images apart and say nothing of landmarks: whoever knows an image's copy knows its answer."""
    source = generator()
    codes, marks = torch.randn(4, 32, 6, 6, generator=source), torch.rand(4, 2, 2, generator=source) - 0.5
    blocks, landmarks = [codes.repeat_interleave(8, 0)], marks.repeat_interleave(8, 0)
    settings = {"grid": 12, "points": 20, "spread": 0.1, "temperature": 1.0, "folds": 3}
    given = blocks, torch.arange(32), landmarks, torch.ones(32, 2, dtype=torch.bool)
    leaked, honest = (
        fit_detectors(*given, **settings, generator=generator(), copies=copies).regressor.linear.norm()
        for copies in (1, 8)
    )
    assert honest < 0.5 * leaked


@pytest.mark.parametrize("images", [10, 60])
def test_blobs_are_found(images):
    blocks, landmarks = blob_images(images, seed=0)
    test_blocks, expected = blob_images(40, seed=9)
    run = RegressionSettings(grid=24, points=20)
    predicted = fit(blocks, landmarks, run, generator()).predict(test_blocks)
    error = (predicted - expected).norm(dim=-1).mean()
    floor = (mean_face(landmarks, 40) - expected).norm(dim=-1).mean()
    assert error < 0.08 < 0.4 < floor  # normalised units; a cell is 0.087


def test_one_annotated_image_gives_its_own_face():
    blocks, landmarks = blob_images(3, seed=0)
    regressor = fit([block[:1] for block in blocks], landmarks[:1], RegressionSettings(grid=12), generator())
    torch.testing.assert_close(regressor.predict(blocks), landmarks[:1].expand(3, -1, -1), rtol=0, atol=1e-5)
