"""Parts that an encoder knows without being told: non-negative factors of its features, shared by all images.

Deep feature factorisation (Collins et al., ECCV 2018; LEAD, figure 14): A ~ W H with one row of A for every location
of every image. Rows of H say what the parts look like; W, at least 0 like H, how much of each part is where. A's
rows are hypercolumns, blocks F_l resized to the finest one's grid, and are never built: alternating least squares
needs them only in A H^T = sum_l U_l (F_l H_l^T) and W^T A_l = (U_l^T W)^T F_l, U_l the resizing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from lead_ray.similarity import Blocks, upsampling

TRIAL = 10
"""Rounds that every start gets before the best is chosen."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What factorise() found, parts in descending order of how much of all features they explain."""

    presence: Float[Tensor, "n parts h w"]
    """How much of each part is where, at least 0, on the finest block's grid."""
    factors: list[Float[Tensor, "parts _"]]
    """What a part looks like: one non-negative descriptor a block, together of length 1. They are those of the blocks
    that were given, each divided by its `scale`."""
    scale: list[float]
    """Root mean square length of a block's descriptors: divided by it, every block weighs the same."""
    residuals: list[float]
    """|A - W H| / |A| after every round; it never rises."""


class _Factors(NamedTuple):
    presence: Tensor
    factors: list[Tensor]
    residuals: list[float]


class Agreement(NamedTuple):
    """Whether landmarks fall into the same part in all images."""

    part: Int64[Tensor, " k"]
    """The part that each landmark lies in most often."""
    share: Float[Tensor, " k"]
    """In so many of the images, in %."""
    floor: Float[Tensor, " k"]
    """The same share where each image's landmarks are looked up in another image's parts: what position alone gives."""


def non_negative(blocks: Blocks) -> list[Tensor]:
    """Blocks as they are where nothing is below 0, as after a ReLU; else positive and negative parts as channels."""
    signed = [torch.cat([block.clamp(min=0), (-block).clamp(min=0)], dim=1) for block in blocks]
    return [block if block.min() >= 0 else both for block, both in zip(blocks, signed, strict=True)]


@torch.no_grad()
def factorise(
    blocks: Blocks, count: int, *, seed: int = 0, starts: int = 4, rounds: int = 200, tolerance: float = 1e-5
) -> Parts:
    """Non-negative factors of blocks [n, c_l, h_l, w_l], finest first, by hierarchical alternating least squares.

    Args:
        count: of parts.
        seed: of the starts, descriptors of random locations; the same on every machine.
        starts: how many are tried for TRIAL rounds; the one with the lowest residual goes on.
        rounds: at most; fewer once a round lowers the residual by less than `tolerance` of it.
    Raises: ValueError if a feature is negative or not finite, starts or rounds are below 1, or there are fewer
      locations than parts.
    Source: Cichocki and Phan (2009) for the updates.
    """
    finest, maps = blocks[0], [block.float() for block in blocks]
    locations = len(finest) * finest.shape[2] * finest.shape[3]
    for name, value, most in (("count", count, locations), ("starts", starts, None), ("rounds", rounds, None)):
        if value < 1 or (most is not None and value > most):
            least = "at least 1" if most is None else f"in 1..{most}, the locations of all images"
            raise ValueError(f"{name} must be {least}, got {value}")
    if not all(bool(block.isfinite().all()) and block.min() >= 0 for block in maps):
        raise ValueError("features must be finite and >= 0: give a trunk's blocks, or parts.non_negative() of others")
    ups = [[upsampling(size, cells, finest.float()) for size, cells in _sides(block, finest)] for block in maps]
    squares = [_square(block, up) for block, up in zip(maps, ups, strict=True)]
    scale = [max((square / locations) ** 0.5, 1e-12) for square in squares]
    maps = [block / size for block, size in zip(maps, scale, strict=True)]
    total = sum(square / size**2 for square, size in zip(squares, scale, strict=True))

    generator = torch.Generator().manual_seed(seed)
    trials = []
    for _ in range(starts):
        trial = _Factors(torch.zeros(len(finest), count, *finest.shape[2:], device=finest.device),
                         _start(maps, ups, count, generator), [])  # fmt: skip
        for _ in range(min(TRIAL, rounds) if starts > 1 else 0):
            trial = _round(maps, ups, trial, total)
        trials.append(trial)
    best = min(trials, key=lambda trial: trial.residuals[-1:])
    while len(best.residuals) < rounds:
        best = _round(maps, ups, best, total)
        if len(best.residuals) > 1 and best.residuals[-2] - best.residuals[-1] < tolerance * best.residuals[-2]:
            break
    return _ordered(best, scale)


def agreement(
    presence: Float[Tensor, "n parts h w"],
    points: Float[Tensor, "n k 2"],
    *,
    side: int,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Agreement:
    """In how many images each landmark lies in one and the same part: the part most present in its cell.

    Points: (x, y) pixels of images `side` pixels wide. The floor shifts the images by half of their number.
    Raises: ValueError if there are fewer than 2 images, or a landmark is visible in none.
    """
    if len(points) < 2:
        raise ValueError(f"agreement is between at least 2 images, got {len(points)}")
    if visible is None:
        visible = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if missing := (~visible.any(0)).nonzero().flatten().tolist():
        raise ValueError(f"landmarks {missing} are visible in no image: leave them out")
    height, width = presence.shape[2:]
    limits = torch.tensor([width - 1, height - 1], device=points.device)
    cells = ((points + 0.5) * torch.tensor([width, height], device=points.device) / side).floor().long()
    column, row = cells.clamp(min=0).minimum(limits).unbind(-1)
    labels, images = presence.argmax(1), torch.arange(len(points), device=points.device)[:, None]
    count = presence.shape[1]

    def votes(labels: Tensor) -> Tensor:
        chosen = torch.nn.functional.one_hot(labels[images, row, column], count) * visible.unsqueeze(-1)
        return chosen.sum(0)

    own, other = votes(labels), votes(labels.roll(len(labels) // 2, 0))
    seen = visible.sum(0).float()
    return Agreement(own.argmax(1), 100 * own.amax(1) / seen, 100 * other.amax(1) / seen)


def _sides(block: Tensor, finest: Tensor) -> list[tuple[int, int]]:
    return list(zip(block.shape[2:], finest.shape[2:], strict=True))


def _square(block: Tensor, up: Sequence[Tensor]) -> float:
    """|U F|^2, from the products of the resizing with itself."""
    down, across = (side.T @ side for side in up)
    return float((torch.einsum("ij,bcjk,kl->bcil", down, block, across) * block).sum(dtype=torch.float64))


def _start(
    maps: Sequence[Tensor], ups: Sequence[Sequence[Tensor]], count: int, generator: torch.Generator
) -> list[Tensor]:
    """Descriptors of random locations of random images, one for every part."""
    cells = [len(side) for side in ups[0]]
    chosen = torch.randperm(len(maps[0]) * cells[0] * cells[1], generator=generator)[:count]
    image, row, column = (each.to(maps[0].device) for each in torch.unravel_index(chosen, (len(maps[0]), *cells)))
    pairs = zip(maps, ups, strict=True)
    return [torch.einsum("pi,pcij,pj->pc", down[row], block[image], across[column]) for block, (down, across) in pairs]


def _round(maps: Sequence[Tensor], ups: Sequence[Sequence[Tensor]], old: _Factors, total: float) -> _Factors:
    """The presence given the factors, then the factors given the presence."""
    products = sum(_project(block, factor, up) for block, factor, up in zip(maps, old.factors, ups, strict=True))
    gram = sum(factor @ factor.T for factor in old.factors)
    presence = _descend(old.presence.transpose(0, 1), products.transpose(0, 1), gram).transpose(0, 1)
    weights = torch.einsum("nphw,nqhw->pq", presence, presence)
    seen = [_gather(block, presence, up) for block, up in zip(maps, ups, strict=True)]
    factors = [_descend(factor, given, weights) for factor, given in zip(old.factors, seen, strict=True)]
    return _Factors(presence, factors, [*old.residuals, _residual(total, factors, seen, weights)])


def _project(block: Tensor, factor: Tensor, up: Sequence[Tensor]) -> Tensor:
    """A_l H_l^T [n, parts, h, w]: products with the factors at native resolution, then resized."""
    native = torch.einsum("nchw,pc->nphw", block, factor)
    return up[0] @ native @ up[1].T


def _gather(block: Tensor, presence: Tensor, up: Sequence[Tensor]) -> Tensor:
    """W^T A_l [parts, c]: the presence as the block's own cells see it, then products."""
    native = up[0].T @ presence @ up[1]
    return torch.einsum("nphw,nchw->pc", native, block)


def _descend(values: Tensor, products: Tensor, gram: Tensor) -> Tensor:
    """One exact non-negative minimisation after the other over the rows [parts, ...]; a part that is nothing stays."""
    values = values.clone()
    for part in range(len(values)):
        if gram[part, part] > 0:
            expected = torch.tensordot(gram[part], values, dims=1)
            values[part] = (values[part] + (products[part] - expected) / gram[part, part]).clamp(min=0)
    return values


def _residual(total: float, factors: Sequence[Tensor], seen: Sequence[Tensor], weights: Tensor) -> float:
    """|A - W H| / |A| from |A|^2 - 2 <W^T A, H> + <W^T W, H H^T>."""
    cross = sum(float((factor.double() * given).sum()) for factor, given in zip(factors, seen, strict=True))
    gram = sum(factor.double() @ factor.double().T for factor in factors)
    square = total - 2 * cross + float((weights * gram).sum())
    return (max(square, 0) / total) ** 0.5 if total > 0 else 0.0


def _ordered(found: _Factors, scale: list[float]) -> Parts:
    """Factors of length 1, the part that explains most first."""
    lengths = sum(factor.square().sum(1) for factor in found.factors).sqrt()
    presence = found.presence * lengths[:, None, None]
    order = presence.square().sum((0, 2, 3)).argsort(descending=True)
    unit = [(factor / lengths.clamp(min=1e-12)[:, None])[order] for factor in found.factors]
    return Parts(presence=presence[:, order], factors=unit, scale=scale, residuals=found.residuals)
