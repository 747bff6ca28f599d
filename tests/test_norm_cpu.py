"""BatchNorm, shortcut and ReLU in one pass against torch's operators in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lead_ray.models import norm_cpu
from lead_ray.models.batchnorm import SyncBatchNorm
from lead_ray.models.trunk import Trunk, TrunkSettings, normed

TYPES = {torch.float32: 5e-6, torch.bfloat16: 2**-8}
"""Precision -> half a unit in the last place of a bf16, and some eighty of a float32: channels may have large means."""


@pytest.fixture(autouse=True, scope="module")
def small():
    """Have it serve maps of any size, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_cpu, "LEAST", 1)
        yield
    torch.set_num_threads(before)


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A map, channels last, whose channels have means that are large beside their deviations."""
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=source) + 3 * torch.randn(1, shape[1], 1, 1, generator=source)
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels: int, seed: int = 0) -> nn.BatchNorm2d:
    source, norm = torch.Generator().manual_seed(seed), nn.BatchNorm2d(channels)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.copy_(torch.randn(channels, generator=source))
    return norm


def run(norm: nn.Module, features: Tensor, shortcut: Tensor | None, relu: bool, sent: Tensor, how) -> list[Tensor]:
    """The result, all gradients and the running statistics."""
    norm, leaves = copy.deepcopy(norm), [features.clone().requires_grad_()]
    if shortcut is not None:
        leaves.append(shortcut.clone().requires_grad_())
    result = how(norm, leaves[0], leaves[1] if shortcut is not None else None, relu)
    gradients = torch.autograd.grad(result, [*leaves, norm.weight, norm.bias], sent)
    return [result.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def plainly(norm: nn.Module, features: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    result = norm(features)
    result = result if shortcut is None else result + shortcut
    return result.relu() if relu else result


@settings(max_examples=30, deadline=None)  # the first call compiles
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(list(TYPES)),
    relu=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 99),
)
def test_results_gradients_and_statistics_are_those_of_float64(shape, dtype, relu, added, seed):
    if shape[0] * shape[2] * shape[3] < 2:
        return
    features, sent = draw(*shape, seed=seed, dtype=dtype), draw(*shape, seed=seed + 1, dtype=dtype)
    shortcut = draw(*shape, seed=seed + 2, dtype=dtype) if added else None
    norm = norm_of(shape[1], seed)
    assert norm_cpu.usable(norm, features, shortcut)
    found = run(norm, features, shortcut, relu, sent, norm_cpu.fused)
    given = [None if each is None else each.double() for each in (features, shortcut, sent)]
    # Where a sum rounds to nothing the ReLU may close or not: both are right there.
    exact = plainly(copy.deepcopy(norm).double(), *given[:2], False).detach()
    clear = exact.abs() > 0.05
    result, known = found[0].double(), exact.clamp(min=0) if relu else exact
    spread = float(exact.abs().max())
    torch.testing.assert_close(result, known, rtol=TYPES[dtype], atol=TYPES[dtype] * spread)
    if relu:
        assert torch.equal((result > 0)[clear], (exact > 0)[clear])
        given[2] = given[2] * (result > 0)  # its own decisions
    expected = run(norm.double(), *given[:2], False, given[2], plainly)
    for got, right in zip(found[1:], expected[1:], strict=True):
        assert got.shape == right.shape
        scale = float(right.abs().max())
        cancelled = 1e-4 if scale < 1e-3 else 0.0  # of two values in a channel the gradient is all but nothing
        torch.testing.assert_close(got.double(), right.double(), rtol=0, atol=4 * TYPES[dtype] * scale + cancelled)


def test_by_hand():
    """Values 1 and 3: mean 2, deviation 1; weight 2, bias 1, shortcut -4 -> -5 and -1, or 0."""
    norm = nn.BatchNorm2d(1, eps=0.0, momentum=0.5)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 1.0)
    features = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    shortcut = torch.full_like(features, -4.0)
    assert norm_cpu.fused(norm, features, shortcut, False).flatten().tolist() == [-5.0, -1.0]
    assert norm_cpu.fused(norm, features, shortcut, True).flatten().tolist() == [0.0, 0.0]
    assert norm.running_mean.item() == 1.5  # 0, 1, 1.5
    assert norm.running_var.item() == 1.75  # 1, 1.5, 1.75: of 2, the variance with n - 1
    assert norm.num_batches_tracked.item() == 2


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", list(TYPES))
def test_what_is_no_number_stays_so(spoilt, dtype):
    features = draw(2, 3, 4, 4, seed=0, dtype=dtype)
    features[1, 2, 0, 0] = spoilt
    result = norm_cpu.fused(norm_of(3), features, None, True)
    assert result[:, 2].isnan().any() and result[:, :2].isfinite().all()


def test_statistics_that_are_not_tracked_stay():
    """As in all shares of a step but its first."""
    norm, features = norm_of(3), draw(2, 3, 4, 4, seed=0, dtype=torch.float32)
    tracked = normed(copy.deepcopy(norm), features)
    kept = copy.deepcopy(norm.state_dict())
    norm.track_running_stats = False
    assert norm_cpu.usable(norm, features, None)
    assert torch.equal(normed(norm, features), tracked)
    assert all(torch.equal(value, kept[name]) for name, value in norm.state_dict().items())


def test_one_outlier_where_the_statistics_begin_costs_nothing():
    features = draw(8, 2, 48, 48, seed=0, dtype=torch.float32)
    features[0, :, 0, 0] = 1000.0
    exact = features.double().var((0, 2, 3), correction=1)
    norm = nn.BatchNorm2d(2, momentum=1.0)
    norm_cpu.fused(norm, features, None, False)
    torch.testing.assert_close(norm.running_var.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("frozen", ["features", "norm", "shortcut"])
def test_frozen_parts_and_expanded_gradients(frozen):
    norm, features, shortcut = norm_of(5), *(draw(3, 5, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    leaves = {"features": [features], "shortcut": [shortcut], "norm": list(norm.parameters())}
    found = []
    for how in (norm_cpu.fused, plainly):
        for name, tensors in leaves.items():
            for tensor in tensors:
                tensor.grad = None
                tensor.requires_grad_(name != frozen)
        how(norm, features, shortcut, True).sum().backward()
        found.append([tensor.grad for tensors in leaves.values() for tensor in tensors])
    for got, known in zip(*found, strict=True):
        assert (got is None) == (known is None)
        if known is not None:
            torch.testing.assert_close(got, known, rtol=1e-4, atol=1e-5)


def test_a_shortcut_that_is_the_input_itself():
    features, sent = (draw(3, 5, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    found = []
    for how in (norm_cpu.fused, plainly):
        leaf = features.clone().requires_grad_()
        found.append(torch.autograd.grad(how(norm_of(5), leaf, leaf, True), leaf, sent)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_what_it_leaves_to_torch(monkeypatch):
    norm, features = norm_of(3), draw(2, 3, 4, 4, seed=0, dtype=torch.float32)
    assert norm_cpu.usable(norm, features, features)
    assert not norm_cpu.usable(norm, features.contiguous(), None)
    assert not norm_cpu.usable(norm, features.double(), None)
    assert not norm_cpu.usable(norm, features, features.bfloat16())
    assert not norm_cpu.usable(norm, features[:1, :, :1, :1], None)
    assert not norm_cpu.usable(norm_of(3).eval(), features, None)
    assert not norm_cpu.usable(SyncBatchNorm(3), features, None)
    assert not norm_cpu.usable(nn.BatchNorm2d(3, affine=False), features, None)
    without = norm_of(3)
    without.running_mean = None
    assert not norm_cpu.usable(without, features, None)
    hooked = norm_of(3)
    hooked.register_forward_hook(lambda *_: None)
    assert not norm_cpu.usable(hooked, features, None)
    monkeypatch.setattr(norm_cpu, "LEAST", features.numel() + 1)
    assert not norm_cpu.usable(norm, features, None)
    monkeypatch.setattr(norm_cpu, "LEAST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not norm_cpu.usable(norm, features, None)
    # Its in-place sum must not reach what it was given.
    kept = features.clone()
    normed(norm_of(3).eval(), features, features)
    assert torch.equal(features, kept)


def test_a_trunk_in_training_is_the_plain_one(monkeypatch):
    """To rounding: in deeper ones a ReLU closes in one and not in the other, in torch's against float64, too."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(depth=18, width=0.125)).to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def trained(network: Trunk) -> list[Tensor]:
        sum(block.square().mean() for block in network(images)).backward()
        return [parameter.grad for parameter in network.parameters()] + [
            each for each in network.buffers() if each.is_floating_point()
        ]

    served, fused = [], norm_cpu.fused
    monkeypatch.setattr(norm_cpu, "fused", lambda norm, *given: served.append(norm) or fused(norm, *given))
    ours = trained(copy.deepcopy(trunk))
    assert len(served) == sum(isinstance(module, nn.BatchNorm2d) for module in trunk.modules())
    monkeypatch.setattr(norm_cpu, "usable", lambda *_: False)
    for found, known in zip(ours, trained(trunk), strict=True):
        assert float((found - known).norm()) <= 1e-4 * float(known.norm())
