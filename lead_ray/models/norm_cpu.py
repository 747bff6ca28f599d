"""BatchNorm, the sum with a shortcut and ReLU together, on one thread of a CPU in training, forward and back.

What lies between two convolutions is bound by memory, and takes as long as the convolutions in bf16. torch's operators
pass over a map five times going forward; here it is twice, for the statistics and for the result. Sums over 256 rows
are float32, those over all of them float64. Several threads are left to torch, whose own they are: others beside them
cost as much as is gained here. So it serves workers that have a core each.
"""

import inspect
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numba import types
from numba.extending import overload
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lead_ray.machine_code import HONEST, compiler

F = np.float32
TOGETHER = 256  # rows summed in float32
LEAST = 2**19  # values of a map from which on this is faster than torch's operators
_compiled = compiler(HONEST)
WIDE = 256  # values a loop should run over at least: of few channels, so many rows are taken as one


def usable(norm: nn.Module, features: Tensor, shortcut: Tensor | None) -> bool:
    """Whether fused() is to serve features on a CPU: large ones in training, whose layout and precision it knows.

    It is no place for hooks, and has first derivatives in reverse only.
    """
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and (not norm.track_running_stats or (norm.momentum is not None and norm.running_mean is not None))
        and norm.weight.dtype == torch.float32
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and type(features) is Tensor
        and features.dtype in (torch.bfloat16, torch.float32)
        and features.is_contiguous(memory_format=torch.channels_last)
        and features.numel() >= LEAST
        and _count(features) > 1
        and (shortcut is None or (shortcut.dtype == features.dtype and shortcut.shape == features.shape))
        and torch.get_num_threads() == 1
    )


def fused(
    norm: nn.BatchNorm2d, features: Float[Tensor, "b c h w"], shortcut: Float[Tensor, "b c h w"] | None, relu: bool
) -> Float[Tensor, "b c h w"]:
    """relu(norm(features) + shortcut); carries gradients, moves the running statistics if they are tracked."""
    result, mean, variance = _Normed.apply(features, norm.weight, norm.bias, shortcut, relu, norm.eps)
    if norm.track_running_stats:
        count = _count(features)
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    return result


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, shortcut, relu, eps):
        count, x = _count(features), _rows(features)
        near = features[:, :, features.shape[2] // 2, features.shape[3] // 2].detach().float().mean(0).numpy()
        total, square = _summed(_sums, features.shape[1], x, _tiled(near, x))
        with np.errstate(invalid="ignore"):  # what is infinite gets no number, as torch gives it none
            mean = near + total / count
            variance = np.maximum(square / count - (total / count) ** 2, 0)
            inverse = 1 / np.sqrt(variance + eps)
        scale = inverse * weight.detach().numpy()
        affine = _tiled(scale, x), _tiled(bias.detach().numpy() - mean * scale, x)
        result = torch.empty_like(features)
        if shortcut is None:
            _apply(x, _rows(result), *affine, relu)
        else:
            other = _rows(shortcut.contiguous(memory_format=torch.channels_last))
            _apply_and_add(x, other, _rows(result), *affine, relu)
        ctx.relu, ctx.added, ctx.mean, ctx.inverse = relu, shortcut is not None, mean, inverse
        ctx.save_for_backward(features, weight, result if relu else None)
        found = torch.from_numpy(mean.astype(F)), torch.from_numpy(variance.astype(F))
        ctx.mark_non_differentiable(*found)
        return result, *found

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        features, weight, result = ctx.saved_tensors
        count, channels = _count(features), features.shape[1]
        gradient = gradient.to(features.dtype).contiguous(memory_format=torch.channels_last)
        x, d = _rows(features), _rows(gradient)
        centre = _tiled(ctx.mean, x)
        if result is None:
            total, slope = _summed(_slopes, channels, d, x, centre)
        else:
            # What the ReLU lets through is the shortcut's, too.
            gradient = torch.empty_like(gradient)
            passed = _rows(gradient)
            total, slope = _summed(_passed_slopes, channels, d, _rows(result), x, passed, centre)
            d = passed
        scale = ctx.inverse * weight.detach().numpy()
        parts = scale, -scale * ctx.inverse**2 * slope / count, -scale * total / count
        back = torch.empty_like(features)
        _gradient(d, x, _rows(back), centre, *(_tiled(part, x) for part in parts))
        of_weight, of_bias = (torch.from_numpy(part.astype(F)) for part in (slope * ctx.inverse, total))
        return back, of_weight, of_bias, gradient if ctx.added else None, None, None


def _count(features: Tensor) -> int:
    return features.numel() // max(1, features.shape[1])


def _rows(features: Tensor) -> np.ndarray:
    """[rows, channels], of few channels several rows in one; bf16 as its bits."""
    channels, rows = features.shape[1], _count(features)
    together = 1
    while channels * together < WIDE and rows % (2 * together) == 0:
        together *= 2
    flat = features.detach().permute(0, 2, 3, 1).reshape(rows // together, channels * together)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _tiled(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """One value a channel, as wide as the rows."""
    return np.tile(values.astype(F), rows.shape[1] // len(values))


def _summed(call: Callable, channels: int, *given: np.ndarray) -> np.ndarray:
    """Two sums for every channel, [2, channels] in float64."""
    totals = np.zeros((2, given[0].shape[1]))
    call(*given, totals)
    return totals.reshape(2, -1, channels).sum(1)


def _wide(value):
    """float32 of a value, or of the bits of a bf16."""


@overload(_wide)
def _wide_compiled(value):
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def _narrow(value, like):
    """To the type of another: the nearest bf16's bits, of two the even one's, or the float32 that it is."""


@overload(_narrow)
def _narrow_compiled(value, like):
    if isinstance(like, types.Float):
        return lambda value, like: value

    def rounded(value, like):
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return inspect.unwrap(rounded)


@_compiled
def _sums(x, near, totals):
    """Of distances from a value that is near the mean, so that little cancels, and of their squares."""
    part = np.empty((2, x.shape[1]), F)
    plain, square = part[0], part[1]
    for start in range(0, len(x), TOGETHER):
        part[:] = F(0)
        for r in range(start, min(start + TOGETHER, len(x))):
            row = x[r]
            for c in range(len(row)):
                value = _wide(row[c]) - near[c]
                plain[c] += value
                square[c] += value * value
        totals += part


@_compiled
def _apply(x, y, scale, shift, relu):
    for r in range(len(x)):
        row, target = x[r], y[r]
        for c in range(len(row)):
            value = _wide(row[c]) * scale[c] + shift[c]
            target[c] = _narrow(F(0) if relu and value < F(0) else value, row[c])


@_compiled
def _apply_and_add(x, other, y, scale, shift, relu):
    for r in range(len(x)):
        row, beside, target = x[r], other[r], y[r]
        for c in range(len(row)):
            value = _wide(row[c]) * scale[c] + shift[c] + _wide(beside[c])
            target[c] = _narrow(F(0) if relu and value < F(0) else value, row[c])


@_compiled
def _slopes(d, x, centre, totals):
    """Sums of gradients, and of gradients times distances from the mean."""
    part = np.empty((2, x.shape[1]), F)
    plain, slope = part[0], part[1]
    for start in range(0, len(x), TOGETHER):
        part[:] = F(0)
        for r in range(start, min(start + TOGETHER, len(x))):
            gradients, row = d[r], x[r]
            for c in range(len(row)):
                value = _wide(gradients[c])
                plain[c] += value
                slope[c] += value * (_wide(row[c]) - centre[c])
        totals += part


@_compiled
def _passed_slopes(d, y, x, passed, centre, totals):
    """_slopes() of the gradients that the ReLU lets through, which are kept."""
    part = np.empty((2, x.shape[1]), F)
    plain, slope = part[0], part[1]
    for start in range(0, len(x), TOGETHER):
        part[:] = F(0)
        for r in range(start, min(start + TOGETHER, len(x))):
            gradients, result, row, target = d[r], y[r], x[r], passed[r]
            for c in range(len(row)):
                value = F(0) if _wide(result[c]) <= F(0) else _wide(gradients[c])
                target[c] = _narrow(value, gradients[c])
                plain[c] += value
                slope[c] += value * (_wide(row[c]) - centre[c])
        totals += part


@_compiled
def _gradient(d, x, back, centre, scale, through, constant):
    """Of the loss in the features."""
    for r in range(len(x)):
        gradients, row, target = d[r], x[r], back[r]
        for c in range(len(row)):
            value = scale[c] * _wide(gradients[c]) + through[c] * (_wide(row[c]) - centre[c]) + constant[c]
            target[c] = _narrow(value, row[c])
