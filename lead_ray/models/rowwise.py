"""Similarities of hypercolumns some rows at a time, for images whose matrix of all pairs is too large.

Of a ResNet-50 on 256 px, `similarity_factors` would keep 1088 columns for each image. Here 320 remain: what has many
channels or locations is multiplied at native resolution, and its product resized.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import floor

import torch
from jaxtyping import Float
from torch import Tensor

from lead_ray.machine import quick_products
from lead_ray.models.hypercolumn import Blocks, Normalisation, Size, is_wide, locations, paired, side_by_side
from lead_ray.similarity import upsampling

FEW_COLUMNS = 64
"""Multiplying this many columns more takes a core about as long as upsampling the product instead."""


@dataclass(frozen=True)
class _Level:
    """One block's part in the similarities."""

    table: Tensor
    """[b, h * w, k]: the map of image a, location by location."""
    native: Size
    """h, w."""
    scale: Tensor
    """[b, n, 1], of the resized vectors."""
    other: Tensor | None = None
    """[b, k, places]: the map of image b; None if the table holds products already, or descriptors are resized."""
    other_scale: Tensor | None = None
    """[b, 1, m]."""
    down: Tensor | None = None
    across: Tensor | None = None
    """What resizes products in the place of descriptors, [height, h] and [width, w]."""

    def rows(self, images: slice, rows: slice, size: Size, out: Tensor | None = None) -> Tensor:
        """[images, rows, k]: scaled descriptors of some locations of the grid."""
        if size == self.native:
            return torch.mul(self.table[images, rows], self.scale[images, rows], out=out)
        reached, weights = _weights(self.native, size, rows.start, rows.stop, self.table.dtype, self.table.device)
        table = self.table[images, reached]
        return torch.mul(torch.bmm(weights.expand(len(table), -1, -1), table), self.scale[images, rows], out=out)

    def resized(self, products: Tensor) -> Tensor:
        """[images, rows, h * w] of image b -> [images, rows, m]. Several times faster than torch's, plane by plane."""
        (height, h), (width, w) = self.down.shape, self.across.shape
        planes = products.shape[0] * products.shape[1]
        half = torch.mm(products.reshape(planes * h, w), self.across.mT).view(planes, h, width)
        return torch.bmm(self.down.expand(planes, -1, -1), half).view(*products.shape[:2], height * width)


@lru_cache(maxsize=512)  # all of a ResNet-50's at 256 px: 3 MB
def _weights(
    native: Size, size: Size, start: int, stop: int, dtype: torch.dtype, device: torch.device
) -> tuple[slice, Tensor]:
    """Some rows of the matrix U of bilinear resizing: the native locations that they reach, and the weights there."""
    (height, width), (rows, columns) = native, size
    like = torch.empty((), dtype=dtype, device=device)
    # Two native lines about each line of the grid.
    first, last = (floor((line // columns + 0.5) * height / rows - 0.5) for line in (start, stop - 1))
    first, last = max(0, first), min(height, last + 2)
    place = torch.arange(start, stop, device=device)
    down = upsampling(height, rows, like)[place // columns, first:last]
    across = upsampling(width, columns, like)[place % columns]
    return slice(first * width, last * width), (down[:, :, None] * across[:, None, :]).flatten(1)


class RowwiseSimilarity:
    """similarity() times a factor, some rows at a time: no matrix of n rows is kept, of m rows only narrow ones.

    A block of many channels and fewer locations than the grid is not resized itself: its products are, row by row.
    """

    @torch.no_grad()
    def __init__(
        self,
        blocks_a: Blocks,
        blocks_b: Blocks,
        *,
        size_a: Size,
        size_b: Size,
        normalisation: Normalisation,
        factor: float = 1.0,
        quick: bool = False,
    ):
        pairs, scales_a, scales_b = paired(blocks_a, blocks_b, size_a, size_b, normalisation)
        self.size, self.quick, self.device = size_a, quick, blocks_a[0].device.type
        self.near: list[_Level] = []
        self.far: list[_Level] = []
        columns = []
        for (a, b), block, scale_a, scale_b in zip(pairs, blocks_b, scales_a, scales_b, strict=True):
            level = locations(a), tuple(a.shape[2:]), factor * scale_a
            if b.shape[1] * (1 - b.shape[2:].numel() / (size_b[0] * size_b[1])) > FEW_COLUMNS:
                other = None if is_wide(block) else b.flatten(2)
                sides = (upsampling(native, cells, b) for native, cells in zip(b.shape[2:], size_b, strict=True))
                self.far.append(_Level(*level, other, scale_b.mT, *sides))
            else:
                self.near.append(_Level(*level))
                columns.append((b, scale_b))
        self.widths = [each.shape[1] for each, _ in columns]
        self.second = side_by_side(*zip(*columns, strict=True), size_b) if columns else None

    def rows(self, images: slice, rows: slice) -> Float[Tensor, "b rows m"]:
        """Of these images, and these of the n locations."""
        found, products = None, []
        with quick_products(self.device, self.quick):
            if self.near:
                second = self.second[images]
                first = second.new_empty(len(second), rows.stop - rows.start, second.shape[2])
                for level, place in zip(self.near, first.split(self.widths, dim=2), strict=True):
                    level.rows(images, rows, self.size, out=place)
                found = torch.bmm(first, second.mT)
            for level in self.far:
                native = level.rows(images, rows, self.size)
                products.append(native if level.other is None else torch.bmm(native, level.other[images]))
        for level, native in zip(self.far, products, strict=True):  # resizing takes all digits
            resized, scale = level.resized(native), level.other_scale[images]
            found = resized.mul_(scale) if found is None else found.addcmul_(resized, scale)
        return found
