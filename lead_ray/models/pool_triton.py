"""A ResNet's max-pooling as Triton kernels: channels last, 3 x 3 cells, every second one, forward and back.

torch's keep eight bytes for each result, its place; here it is one, and backward gathers instead of adding up.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lead_ray.triton_code import constexpr, kernel, serves_module, tl, triton

TILE = {"ROWS": 16, "CHANNELS": 64}
"""Of nine masked reads each: of twice as many rows a kernel takes three times as long to compile."""


def usable(pool: nn.Module, features: Tensor) -> bool:
    """Whether pooled() serves these, on a GPU; LEAD_RAY_TRITON=0 in the environment forbids it."""
    usual = 3, 2, 1, 1, False, False
    return (
        type(pool) is nn.MaxPool2d
        and usual == (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
        and serves_module(pool, features)
    )


def pooled(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_2 w_2"]:
    """nn.MaxPool2d(3, stride=2, padding=1). Of equal values the first has the gradient; what is no number passes."""
    with torch.cuda.device_of(features):
        return _Pooled.apply(features)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features):
        b, c, h, w = features.shape
        half = b, c, (h + 1) // 2, (w + 1) // 2
        result = torch.empty(half, dtype=features.dtype, device=features.device, memory_format=torch.channels_last)
        places = torch.empty_like(result, dtype=torch.uint8)
        rows = result.numel() // c
        grid = triton.cdiv(rows, TILE["ROWS"]), triton.cdiv(c, TILE["CHANNELS"])
        _pool_kernel[grid](features, result, places, rows, h, w, *result.shape[2:], c, **TILE)
        ctx.save_for_backward(places)
        ctx.shape = features.shape
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (places,) = ctx.saved_tensors
        b, c, h, w = ctx.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        back = torch.empty(
            (b, c, h, w), dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last
        )
        rows = b * h * w
        grid = triton.cdiv(rows, TILE["ROWS"]), triton.cdiv(c, TILE["CHANNELS"])
        _unpool_kernel[grid](gradient, places, back, rows, h, w, *places.shape[2:], c, **TILE)
        return back


@kernel
def _pool_kernel(
    x, y, places, rows, height, width, half_height, half_width, channels, ROWS: constexpr, CHANNELS: constexpr
):
    """The largest of nine, and which."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    image, across = row // (half_height * half_width), row % half_width
    down = row // half_width % half_height
    best = tl.full((ROWS, CHANNELS), -float("inf"), tl.float32)
    place = tl.zeros((ROWS, CHANNELS), tl.int32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            line, column = 2 * down - 1 + i, 2 * across - 1 + j
            there = (line >= 0) & (line < height) & (column >= 0) & (column < width)
            source = ((image * height + line).to(tl.int64) * width + column)[:, None] * channels + channel[None, :]
            inside = mask & there[:, None]
            value = tl.load(x + source, mask=inside, other=-float("inf")).to(tl.float32)
            taken = inside & ((value > best) | (value != value))
            best = tl.where(taken, value, best)
            place = tl.where(taken, 3 * i + j, place)
    target = row[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(y + target, best.to(y.dtype.element_ty), mask=mask)
    tl.store(places + target, place.to(tl.uint8), mask=mask)


@kernel
def _unpool_kernel(
    gradient, places, back, rows, height, width, half_height, half_width, channels, ROWS: constexpr, CHANNELS: constexpr
):
    """Of each pixel: the gradients of the up to four results that it is the largest for."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (row < rows)[:, None] & (channel < channels)[None, :]
    image, column = row // (height * width), row % width
    line = row // width % height
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            down, across = (line + 1 - i) // 2, (column + 1 - j) // 2
            even = ((line + 1 - i) % 2 == 0) & ((column + 1 - j) % 2 == 0)
            there = even & (line + 1 >= i) & (column + 1 >= j) & (down < half_height) & (across < half_width)
            source = ((image * half_height + down).to(tl.int64) * half_width + across)[:, None] * channels
            inside = mask & there[:, None]
            chosen = tl.load(places + source + channel[None, :], mask=inside, other=255)
            slope = tl.load(gradient + source + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            total += tl.where(chosen == 3 * i + j, slope, 0.0)
    target = row[:, None].to(tl.int64) * channels + channel[None, :]
    tl.store(back + target, total.to(back.dtype.element_ty), mask=mask)
