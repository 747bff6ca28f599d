"""Ensembles: which images a member sees, that it is the regressor of those images, and what disagreement says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lead_ray import geometry
from lead_ray.readouts.detectors import SHRINKAGES
from lead_ray.readouts.ensemble import agreement, resamples
from lead_ray.readouts.regression import closed_form, fit, fit_ensemble
from lead_ray.readouts.regressor import Regressor
from lead_ray.readouts.settings import RegressionSettings

RUN = RegressionSettings(grid=12, points=5)


def dots(images: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """Noisy features with one channel per landmark that peaks where the landmark is."""
    source = torch.Generator().manual_seed(seed)
    landmarks = 1.2 * torch.rand(images, 2, 2, generator=source) - 0.6
    grid = geometry.identity_grid(height=12, width=12)
    peaks = (-(grid - landmarks[:, :, None, None]).square().sum(-1) / 0.05).exp()
    features = torch.cat([peaks, torch.zeros(images, 4, 12, 12)], dim=1)
    return [features + 0.1 * torch.randn(features.shape, generator=source)], landmarks


@given(count=st.integers(1, 12), members=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_member_sees_every_landmark(count, members, seed):
    visible = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) < 0.4
    visible[seed % count] = True
    found = [rows for rows, _ in resamples(visible, members, seed)]
    assert len(found) == members
    for rows in found:
        assert visible[rows].any(0).all()
        assert rows.tolist() == sorted(set(rows.tolist())) and rows.min() >= 0 and rows.max() < count
    again = [rows.tolist() for rows, _ in resamples(visible, members, seed)]
    assert [rows.tolist() for rows in found] == again


def test_a_resample_holds_63_percent():
    visible = torch.ones(1000, 1, dtype=torch.bool)
    shares = [len(rows) / 1000 for rows, _ in resamples(visible, 20, seed=0)]
    assert sum(shares) / 20 == pytest.approx(1 - 1 / torch.e, abs=0.01)


@pytest.mark.parametrize(
    "run", [RUN, replace(RUN, start="random", epochs=2, batch_size=4), replace(RUN, epochs=1, shrinkage=2.0)]
)
def test_members_are_regressors_of_their_images(run):
    blocks, landmarks = dots(10, seed=0)
    visible = torch.ones(10, 2, dtype=torch.bool)
    visible[1:, 1] = False
    spoilt = landmarks.where(visible.unsqueeze(-1), torch.nan)
    members = fit_ensemble(blocks, spoilt, run, members=3, seed=4, visible=visible)
    for member, (rows, source) in zip(members, resamples(visible, 3, 4), strict=True):
        candidates = [run.shrinkage] if run.shrinkage or run.start == "random" else SHRINKAGES
        alone = []
        for shrinkage in candidates:
            state = source.get_state()
            some = [block[rows] for block in blocks], landmarks[rows], replace(run, shrinkage=shrinkage), source
            alone.append(fit(*some, visible=visible[rows]).predict(blocks))
            source.set_state(state)
        got = member.predict(blocks)
        assert min(float((got - each).abs().max()) for each in alone) < 1e-4


def test_the_shrinkage_that_is_chosen_can_be_given(monkeypatch):
    blocks, landmarks = dots(10, seed=0)
    chosen = []
    monkeypatch.setattr(
        "lead_ray.readouts.regression.closed_form", lambda *given: chosen.append(closed_form(*given)) or chosen[-1]
    )
    free = fit(blocks, landmarks, RUN, torch.Generator().manual_seed(0))
    fixed = replace(RUN, shrinkage=chosen[0].shrinkage)
    again = fit(blocks, landmarks, fixed, torch.Generator().manual_seed(0))
    assert chosen[0].shrinkage in SHRINKAGES
    assert torch.equal(free.predict(blocks), again.predict(blocks))


def test_agreement_by_hand():
    weight, linear, blocks = torch.zeros(1, 1), torch.zeros(1, 2, 2), [torch.zeros(2, 1, 1, 1)]
    members = [Regressor((weight,), linear, torch.tensor([place]), 1.0, 2) for place in ([0.3, 0.0], [0.5, 0.2])]
    found = agreement(members, blocks)
    torch.testing.assert_close(found.landmarks, torch.tensor([[[0.4, 0.1]]]).expand(2, 1, 2))
    assert found.spread.flatten().tolist() == pytest.approx([0.1 * 2**0.5] * 2)
    assert not agreement(members[:1], blocks).spread.any()
    with pytest.raises(ValueError, match="members must hold at least one regressor"):
        agreement([], blocks)


def test_disagreement_falls_with_annotations_and_follows_the_error():
    blocks, landmarks = dots(60, seed=0)
    test_blocks, truth = dots(60, seed=1)
    test_blocks[0][:20, :2] *= 0.1  # a third is hard to see
    spreads = []
    for count in (4, 60):
        members = fit_ensemble([block[:count] for block in blocks], landmarks[:count], RUN)
        assert len(members) == 8
        spreads.append(agreement(members, test_blocks))
    assert spreads[1].spread.mean() < spreads[0].spread.mean() / 1.5
    error = (spreads[1].landmarks - truth).norm(dim=-1).mean(1)
    spread = spreads[1].spread.mean(1)
    assert spread[:20].mean() > 1.1 * spread[20:].mean() and error[:20].mean() > 1.1 * error[20:].mean()


def test_errors_name_what_is_wrong():
    blocks, landmarks = dots(4, seed=0)
    with pytest.raises(ValueError, match="members must be >= 1, got 0"):
        fit_ensemble(blocks, landmarks, RUN, members=0)
    with pytest.raises(ValueError, match=r"landmarks \[1\] are visible in no annotated image"):
        fit_ensemble(blocks, landmarks, RUN, visible=torch.tensor([[True, False]] * 4))
    with pytest.raises(ValueError, match=r"must hold the 3 annotated images, got \[4\]"):
        fit_ensemble(blocks, landmarks[:3], RUN)
