"""BatchNorm, the sum with a shortcut and ReLU together, on one thread of a CPU in training, forward and back.

What lies between two convolutions is bound by memory, and takes as long as the convolutions in bf16. torch's operators
pass over a map five times going forward; here it is twice, for the statistics and for the result. Sums over 256 rows
are float32, those over all of them float64. Several threads are left to torch: they wait for memory, and nothing is
gained. So it serves workers that have a core each.
"""

import inspect

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
    return _Normed.apply(features, norm.weight, norm.bias, shortcut, norm, relu)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, shortcut, norm, relu):
        x, channels = _rows(features), len(weight)
        near = np.empty(channels, F)
        _near(_flat(features), features.shape[2] * features.shape[3], near)
        totals = np.zeros((2, x.shape[1]))
        _sums(x, near, totals)
        known = _statistics(totals, near, _count(features), norm.eps)
        given = weight.detach().numpy(), bias.detach().numpy()
        scale, shift = np.empty((2, x.shape[1]), F)
        _affine(known, *given, scale, shift)
        if norm.track_running_stats:
            count = _count(features)
            mean, variance, _ = torch.from_numpy(known).float()
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        result = torch.empty_like(features)
        if shortcut is None:
            _apply(x, _rows(result), scale, shift, relu)
        else:
            other = _rows(shortcut.contiguous(memory_format=torch.channels_last))
            _apply_and_add(x, other, _rows(result), scale, shift, relu)
        ctx.relu, ctx.added, ctx.known = relu, shortcut is not None, known
        ctx.save_for_backward(features, weight, result if relu else None)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, weight, result = ctx.saved_tensors
        gradient = gradient.to(features.dtype).contiguous(memory_format=torch.channels_last)
        x, d, y = _rows(features), _rows(gradient), _rows(features if result is None else result)
        centre, scale, through, constant = np.empty((4, x.shape[1]), F)
        _tile(ctx.known[0], centre)
        masked = result is not None
        passed = d
        if masked and ctx.added:  # what the ReLU lets through is the shortcut's, too
            gradient = torch.empty_like(gradient)
            passed = _rows(gradient)
        totals = np.zeros((2, x.shape[1]))
        _slopes(d, y, x, passed, centre, masked, masked and ctx.added, totals)
        slopes = np.empty((2, len(weight)), F)
        _gradient_parts(totals, ctx.known, weight.detach().numpy(), _count(features), slopes, scale, through, constant)
        back = torch.empty_like(features)
        masked = masked and not ctx.added
        _gradient(passed, y, x, _rows(back), centre, scale, through, constant, masked)
        of_weight, of_bias = torch.from_numpy(slopes)
        return back, of_weight, of_bias, gradient if ctx.added else None, None, None


def _count(features: Tensor) -> int:
    return features.numel() // max(1, features.shape[1])


def _rows(features: Tensor) -> np.ndarray:
    """[rows, channels], of few channels several rows in one; bf16 as its bits."""
    flat = _flat(features)
    rows, channels = flat.shape
    together = 1
    while channels * together < WIDE and rows % (2 * together) == 0:
        together *= 2
    return flat.reshape(rows // together, channels * together)


def _flat(features: Tensor) -> np.ndarray:
    """[pixels, channels]; bf16 as its bits."""
    flat = features.detach().permute(0, 2, 3, 1).flatten(0, 2)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


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
def _near(flat, pixels, near):
    """A value near the mean of every channel: of what lies in the middle of each image."""
    images = len(flat) // pixels
    near[:] = F(0)
    for n in range(images):
        row = flat[n * pixels + pixels // 2]
        for c in range(len(near)):
            near[c] += _wide(row[c]) / F(images)


@_compiled
def _sums(x, near, totals):
    """Of distances from a value that is near the mean, so that little cancels, and of their squares."""
    part = np.empty((3, x.shape[1]), F)
    plain, square, centre = part[0], part[1], part[2]
    for c in range(len(centre)):
        centre[c] = near[c % len(near)]
    for start in range(0, len(x), TOGETHER):
        part[:2] = F(0)
        for r in range(start, min(start + TOGETHER, len(x))):
            row = x[r]
            for c in range(len(row)):
                value = _wide(row[c]) - centre[c]
                plain[c] += value
                square[c] += value * value
        totals += part[:2]


@_compiled
def _statistics(totals, near, count, eps):
    """[mean, variance, 1 / deviation] of every channel in float64; what is infinite gets no number, as from torch."""
    channels = len(near)
    known = np.zeros((3, channels))
    for c in range(totals.shape[1]):
        known[0, c % channels] += totals[0, c] / count
        known[1, c % channels] += totals[1, c] / count
    for c in range(channels):
        variance = known[1, c] - known[0, c] ** 2
        known[0, c] += near[c]
        known[1, c] = 0.0 if variance < 0.0 else variance
        known[2, c] = 1.0 / np.sqrt(known[1, c] + eps)
    return known


@_compiled
def _affine(known, weight, bias, scale, shift):
    """What takes a value to its place, as wide as the rows."""
    channels = len(weight)
    for c in range(len(scale)):
        k = c % channels
        scale[c] = F(known[2, k] * weight[k])
        shift[c] = F(bias[k] - known[0, k] * known[2, k] * weight[k])


@_compiled
def _tile(values, wide):
    """One value a channel, as wide as the rows."""
    for c in range(len(wide)):
        wide[c] = F(values[c % len(values)])


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
def _slopes(d, y, x, passed, centre, masked, kept, totals):
    """Sums of gradients, and of gradients times distances from the mean.

    Masked: of those that the ReLU let through, where its result y is above 0. Kept: written down, into passed.
    """
    part = np.empty((2, x.shape[1]), F)
    plain, slope = part[0], part[1]
    for start in range(0, len(x), TOGETHER):
        part[:] = F(0)
        for r in range(start, min(start + TOGETHER, len(x))):
            gradients, result, row, target = d[r], y[r], x[r], passed[r]
            for c in range(len(row)):
                value = F(0) if masked and _wide(result[c]) <= F(0) else _wide(gradients[c])
                if kept:
                    target[c] = _narrow(value, gradients[c])
                plain[c] += value
                slope[c] += value * (_wide(row[c]) - centre[c])
        totals += part


@_compiled
def _gradient_parts(totals, known, weight, count, slopes, scale, through, constant):
    """Gradients of weight and bias, and what the gradient of a value is made of, as wide as the rows."""
    channels = len(weight)
    sums = np.zeros((2, channels))
    for c in range(totals.shape[1]):
        sums[0, c % channels] += totals[0, c]
        sums[1, c % channels] += totals[1, c]
    for c in range(channels):
        slopes[0, c] = F(sums[1, c] * known[2, c])
        slopes[1, c] = F(sums[0, c])
    for c in range(len(scale)):
        k = c % channels
        factor = known[2, k] * weight[k]
        scale[c] = F(factor)
        through[c] = F(-factor * known[2, k] ** 2 * sums[1, k] / count)
        constant[c] = F(-factor * sums[0, k] / count)


@_compiled
def _gradient(d, y, x, back, centre, scale, through, constant, masked):
    """Of the loss in the features; masked as in _slopes()."""
    for r in range(len(x)):
        gradients, result, row, target = d[r], y[r], x[r], back[r]
        for c in range(len(row)):
            given = F(0) if masked and _wide(result[c]) <= F(0) else _wide(gradients[c])
            value = scale[c] * given + through[c] * (_wide(row[c]) - centre[c]) + constant[c]
            target[c] = _narrow(value, row[c])
