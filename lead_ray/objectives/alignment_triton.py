"""LEAD's alignment as Triton kernels: each tile of both distributions lives in registers, forward and backward.

Forward streams over image b's locations with running maxima, as attention kernels do, and keeps two numbers a row.
Backward computes the tiles again. Tensors are contiguous, [b, locations, channels], filled up with channels of zeros to
whole chunks, so that a GPU reads sixteen bytes at a time; sums are in single precision.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from lead_ray.triton_code import constexpr, kernel, serves, tl, triton

TILE = 64
"""Locations of either image in a tile; a multiple of 16."""
CHUNKS = {torch.float32: 32, torch.bfloat16: 64}
"""Channels that are multiplied at a time."""
WARPS = {"num_warps": 8}
"""Of a program that holds a tile of gradients."""
WIDEST = 256
"""Channels of which a tile of gradients fits the registers of a GPU's multiprocessor."""


def usable(device: torch.device, precision: torch.dtype, channels: int) -> bool:
    """Whether blocked_alignment() leaves the work to these kernels; LEAD_RAY_TRITON=0 in the environment forbids it."""
    return serves(device) and precision == torch.float32 and channels <= WIDEST


@kernel
def _products(x, y, own, other, owns, others, width, TILE: constexpr, CHUNK: constexpr):
    """[TILE, TILE] products of some rows of x and of y, `width` channels each, whole chunks; 0 past their last rows."""
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, width, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        left = tl.load(x + own[:, None] * width + channel[None, :], mask=(own < owns)[:, None], other=0.0)
        right = tl.load(y + other[None, :] * width + channel[:, None], mask=(other < others)[None, :], other=0.0)
        total += tl.dot(left, right, input_precision="ieee")
    return total


@kernel
def _forward_kernel(
    first, second, a, b, losses, entropies, log_totals_p, log_totals_q, n, m, columns, channels, p_factor, q_factor,
    TILE: constexpr, CHUNK: constexpr,
):  # fmt: skip
    """One tile of image a's locations: loss, entropy and both log-sum-exps of each."""
    image = tl.program_id(1).to(tl.int64)
    first, second = first + image * n * columns, second + image * m * columns
    a, b = a + image * n * channels, b + image * m * channels
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    nothing = tl.zeros((TILE,), tl.float32)
    high_p, high_q = nothing - float("inf"), nothing - float("inf")
    total_p, total_q, cross, own = nothing, nothing, nothing, nothing
    for start in range(0, m, TILE):
        column = start + tl.arange(0, TILE)
        inside = column[None, :] < m
        p = p_factor * _products(first, second, row, column, n, m, columns, TILE, CHUNK)
        q = q_factor * _products(a, b, row, column, n, m, channels, TILE, CHUNK)
        top_p = tl.maximum(high_p, tl.max(tl.where(inside, p, -float("inf")), 1))
        top_q = tl.maximum(high_q, tl.max(tl.where(inside, q, -float("inf")), 1))
        weight = tl.where(inside, tl.exp(p - top_p[:, None]), 0.0)
        shrink = tl.exp(high_p - top_p)
        total_p = total_p * shrink + tl.sum(weight, 1)
        cross = cross * shrink + tl.sum(weight * q, 1)
        own = own * shrink + tl.sum(weight * p, 1)
        total_q = total_q * tl.exp(high_q - top_q) + tl.sum(tl.where(inside, tl.exp(q - top_q[:, None]), 0.0), 1)
        high_p, high_q = top_p, top_q
    log_total_p, log_total_q = high_p + tl.log(total_p), high_q + tl.log(total_q)
    place, mask = image * n + row, row < n
    tl.store(losses + place, log_total_q - cross / total_p, mask=mask)
    tl.store(entropies + place, log_total_p - own / total_p, mask=mask)
    tl.store(log_totals_p + place, log_total_p, mask=mask)
    tl.store(log_totals_q + place, log_total_q, mask=mask)


@kernel
def _backward_kernel(
    first, second, a, b, log_totals_p, log_totals_q, gradient, owns, others, columns, channels, p_factor, q_factor,
    ROWS: constexpr, WIDTH: constexpr, TILE: constexpr, CHUNK: constexpr,
):  # fmt: skip
    """One tile of one side's locations: the sum of (q - p) times the other side's vectors.

    ROWS: whether this side is image a, to whose locations the distributions belong. WIDTH: >= channels, a power of 2.
    """
    image = tl.program_id(1).to(tl.int64)
    first, second = first + image * owns * columns, second + image * others * columns
    a, b = a + image * owns * channels, b + image * others * channels
    rows = owns if ROWS else others
    log_totals_p, log_totals_q = log_totals_p + image * rows, log_totals_q + image * rows
    own = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, WIDTH)
    total = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(0, others, TILE):
        other = start + tl.arange(0, TILE)
        p = p_factor * _products(first, second, own, other, owns, others, columns, TILE, CHUNK)
        q = q_factor * _products(a, b, own, other, owns, others, channels, TILE, CHUNK)
        row = own if ROWS else other
        lse_p = tl.load(log_totals_p + row, mask=row < rows, other=0.0)
        lse_q = tl.load(log_totals_q + row, mask=row < rows, other=0.0)
        if ROWS:
            excess = tl.exp(q - lse_q[:, None]) - tl.exp(p - lse_p[:, None])
        else:
            excess = tl.exp(q - lse_q[None, :]) - tl.exp(p - lse_p[None, :])
        excess = tl.where(other[None, :] < others, excess, 0.0)
        vector_mask = (other[:, None] < others) & (channel[None, :] < channels)
        vectors = tl.load(b + other[:, None] * channels + channel[None, :], mask=vector_mask, other=0.0)
        total += tl.dot(excess.to(vectors.dtype), vectors, input_precision="ieee")
    place = (image * owns + own[:, None]) * channels + channel[None, :]
    tl.store(gradient + place, total, mask=(own[:, None] < owns) & (channel[None, :] < channels))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, a: Tensor, b: Tensor, first: Tensor, second: Tensor, temperature: float, teacher_temperature: float,
        precision: torch.dtype, tile: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        how = {"TILE": tile, "CHUNK": min(CHUNKS[precision], tile)}
        tensors = [_laid_out(each, precision, how["CHUNK"]) for each in (first, second, a, b)]
        factors = 1 / teacher_temperature, 1 / temperature
        sizes = first.shape[1], second.shape[1], tensors[0].shape[2], tensors[2].shape[2]
        found = [first.new_empty(first.shape[:2]) for _ in range(4)]
        grid = triton.cdiv(sizes[0], tile), len(a)
        _forward_kernel[grid](*tensors, *found, *sizes, *factors, **how)
        losses, entropies, *log_totals = found
        ctx.save_for_backward(*tensors, *log_totals)
        ctx.settings = factors, how, a.shape
        loss, entropy = losses.mean(), entropies.mean()
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        first, second, a, b, *log_totals = ctx.saved_tensors
        factors, how, shape = ctx.settings
        scale = gradient * (factors[1] / shape[:2].numel())

        def one(first: Tensor, second: Tensor, a: Tensor, b: Tensor, rows: bool) -> Tensor:
            found = torch.empty_like(a, dtype=torch.float32)
            sizes = a.shape[1], b.shape[1], first.shape[2], a.shape[2]
            grid = triton.cdiv(sizes[0], how["TILE"]), len(a)
            width = max(16, triton.next_power_of_2(a.shape[2]))
            _backward_kernel[grid](
                first, second, a, b, *log_totals, found, *sizes, *factors, ROWS=rows, WIDTH=width, **how, **WARPS
            )
            return found[:, :, : shape[2]] * scale

        grad_a = one(first, second, a, b, True) if ctx.needs_input_grad[0] else None
        grad_b = one(second, first, b, a, False) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b, *[None] * 6


def _laid_out(vectors: Float[Tensor, "b n c"], precision: torch.dtype, chunk: int) -> Float[Tensor, "b n whole"]:
    """Contiguous, of this precision, with channels of zeros up to a whole chunk."""
    channels = vectors.shape[2]
    found = torch.empty(
        *vectors.shape[:2], chunk * triton.cdiv(channels, chunk), dtype=precision, device=vectors.device
    )
    found[..., :channels] = vectors
    found[..., channels:] = 0
    return found


def fused_alignment(
    a: Float[Tensor, "b n c"],
    b: Float[Tensor, "b m c"],
    first: Float[Tensor, "b n k"],
    second: Float[Tensor, "b m k"],
    *,
    temperature: float,
    teacher_temperature: float,
    quick: bool = False,
    tile: int = TILE,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss and the teacher's entropy of blocked_alignment(), from unit vectors and similarity_factors().

    Args:
        quick: multiply in bf16, as quick_products() does on a CPU, not in single precision: cosines are then right
            within about 3e-3, the teacher's probabilities within 5 % of their own.
    Range: nats, means over images and locations. The loss has a gradient with respect to a and b, and no second one.
    """
    precision = torch.bfloat16 if quick else torch.float32
    with torch.cuda.device_of(a):
        return _Fused.apply(a, b, first, second, temperature, teacher_temperature, precision, tile)
