"""The regressor on a CPU: one product a block for the responses, one compiled pass for all that follows them.

Several times faster than the products and passes of `regressor` and `descent`, to which tests hold it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lead_ray.readouts import soft_argmax_cpu

Descriptors = Sequence[Float[Tensor, "b _ _ _"]]  # blocks with their channels last
F = np.float32


def virtual_points(
    descriptors: Descriptors, weights: Sequence[Float[Tensor, "m _"]], *, marks: int, grid: int
) -> Float[Tensor, "k b points_2"]:
    """Virtual points of every landmark, x0, y0, x1, y1, ..."""
    idle = torch.zeros(marks, 2 * len(weights[0]) // marks, 2)
    return _read_out(_responses(descriptors, weights), descriptors, idle, idle[:, 0], grid).virtual.transpose(0, 1)


def gradients(
    descriptors: Descriptors,
    weights: Sequence[Float[Tensor, "m _"]],
    linear: Float[Tensor, "k points_2 2"],
    bias: Float[Tensor, "k 2"],
    landmarks: Float[Tensor, "b k 2"],
    visible: Bool[Tensor, "b k"],
    *,
    grid: int,
    scale: float = 10.0,
) -> tuple[Float[Tensor, ""], list[Tensor]]:
    """regressor.loss() and its gradients: of every block's weights, of linear and of bias."""
    share = visible / (2 * visible.sum()).clamp(min=1)
    maps = _responses(descriptors, weights)
    found = _read_out(maps, descriptors, linear, bias, grid, (landmarks, share, scale))
    convolution = []
    for part, block in zip(_by_block(maps, descriptors, len(weights[0])), descriptors, strict=True):
        flat = block.flatten(0, 2)
        # The same product; the faster one has the longer rows.
        convolution.append(part.mT @ flat if flat.shape[1] > part.shape[1] else (flat.mT @ part).mT)
    slope = torch.einsum("bki,bkc->kic", found.virtual, found.residual)
    return found.loss, [*convolution, slope, found.residual.sum(0)]


class _Found(NamedTuple):
    virtual: Float[Tensor, "b k points_2"]
    loss: Float[Tensor, ""]
    residual: Float[Tensor, "b k 2"]
    """Gradient of the loss in the landmarks."""


def _responses(descriptors: Descriptors, weights: Sequence[Tensor]) -> Float[Tensor, " values"]:
    """The maps of all blocks one after another, each [b, h, w, k * points]."""
    count = len(weights[0])
    maps = torch.empty(sum(block[..., 0].numel() for block in descriptors) * count)
    for part, block, weight in zip(_by_block(maps, descriptors, count), descriptors, weights, strict=True):
        torch.mm(block.flatten(0, 2), weight.mT, out=part)
    return maps


def _by_block(maps: Tensor, descriptors: Descriptors, count: int) -> list[Float[Tensor, "_ m"]]:
    sizes = [block[..., 0].numel() * count for block in descriptors]
    return [part.view(-1, count) for part in maps.split(sizes)]


def _read_out(
    maps: Tensor,
    descriptors: Descriptors,
    linear: Tensor,
    bias: Tensor,
    grid: int,
    truth: tuple[Tensor, Tensor, float] | None = None,
) -> _Found:
    """Shared out over torch's threads; with the truth (target, share, scale) the maps become the loss's gradient."""
    images, marks, width = len(descriptors[0]), *linear.shape[:2]
    virtual, residual = torch.empty(images, marks, width), torch.zeros(images, marks, 2)
    losses = np.zeros(images)
    shapes = np.array([block.shape[1:3] for block in descriptors])
    values = shapes.prod(1) * (marks * width // 2)
    levels = np.c_[images * (values.cumsum() - values), values, shapes]
    plan, axis = _plan(tuple(map(tuple, shapes.tolist())), grid), np.linspace(-1, 1, grid, dtype=F)
    target, share, scale = truth or (residual, residual[..., 0], 0.0)
    given = [tensor.contiguous().numpy() for tensor in (linear, bias, target, share)]
    settings = (levels, plan, axis, *given, F(scale), truth is not None)
    results = virtual.numpy(), residual.numpy(), losses

    def part(first: int, last: int) -> None:
        soft_argmax_cpu.read_out(maps.numpy(), *settings, *results, (first, last))

    threads = max(1, min(torch.get_num_threads(), images))
    if threads == 1:
        part(0, images)
    else:
        cuts = [images * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, cuts[:-1], cuts[1:]))
    return _Found(virtual, torch.tensor(losses.sum(), dtype=torch.float32), residual)


class _Sparse(NamedTuple):
    """A matrix of few numbers a row, padded with zeros to a multiple of four."""

    columns: np.ndarray
    values: np.ndarray


class _Upsampling(NamedTuple):
    """Bilinear, of several maps at once, whose sum is what is asked for."""

    first: np.ndarray
    """Where each map's rows begin among those of all; the end."""
    at: np.ndarray
    """[maps, width]: the first of the two neighbours along the columns."""
    near: np.ndarray
    """[maps, width]: its weight; the second one's is the rest."""
    down: _Sparse
    """From the rows of all maps to those of the sum."""
    up: _Sparse
    """Its transpose."""


NOTHING = _Sparse(np.zeros((0, 4), np.int64), np.zeros((0, 4), F))
UNJOINED = _Upsampling(np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), F), NOTHING, NOTHING)


@cache
def _plan(shapes: tuple[tuple[int, int], ...], grid: int) -> tuple:
    """What soft_argmax_cpu.read_out() needs to upsample maps of these shapes to the grid.

    The sum of coarse blocks is linear between neighbouring centres of any of them, so fixed by its values there.
    So with three blocks or more it pays to add all but the first up at those few nodes, and to upsample the sum.
    """
    cells, coarse = (_centres(grid), _centres(grid)), shapes[1:]
    sides = [tuple(map(_centres, shape)) for shape in shapes]
    nodes = tuple(np.unique(np.concatenate(side)) for side in zip(*sides[1:] or sides, strict=True))
    if len(coarse) < 2 or max(map(len, nodes)) >= grid:
        return (*_upsampling(sides, cells), UNJOINED)
    return (*_upsampling([sides[0], nodes], cells), _upsampling(sides[1:], nodes))


def _upsampling(maps: Sequence[tuple[np.ndarray, np.ndarray]], places: tuple[np.ndarray, np.ndarray]) -> _Upsampling:
    """From maps whose rows and columns have their centres there to the places."""
    first = np.cumsum([0, *(len(rows) for rows, _ in maps)])
    along = [_neighbours(columns, places[1]) for _, columns in maps]
    matrix = np.zeros((len(places[0]), first[-1]), F)
    for start, (rows, _) in zip(first, maps, strict=False):
        at, near = _neighbours(rows, places[0])
        matrix[np.arange(len(at)), start + at] += near
        matrix[np.arange(len(at)), start + np.minimum(at + 1, len(rows) - 1)] += 1 - near
    at, near = (np.stack(part) for part in zip(*along, strict=True))
    return _Upsampling(first, at, near, _sparse(matrix), _sparse(matrix.T))


def _sparse(matrix: np.ndarray) -> _Sparse:
    most = -(-max(1, (matrix != 0).sum(1).max()) // 4) * 4
    columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most]
    columns = np.pad(columns, ((0, 0), (0, most - columns.shape[1])))
    values = np.take_along_axis(matrix, columns, axis=1)
    values[:, matrix.shape[1] :] = 0
    return _Sparse(columns, values)


def _centres(size: int) -> np.ndarray:
    """Of the cells along a side of length 1."""
    return (np.arange(size) + 0.5) / size


def _neighbours(centres: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation along a side: the first of two neighbours of every place, and its weight; flat outside."""
    first = np.clip(np.searchsorted(centres, places, side="right") - 1, 0, max(len(centres) - 2, 0))
    second = np.minimum(first + 1, len(centres) - 1)
    gap = np.where(second > first, centres[second] - centres[first], 1.0)
    return first, (1 - np.clip((places - centres[first]) / gap, 0, 1)).astype(F)
