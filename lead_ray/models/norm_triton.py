"""BatchNorm, the sum with a shortcut and ReLU together, as Triton kernels, in training, forward and back.

What lies between two convolutions is bound by memory on a GPU, too. Forward, a map is read for its moments and again
for the result; backward, what ReLU lets through is known from the map itself, or from the result where a shortcut was
added. Several batches that lie one after another are normalised each by itself: so both views of a step pass through
the network at once, in half as many kernels, and BatchNorm sees them apart all the same.

Sums are float32 within a program, about a value that is near the mean; what programs found is joined by one more, in
one order, so that a step's results do not depend on which program was first.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lead_ray.models import norm_kernels as kernels
from lead_ray.triton_code import serves_module, triton

PROGRAMS = 1024
"""About as many work on a map's sums: eight for each of a large GPU's multiprocessors."""
SHARES = 256
"""Parts at most of a batch's rows, whose sums one program joins; one number for all maps, or each would be compiled
for anew."""
TILE_ROWS, TILE_CHANNELS = 32, 64
"""Of what is read at a time for a result."""
AT_ONCE = 4
"""Tiles that are asked for together where sums are made: memory is far away."""
JOINED = 8
"""Channels whose shares one program joins."""


def usable(norm: nn.Module, features: Tensor, shortcut: Tensor | None, batches: int = 1) -> bool:
    """Whether fused() serves these: on a GPU, in training, of a layout and precision that it knows.

    It is no place for hooks, and has first derivatives in reverse only. LEAD_RAY_TRITON=0 in the environment
    forbids it.
    """
    return (
        _known(norm, features, shortcut)
        and norm.training
        and norm.running_mean is not None
        and norm.momentum is not None
        and len(features) % batches == 0
        and features.numel() > features.shape[1] * batches
    )


def fused(
    norm: nn.BatchNorm2d,
    features: Float[Tensor, "b c h w"],
    shortcut: Float[Tensor, "b c h w"] | None,
    relu: bool,
    batches: int = 1,
) -> Float[Tensor, "b c h w"]:
    """relu(norm(features) + shortcut); carries gradients. Running statistics move once for every batch if tracked.

    Args:
        batches: equal parts of the features, one after another, each of which is normalised by itself.
    """
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    with torch.cuda.device_of(features):
        how = norm.weight, norm.bias, shortcut, relu, norm.eps, norm.momentum, batches, running
        result = _Normed.apply(features, *how, norm.track_running_stats)
    if norm.track_running_stats:
        torch.autograd.graph.increment_version(running)
    return result


def frozen_usable(norm: nn.Module, features: Tensor, shortcut: Tensor | None) -> bool:
    """Whether frozen() serves these: on a GPU, in evaluation, without gradients."""
    usual = not (norm.training or torch.is_grad_enabled())
    return usual and _known(norm, features, shortcut) and norm.running_mean is not None


def _known(norm: nn.Module, features: Tensor, shortcut: Tensor | None) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.weight.dtype == torch.float32
        and serves_module(norm, features)
        and (shortcut is None or (shortcut.dtype == features.dtype and shortcut.shape == features.shape))
    )


def frozen(
    norm: nn.BatchNorm2d, features: Float[Tensor, "b c h w"], shortcut: Float[Tensor, "b c h w"] | None, relu: bool
) -> Float[Tensor, "b c h w"]:
    """relu(norm(features) + shortcut) in evaluation, in one pass; no gradients."""
    plan, added = _Plan(features, 1), shortcut is not None
    if added:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(features)
    with torch.cuda.device_of(features):
        kernels.frozen[plan.all](
            features, shortcut if added else features, result, norm.weight, norm.bias, norm.running_mean,
            norm.running_var, norm.eps, plan.rows, plan.channels, ADDED=added, RELU=relu, **plan.tiles,
        )  # fmt: skip
    return result


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, shortcut, relu, eps, momentum, batches, running, tracking):
        plan = _Plan(features, batches)
        moments = plan.empty(2, batches, plan.shares, plan.channels)
        kernels.moments[plan.sums](
            features, *moments, plan.rows, plan.channels, plan.share, **plan.tiles, AT_ONCE=AT_ONCE
        )
        found = plan.empty(4, batches, plan.channels)
        kernels.join_moments[plan.joins](
            *moments, weight, bias, *running, *found, plan.rows, plan.channels, plan.share, plan.shares, eps, momentum,
            TRACKING=tracking, BATCHES=batches, SHARES=SHARES, CHANNELS=JOINED,
        )  # fmt: skip
        mean, inverse, scale, shift = found
        if shortcut is not None:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        result, added = torch.empty_like(features), shortcut is not None
        kernels.apply[plan.all](
            features, shortcut if added else features, result, scale, shift, plan.rows, plan.channels,
            ADDED=added, RELU=relu, **plan.tiles,
        )  # fmt: skip
        ctx.plan, ctx.relu, ctx.added = plan, relu, added
        # With a shortcut the result says what ReLU let through; without, the map itself does.
        ctx.save_for_backward(features, mean, inverse, scale, shift, result if relu and added else features)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        features, mean, inverse, scale, shift, result = ctx.saved_tensors
        plan, batches = ctx.plan, len(mean)
        gradient = gradient.to(features.dtype).contiguous(memory_format=torch.channels_last)
        passed = torch.empty_like(gradient) if ctx.relu and ctx.added else gradient
        slopes = plan.empty(2, batches, plan.shares, plan.channels)
        how = {"ADDED": ctx.added, "RELU": ctx.relu}
        kernels.slopes[plan.sums](
            features, gradient, result, passed, *slopes, mean, scale, shift, plan.rows, plan.channels, plan.share,
            **how, **plan.tiles, AT_ONCE=AT_ONCE // 2,
        )  # fmt: skip
        of_weight, of_bias = plan.empty(2, plan.channels)
        factors = plan.empty(2, batches, plan.channels)
        kernels.join_slopes[plan.joins](
            *slopes, inverse, scale, of_weight, of_bias, *factors, plan.rows, plan.channels, plan.shares,
            BATCHES=batches, SHARES=SHARES, CHANNELS=JOINED,
        )  # fmt: skip
        back = torch.empty_like(features)
        kernels.gradient[plan.all](
            features, passed, back, mean, scale, shift, *factors, plan.rows, plan.channels,
            MASKED=ctx.relu and not ctx.added, **plan.tiles,
        )  # fmt: skip
        return back, of_weight, of_bias, passed if ctx.added else None, *[None] * 6


class _Plan:
    """Who works on what: rows are pixels, channels last, [batches * rows, channels]."""

    def __init__(self, features: Tensor, batches: int):
        self.device, self.channels = features.device, features.shape[1]
        self.rows = features.numel() // self.channels // batches
        across = triton.cdiv(self.channels, TILE_CHANNELS)
        wanted = min(SHARES, triton.cdiv(PROGRAMS, across * batches), triton.cdiv(self.rows, 2 * TILE_ROWS))
        self.share = TILE_ROWS * triton.cdiv(triton.cdiv(self.rows, wanted), TILE_ROWS)
        self.shares = triton.cdiv(self.rows, self.share)
        self.tiles = {"ROWS": TILE_ROWS, "CHANNELS": TILE_CHANNELS}
        self.sums = across, self.shares, batches
        self.joins = (triton.cdiv(self.channels, JOINED),)
        self.all = triton.cdiv(self.rows, TILE_ROWS), across, batches

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)
