"""The read-out with a block of convolutions: against plain torch, what it learns, and what is said about it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts.convolution_head import ConvolutionHead
from lead_ray.readouts.descent import Annotated
from lead_ray.readouts.regression import fit, fit_many, mean_face
from lead_ray.readouts.settings import RegressionSettings, caution, named, paper, sce_mae

RUN = replace(sce_mae(40), grid=12, points=4, width=8, batch_size=8, schedule_epochs=None, lr=0.01)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dots(images: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Two blocks; a landmark is where a ring of its channel has its middle, which one cell alone does not tell."""
    source = generator(seed)
    landmarks = torch.rand(images, 2, 2, generator=source) - 0.5
    grid = geometry.identity_grid(height=12, width=12)
    distance = (grid - landmarks[:, :, None, None]).square().sum(-1).sqrt()
    rings = (-(distance - 0.3).square() / 0.01).exp()
    rings += 0.02 * torch.randn(rings.shape, generator=source)
    return [rings, torch.randn(images, 3, 6, 6, generator=source)], landmarks


def test_maps_and_points_equal_plain_torch():
    run = replace(RUN, grid=9)
    head = ConvolutionHead([2, 3], 2, run, generator())
    blocks, _ = dots(3, seed=0)
    features = torch.cat([blocks[0], functional.interpolate(blocks[1], size=12, mode="bilinear")], dim=1)
    hidden = functional.conv2d(features, head.first.weight, padding=1)
    normal = (hidden - hidden.mean((0, 2, 3), keepdim=True)) / (
        hidden.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    maps = functional.conv2d(normal.relu(), head.second.weight)
    maps = 10 * functional.interpolate(maps, size=9, mode="bilinear")
    shares = maps.flatten(2).softmax(-1)
    points = shares @ geometry.identity_grid(height=9, width=9).flatten(0, 1)
    expected = torch.einsum("bki,kic->bkc", points.view(3, 2, 8), head.linear)
    torch.testing.assert_close(head(blocks), expected, rtol=1e-4, atol=1e-5)


def test_it_learns_what_needs_neighbours():
    blocks, landmarks = dots(48, seed=0)
    test_blocks, expected = dots(32, seed=9)
    predicted = fit(blocks, landmarks, RUN, generator()).predict(test_blocks)
    floor = (mean_face(landmarks, 32) - expected).norm(dim=-1).mean()
    assert (predicted - expected).norm(dim=-1).mean() < floor / 2


def test_repeats_are_each_alone_and_the_generator_decides():
    blocks, landmarks = dots(12, seed=0)
    run, seen = replace(RUN, epochs=2), torch.ones(12, 2, dtype=torch.bool)
    sets = [
        Annotated(torch.arange(count), landmarks[:count], seen[:count], generator(seed))
        for count, seed in ((12, 3), (5, 4), (12, 5))
    ]
    found = [head.predict(blocks) for head in fit_many(blocks, sets, run)]
    alone = fit([block[:5] for block in blocks], landmarks[:5], run, generator(4)).predict(blocks)
    torch.testing.assert_close(found[1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[2])


def test_hidden_landmarks_do_not_count():
    blocks, landmarks = dots(8, seed=0)
    visible = torch.ones(8, 2, dtype=torch.bool)
    visible[2:5, 1] = False
    spoilt = landmarks.where(visible.unsqueeze(-1), torch.nan)
    run = replace(RUN, epochs=2)
    first, second = (
        fit(blocks, marks, run, generator(), visible=visible).predict(blocks) for marks in (landmarks, spoilt)
    )
    torch.testing.assert_close(first, second)


def test_settings_are_cls_but_for_the_head():
    found = named("sce-mae", RegressionSettings(epoch_steps=317, precision="bf16"))
    assert (found.head, found.temperature, found.precision) == ("convolutions", 10.0, "bf16")
    expected = replace(paper(120, epoch_steps=317), precision="bf16")
    assert replace(found, head="linear", temperature=100.0) == expected
    assert "not comparable" in caution(found) and caution(expected) is None


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"head=convolutions is trained from a random start: .* got detectors and 0"):
        RegressionSettings(head="convolutions")
    blocks, landmarks = dots(4, seed=0)
    run = replace(RUN, epochs=1)
    with pytest.raises(ValueError, match=r"must have \[2, 3\] channels, as in fit\(\), got \[2\]"):
        fit(blocks, landmarks, run, generator()).predict(blocks[:1])
    with pytest.raises(ValueError, match=r"the loss is nan at step 0; lower regression\.lr"):
        fit([block * math.nan for block in blocks], landmarks, run, generator())
