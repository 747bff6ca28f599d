"""How features vary within images, as a whole hypercolumn would, from blocks at their native resolution.

A coarse block of few images has more channels than cells. All that linear detectors ask of it lies in the span of these
cells, so there it can be dealt with, in as many channels as it has cells: exact, and of hypercolumns a small part of
the work.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lead_ray.readouts.regressor import CHUNK, Blocks
from lead_ray.similarity import upsampling


def deviations(blocks: Blocks, *, grid: int) -> list[Float[Tensor, " _"]]:
    """Standard deviation of every channel within an upsampled image; of dead ones a little of the largest."""
    found = []
    for block, (down, across) in zip(blocks, _upsampled(blocks, grid), strict=True):
        squares = torch.zeros(block.shape[1], device=block.device)
        for part in _centred(block):
            # |U F V^T|^2 = <U^T U F, F V^T V>, with the channels last, as they lie in memory.
            rows = part.permute(0, 2, 3, 1)
            moved = (down.mT @ down) @ rows.flatten(2), (across.mT @ across) @ rows
            squares += (moved[0].view_as(rows) * moved[1]).sum((0, 1, 2))
        found.append((squares / (len(block) * grid**2)).clamp(min=0).sqrt())
    least = 1e-4 * max(float(each.max()) for each in found) + 1e-12
    return [each.clamp(min=least) for each in found]


def correlations(blocks: Blocks, deviations: Sequence[Float[Tensor, " _"]], *, grid: int) -> Float[Tensor, "c c"]:
    """Correlations of the upsampled features within images; covariances, in units of these deviations.

    With U the upsampling, F_l U_l^T U_m F_m^T is evaluated at the coarser of two blocks: exact, and a small
    part of the work on hypercolumns. Each image's native mean is removed.
    """
    ups = _upsampled(blocks, grid)
    total = {
        (i, j): torch.zeros(blocks[i].shape[1], blocks[j].shape[1], device=blocks[0].device)
        for j in range(len(blocks))
        for i in range(j + 1)
    }
    for centred in zip(*map(_centred, blocks), strict=True):
        cells = [part.permute(0, 2, 3, 1).contiguous() for part in centred]
        for (first, second), product in total.items():
            (down, across), (coarse_down, coarse_across) = ups[first], ups[second]
            moved = (coarse_down.mT @ down) @ cells[first].flatten(2)
            moved = (coarse_across.mT @ across) @ moved.unflatten(2, cells[first].shape[2:])
            product.addmm_(moved.flatten(0, 2).mT, cells[second].flatten(0, 2))
    rows = [
        torch.cat([total[i, j] if i <= j else total[j, i].mT for j in range(len(blocks))], dim=1)
        for i in range(len(blocks))
    ]
    deviation = torch.cat(list(deviations))
    return torch.cat(rows) / (len(blocks[0]) * grid**2) / deviation / deviation[:, None]


def compact(
    blocks: Blocks, deviations: Sequence[Float[Tensor, " _"]]
) -> tuple[list[Tensor], list[Float[Tensor, " _"]], list[Float[Tensor, "c r"] | None]]:
    """The same images in as few channels as their cells span, where that is fewer: blocks, deviations, and bases.

    With X the centred features in units of their deviations, a row a cell, and Q of QR of X^T, the new features are
    X Q, in units of 1. A basis takes detectors of new features back to the old channels; None: they are the old ones.
    """
    made, units, bases = [], [], []
    for block, deviation in zip(blocks, deviations, strict=True):
        basis, (count, channels, height, width) = None, block.shape
        if count * height * width <= channels // 2:  # from there on QR costs as much as it spares
            rows = (torch.cat([*_centred(block)]) / deviation[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
            span = torch.linalg.qr(rows.mT).Q
            block = (rows @ span).view(count, height, width, -1).permute(0, 3, 1, 2)
            basis, deviation = span / deviation[:, None], torch.ones_like(deviation[: span.shape[1]])
        made.append(block)
        units.append(deviation)
        bases.append(basis)
    return made, units, bases


def _centred(block: Tensor) -> Iterator[Float[Tensor, "_ c h w"]]:
    """A few images at a time without their means, in float32."""
    for part in block.split(CHUNK):
        yield part.float() - part.float().mean((2, 3), keepdim=True)


def _upsampled(blocks: Blocks, grid: int) -> list[list[Float[Tensor, "grid _"]]]:
    """Of every block the matrices for its rows and its columns."""
    like = torch.empty(0, device=blocks[0].device)
    return [[upsampling(side, grid, like) for side in block.shape[2:]] for block in blocks]
