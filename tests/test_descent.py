"""Regressors that are trained together against each alone, and against plain torch."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lead_ray.machine import quick_products
from lead_ray.readouts import descent
from lead_ray.readouts.descent import Annotated, Batch, Stack
from lead_ray.readouts.regression import fit, fit_each, fit_many
from lead_ray.readouts.regressor import Regressor, loss, random_start
from lead_ray.readouts.settings import RegressionSettings, learning_rate, paper

POOL, MARKS = 12, 2
BLOCKS = (((3, 8, 8),), ((3, 8, 8), (4, 4, 4)), ((2, 8, 8), (3, 4, 4), (5, 2, 2)))
TRAINED = RegressionSettings(
    start="random", temperature=4.0, grid=8, points=3, epochs=3, batch_size=4, lr=0.02, weight_decay=0.01
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool(shapes, seed: int = 0) -> list[Tensor]:
    source = generator(seed)
    return [torch.randn(POOL, *shape, generator=source) for shape in shapes]


def annotated(count: int, seed: int) -> Annotated:
    """Some images of the pool; the second landmark of the last is hidden where there are others."""
    source = generator(100 + seed)
    landmarks = torch.rand(count, MARKS, 2, generator=source) - 0.5
    visible = torch.ones(count, MARKS, dtype=torch.bool)
    visible[1:, 1][-1:] = False
    return Annotated(torch.randperm(POOL, generator=source)[:count], landmarks, visible, generator(seed))


def alone(blocks: list[Tensor], count: int, seed: int, run: RegressionSettings) -> Regressor:
    images, landmarks, visible, source, _ = annotated(count, seed)
    return fit([block[images] for block in blocks], landmarks, run, source, visible=visible)


def assert_same(got: Regressor, expected: Regressor) -> None:
    torch.testing.assert_close(got.weights, expected.weights, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.linear, expected.linear, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.bias, expected.bias, rtol=1e-4, atol=1e-4)
    assert (got.temperature, got.grid) == (expected.temperature, expected.grid)


@settings(max_examples=8)
@given(
    counts=st.lists(st.integers(1, POOL), min_size=1, max_size=5),
    blocks=st.sampled_from(BLOCKS),
    start=st.sampled_from(["random", "detectors"]),
    epoch_steps=st.sampled_from([None, 2]),
    mixed=st.booleans(),
)
def test_together_is_alone(counts, blocks, start, epoch_steps, mixed):
    """Any numbers of images, fewer and more than a batch; passes of one size or of all sizes."""
    features = pool(blocks)
    run = replace(TRAINED, start=start, epoch_steps=epoch_steps)
    sets = [annotated(count, seed) for seed, count in enumerate(counts)]
    fitted = fit_many(features, sets, run, mixed=mixed)
    for seed, (count, got) in enumerate(zip(counts, fitted, strict=True)):
        assert_same(got, alone(features, count, seed, run))


def test_without_epochs_each_is_its_start():
    run = replace(TRAINED, start="detectors", epochs=0)
    features = pool(BLOCKS[1])
    for seed, got in enumerate(fit_many(features, [annotated(5, 0), annotated(9, 1)], run)):
        assert_same(got, alone(features, (5, 9)[seed], seed, run))


def test_each_is_given_out_when_its_pass_is_done(monkeypatch):
    """An evaluation that is interrupted keeps what was finished."""
    features, counts = pool(BLOCKS[0]), (7, 3, 7, 2)
    sets = [annotated(count, seed) for seed, count in enumerate(counts)]
    trained, original = [], descent.train

    def train(starts, *arguments):
        trained.append(len(starts))
        return original(starts, *arguments)

    monkeypatch.setattr("lead_ray.readouts.regression.train", train)
    given, seen = fit_each(features, sets, TRAINED), []
    for place, got in given:
        seen.append((place, len(trained)))
        assert_same(got, alone_as(features, counts[place], place))
    assert seen == [(3, 1), (1, 2), (0, 3), (2, 3)]
    with pytest.raises(ValueError, match=r"images, landmarks, visible must pair up"):
        fit_each(features, [sets[0]._replace(images=torch.arange(3))], TRAINED)
    assert fit_many(features, [], TRAINED) == []


def alone_as(features: list[Tensor], count: int, seed: int) -> Regressor:
    images, landmarks, visible, source, _ = annotated(count, seed)
    return plain([block[images] for block in features], landmarks, TRAINED, source, visible)


def relative(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


def test_products_in_bf16_are_near_and_the_switch_is_put_back():
    """Factors of 8 bits, 2^-9 of each at most: errors of a product of many stay below that of one."""
    source, before = generator(), torch.backends.mkldnn.matmul.fp32_precision
    features = [torch.randn(6, channels, side, side, generator=source) for channels, side in ((256, 12), (512, 6))]
    weights = [torch.randn(1, 100, len(block[0]), generator=source) / 16 for block in features]
    linear, bias = torch.randn(1, MARKS, 100, 2, generator=source) / 9, torch.zeros(1, MARKS, 2)
    stack = Stack(weights, [torch.ones(1, 1, len(block[0])) for block in features], linear, bias, 1.0, 24)
    landmarks = torch.randn(1, 6, MARKS, 2, generator=source) / 3
    batch = Batch(torch.arange(6)[None], landmarks, torch.ones(1, 6, MARKS, dtype=torch.bool))
    found = {}
    for precision in ("fp32", "bf16"):
        with quick_products("cpu", precision == "bf16"):
            found[precision] = descent._compiled(stack, features)(batch)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    torch.testing.assert_close(found["bf16"][0], found["fp32"][0], rtol=2e-2, atol=0)
    assert max(relative(found["bf16"][1][:3], found["fp32"][1][:3])) < 2e-2
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_amx_tile_supported():
        assert not torch.equal(found["bf16"][1][0], found["fp32"][1][0])
    with pytest.raises(KeyError), quick_products("cpu"):
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_as_many_passes_as_there_is_room_for(monkeypatch):
    seen = []

    def train(starts, *arguments):
        seen.append(len(starts))
        return original(starts, *arguments)

    original = descent.train
    monkeypatch.setattr("lead_ray.readouts.regression.train", train)
    features, counts = pool(BLOCKS[0]), (7, 3, 7, 7, 3)

    def fitted(**how) -> list[Regressor]:
        return fit_many(features, [annotated(count, seed) for seed, count in enumerate(counts)], TRAINED, **how)

    expected = fitted()
    fitted(mixed=True)
    assert seen == [2, 3, 5]
    numbers = MARKS * TRAINED.points * 3  # of a repeat's weights
    monkeypatch.setattr(descent, "ROOM", 2 * 4 * 4 * numbers)
    for got, known in zip(fitted(), expected, strict=True):
        assert_same(got, known)
    assert seen[3:] == [2, 2, 1]
    monkeypatch.setattr(descent, "ROOM", 0)
    fitted(mixed=True)
    assert seen[6:] == [1] * 5


def plain(
    blocks: list[Tensor],
    landmarks: Tensor,
    run: RegressionSettings,
    source: torch.Generator,
    visible: Tensor | None = None,
) -> Regressor:
    """One regressor by torch's own means: automatic differentiation, its optimiser, no stacks."""
    head = {"points": run.points, "temperature": run.temperature, "grid": run.grid}
    start = random_start([block.shape[1] for block in blocks], landmarks.shape[1], generator=source, **head)
    weights, linear = [weight.clone().requires_grad_() for weight in start.weights], start.linear.requires_grad_()
    regressor = start._replace(weights=tuple(weights))
    optimizer = torch.optim.Adam([*weights, linear], lr=run.lr, betas=(0.5, 0.999), weight_decay=run.weight_decay)
    for epoch in range(run.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch, run)
        for batch in torch.randperm(len(landmarks), generator=source).split(run.batch_size):
            optimizer.zero_grad()
            seen = None if visible is None else visible[batch]
            loss(regressor.landmarks([block[batch] for block in blocks]), landmarks[batch], visible=seen).backward()
            optimizer.step()
    return regressor.detach()


@pytest.mark.parametrize("run", [TRAINED, replace(paper(3), grid=8, points=3, batch_size=4, temperature=8.0)])
def test_training_equals_plain_torch(run):
    features = pool(BLOCKS[2])
    landmarks = torch.rand(POOL, MARKS, 2, generator=generator(5)) - 0.5
    assert run.epochs * math.ceil(POOL / run.batch_size) == 9
    assert_same(fit(features, landmarks, run, generator(3)), plain(features, landmarks, run, generator(3)))


@pytest.mark.parametrize("images", [1, 4])
def test_both_ways_to_the_gradients(images):
    """One compiled pass a repeat, which CPUs take, and one differentiated pass, which others take."""
    source, repeats, points = generator(), 3, 4
    features = pool(BLOCKS[2])

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    stack = Stack(
        [draw(repeats, MARKS * points, block.shape[1]) for block in features],
        [0.5 + draw(repeats, 1, block.shape[1]).square() for block in features],
        draw(repeats, MARKS, 2 * points, 2),
        draw(repeats, MARKS, 2),
        3.0,
        10,
    )
    rows = torch.randint(0, POOL, (repeats, images), generator=source)
    seen = torch.rand(repeats, images, MARKS, generator=source) < 0.7
    seen[0] = False
    batch = Batch(rows, draw(repeats, images, MARKS, 2) / 3, seen)
    compiled, differentiated = (way(stack, features)(batch) for way in (descent._compiled, descent._differentiated))
    torch.testing.assert_close(compiled[0], differentiated[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled[1], differentiated[1], rtol=1e-4, atol=1e-5)


def test_the_differentiated_way_ends_where_the_compiled_one_does(monkeypatch):
    features, counts = pool(BLOCKS[2]), (1, 7, 12)
    sets = [annotated(count, seed) for seed, count in enumerate(counts)]
    monkeypatch.setattr(descent, "_compiled", descent._differentiated)
    fitted = fit_many(features, sets, TRAINED, mixed=True)
    monkeypatch.undo()
    for seed, (count, got) in enumerate(zip(counts, fitted, strict=True)):
        assert_same(got, alone(features, count, seed, TRAINED))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("start", ["random", "detectors"])
def test_a_gpu_ends_where_a_cpu_does(start):
    features, counts, run = pool(BLOCKS[2]), (1, 7, 12), replace(TRAINED, start=start)
    sets = [annotated(count, seed) for seed, count in enumerate(counts)]
    there = [Annotated(*(tensor.cuda() for tensor in each[:3]), each.generator) for each in sets]
    fitted = fit_many([block.cuda() for block in features], there, run)
    for seed, (count, got) in enumerate(zip(counts, fitted, strict=True)):
        assert_same(got.to("cpu"), alone(features, count, seed, run))


def test_one_that_stops_being_finite_is_named():
    features = pool(BLOCKS[0])
    features[0][5] = torch.nan
    whole = annotated(POOL, 0)
    spared = annotated(4, 1)._replace(images=torch.arange(4))
    with pytest.raises(ValueError, match=r"the loss is nan at step 8; lower regression\.lr=0\.02"):
        fit_many(features, [spared, whole], TRAINED, mixed=True)
    hidden = whole._replace(visible=torch.tensor([[True, False]]).expand(POOL, -1))
    with pytest.raises(ValueError, match=r"images, landmarks, visible must pair up, got \[3, 12, 12\] rows"):
        fit_many(features, [whole._replace(images=torch.arange(3))], TRAINED)
    with pytest.raises(ValueError, match=r"landmarks \[1\] are visible in no annotated image"):
        fit_many(features, [whole, hidden], TRAINED)
