"""Similarity of descriptors between two images, and the points that it matches.

Features are blocks: maps [b, c, h, w] of one encoder at native resolution, finest first. Their hypercolumn
(every block resized to one grid, and concatenated) is never built. Points are pixels of the encoder's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

Blocks = Sequence[Float[Tensor, "_ _ _ _"]]
NORMALISATIONS = ("per-layer", "global", "none")
PUBLISHED_SIZE = 70  # pixels: the side of DVE's inputs, on whose scale DVE and CL report errors


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells at which descriptors are compared; cell (i, j) stands for the pixel spacing * (i, j)."""

    cells: int
    """Cells per side."""
    spacing: float
    """Pixels from one cell to the next."""
    published_scale: float
    """Published pixels per pixel of the image."""

    def index(self, points: Float[Tensor, "b k 2"]) -> Int64[Tensor, "b k 2"]:
        """The cell nearest to each point: the even one of two, and on the border for points outside."""
        return (points / self.spacing).round().clamp(0, self.cells - 1).long()

    def nearest(self, points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k 2"]:
        """Points moved to their cells."""
        return self.index(points).to(points.dtype) * self.spacing


def cl_grid(*, image_size: int, cells: int) -> Grid:
    """CL's grid: the outermost cells are the outermost pixels.

    Raises: ValueError if there are fewer than 2 cells.
    """
    if cells < 2:
        raise ValueError(f"grid must have at least 2 cells per side, got {cells}")
    scale = (PUBLISHED_SIZE - 1) / (image_size - 1)
    return Grid(cells=cells, spacing=(image_size - 1) / (cells - 1), published_scale=scale)


def dve_grid(*, image_size: int, cells: int) -> Grid:
    """DVE's grid: every stride-th pixel from 0, with stride = image_size / cells."""
    return Grid(cells=cells, spacing=image_size / cells, published_scale=PUBLISHED_SIZE / image_size)


def upsampling(size: int, cells: int, like: Tensor) -> Tensor:
    """[cells, size] weights of bilinear resizing along one side: two neighbours, or one, in every row."""
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    return functional.interpolate(identity[None], size=cells, mode="linear", align_corners=False)[0].mT


def similarity(
    source_blocks: Blocks,
    target_blocks: Blocks,
    index: Int64[Tensor, "b k 2"],
    *,
    cells: int,
    normalise: str = "per-layer",
) -> Float[Tensor, "b k cells cells"]:
    """Similarity of the descriptors at k source cells (x, y) to those at all target cells.

    Descriptors are those of blocks resized to cells x cells, bilinear, align_corners=False. "per-layer" is
    the sum of the blocks' cosines, "global" the cosine of concatenated blocks, "none" their dot product.

    Exact up to rounding without resizing a block: with U the resizing and F the target block, a source
    descriptor q has q . (U F) = U (q . F), k maps to resize instead of c.

    Raises: ValueError if `normalise` is unknown or the blocks of source and target do not pair up.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {', '.join(NORMALISATIONS)}, got {normalise!r}")
    shapes = [[list(block.shape) for block in blocks] for blocks in (source_blocks, target_blocks)]
    if not shapes[0] or shapes[0] != shapes[1]:
        raise ValueError(f"source and target need the same blocks, at least one, got {shapes[0]} and {shapes[1]}")
    pairs = zip(source_blocks, target_blocks, strict=True)
    parts = [_block_similarity(source, target, index, cells) for source, target in pairs]
    dot, query_square, target_square = (torch.stack(part) for part in zip(*parts, strict=True))
    if normalise == "per-layer":
        return (dot / (_norm(query_square) * _norm(target_square))).sum(0)
    if normalise == "global":
        return dot.sum(0) / (_norm(query_square.sum(0)) * _norm(target_square.sum(0)))
    return dot.sum(0)


def match(
    source_blocks: Blocks,
    target_blocks: Blocks,
    points: Float[Tensor, "b k 2"],
    *,
    image_size: int = 96,
    grid: int = 96,
    normalise: str = "per-layer",
) -> Float[Tensor, "b k 2"]:
    """Predict where points of source images lie in target images: the most similar cell of CL's grid.

    Raises: ValueError as similarity().
    Source: CL, train_feature_projector.py (validate).
    """
    return _match(source_blocks, target_blocks, points, cl_grid(image_size=image_size, cells=grid), normalise)


def match_dve(
    source_blocks: Blocks, target_blocks: Blocks, points: Float[Tensor, "b k 2"], *, image_size: int = 96
) -> Float[Tensor, "b k 2"]:
    """Predict points as DVE does: the largest raw dot product at the finest block's own resolution.

    Source: DVE, test_matching.py.
    """
    grid = dve_grid(image_size=image_size, cells=source_blocks[0].shape[3])
    return _match(source_blocks, target_blocks, points, grid, "none")


def _match(source: Blocks, target: Blocks, points: Tensor, grid: Grid, normalise: str) -> Tensor:
    maps = similarity(source, target, grid.index(points), cells=grid.cells, normalise=normalise)
    best = maps.flatten(2).argmax(-1)
    return torch.stack([best % grid.cells, best // grid.cells], dim=-1).to(points.dtype) * grid.spacing


def _block_similarity(source: Tensor, target: Tensor, index: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dot products [b, k, cells, cells] and squared norms [b, k, 1, 1], [b, 1, cells, cells] of one block."""
    down, across = (upsampling(size, cells, target) for size in target.shape[2:])
    weights = down[index[..., 1]].unsqueeze(3) * across[index[..., 0]].unsqueeze(2)
    query = weights.flatten(2) @ source.flatten(2).mT
    native = (query @ target.flatten(2)).unflatten(2, target.shape[2:])
    query_square = query.square().sum(-1)[..., None, None]
    return down @ native @ across.mT, query_square, resized_square(target, down, across).unsqueeze(1)


def resized_square(
    block: Float[Tensor, "b c h w"], down: Float[Tensor, "rows h"], across: Float[Tensor, "columns w"]
) -> Float[Tensor, "b rows columns"]:
    """Squared norms of the descriptors of a block that upsampling() of its sides resizes, from native products.

    A resized descriptor mixes four neighbours, so its square holds their ten products: each descriptor with
    itself, with the next in its row, in its column, and across both diagonals.
    """

    def product(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(1)

    above, below, left, right = block[:, :, :-1], block[:, :, 1:], block[..., :-1], block[..., 1:]
    diagonals = product(above[..., :-1], below[..., 1:]) + product(above[..., 1:], below[..., :-1])
    down_square, across_square = down.square(), across.square()
    down_cross, across_cross = (2 * side[:, :-1] * side[:, 1:] for side in (down, across))
    return (
        down_square @ product(block, block) @ across_square.mT
        + down_square @ product(left, right) @ across_cross.mT
        + down_cross @ product(above, below) @ across_square.mT
        + down_cross @ (diagonals / 2) @ across_cross.mT
    )


def _norm(square: Tensor) -> Tensor:
    """Norm of at least 1e-12; rounding may leave a square just below 0."""
    return square.clamp(min=0).sqrt().clamp(min=1e-12)
