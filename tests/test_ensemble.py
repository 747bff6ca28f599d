"""The ensemble: which images a regressor sees, that it is the regressor of those images, and what disagreement says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lead_ray import geometry
from lead_ray.readouts import ensemble, regression
from lead_ray.readouts.ensemble import Ensemble, design, fit_ensemble, heat_width
from lead_ray.readouts.regressor import Regressor
from lead_ray.readouts.settings import RegressionSettings


def dots(images: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Noisy features with one channel per landmark that peaks where the landmark is."""
    source = torch.Generator().manual_seed(seed)
    landmarks = 1.2 * torch.rand(images, 2, 2, generator=source) - 0.6
    grid = geometry.identity_grid(height=12, width=12)
    peaks = (-(grid - landmarks[:, :, None, None]).square().sum(-1) / 0.05).exp()
    features = torch.cat([peaks, torch.zeros(images, 4, 12, 12)], dim=1)
    blocks = [features + 0.1 * torch.randn(features.shape, generator=source)]
    return blocks, landmarks, torch.ones(images, 2, dtype=torch.bool)


def apart(whole: tuple[float, ...], members: tuple[float, ...]) -> Ensemble:
    """Regressors that each say one place, whatever they are shown."""
    count = len(whole + members)
    bias = torch.tensor([[place, 0.0] for place in whole + members])
    regressor = Regressor((torch.zeros(count, 1),), torch.zeros(count, 2, 2), bias, 1.0, 2)
    return Ensemble(regressor, len(whole), len(members), (torch.zeros(1, 1),))


@given(count=st.integers(2, 20), members=st.integers(1, 8), seed=st.integers(0, 99))
def test_every_member_sees_every_landmark(count, members, seed):
    visible = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) < 0.6
    visible[seed % count] = True
    seen = design(visible, members, seed)
    assert all(visible[own].any(0).all() for own in seen)
    assert ((~seen).sum(1) <= 3 * count // 8).all()
    assert torch.equal(design(visible, members, seed), seen)


def test_every_member_is_kept_from_three_images_of_eight():
    visible = torch.rand(16, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    visible[:, 3] = False
    visible[5, 3] = True  # shown in one image only
    seen = design(visible, 8, seed=0)
    left = (~seen).sum(1)
    assert ((left >= 5) & (left <= 6)).all()  # but for the image that all need
    assert (~seen).sum(0).tolist().count(3) == 15 and seen[:, 5].all()


def test_all_are_the_regressors_of_their_images_with_one_shrinkage():
    blocks, landmarks, visible = dots(10, seed=0)
    visible[1:4, 1] = False
    found, seen = fit_ensemble(blocks, landmarks, visible, whole=2, members=3, points=5, seed=4)
    settings = RegressionSettings(grid=ensemble.GRID, points=5)
    every = regression.Annotated(torch.arange(10), landmarks, visible, torch.Generator().manual_seed(20))
    settings = replace(settings, shrinkage=regression.closed_form(blocks, every, settings).shrinkage)
    each = []
    for number, own in enumerate([torch.ones(10, dtype=torch.bool)] * 2 + list(seen)):
        source = torch.Generator().manual_seed(20 + number)
        alone = regression.fit([block[own] for block in blocks], landmarks[own], settings, source, visible=visible[own])
        each.append(alone.predict(blocks))
    for member in range(3):
        only = torch.zeros(3, 10, dtype=torch.bool)
        only[member] = True
        torch.testing.assert_close(found.read_by(blocks, only).points, each[2 + member], atol=1e-5, rtol=0)
    together = found.read(blocks)
    assert float((each[0] - each[1]).norm(dim=-1).mean()) > 1e-3  # they look for other places
    torch.testing.assert_close(together.points, (each[0] + each[1]) / 2, atol=1e-5, rtol=0)
    members = torch.stack(each[2:])
    spread = (members - members.mean(0)).square().sum(-1).sum(0) / 2
    torch.testing.assert_close(together.spread, spread.sqrt(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_with_few_images_the_landmark_is_nearer_than_the_members_mean():
    """Members lack three of eight."""
    errors = []
    for seed in range(8):
        found, _ = fit_ensemble(*dots(8, seed), points=5)
        blocks, truth, _ = dots(40, seed + 100)
        everyone = torch.ones(ensemble.MEMBERS, 40, dtype=torch.bool)
        readings = found.read(blocks), found.read_by(blocks, everyone)
        errors.append([float((reading.points - truth).norm(dim=-1).mean()) for reading in readings])
    nearer, mean = torch.tensor(errors).unbind(1)
    assert nearer.mean() < 0.8 * mean.mean()


def test_points_and_spread_by_hand():
    found, blocks = apart((0.8, 1.0), (0.0, 0.3, 0.6)), [torch.zeros(3, 1, 2, 2)]
    assert found.read(blocks).points[:, 0, 0].tolist() == pytest.approx([0.9] * 3)
    assert found.read(blocks).spread.flatten().tolist() == pytest.approx([0.3] * 3)  # sqrt((0.09 + 0.09) / 2)
    counted = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    some = found.read_by(blocks, counted)  # two members of three, one, none
    assert some.points[:2, 0, 0].tolist() == pytest.approx([0.15, 0.0]) and some.points[2].isnan().all()
    assert float(some.spread[0, 0]) == pytest.approx(0.045**0.5) and some.spread[1:].isnan().all()


def test_what_a_file_holds_and_what_one_of_format_1_held():
    found, blocks = apart((0.9,), (0.0, 0.3, 0.6)), [torch.zeros(1, 1, 2, 2)]
    torch.testing.assert_close(Ensemble.from_tensors(found.tensors()).read(blocks), found.read(blocks), atol=0, rtol=0)
    held = apart((), (0.0, 0.3, 0.6)).tensors()
    del held["whole"]
    reading = Ensemble.from_tensors(held).read(blocks)
    assert (float(reading.points[0, 0, 0]), float(reading.spread)) == pytest.approx((0.3, 0.3))
    held = found.tensors()
    del held["whole"]
    with pytest.raises(ValueError, match=r"4 landmarks of all regressors are not 0 \+ 3 times 1"):
        Ensemble.from_tensors(held)


def test_the_width_of_an_even_heat_map_by_hand():
    width = heat_width(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2))
    assert float(width) == pytest.approx(2**0.5)  # all mass lies in the four corners (±1, ±1)


def test_disagreement_falls_with_annotations_and_follows_the_error():
    blocks, landmarks, visible = dots(60, seed=0)
    test_blocks, truth, _ = dots(60, seed=1)
    test_blocks[0][:20, :2] *= 0.1  # a third is hard to see
    readings = []
    for count in (4, 60):
        found, _ = fit_ensemble([block[:count] for block in blocks], landmarks[:count], visible[:count], points=5)
        readings.append(found.read(test_blocks))
    spread = readings[1].spread.mean(1)
    assert spread.mean() < readings[0].spread.mean() / 1.5
    error = (readings[1].points - truth).norm(dim=-1).mean(1)
    assert spread[:20].mean() > 1.1 * spread[20:].mean() and error[:20].mean() > 1.1 * error[20:].mean()


def test_errors_name_what_is_wrong():
    blocks, landmarks, visible = dots(4, seed=0)
    with pytest.raises(ValueError, match="at least 2 annotated images, got 1"):
        fit_ensemble([block[:1] for block in blocks], landmarks[:1], visible[:1])
    with pytest.raises(ValueError, match=r"landmarks \[1\] are visible in no annotated image"):
        fit_ensemble(blocks, landmarks, torch.tensor([[True, False]] * 4))
    for wrong in ({"whole": 0}, {"members": 1}):
        with pytest.raises(ValueError, match="whole must be >= 1 and members >= 2"):
            fit_ensemble(blocks, landmarks, visible, **wrong)
