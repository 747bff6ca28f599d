"""Hypercolumns: block outputs resized to one grid and concatenated; and their similarities, without building them.

Bilinear upsampling is linear: with block outputs F_l and upsampling matrices U_l,
H_a^T H_b = sum_l U_l (F_al^T F_bl) U_l^T. A block of more channels than locations enters by its Gram matrix at native
resolution: of the 3840 channels of the paper's ResNet-50 on 96 px, 445 remain.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lead_ray.similarity import resized_square
from lead_ray.similarity import upsampling as side_upsampling

Normalisation = Literal["per-layer", "global", "centred"]
Blocks = Sequence[Float[Tensor, "_ _ _ _"]]
Size = tuple[int, int]


def hypercolumn(blocks: Blocks, size: int) -> Float[Tensor, "b c size size"]:
    """The concatenated map itself, coarsest block first: reference and small networks only.

    Bilinear, align_corners=False, no antialiasing. Source: Contrastive Landmarks, models/resnet.py.
    """
    return torch.cat([_resized(block, (size, size)) for block in blocks[::-1]], dim=1)


def similarity(
    blocks_a: Blocks, blocks_b: Blocks, *, size: int, normalisation: Normalisation = "per-layer"
) -> Float[Tensor, "b n m"]:
    """Cosine similarities of all locations of two images' hypercolumns, n = m = size^2, row-major.

    Range: [-1, 1]. "per-layer" normalises each block's vectors and averages the cosines over blocks; "global"
    normalises the concatenated vector; "centred" is per-layer less each image's mean vector, which says what the
    image is and not where its parts are.
    Source: LEAD section 3.3; per-layer as in Contrastive Landmarks' matching; centred is ours.
    """
    a, b = similarity_factors(blocks_a, blocks_b, size_a=(size, size), size_b=(size, size), normalisation=normalisation)
    return a @ b.mT


@torch.no_grad()
def similarity_factors(
    blocks_a: Blocks, blocks_b: Blocks, *, size_a: Size, size_b: Size, normalisation: Normalisation
) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b m k"]]:
    """Matrices A, B of few columns with similarity() = A B^T: all of it in memory that grows with n + m.

    Shapes: n, m locations of the grids size_a, size_b, row-major; k columns: as many for each block as it has
    channels, or locations in image b if those are fewer. No gradient: the teacher is frozen.
    """
    pairs, scales_a, scales_b = paired(blocks_a, blocks_b, size_a, size_b, normalisation)
    maps_a, maps_b = zip(*pairs, strict=True)
    return side_by_side(maps_a, scales_a, size_a), side_by_side(maps_b, scales_b, size_b)


def paired(
    blocks_a: Blocks, blocks_b: Blocks, size_a: Size, size_b: Size, normalisation: Normalisation
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], list[Tensor]]:
    """Pairs of maps whose products are the blocks', and what to multiply their resized vectors with, [b, n or m, 1]."""
    if normalisation not in get_args(Normalisation):
        raise ValueError(f"normalisation must be one of {get_args(Normalisation)}, got {normalisation!r}")
    if normalisation == "centred":
        blocks_a = [_centred(block, size_a) for block in blocks_a]
        blocks_b = [_centred(block, size_b) for block in blocks_b]
    pairs = [_narrowed(a, b) for a, b in zip(blocks_a, blocks_b, strict=True)]
    per_layer = normalisation != "global"
    return pairs, _scales(blocks_a, size_a, per_layer), _scales(blocks_b, size_b, per_layer)


@lru_cache(maxsize=32)
def _upsampling(height: int, width: int, size: int) -> Tensor:
    basis = torch.eye(height * width, dtype=torch.float64).reshape(height * width, 1, height, width)
    return _resized(basis, (size, size)).flatten(1).T.contiguous()


def upsampling(native: torch.Size, size: int) -> Float[Tensor, "n native"]:
    """The matrix U of bilinear resizing from height x width to size x size; its rows sum to 1."""
    return _upsampling(native[0], native[1], size)


def _resized(block: Tensor, size: Size) -> Tensor:
    if block.shape[2:] == size:
        return block
    if block.device.type == "cuda":  # of torch's kernels, the one that uses more threads than a plane has pixels
        block = block.contiguous(memory_format=torch.channels_last)
    return F.interpolate(block, size=size, mode="bilinear", align_corners=False)


def _centred(block: Tensor, size: Size) -> Tensor:
    """A block that has mean 0 over the image once it is resized: rows of U sum to 1, so U(F - m) = UF - m."""
    down, across = (
        side_upsampling(native, cells, block).mean(dim=0) for native, cells in zip(block.shape[2:], size, strict=True)
    )
    return block - (block @ across @ down)[:, :, None, None]


def locations(block: Tensor) -> Tensor:
    """[b, h * w, c]: a view where memory is channels-last."""
    return block.flatten(2).mT


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """F_a^T F_b as a map over image a with one channel for each location of b."""
    return torch.bmm(locations(a), b.flatten(2)).unflatten(1, a.shape[2:]).permute(0, 3, 1, 2)


def _identity(block: Tensor) -> Tensor:
    """A map with one channel for each location, 1 there: resized, it is the matrix U."""
    places = block.shape[2:].numel()
    eye = torch.eye(places, dtype=block.dtype, device=block.device)
    return eye.unflatten(0, block.shape[2:])[None].permute(0, 3, 1, 2)


def is_wide(block: Tensor) -> bool:
    return block.shape[1] > block.shape[2:].numel()


def _narrowed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps of the same products at all pairs of locations as a and b, resized or not, of fewer channels."""
    return (_gram(a, b), _identity(b)) if is_wide(b) else (a, b)


def _scales(blocks: Blocks, size: Size, per_layer: bool) -> list[Tensor]:
    """[b, n, 1] for each block: what makes unit vectors of all blocks together, resized."""
    squares = [_squares(block, size) for block in blocks]
    # Each block by itself and a mean over them, or the whole.
    lengths = [len(blocks) * square for square in squares] if per_layer else [sum(squares)] * len(squares)
    return [square.clamp_min(1e-24).rsqrt()[:, :, None] for square in lengths]


def _squares(block: Tensor, size: Size) -> Tensor:
    """[b, n]: squared lengths of the resized vectors, from the block itself, its Gram matrix or its neighbours."""
    if block.shape[2:] == size:
        return torch.linalg.vector_norm(block, dim=1).square().flatten(1)
    if is_wide(block):  # the diagonal of U (F^T F) U^T
        return (_resized(_gram(block, block), size) * _resized(_identity(block), size)).sum(dim=1).flatten(1)
    sides = (side_upsampling(native, cells, block) for native, cells in zip(block.shape[2:], size, strict=True))
    return resized_square(block, *sides).flatten(1)


def side_by_side(maps: Blocks, scales: Sequence[Tensor], size: Size) -> Tensor:
    """[b, n, k]: maps resized and scaled, side by side."""
    columns = scales[0].new_empty(*scales[0].shape[:2], sum(each.shape[1] for each in maps))
    places = columns.split([each.shape[1] for each in maps], dim=2)
    for place, each, scale in zip(places, maps, scales, strict=True):
        torch.mul(locations(_resized(each, size)), scale, out=place)
    return columns
