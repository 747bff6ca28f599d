"""Run by test_norm_triton in a process of its own, with TRITON_INTERPRET=1: prints what was found equal."""

import copy
import itertools

import torch
from torch import Tensor, nn

from lead_ray.models import norm_triton

# A program's sums of several tiles, several programs a batch; the last of each not full. Channels of several programs.
norm_triton.TILE_ROWS, norm_triton.TILE_CHANNELS, norm_triton.PROGRAMS = 4, 16, 12


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """A map, channels last, whose channels have means that are large beside their deviations."""
    source = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=source) + 3 * torch.randn(1, shape[1], 1, 1, generator=source)
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def norm_of(channels: int, tracking: bool = True) -> nn.BatchNorm2d:
    source, norm = torch.Generator().manual_seed(0), nn.BatchNorm2d(channels)
    norm.track_running_stats = tracking
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean):
            values.copy_(torch.randn(channels, generator=source))
    return norm


def plainly(norm: nn.Module, features: Tensor, shortcut: Tensor | None, relu: bool, batches: int) -> Tensor:
    result = torch.cat([norm(batch) for batch in features.chunk(batches)])
    result = result if shortcut is None else result + shortcut
    return result.relu() if relu else result


def results(how, norm: nn.Module, features: Tensor, shortcut: Tensor | None, relu: bool, batches: int, sent: Tensor):
    """The result, all gradients, the running statistics."""
    norm, leaves = copy.deepcopy(norm), [features.clone().requires_grad_()]
    if shortcut is not None:
        leaves.append(shortcut.clone().requires_grad_())
    result = how(norm, leaves[0], leaves[1] if shortcut is not None else None, relu, batches)
    gradients = torch.autograd.grad(result, [*leaves, norm.weight, norm.bias], sent)
    return [result.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def compare(dtype: torch.dtype, relu: bool, added: bool, batches: int, tracking: bool = True) -> None:
    shape = 2 * batches, 21, 5, 3
    features, sent = draw(*shape, seed=1, dtype=dtype), draw(*shape, seed=2, dtype=dtype)
    shortcut = draw(*shape, seed=3, dtype=dtype) if added else None
    norm = norm_of(shape[1], tracking)
    given = [None if each is None else each.double() for each in (features, shortcut)]
    # Where a sum rounds to nothing ReLU may close or not, and both are right: no gradient is sent there.
    exact = plainly(copy.deepcopy(norm).double(), *given, False, batches).detach()
    sent = sent * (exact.abs() > 0.05)
    found = results(norm_triton.fused, norm, features, shortcut, relu, batches, sent)
    expected = results(plainly, norm.double(), *given, relu, batches, sent.double())
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype in (dtype, torch.float32, torch.int64)
        near = 1e-5 if dtype == torch.float32 or mine.dtype != dtype else 2**-7
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=near, atol=10 * near)


def evaluated(dtype: torch.dtype, relu: bool, added: bool) -> None:
    features = draw(3, 21, 5, 3, seed=1, dtype=dtype)
    shortcut = draw(3, 21, 5, 3, seed=2, dtype=dtype) if added else None
    norm = norm_of(21).eval()
    found = norm_triton.frozen(norm, features, shortcut, relu)
    expected = plainly(norm.double(), features.double(), shortcut.double() if added else None, relu, 1)
    near = 1e-5 if dtype == torch.float32 else 2**-7  # the interpreter cuts digits off
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)


for relu, added in itertools.product((False, True), (False, True)):
    compare(torch.float32, relu, added, 1)
    compare(torch.float32, relu, added, 2)
    compare(torch.bfloat16, relu, added, 1 if relu == added else 2)
    evaluated(torch.float32, relu, added)
    evaluated(torch.bfloat16, relu, added)
compare(torch.float32, True, True, 2, tracking=False)  # the later shares of an elastic worker
print("equal")
