"""The compiled read-out against the same in float64 by matrices and automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lead_ray.readouts.regressor import Regressor, loss
from lead_ray.readouts.regressor_cpu import SHARED, Passes

HYPERCOLUMN = ((8, 24, 24), (6, 12, 12), (5, 6, 6), (9, 3, 3))


def case(
    shapes, *, images: int, marks: int, points: int, seed: int = 0, sharpness: float = 1.0
) -> tuple[list[Tensor], tuple[Tensor, ...], Tensor, Tensor]:
    """Blocks; weights, linear and bias; landmarks; what is visible."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    blocks = [draw(images, *shape) for shape in shapes]
    weights = [sharpness * draw(marks * points, shape[0]) for shape in shapes]
    visible = torch.rand(images, marks, generator=source) < 0.8
    return blocks, (*weights, draw(marks, 2 * points, 2) / 4, draw(marks, 2) / 9), draw(images, marks, 2) / 3, visible


def both(blocks, parameters, landmarks, visible, grid: int) -> tuple[tuple[Tensor, list[Tensor]], ...]:
    """Loss and gradients: compiled, and from the regressor in float64."""
    *weights, linear, bias = parameters
    passes = Passes(blocks, marks=len(linear), points=linear.shape[1] // 2, grid=grid)
    got = passes.gradients(weights, linear, bias, torch.arange(len(landmarks)), landmarks, visible)
    leaves = [tensor.double().requires_grad_() for tensor in parameters]
    regressor = Regressor(tuple(leaves[:-2]), leaves[-2], leaves[-1], 1.0, grid)
    predicted = regressor.landmarks([block.double() for block in blocks])
    value = loss(predicted, landmarks.double(), visible=visible)
    return got, (value.detach(), list(torch.autograd.grad(value, leaves)))


def assert_same(got, expected, *, rtol: float = 2e-5) -> None:
    torch.testing.assert_close(got[0].double(), expected[0], rtol=rtol, atol=1e-6)
    for found, known in zip(got[1], expected[1], strict=True):
        scale = float(known.abs().max())
        torch.testing.assert_close(found.double(), known, rtol=0, atol=rtol * scale + 1e-7)


@settings(max_examples=15)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    images=st.integers(1, 3),
    marks=st.integers(1, 3),
    points=st.integers(1, 5),
    grid=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_equal_automatic_ones(shapes, images, marks, points, grid, seed):
    given = case(shapes, images=images, marks=marks, points=points, seed=seed)
    assert_same(*both(*given, grid))


@pytest.mark.parametrize("grid", [24, 48])
def test_hypercolumn_of_a_whole_head(grid):
    assert_same(*both(*case(HYPERCOLUMN, images=2, marks=2, points=50, sharpness=0.3), grid))


def test_a_few_at_a_time_and_nothing_stays_of_the_last_pass():
    """More images than have room at once, drawn in any order and some of them twice; then the same again."""
    blocks, (*weights, linear, bias), landmarks, visible = case(HYPERCOLUMN, images=9, marks=2, points=3)
    rows = torch.randint(0, 9, (2 * SHARED + 3,), generator=torch.Generator().manual_seed(1))
    passes = Passes(blocks, marks=2, points=3, grid=16)
    found = [passes.gradients(weights, linear, bias, rows, landmarks[rows], visible[rows]) for _ in range(2)]
    drawn = [block[rows] for block in blocks]
    _, expected = both(drawn, (*weights, linear, bias), landmarks[rows], visible[rows], 16)
    assert_same(found[0], expected)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_saturated_maps():
    """As the published start makes them: one cell takes all, and what is far below counts for nothing."""
    got, expected = both(*case(((3, 5, 5),), images=3, marks=2, points=4, sharpness=300.0), 10)
    assert_same(got, expected, rtol=1e-3)
    assert all(gradient.isfinite().all() for gradient in got[1])


def test_nothing_visible():
    blocks, parameters, landmarks, _ = case(((3, 5, 5),), images=2, marks=2, points=4)
    value, gradients = both(blocks, parameters, landmarks, torch.zeros(2, 2, dtype=torch.bool), 6)[0]
    assert value == 0 and not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_what_is_no_number_stays_so(spoilt):
    blocks, parameters, landmarks, visible = case(((3, 5, 5),), images=2, marks=2, points=4)
    blocks[0][1, :, 2, 3] = spoilt
    value, _ = both(blocks, parameters, landmarks, torch.ones_like(visible), 6)[0]
    assert value.isnan()


def test_prediction_equals_that_in_float64():
    blocks, (*weights, linear, bias), _, _ = case(HYPERCOLUMN, images=70, marks=3, points=7)
    regressor = Regressor(tuple(weights), linear, bias, 0.5, 30)
    double = Regressor(tuple(weight.double() for weight in weights), linear.double(), bias.double(), 0.5, 30)
    expected = double.predict([block.double() for block in blocks])
    torch.testing.assert_close(regressor.predict(blocks).double(), expected, rtol=0, atol=2e-5)
    assert regressor.predict([block[:0] for block in blocks]).shape == (0, 3, 2)
    halves = [block.half().to(memory_format=torch.channels_last) for block in blocks]
    torch.testing.assert_close(regressor.predict(halves).double(), expected, rtol=0, atol=2e-2)


def test_threads_share_a_batch():
    blocks, (*weights, linear, bias), landmarks, visible = case(HYPERCOLUMN, images=7, marks=2, points=5)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3, 16):
            torch.set_num_threads(count)
            passes = Passes(blocks, marks=2, points=5, grid=16)
            found.append(passes.gradients(weights, linear, bias, torch.arange(7), landmarks, visible))
    finally:
        torch.set_num_threads(threads)
    for value, gradients in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradients, found[0][1])
