"""A landmark's read-out, compiled for CPUs: what becomes of its response maps never leaves the core's own cache.

From the maps of one landmark in one image to its virtual points, its place and its loss, and back to the gradient of
the maps. Upsampling takes two neighbours along each side. Loops run over contiguous floats, so that the compiler can
use vectors. One file, because machine code that is kept on disk is renewed when its own file changes, and no other.
"""

import inspect
from collections.abc import Callable

import numpy as np
from numba import njit

F = np.float32
LOG2_E = F(1.4426950408889634)
LEAST = F(-80)  # a weight of 2^-80 is nothing, and its products are no denormal numbers, which take far longer
ROUND = F(1.5 * 2**23)  # added to a small float, it leaves the nearest whole number in the low bits


def compiled(function: Callable) -> Callable:
    """Compile at the first call, keep the machine code beside the source; what is not a number stays so."""
    plain = inspect.unwrap(function)  # tests put shape checks around functions
    return njit(nogil=True, cache=True, fastmath={"nsz", "arcp", "contract", "afn"}, error_model="numpy")(plain)


@compiled
def read_out(
    maps, levels, at, near, joins, axis, linear, bias, target, share, scale, training, virtual, residual, losses, span
):
    """Images span[0] up to, not with, span[1]: virtual points; in training also residuals, losses, and the gradient.

    maps: of all blocks one after another, each [images, h, w, k * points]; in training they become the gradient.
    levels: for each block where its maps begin, how many values an image has, h, w.
    at, near: for each block along its rows and along its columns: see regressor_cpu; of joined ones for their nodes.
    joins: rows and columns of the nodes at which all blocks but the first are added up, or 0; then their at and near.
    virtual: [images, k, 2 * points]; residual: [images, k, 2], the gradient in the landmarks; losses: [images].
    """
    marks, grid, points, joined = len(linear), len(axis), linear.shape[1] // 2, joins[0] > 0
    nodes = np.empty((joins[0], joins[1], points), F)
    across = np.empty((levels[:, 2].max(), joins[1], points), F)
    cells = np.empty((grid, grid * points), F)
    rows = np.empty((levels[0, 2] + joins[0] if joined else levels[:, 2].sum(), grid, points), F)
    flat = rows.reshape(len(rows), grid * points)
    # One value for every column and point: the highest response, later factors of the gradient.
    factors = np.empty((3, grid * points), F)
    top, along, sideways = factors[0], factors[1], factors[2]
    moments = np.empty((points, 3), F)
    for b in range(span[0], span[1]):
        for k in range(marks):
            start = k * points
            if joined:
                _join(maps, levels, b, start, joins, across, nodes)
            row = 0
            for level in range(len(at)):
                own = nodes if joined and level else _image(maps, levels[level], b)
                end = row + len(own)
                _spread(own, 0 if joined and level else start, at[level, 1], near[level, 1], rows[row:end])
                _stack(flat[row:end], at[level, 0], near[level, 0], cells, level == 0)
                row = end
            _highest(cells, top, points)
            _soften(cells, top, axis, along, sideways)
            _moments(along, sideways, axis, moments)
            place = bias[k].copy()
            for i in range(2 * points):
                virtual[b, k, i] = moments[i // 2, i % 2]
                place += virtual[b, k, i] * linear[k, i]
            if not training:
                continue
            for side in range(2):
                miss = scale * (place[side] - target[b, k, side])
                loss = F(0.5) * miss * miss if abs(miss) < 1 else abs(miss) - F(0.5)
                losses[b] += share[b, k] * loss
                residual[b, k, side] = scale * share[b, k] * min(max(miss, F(-1)), F(1))
            _slopes(linear[k], residual[b, k], moments, axis, along, sideways, top)
            _weigh(cells, axis, along, sideways, top)
            row = 0
            for level in range(len(at)):
                own = nodes if joined and level else _image(maps, levels[level], b)
                end = row + len(own)
                _unstack(cells, at[level, 0], near[level, 0], flat[row:end])
                _unspread(rows[row:end], at[level, 1], near[level, 1], own, 0 if joined and level else start)
                row = end
            if joined:
                _part(nodes, joins, across, maps, levels, b, start)


@compiled
def _join(maps, levels, b, start, joins, across, nodes):
    """All blocks but the first, added up at the nodes."""
    for level in range(1, len(levels)):
        own = _image(maps, levels[level], b)
        part, target = across[: len(own)], nodes.reshape(len(nodes), -1)
        _spread(own, start, joins[4][level - 1], joins[5][level - 1], part)
        _stack(part.reshape(len(own), -1), joins[2][level - 1], joins[3][level - 1], target, level == 1)


@compiled
def _part(nodes, joins, across, maps, levels, b, start):
    """The transpose of _join."""
    for level in range(1, len(levels)):
        own = _image(maps, levels[level], b)
        part, source = across[: len(own)], nodes.reshape(len(nodes), -1)
        _unstack(source, joins[2][level - 1], joins[3][level - 1], part.reshape(len(own), -1))
        _unspread(part, joins[4][level - 1], joins[5][level - 1], own, start)


@compiled
def _image(maps, level, b):
    """One image's maps of one block, [h, w, all points]."""
    return maps[level[0] + b * level[1] :][: level[1]].reshape(level[2], level[3], -1)


@compiled
def _highest(cells, top, points):
    """Each point's highest response, repeated for every column."""
    top[:] = cells[0]
    for i in range(1, len(cells)):
        _raise(top, cells[i])
    columns = top.reshape(len(cells), points)
    for j in range(1, len(columns)):
        _raise(columns[0], columns[j])
    columns[1:] = columns[0]


@compiled
def _raise(top, values):
    for v in range(len(top)):
        top[v] = values[v] if values[v] > top[v] else top[v]


@compiled
def _power(x):
    """2 to the power of x <= 0, to 3e-7 of it, without leaving the vector unit (Cephes' polynomial)."""
    x = LEAST if x < LEAST else x  # not max(): it would lose what is not a number
    shifted = F(x + ROUND)
    f = x - (shifted - ROUND)
    power = F(1.535336188319500e-4)
    power = power * f + F(1.339887440266574e-3)
    power = power * f + F(9.618437357674640e-3)
    power = power * f + F(5.550332471162809e-2)
    power = power * f + F(2.402264791363012e-1)
    power = power * f + F(6.931472028550421e-1)
    power = power * f + F(1)
    exponent = np.int32((shifted.view(np.int32) << np.int32(23)) + np.int32(127 << 23))
    return power * exponent.view(np.float32)


@compiled
def _soften(cells, top, axis, total, weighted):
    """exp(response - highest) in place; its sum down every column, and that of y times it."""
    total[:], weighted[:] = F(0), F(0)
    for i in range(len(cells)):
        row, y = cells[i], axis[i]
        for v in range(len(row)):
            value = _power((row[v] - top[v]) * LOG2_E)
            row[v] = value
            total[v] += value
            weighted[v] += y * value


@compiled
def _moments(total, weighted, axis, moments):
    """Each point's mean x and y, and 1 / sum of the weights."""
    points = len(moments)
    moments[:] = F(0)
    for j in range(len(axis)):
        for v in range(points):
            moments[v, 0] += axis[j] * total[j * points + v]
            moments[v, 1] += weighted[j * points + v]
            moments[v, 2] += total[j * points + v]
    for v in range(points):
        moments[v, 2] = F(1) / moments[v, 2]
        moments[v, 0] *= moments[v, 2]
        moments[v, 1] *= moments[v, 2]


@compiled
def _slopes(linear, residual, moments, axis, along, across, centre):
    """How the loss changes with a cell's weight: along[j] + across[j] * (y - centre[j]); at the mean not at all."""
    points = len(moments)
    for v in range(points):
        for j in range(len(axis)):
            place = j * points + v
            x_slope = linear[2 * v, 0] * residual[0] + linear[2 * v, 1] * residual[1]
            y_slope = linear[2 * v + 1, 0] * residual[0] + linear[2 * v + 1, 1] * residual[1]
            along[place] = moments[v, 2] * x_slope * (axis[j] - moments[v, 0])
            across[place] = moments[v, 2] * y_slope
            centre[place] = moments[v, 1]


@compiled
def _weigh(cells, axis, along, across, centre):
    """Weights of cells -> gradient of the loss in their responses, in place."""
    for i in range(len(cells)):
        row, y = cells[i], axis[i]
        for v in range(len(row)):
            row[v] *= along[v] + across[v] * (y - centre[v])


@compiled
def _spread(maps, start, at, near, rows):
    """Upsample along the columns: points start, start + 1, ... of [h, w, all points] -> [h, grid, points]."""
    points, last = rows.shape[2], maps.shape[1] - 1
    for i in range(len(rows)):
        for j in range(len(at)):
            p, q = near[j], F(1) - near[j]
            a, b = maps[i, at[j], start : start + points], maps[i, min(at[j] + 1, last), start : start + points]
            target = rows[i, j]
            for v in range(points):
                target[v] = p * a[v] + q * b[v]


@compiled
def _stack(rows, at, near, cells, new):
    """Upsample along the rows, [h, all] -> [grid, all], over what is there or added to it."""
    last = len(rows) - 1
    for i in range(len(cells)):
        p, q = near[i], F(1) - near[i]
        a, b, target = rows[at[i]], rows[min(at[i] + 1, last)], cells[i]
        for v in range(len(target)):
            value = p * a[v] + q * b[v]
            target[v] = value if new else target[v] + value


@compiled
def _unstack(cells, at, near, rows):
    """The transpose of _stack."""
    last = len(rows) - 1
    rows[:] = F(0)
    for i in range(len(cells)):
        p, q = near[i], F(1) - near[i]
        source, a, b = cells[i], rows[at[i]], rows[min(at[i] + 1, last)]
        for v in range(len(source)):
            a[v] += p * source[v]
            b[v] += q * source[v]


@compiled
def _unspread(rows, at, near, maps, start):
    """The transpose of _spread."""
    points, last = rows.shape[2], maps.shape[1] - 1
    maps[:, :, start : start + points] = F(0)
    for i in range(len(rows)):
        for j in range(len(at)):
            p, q = near[j], F(1) - near[j]
            a, source = maps[i, at[j], start : start + points], rows[i, j]
            b = maps[i, min(at[j] + 1, last), start : start + points]
            for v in range(points):
                a[v] += p * source[v]
                b[v] += q * source[v]
