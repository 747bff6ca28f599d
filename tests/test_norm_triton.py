"""BatchNorm, shortcut and ReLU, and max-pooling, as Triton kernels: under Triton's interpreter; who gets them."""

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lead_ray import machine, triton_code
from lead_ray.models import norm_triton, pool_triton
from lead_ray.models.trunk import Trunk, TrunkSettings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norm", "pool"])
def test_results_gradients_and_statistics_are_those_of_float64(interpreted, name):
    assert interpreted(name) == ["equal"]


class OnAGpu:
    """As much of a map as is asked for."""

    def __init__(self, map: torch.Tensor):
        self.map, self.device = map, torch.device("cuda")

    def __getattr__(self, name):
        return getattr(self.map, name)

    def __getitem__(self, place):
        return self.map[place]

    def __len__(self):
        return len(self.map)


@pytest.fixture
def triton_at_hand(monkeypatch) -> Iterator[None]:
    """Installed, it seems; and no shape checks around those who are asked: what they are asked of is no tensor."""
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(triton_code, "triton", object())
    monkeypatch.setenv("LEAD_RAY_TRITON", "1")
    for module, names in ((norm_triton, ("usable", "frozen_usable", "_known")), (pool_triton, ("usable",))):
        for name in names:
            monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    monkeypatch.setattr(norm_triton, "serves_module", inspect.unwrap(triton_code.serves_module))
    monkeypatch.setattr(pool_triton, "serves_module", inspect.unwrap(triton_code.serves_module))
    yield


def channels_last(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def test_who_gets_them_in_training(triton_at_hand, monkeypatch):
    plain, norm = channels_last(4, 8, 3, 3), nn.BatchNorm2d(8)
    there, usable = OnAGpu(plain), norm_triton.usable
    assert usable(norm, there, None) and usable(norm, there, plain, 2)
    norm.track_running_stats = False  # for a while, for an elastic worker's later shares
    assert usable(norm, there, None)
    norm.track_running_stats = True
    assert not usable(norm, plain, None), "not on a CPU"
    assert not usable(norm, OnAGpu(plain.contiguous()), None), "not in torch's own layout"
    assert not usable(norm, OnAGpu(plain.double()), None)
    assert not usable(norm, there, None, 3), "no equal parts"
    assert not usable(norm, OnAGpu(plain[:2, :, :1, :1]), None, 2), "a batch of one value"
    assert not usable(norm, OnAGpu(plain[:0]), None)
    assert not usable(norm, there, plain.half())
    assert not usable(nn.BatchNorm2d(8).eval(), there, None)
    assert not usable(nn.SyncBatchNorm(8), there, None)
    assert not usable(nn.BatchNorm2d(8, affine=False), there, None)
    assert not usable(nn.BatchNorm2d(8, track_running_stats=False), there, None)
    assert not usable(nn.BatchNorm2d(8, momentum=None), there, None)
    assert not usable(hooked(nn.BatchNorm2d(8)), there, None)
    monkeypatch.setenv("LEAD_RAY_TRITON", "0")
    assert not usable(norm, there, None)


def test_who_gets_them_in_evaluation(triton_at_hand):
    there, usable, norm = OnAGpu(channels_last(4, 8, 3, 3)), norm_triton.frozen_usable, nn.BatchNorm2d(8).eval()
    assert not usable(norm, there, None), "gradients may be wanted"
    with torch.no_grad():
        assert usable(norm, there, None)
        assert not usable(nn.BatchNorm2d(8), there, None)
        assert not usable(nn.BatchNorm2d(8, track_running_stats=False).eval(), there, None)
        assert not usable(norm, OnAGpu(channels_last(0, 8, 3, 3)), None)
        assert not usable(hooked(nn.BatchNorm2d(8).eval()), there, None)


def test_which_pooling(triton_at_hand, monkeypatch):
    there, usable = OnAGpu(channels_last(4, 8, 5, 5)), pool_triton.usable
    assert usable(nn.MaxPool2d(3, stride=2, padding=1), there)
    assert not usable(nn.MaxPool2d(3, stride=2), there)
    assert not usable(nn.MaxPool2d(3, stride=2, padding=1, return_indices=True), there)
    assert not usable(nn.MaxPool2d(3, stride=2, padding=1), there.map)
    monkeypatch.setattr(triton_code, "triton", None)
    assert not usable(nn.MaxPool2d(3, stride=2, padding=1), there), "found, but not imported"


def test_batches_in_one_pass_are_batches_one_after_another():
    """On a CPU, without the kernels: outputs, gradients and running statistics."""
    torch.manual_seed(0)
    together, apart = (Trunk(TrunkSettings(depth=18, width=0.125)).double() for _ in range(2))
    apart.load_state_dict(together.state_dict())
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    found = together(images, batches=2)
    expected = [torch.cat(parts) for parts in zip(*(apart(batch) for batch in images.chunk(2)), strict=True)]
    sum(block.square().mean() for block in found).backward()
    sum(block.square().mean() for block in expected).backward()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
