"""A landmark's read-out, compiled for CPUs: what becomes of its response maps never leaves the core's own cache.

From the maps of one landmark in one image to its virtual points, its place and its loss, and back to the gradient of
the maps. Upsampling takes two neighbours along each side. Loops run over contiguous floats, so that the compiler can
use vectors. One file, because machine code that is kept on disk is renewed when its own file changes, and no other.
"""

import numpy as np

from lead_ray.machine_code import HONEST, compiler

compiled = compiler(HONEST)
F = np.float32
LOG2_E = F(1.4426950408889634)
LEAST = F(-80)  # a weight of 2^-80 is nothing, and its products are no denormal numbers, which take far longer
ROUND = F(1.5 * 2**23)  # added to a small float, it leaves the nearest whole number in the low bits


@compiled
def read_out(maps, levels, plan, axis, linear, bias, target, share, scale, training, virtual, residual, losses, span):
    """Images span[0] up to, not with, span[1]: virtual points; in training also residuals, losses, and the gradient.

    maps: of all blocks one after another, each [images, h, w, row], k * points of a row, which may be longer, count; in
      training they become the gradient.
    levels: for each block where its maps begin, how many values an image has, h, w.
    plan: of upsampling_cpu.
    virtual: [images, k, 2 * points]; residual: [images, k, 2], the gradient in the landmarks; losses: [images].
    """
    first, at, near, back, down, up, join = plan
    marks, grid, points, joined = len(linear), len(axis), linear.shape[1] // 2, len(join[0]) > 0
    across = np.empty((join[0][-1] if joined else 0, join[1].shape[1], marks * points), F)
    nodes = np.empty((len(join[4][0]), join[1].shape[1], marks * points), F)
    rows = np.empty((first[-1], grid, points), F)
    flat, cells = rows.reshape(len(rows), -1), np.empty((grid, grid * points), F)
    # One value for every column and point: the highest response, later factors of the gradient.
    factors = np.empty((3, grid * points), F)
    top, along, sideways = factors[0], factors[1], factors[2]
    moments = np.empty((points, 3), F)
    for b in range(span[0], span[1]):
        if joined:
            _join(maps, levels, b, join, across, nodes)
        for k in range(marks):
            start = k * points
            for level in range(len(at)):
                own = nodes if joined and level else _image(maps, levels[level], b)
                _spread(own, start, at[level], near[level], rows[first[level] : first[level + 1]])
            _combine(flat, down, cells)
            top[:] = cells[0]
            for i in range(1, grid):
                _raise(top, cells[i])
            _highest(top, points)
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
            _combine(cells, up, flat)
            for level in range(len(at)):
                own = nodes if joined and level else _image(maps, levels[level], b)
                _unspread(rows[first[level] : first[level + 1]], back[0][level], back[1][level], own, start)
        if joined and training:
            _part(nodes, join, across, maps, levels, b)


@compiled
def _join(maps, levels, b, join, across, nodes):
    """All blocks but the first, added up at the nodes."""
    first, at, near, _, down, _ = join
    for level in range(len(at)):
        own = _image(maps, levels[level + 1], b)
        _spread(own, 0, at[level], near[level], across[first[level] : first[level + 1]])
    _combine(across.reshape(len(across), -1), down, nodes.reshape(len(nodes), -1))


@compiled
def _part(nodes, join, across, maps, levels, b):
    """The transpose of _join."""
    first, at, _, back, _, up = join
    _combine(nodes.reshape(len(nodes), -1), up, across.reshape(len(across), -1))
    for level in range(len(at)):
        own = _image(maps, levels[level + 1], b)
        _unspread(across[first[level] : first[level + 1]], back[0][level], back[1][level], own, 0)


@compiled
def _image(maps, level, b):
    """One image's maps of one block, [h, w, all points]."""
    return maps[level[0] + b * level[1] :][: level[1]].reshape(level[2], level[3], -1)


@compiled
def _highest(top, points):
    """From the highest response of every column and point to each point's, repeated for every column."""
    columns = top.reshape(-1, points)
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
def _unspread(rows, who, factors, maps, start):
    """The transpose of _spread; written out, for a call takes longer than so short a loop."""
    points = rows.shape[2]
    for i in range(len(rows)):
        for j in range(maps.shape[1]):
            target = maps[i, j, start : start + points]
            for m in range(0, who.shape[1], 4):
                if m and factors[j, m] == 0:
                    break
                a, b, c, d = rows[i, who[j, m]], rows[i, who[j, m + 1]], rows[i, who[j, m + 2]], rows[i, who[j, m + 3]]
                p, q, r, s = factors[j, m], factors[j, m + 1], factors[j, m + 2], factors[j, m + 3]
                if m:
                    for v in range(points):
                        target[v] += p * a[v] + q * b[v] + r * c[v] + s * d[v]
                else:
                    for v in range(points):
                        target[v] = p * a[v] + q * b[v] + r * c[v] + s * d[v]


@compiled
def _combine(rows, matrix, targets):
    """A sparse matrix times rows: each target is made of few of them, four of which are read at a time."""
    who, factors = matrix
    for i in range(len(targets)):
        for m in range(0, who.shape[1], 4):
            if m and factors[i, m] == 0:
                break
            _four(rows, who[i, m : m + 4], factors[i, m : m + 4], targets[i], m == 0)


@compiled
def _four(rows, who, factors, target, new):
    """Over what is there, or added to it."""
    a, b, c, d = rows[who[0]], rows[who[1]], rows[who[2]], rows[who[3]]
    p, q, r, s = factors[0], factors[1], factors[2], factors[3]
    if new and r == 0:
        for v in range(len(target)):
            target[v] = p * a[v] + q * b[v]
    elif new:
        for v in range(len(target)):
            target[v] = p * a[v] + q * b[v] + r * c[v] + s * d[v]
    elif r == 0:
        for v in range(len(target)):
            target[v] += p * a[v] + q * b[v]
    else:
        for v in range(len(target)):
            target[v] += p * a[v] + q * b[v] + r * c[v] + s * d[v]
