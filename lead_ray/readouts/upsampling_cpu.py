"""Bilinear upsampling of several maps at once, as rows of few numbers: what soft_argmax_cpu reads."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

F = np.float32


class Sparse(NamedTuple):
    """A matrix of few numbers a row, padded with zeros to a multiple of four."""

    columns: np.ndarray
    values: np.ndarray


class Upsampling(NamedTuple):
    """Bilinear, of several maps at once, whose sum is what is asked for."""

    first: np.ndarray
    """Where each map's rows begin among those of all; the end."""
    at: np.ndarray
    """[maps, width]: the first of the two neighbours along the columns."""
    near: np.ndarray
    """[maps, width]: its weight; the second one's is the rest."""
    back: Sparse
    """[maps, widest, most]: its transpose, from the width to the columns of each map."""
    down: Sparse
    """From the rows of all maps to those of the sum."""
    up: Sparse
    """Its transpose."""


FLAT, DEEP = (Sparse(np.zeros(shape, np.int64), np.zeros(shape, F)) for shape in ((0, 4), (0, 0, 4)))
NOTHING = Upsampling(np.zeros(0, np.int64), np.zeros((0, 0), np.int64), np.zeros((0, 0), F), DEEP, FLAT, FLAT)


@cache
def plan(shapes: tuple[tuple[int, int], ...], grid: int) -> tuple:
    """What soft_argmax_cpu.read_out() needs to upsample maps of these shapes to the grid: an Upsampling's fields, and
    an Upsampling that joins coarse blocks first, or NOTHING; plain tuples.

    The sum of coarse blocks is linear between neighbouring centres of any of them, so fixed by its values there.
    So with three blocks or more it pays to add all but the first up at those few nodes, and to upsample the sum.
    """
    cells, coarse = (_centres(grid), _centres(grid)), shapes[1:]
    sides = [tuple(map(_centres, shape)) for shape in shapes]
    nodes = tuple(np.unique(np.concatenate(side)) for side in zip(*sides[1:] or sides, strict=True))
    if len(coarse) < 2 or max(map(len, nodes)) >= grid:
        return _plain((*_upsampling(sides, cells), NOTHING))
    return _plain((*_upsampling([sides[0], nodes], cells), _upsampling(sides[1:], nodes)))


def _plain(nested: tuple | np.ndarray) -> tuple | np.ndarray:
    """As machine code that is kept must find it."""
    return tuple(map(_plain, nested)) if isinstance(nested, tuple) else nested


def _upsampling(maps: Sequence[tuple[np.ndarray, np.ndarray]], places: tuple[np.ndarray, np.ndarray]) -> Upsampling:
    """From maps whose rows and columns have their centres there to the places."""
    first = np.cumsum([0, *(len(rows) for rows, _ in maps)])
    down = np.concatenate([_matrix(rows, places[0]) for rows, _ in maps], axis=1)
    along = [_matrix(columns, places[1]).T for _, columns in maps]
    widest = max(map(len, along), default=0)
    back = np.stack([np.pad(each, ((0, widest - len(each)), (0, 0))) for each in along])
    at, near = zip(*(_neighbours(columns, places[1]) for _, columns in maps), strict=True)
    return Upsampling(first, np.stack(at), np.stack(near), _sparse(back), _sparse(down), _sparse(down.T))


def _matrix(centres: np.ndarray, places: np.ndarray) -> np.ndarray:
    """From values at the centres to those at the places."""
    at, near = _neighbours(centres, places)
    matrix, every = np.zeros((len(places), len(centres)), F), np.arange(len(places))
    matrix[every, at] += near
    matrix[every, np.minimum(at + 1, len(centres) - 1)] += 1 - near
    return matrix


def _sparse(matrix: np.ndarray) -> Sparse:
    """Of its last axis the few numbers that are not zero, each with its place."""
    width = matrix.shape[-1]
    most = -(-max(1, (matrix != 0).sum(-1).max()) // 4) * 4
    order = np.argsort(matrix == 0, axis=-1, kind="stable")[..., :most]
    values = np.take_along_axis(matrix, order, axis=-1)
    missing = [(0, 0)] * (matrix.ndim - 1) + [(0, max(0, most - width))]
    return Sparse(np.pad(order, missing), np.pad(values, missing))


def _centres(size: int) -> np.ndarray:
    """Of the cells along a side of length 1."""
    return (np.arange(size) + 0.5) / size


def _neighbours(centres: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation along a side: the first of two neighbours of every place, and its weight; flat outside."""
    first = np.clip(np.searchsorted(centres, places, side="right") - 1, 0, max(len(centres) - 2, 0))
    second = np.minimum(first + 1, len(centres) - 1)
    gap = np.where(second > first, centres[second] - centres[first], 1.0)
    return first, (1 - np.clip((places - centres[first]) / gap, 0, 1)).astype(F)
