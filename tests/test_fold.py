"""BatchNorm folded into convolutions: the same outputs, and never those of weights that have changed since."""

import copy

import pytest
import torch
from torch import nn

from lead_ray.machine import native_bf16
from lead_ray.models import fused
from lead_ray.models.fold import Frozen, folded
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings


def worn(depth: int, seed: int = 0) -> Trunk:
    """A trunk whose BatchNorms have something to fold."""
    generator = torch.Generator().manual_seed(seed)
    trunk = Trunk(TrunkSettings(depth=depth, width=0.125)).eval()
    for norm in trunk.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -1, 1),
                (norm.running_mean, -1, 1),
                (norm.running_var, 0.2, 3),
            ):
                values.data.uniform_(low, high, generator=generator)
    return trunk


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_outputs_are_the_trunks(depth):
    trunk = worn(depth).double()
    plain, found = trunk(images().double()), folded(trunk)(images().double())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded(trunk).modules())
    for mine, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_the_copy_is_frozen_and_laid_out_as_the_trunk():
    trunk = worn(18).to(memory_format=torch.channels_last)
    copied = folded(trunk)
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert any(parameter.requires_grad for parameter in trunk.parameters()), "the original is as it was"
    assert copied.layer1[0].conv1.weight.stride() == trunk.layer1[0].conv1.weight.stride()


class TestFused:
    @pytest.mark.parametrize("depth", [18, 34, 50])
    @torch.no_grad()
    def test_is_the_folded_trunk(self, depth):
        copied = folded(worn(depth).to(memory_format=torch.channels_last))
        for mine, theirs in zip(fused.blocks(copied, images()), copied(images()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            assert mine.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("depth", [18, 50])
    @torch.no_grad()
    def test_rounds_no_worse_in_bf16(self, depth):
        trunk = worn(depth).to(memory_format=torch.channels_last)
        exact, half = trunk(images()), folded(trunk).bfloat16()
        for mine, theirs, right in zip(fused.blocks(half, images()), half(images().bfloat16()), exact, strict=True):
            assert mine.dtype == torch.bfloat16
            assert (mine.float() - right).norm() < 1.3 * (theirs.float() - right).norm()

    def test_only_where_it_pays(self):
        cpu = torch.device("cpu")
        assert not fused.usable(cpu, None) and not fused.usable(torch.device("cuda"), torch.bfloat16)
        assert fused.usable(cpu, torch.bfloat16) == native_bf16("cpu")

    def test_serves_frozen_trunks_under_autocast(self, monkeypatch):
        monkeypatch.setattr(fused, "usable", lambda device, precision: precision == torch.bfloat16)
        seen = []
        monkeypatch.setattr(fused, "blocks", lambda trunk, batch: seen.append(trunk.conv1.weight.dtype) or [batch])
        frozen = Frozen(worn(18))
        frozen(images())
        with torch.autocast("cpu", torch.bfloat16):
            frozen(images())
        assert seen == [torch.bfloat16]


class TestFrozen:
    def test_follows_the_trunk(self):
        trunk = worn(18)
        frozen = Frozen(trunk)
        first = frozen(images())
        kept = frozen.copies[None][1]
        frozen(images(1))
        assert frozen.copies[None][1] is kept, "folded once"
        trunk.load_state_dict(worn(18, seed=1).state_dict())
        torch.testing.assert_close(frozen(images()), trunk(images()), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(frozen(images())[0], first[0])
        trunk.double()
        assert frozen(images().double())[0].dtype == torch.float64

    def test_multiplies_in_the_precision_of_autocast(self):
        trunk = worn(18)
        frozen, exact = Frozen(trunk), trunk(images())
        with torch.autocast("cpu", torch.bfloat16):
            found = frozen(images())
        for half, single in zip(found, exact, strict=True):
            assert half.dtype == torch.bfloat16
            assert (half.float() - single).norm() < 0.02 * single.norm()

    def test_a_learner_keeps_and_copies_the_trunk_only(self):
        learner = Align(worn(18), AlignSettings(fpn=FpnSettings(lateral=32, branch=32), projector=0)).train()
        names = set(learner.state_dict())
        loss = learner(images(), images(1))["loss"]
        assert set(learner.state_dict()) == names and "trunk.bn1.running_var" in names
        twin = copy.deepcopy(learner)
        twin.trunk.load_state_dict(worn(18, seed=1).state_dict())
        assert not torch.equal(twin(images(), images(1))["loss"], loss)
        assert torch.equal(learner(images(), images(1))["loss"], loss)
