"""The regressor against DVE's and CL's numbers, its shortcuts against the long way, and what it learns."""

from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts.regression import annotations, evaluate, fit, mean_face, warped_copies
from lead_ray.readouts.regressor import Regressor, loss, random_start, responses, soft_argmax
from lead_ray.readouts.settings import RegressionSettings, learning_rate, paper, paper_limited


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob_images(images: int, seed: int, marks: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Noisy features with one channel per landmark that peaks where the landmark is."""
    source = generator(seed)
    landmarks = 1.2 * torch.rand(images, marks, 2, generator=source) - 0.6
    grid = geometry.identity_grid(height=24, width=24)
    distance = (grid - landmarks[:, :, None, None]).square().sum(-1)
    fine = torch.cat([(-distance / 0.02).exp(), torch.zeros(images, 6, 24, 24)], dim=1)
    fine = fine + 0.05 * torch.randn(fine.shape, generator=source)
    return [fine, torch.randn(images, 4, 12, 12, generator=source)], landmarks


def test_head_loss_and_gradients_equal_dve(golden):
    data = golden("regressor_head")
    features, target = data["in_features"], data["in_targets"]
    convolution = data["par_conv_weight"].flatten(1).requires_grad_()
    rows = data["par_linear_weight"].flatten(1).requires_grad_()
    bias = torch.zeros(5, 2, dtype=torch.float64)
    regressor = Regressor((convolution,), rows.unflatten(0, (5, 2)).mT, bias, 100.0, grid=10)
    # The file's map is not square, so its soft-argmax is checked on the convolution itself.
    maps = 100 * torch.einsum("mc,bchw->mbhw", convolution, features)
    virtual = soft_argmax(maps).unflatten(0, (5, 50)).permute(2, 0, 1, 3)
    predicted = torch.einsum("bkm,kmc->bkc", virtual.flatten(2), regressor.linear)
    value = loss(predicted, target, scale=float(data["par_alpha"]))
    value.backward()
    expected = {
        "out_virtual_xy": virtual,
        "out_landmarks": predicted,
        "out_loss": value,
        "out_loss_alpha1": loss(predicted, target, scale=1.0),
        "out_grad_conv_weight": convolution.grad[..., None, None],
        "out_grad_linear_weight": rows.grad[..., None, None],
    }
    for name, got in expected.items():
        torch.testing.assert_close(got.detach(), data[name], rtol=1e-8, atol=1e-9)
    unit = soft_argmax(100 * torch.einsum("mc,bchw->mbhw", convolution, data["in_features_unit"]))
    unit = unit.unflatten(0, (5, 50)).permute(0, 2, 1, 3).flatten(2) @ regressor.linear
    unit = unit.transpose(0, 1).detach()
    torch.testing.assert_close(unit, data["out_landmarks_unit"], rtol=1e-8, atol=1e-9)


def test_regressor_equals_dve_head_on_a_square_crop(golden):
    data = golden("regressor_head")
    features, convolution = data["in_features"][..., :8, :], data["par_conv_weight"]
    linear = data["par_linear_weight"].flatten(1).unflatten(0, (5, 2)).mT
    weights = tuple(convolution.flatten(1).split([7, 5], dim=1))
    regressor = Regressor(weights, linear, torch.zeros(5, 2, dtype=torch.float64), 100.0, grid=8)
    maps = (100 * functional.conv2d(features, convolution)).flatten(2).softmax(-1)
    grid = geometry.identity_grid(height=8, width=8, dtype=torch.float64).flatten(0, 1)
    virtual = (maps @ grid).flatten(1).unsqueeze(-1).unsqueeze(-1)
    expected = functional.conv2d(virtual, data["par_linear_weight"], groups=5).view(3, 5, 2)
    got = regressor.predict(list(features.split([7, 5], dim=1)))
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_learning_rate_equals_cl(golden):
    data = golden("schedules")
    run = replace(paper(), epochs=200)
    got = torch.tensor([learning_rate(epoch, run) for epoch in range(200)], dtype=torch.float64)
    torch.testing.assert_close(got, data["out_cl_regression_lr"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("grid", [24, 48])
def test_responses_equal_the_convolved_hypercolumn(golden, grid):
    data = golden("hypercolumn")
    blocks = [data[f"in_layer{level}"] for level in (1, 2, 3, 4)]
    channels = [block.shape[1] for block in blocks]
    weights = torch.randn(7, sum(channels), generator=generator(), dtype=torch.float64).split(channels, dim=1)
    # CL concatenates the coarsest block first.
    convolution = torch.cat(weights[::-1], dim=1)[..., None, None]
    expected = functional.conv2d(data[f"out_hypercolumn_{grid}"], convolution).transpose(0, 1)
    torch.testing.assert_close(responses(blocks, weights, grid=grid), expected, rtol=0, atol=1e-12)


def test_half_precision_blocks_are_read_in_the_weights_type():
    blocks = [block.half() for block in blob_images(2, seed=0)[0]]
    weights = [torch.ones(3, block.shape[1]) for block in blocks]
    torch.testing.assert_close(
        responses(blocks, weights, grid=24), responses([block.float() for block in blocks], weights, grid=24)
    )


def test_soft_argmax_gradients():
    maps = torch.randn(3, 2, 4, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_argmax, maps)


@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 5), column=st.integers(0, 3), constant=st.floats(-50, 50))
def test_a_sharp_peak_is_found_and_constants_do_not_matter(row, column, constant):
    maps = torch.full((1, 6, 4), constant, dtype=torch.float64)
    maps[0, row, column] += 60
    expected = torch.tensor([[2 * column / 3 - 1, 2 * row / 5 - 1]], dtype=torch.float64)
    torch.testing.assert_close(soft_argmax(maps), expected, rtol=0, atol=1e-9)


def test_training_improves_the_start():
    blocks, landmarks = blob_images(32, seed=0)
    run = RegressionSettings(start="random", temperature=5.0, grid=12, points=5, lr=0.02)
    before, after = (
        loss(fit(blocks, landmarks, replace(run, epochs=epochs), generator()).predict(blocks), landmarks)
        for epochs in (0, 60)
    )
    assert after < before / 2
    own = RegressionSettings(grid=12, points=5, lr=0.005)
    before, after = (
        loss(fit(blocks, landmarks, replace(own, epochs=epochs), generator()).predict(blocks), landmarks)
        for epochs in (0, 30)
    )
    assert after < before


@pytest.mark.parametrize("start", ["random", "detectors"])
def test_the_generator_decides_everything(start):
    blocks, landmarks = blob_images(12, seed=0)
    run = RegressionSettings(start=start, grid=12, points=3, epochs=2)
    first, again, other = (fit(blocks, landmarks, run, generator(seed)).predict(blocks) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("start", ["random", "detectors"])
def test_invisible_landmarks_do_not_count(start):
    blocks, landmarks = blob_images(12, seed=0)
    visible = torch.ones(12, 2, dtype=torch.bool)
    visible[2:5, 1] = False
    run = RegressionSettings(start=start, grid=12, points=3, epochs=1)
    spoilt = landmarks.where(visible.unsqueeze(-1), torch.nan)
    first, second = (
        fit(blocks, marks, run, generator(), visible=visible).predict(blocks) for marks in (landmarks, spoilt)
    )
    assert torch.equal(first, second)
    face = mean_face(spoilt, 3, visible=visible)
    torch.testing.assert_close(face[2, 1], landmarks[visible[:, 1], 1].mean(0))


def test_loss_by_hand():
    predicted, target = torch.zeros(1, 2, 2), torch.tensor([[[0.05, 0.3], [9.0, 9.0]]])
    # Scaled distances 0.5 and 3: 0.5^2 / 2 and 3 - 1/2.
    visible = torch.tensor([[True, False]])
    assert loss(predicted, target, visible=visible).item() == pytest.approx((0.125 + 2.5) / 2, abs=1e-6)


def test_evaluate_by_hand():
    target = torch.tensor([[[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]]])
    found = evaluate(target + torch.tensor([0.0, 0.03]), target)
    assert found.mean == pytest.approx(3.0, abs=1e-4)  # % of an eye distance of 1
    assert found.per_image.tolist() == pytest.approx([3.0], abs=1e-4)


def test_annotations_are_nested_and_those_of_numpy():
    first = annotations(10, 1271, seed=2)
    assert first.tolist() == numpy.random.default_rng(2).permutation(1271)[:10].tolist()
    assert torch.equal(annotations(50, 1271, seed=2)[:10], first)
    with pytest.raises(ValueError, match=r"must be in 1\.\.5, .*, got 6"):
        annotations(6, 5, seed=0)


def test_a_dot_and_its_landmark_are_warped_together():
    images = torch.zeros(2, 3, 136, 136, dtype=torch.uint8)
    landmarks = torch.tensor([[[60.0, 70.0]], [[75.0, 50.0]]])
    for image, ((x, y),) in zip(images, landmarks.int().tolist(), strict=True):
        image[:, y - 1 : y + 2, x - 1 : x + 2] = 200
    copies, points = warped_copies(images, landmarks, 3, generator())
    assert copies.shape == (6, 3, 96, 96) and points.shape == (6, 1, 2)
    mass = copies[:, :1].double()
    grid = geometry.identity_grid(height=96, width=96, dtype=torch.float64)
    centre = (mass[:, 0, ..., None] * grid).sum((1, 2)) / mass.sum((1, 2, 3)).unsqueeze(-1)
    assert (centre - points[:, 0]).abs().max() < 2 * 0.8 / 95  # points move to whole pixels
    assert len(points.flatten(1).unique(dim=0)) > 3
    spreads = ("kernel_std", "subset_std", "translation_std", "scale_std", "rotation_std")
    still = geometry.Warper(**dict.fromkeys(spreads, 0.0))
    copies, points = warped_copies(images, landmarks, 1, generator(), warper=still)
    assert (copies.int() - geometry.crop_images(images, margin=20).int()).abs().max() <= 1  # truncated
    torch.testing.assert_close(points, 2 * (landmarks - 20) / 95 - 1)
    with pytest.raises(ValueError, match="copies must be >= 1, got 0"):
        warped_copies(images, landmarks, 0, generator())


def test_paper_settings():
    assert (paper().lr, paper().weight_decay, paper().batch_size) == (1e-3, 5e-4, 32)
    assert (paper().start, paper().temperature) == ("random", 100.0)
    assert (paper(45).epochs, paper(45).schedule_epochs, paper().grid) == (45, 200, 48)
    assert (paper_limited().lr, paper_limited().weight_decay, paper_limited().epochs) == (0.01, 0.05, 1000)
    regressor = random_start([3, 4], 5, points=50, temperature=100.0, grid=48, generator=generator())
    assert [weight.shape for weight in regressor.weights] == [(250, 3), (250, 4)]
    assert regressor.linear.abs().max() <= 0.1 and not regressor.bias.any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("grid", 0, "grid must be >= 1, got 0"),
        ("epochs", -1, "epochs must be >= 0, got -1"),
        ("lr", 0.0, "lr must be > 0, got 0.0"),
        ("temperature", -2.0, "temperature must be > 0, got -2.0"),
    ],
)
def test_settings_name_what_is_wrong(field, value, message):
    with pytest.raises(ValueError, match=message):
        RegressionSettings(**{field: value})


def test_errors_name_what_is_wrong():
    blocks, landmarks = blob_images(4, seed=0)
    run = RegressionSettings(grid=12, points=3)
    with pytest.raises(ValueError, match="schedule_epochs must be >= epochs=9, got 5"):
        RegressionSettings(epochs=9, schedule_epochs=5)
    with pytest.raises(ValueError, match=r"must hold the 3 annotated images, got \[4\]"):
        fit(blocks, landmarks[:3], run, generator())
    with pytest.raises(ValueError, match=r"landmarks \[1\] are visible in no annotated image"):
        fit(blocks, landmarks, run, generator(), visible=torch.tensor([[True, False]] * 4))
    with pytest.raises(ValueError, match=r"must have \[8, 4\] channels, as in fit\(\), got \[8\]"):
        fit(blocks, landmarks, run, generator()).predict(blocks[:1])
    with pytest.raises(ValueError, match="blocks hold values that are not finite"):
        fit([block * torch.nan for block in blocks], landmarks, run, generator())
    with pytest.raises(ValueError, match=r"the loss is nan at step 0; lower regression\.lr"):
        fit([block * torch.nan for block in blocks], landmarks, replace(paper(1), grid=12), generator())
