"""BatchNorm, the sum with a shortcut and ReLU together, as Triton kernels, in training, forward and back.

What lies between two convolutions is bound by memory on a GPU, too. Forward, a map is read for its moments and again
for the result; backward, what ReLU lets through is known from the map itself, or from the result where a shortcut was
added. Several batches that lie one after another are normalised each by itself: so both views of a step pass through
the network at once, in half as many kernels, and BatchNorm sees them apart all the same.

Sums are float32 within a program, about a value that is near the mean; what programs found is joined pair by pair, in
one order, so that a step's results do not depend on which program was first.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lead_ray.machine import has_triton
from lead_ray.triton_code import constexpr, kernel, tl, triton

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
    """Whether fused() serves these on a GPU: in training, of a layout and precision that it knows.

    It is no place for hooks, and has first derivatives in reverse only. LEAD_RAY_TRITON=0 in the environment
    forbids it.
    """
    return (
        features.device.type == "cuda"
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks)
        and features.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and features.is_contiguous(memory_format=torch.channels_last)
        and len(features) % batches == 0
        and features[0, 0].numel() * (len(features) // batches) > 1
        and (shortcut is None or (shortcut.dtype == features.dtype and shortcut.shape == features.shape))
        and has_triton()
    )


def fused(
    norm: nn.BatchNorm2d,
    features: Float[Tensor, "b c h w"],
    shortcut: Float[Tensor, "b c h w"] | None,
    relu: bool,
    batches: int = 1,
) -> Float[Tensor, "b c h w"]:
    """relu(norm(features) + shortcut); carries gradients, moves the running statistics, once for every batch.

    Args:
        batches: equal parts of the features, one after another, each of which is normalised by itself.
    """
    running = norm.running_mean, norm.running_var, norm.num_batches_tracked
    return _Normed.apply(features, norm.weight, norm.bias, shortcut, relu, norm.eps, norm.momentum, batches, running)


def frozen_usable(norm: nn.Module, features: Tensor, shortcut: Tensor | None) -> bool:
    """Whether frozen() serves these on a GPU: in evaluation, without gradients."""
    return (
        features.device.type == "cuda"
        and not torch.is_grad_enabled()
        and type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.affine
        and norm.running_mean is not None
        and norm.weight.dtype == torch.float32
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and features.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and features.is_contiguous(memory_format=torch.channels_last)
        and (shortcut is None or (shortcut.dtype == features.dtype and shortcut.shape == features.shape))
        and has_triton()
    )


def frozen(
    norm: nn.BatchNorm2d, features: Float[Tensor, "b c h w"], shortcut: Float[Tensor, "b c h w"] | None, relu: bool
) -> Float[Tensor, "b c h w"]:
    """relu(norm(features) + shortcut) in evaluation, in one pass; no gradients."""
    plan, added = _Plan(features, 1), shortcut is not None
    if added:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(features)
    _frozen_kernel[plan.all](
        features, shortcut if added else features, result, norm.weight, norm.bias, norm.running_mean,
        norm.running_var, norm.eps, plan.rows, plan.channels, ADDED=added, RELU=relu, **plan.tiles,
    )  # fmt: skip
    return result


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, shortcut, relu, eps, momentum, batches, running):
        plan = _Plan(features, batches)
        moments = plan.empty(2, batches, plan.shares, plan.channels)
        _moments_kernel[plan.sums](
            features, *moments, plan.rows, plan.channels, plan.share, **plan.tiles, AT_ONCE=AT_ONCE
        )
        found = plan.empty(4, batches, plan.channels)
        _join_moments_kernel[plan.joins](
            *moments, weight, bias, *running, *found, plan.rows, plan.channels, plan.share, plan.shares, eps, momentum,
            BATCHES=batches, SHARES=SHARES, CHANNELS=JOINED,
        )  # fmt: skip
        mean, inverse, scale, shift = found
        if shortcut is not None:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        result, added = torch.empty_like(features), shortcut is not None
        _apply_kernel[plan.all](
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
        _slopes_kernel[plan.sums](
            features, gradient, result, passed, *slopes, mean, scale, shift, plan.rows, plan.channels, plan.share,
            **how, **plan.tiles, AT_ONCE=AT_ONCE // 2,
        )  # fmt: skip
        of_weight, of_bias = plan.empty(2, plan.channels)
        factors = plan.empty(2, batches, plan.channels)
        _join_slopes_kernel[plan.joins](
            *slopes, inverse, scale, of_weight, of_bias, *factors, plan.rows, plan.channels, plan.shares,
            BATCHES=batches, SHARES=SHARES, CHANNELS=JOINED,
        )  # fmt: skip
        back = torch.empty_like(features)
        _gradient_kernel[plan.all](
            features, passed, back, mean, scale, shift, *factors, plan.rows, plan.channels,
            MASKED=ctx.relu and not ctx.added, **plan.tiles,
        )  # fmt: skip
        return back, of_weight, of_bias, passed if ctx.added else None, *[None] * 5


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


@kernel
def _moments_kernel(x, means, squares, rows, channels, share, ROWS: constexpr, CHANNELS: constexpr, AT_ONCE: constexpr):
    """Of a share of a batch's rows: the mean, and the sum of squared distances from it."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, batch = tl.program_id(1), tl.program_id(2)
    known = channel < channels
    begin = part * share
    end = tl.minimum(begin + share, rows)
    x += batch.to(tl.int64) * rows * channels
    row = begin + tl.arange(0, ROWS)
    place = row[:, None].to(tl.int64) * channels + channel[None, :]
    first = tl.load(x + place, mask=(row < end)[:, None] & known[None, :], other=0.0).to(tl.float32)
    near = tl.sum(first, 0) / tl.minimum(end - begin, ROWS).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(begin, end, AT_ONCE * ROWS):
        for number in tl.static_range(AT_ONCE):
            row = start + number * ROWS + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & known[None, :]
            place = row[:, None].to(tl.int64) * channels + channel[None, :]
            value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            apart = tl.where(mask, value - near[None, :], 0.0)
            total += apart
            square += apart * apart
    count = (end - begin).to(tl.float32)
    away = tl.sum(total, 0) / count
    found = (batch * tl.num_programs(1) + part) * channels + channel
    tl.store(means + found, near + away, mask=known)
    tl.store(squares + found, tl.sum(square, 0) - count * away * away, mask=known)


@kernel
def _join_moments_kernel(
    means, squares, weight, bias, running_mean, running_variance, tracked, mean_out, inverse_out, scale_out, shift_out,
    rows, channels, share, shares, eps, momentum, BATCHES: constexpr, SHARES: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """Of all shares: mean, 1 / deviation, and what the result is of a value: scale * value + shift."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.arange(0, SHARES)
    known = channel < channels
    mask = (part < shares)[:, None] & known[None, :]
    count = tl.where(part < shares, tl.minimum(share, rows - part * share), 0).to(tl.float32)[:, None]
    w = tl.load(weight + channel, mask=known, other=0.0)
    b = tl.load(bias + channel, mask=known, other=0.0)
    followed_mean = tl.load(running_mean + channel, mask=known, other=0.0)
    followed_variance = tl.load(running_variance + channel, mask=known, other=0.0)
    for batch in tl.static_range(BATCHES):
        place = (batch * shares + part)[:, None] * channels + channel[None, :]
        own = tl.load(means + place, mask=mask, other=0.0)
        square = tl.load(squares + place, mask=mask, other=0.0)
        mean = tl.sum(count * own, 0) / rows
        apart = tl.where(mask, own - mean[None, :], 0.0)
        # What is infinite gets no number, as torch gives it none: so no maximum with 0 that would hide it.
        variance = tl.sum(square + count * apart * apart, 0) / rows
        inverse = 1 / tl.sqrt(variance + eps)
        found = batch * channels + channel
        tl.store(mean_out + found, mean, mask=known)
        tl.store(inverse_out + found, inverse, mask=known)
        tl.store(scale_out + found, inverse * w, mask=known)
        tl.store(shift_out + found, b - mean * inverse * w, mask=known)
        followed_mean += momentum * (mean - followed_mean)
        followed_variance += momentum * (variance * (rows / (rows - 1.0)) - followed_variance)
    tl.store(running_mean + channel, followed_mean, mask=known)
    tl.store(running_variance + channel, followed_variance, mask=known)
    if tl.program_id(0) == 0:
        tl.store(tracked, tl.load(tracked) + BATCHES)


@kernel
def _apply_kernel(
    x, other, y, scale, shift, rows, channels, ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr
):
    """relu(scale * x + shift + other) of some rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
    factor = tl.load(scale + batch * channels + channel, mask=known, other=0.0)
    offset = tl.load(shift + batch * channels + channel, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if ADDED:
        value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # and not maximum(), which would hide what is no number
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@kernel
def _frozen_kernel(
    x, other, y, weight, bias, mean, variance, eps, rows, channels,
    ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """relu(norm(x) + other) of some rows, from running statistics."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = row[:, None].to(tl.int64) * channels + channel[None, :]
    factor = tl.load(weight + channel, mask=known, other=0.0)
    factor /= tl.sqrt(tl.load(variance + channel, mask=known, other=1.0) + eps)
    offset = tl.load(bias + channel, mask=known, other=0.0) - factor * tl.load(mean + channel, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if ADDED:
        value += tl.load(other + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)


@kernel
def _slopes_kernel(
    x, gradient, result, passed, totals, slopes, mean, scale, shift, rows, channels, share,
    ADDED: constexpr, RELU: constexpr, ROWS: constexpr, CHANNELS: constexpr, AT_ONCE: constexpr,
):  # fmt: skip
    """Of a share of a batch's rows: sums of gradients past the ReLU, and of those times distances from the mean."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part, batch = tl.program_id(1), tl.program_id(2)
    known = channel < channels
    begin = part * share
    end = tl.minimum(begin + share, rows)
    of_batch = batch * channels + channel
    centre = tl.load(mean + of_batch, mask=known, other=0.0)
    factor = tl.load(scale + of_batch, mask=known, other=0.0)
    offset = tl.load(shift + of_batch, mask=known, other=0.0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    slope = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(begin, end, AT_ONCE * ROWS):
        for number in tl.static_range(AT_ONCE):
            row = start + number * ROWS + tl.arange(0, ROWS)
            mask = (row < end)[:, None] & known[None, :]
            place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
            value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            slanted = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
            if RELU:
                if ADDED:
                    open = tl.load(result + place, mask=mask, other=0.0).to(tl.float32)
                else:
                    open = value * factor[None, :] + offset[None, :]
                slanted = tl.where(open > 0, slanted, 0.0)
                if ADDED:  # the shortcut's gradient, too
                    tl.store(passed + place, slanted.to(passed.dtype.element_ty), mask=mask)
            total += slanted
            slope += tl.where(mask, slanted * (value - centre[None, :]), 0.0)
    found = (batch * tl.num_programs(1) + part) * channels + channel
    tl.store(totals + found, tl.sum(total, 0), mask=known)
    tl.store(slopes + found, tl.sum(slope, 0), mask=known)


@kernel
def _join_slopes_kernel(
    totals, slopes, inverse, scale, of_weight, of_bias, along_out, constant_out, rows, channels, shares,
    BATCHES: constexpr, SHARES: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """Of all shares: gradients of weight and bias, and what is added to a value's own gradient."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.arange(0, SHARES)
    known = channel < channels
    mask = (part < shares)[:, None] & known[None, :]
    weight_gradient = tl.zeros((CHANNELS,), tl.float32)
    bias_gradient = tl.zeros((CHANNELS,), tl.float32)
    for batch in tl.static_range(BATCHES):
        place = (batch * shares + part)[:, None] * channels + channel[None, :]
        total = tl.sum(tl.load(totals + place, mask=mask, other=0.0), 0)
        slope = tl.sum(tl.load(slopes + place, mask=mask, other=0.0), 0)
        found = batch * channels + channel
        own = tl.load(inverse + found, mask=known, other=0.0)
        factor = tl.load(scale + found, mask=known, other=0.0)
        tl.store(along_out + found, -factor * own * own * slope / rows, mask=known)
        tl.store(constant_out + found, -factor * total / rows, mask=known)
        weight_gradient += slope * own
        bias_gradient += total
    tl.store(of_weight + channel, weight_gradient, mask=known)
    tl.store(of_bias + channel, bias_gradient, mask=known)


@kernel
def _gradient_kernel(
    x, passed, back, mean, scale, shift, along, constant, rows, channels,
    MASKED: constexpr, ROWS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """scale * gradient + along * (x - mean) + constant of some rows; MASKED: ReLU is still to be passed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2)
    known = channel < channels
    mask = (row < rows)[:, None] & known[None, :]
    place = (batch.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
    of_batch = batch * channels + channel
    factor = tl.load(scale + of_batch, mask=known, other=0.0)
    centre = tl.load(mean + of_batch, mask=known, other=0.0)
    inclined = tl.load(along + of_batch, mask=known, other=0.0)
    level = tl.load(constant + of_batch, mask=known, other=0.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    slanted = tl.load(passed + place, mask=mask, other=0.0).to(tl.float32)
    if MASKED:
        offset = tl.load(shift + of_batch, mask=known, other=0.0)
        slanted = tl.where(value * factor[None, :] + offset[None, :] > 0, slanted, 0.0)
    found = factor[None, :] * slanted + inclined[None, :] * (value - centre[None, :]) + level[None, :]
    tl.store(back + place, found.to(back.dtype.element_ty), mask=mask)
