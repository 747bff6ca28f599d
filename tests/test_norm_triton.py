"""BatchNorm, shortcut and ReLU as Triton kernels, under Triton's interpreter on a CPU; who gets them."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lead_ray import machine
from lead_ray.models import norm_triton
from lead_ray.models.trunk import Trunk, TrunkSettings


def test_results_gradients_and_statistics_are_those_of_float64():
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux")
    script = Path(__file__).parent / "interpreted_norm.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["equal"]


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


def test_who_gets_them(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "triton")
    monkeypatch.setenv("LEAD_RAY_TRITON", "1")
    plain = torch.zeros(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    usable = inspect.unwrap(norm_triton.usable)  # without shape checks: what is asked is no tensor
    monkeypatch.setattr(norm_triton, "_known", inspect.unwrap(norm_triton._known))
    norm, there = nn.BatchNorm2d(8), OnAGpu(plain)
    assert usable(norm, there, None) and usable(norm, there, plain, 2)
    assert not usable(norm, plain, None), "not on a CPU"
    assert not usable(norm, OnAGpu(plain.contiguous()), None), "not in torch's own layout"
    assert not usable(norm, OnAGpu(plain.double()), None)
    assert not usable(norm, there, None, 3), "no equal parts"
    assert not usable(norm, OnAGpu(plain[:2, :, :1, :1]), None, 2), "a batch of one value"
    assert not usable(norm, there, plain.half())
    assert not usable(nn.BatchNorm2d(8).eval(), there, None)
    assert not usable(nn.SyncBatchNorm(8), there, None)
    assert not usable(nn.BatchNorm2d(8, affine=False), there, None)
    assert not usable(nn.BatchNorm2d(8, track_running_stats=False), there, None)
    monkeypatch.setenv("LEAD_RAY_TRITON", "0")
    assert not usable(norm, there, None)


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
