"""Hypercolumns: block outputs resized to one grid and concatenated; and their similarities, without building them.

Bilinear upsampling is linear: with block outputs F_l and upsampling matrices U_l,
H_i^T H_j = sum_l U_l (F_il^T F_jl) U_l^T. Gram matrices are taken at native resolution and upsampled instead of
channels, of which the paper's ResNet-50 has 3840.
"""

from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Normalisation = Literal["per-layer", "global", "centred"]


def hypercolumn(blocks: list[Tensor], size: int) -> Float[Tensor, "b c size size"]:
    """The concatenated map itself, coarsest block first: reference and small networks only.

    Bilinear, align_corners=False, no antialiasing. Source: Contrastive Landmarks, models/resnet.py.
    """
    resized = [F.interpolate(block, size=(size, size), mode="bilinear", align_corners=False) for block in blocks]
    return torch.cat(resized[::-1], dim=1)


def similarity(
    blocks_a: list[Tensor], blocks_b: list[Tensor], *, size: int, normalisation: Normalisation = "per-layer"
) -> Float[Tensor, "b n m"]:
    """Cosine similarities of all locations of two images' hypercolumns, n = m = size^2, row-major.

    Range: [-1, 1]. "per-layer" normalises each block's vectors and averages the cosines over blocks; "global"
    normalises the concatenated vector; "centred" is per-layer less each image's mean vector, which says what the
    image is and not where its parts are.
    Source: LEAD section 3.3; per-layer as in Contrastive Landmarks' matching; centred is ours.
    """
    if normalisation not in get_args(Normalisation):
        raise ValueError(f"normalisation must be one of {get_args(Normalisation)}, got {normalisation!r}")
    if normalisation == "centred":
        blocks_a, blocks_b = ([centred(block, size) for block in blocks] for blocks in (blocks_a, blocks_b))
    narrow = sum(block.shape[1] for block in blocks_a) <= size * size
    compare = similarity_of_hypercolumns if narrow else similarity_of_grams
    return compare(blocks_a, blocks_b, size=size, per_layer=normalisation != "global")


def similarity_of_hypercolumns(
    blocks_a: list[Tensor], blocks_b: list[Tensor], *, size: int, per_layer: bool
) -> Float[Tensor, "b n m"]:
    """similarity() in one product: the cheaper way while there are fewer channels than locations."""

    def unit(blocks: list[Tensor]) -> Tensor:
        if not per_layer:
            return F.normalize(hypercolumn(blocks, size).flatten(2), dim=1, eps=1e-12)
        levels = [F.normalize(hypercolumn([block], size).flatten(2), dim=1, eps=1e-12) for block in blocks]
        return torch.cat(levels, dim=1) / len(levels) ** 0.5

    return unit(blocks_a).mT @ unit(blocks_b)


def similarity_of_grams(
    blocks_a: list[Tensor], blocks_b: list[Tensor], *, size: int, per_layer: bool
) -> Float[Tensor, "b n m"]:
    """similarity() from Gram matrices at native resolution: its cost hardly grows with the channels."""
    products, squares_a, squares_b = [], [], []
    for a, b in zip(blocks_a, blocks_b, strict=True):
        # Without resizing U is the identity.
        up = None if a.shape[2:] == (size, size) else upsampling(a.shape[2:], size).to(a)
        flat_a, flat_b = a.flatten(2), b.flatten(2)
        products.append(_both_sides(up, flat_a.mT @ flat_b))
        squares_a.append(_squares(up, flat_a))
        squares_b.append(_squares(up, flat_b))
    if not per_layer:
        return _cosine(sum(products), sum(squares_a), sum(squares_b))
    return sum(map(_cosine, products, squares_a, squares_b)) / len(products)


def centred(block: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c h w"]:
    """A block that has mean 0 over the image once it is resized: rows of U sum to 1, so U(F - m) = UF - m."""
    share = upsampling(block.shape[2:], size).to(block).mean(dim=0)
    return block - (block.flatten(2) @ share)[:, :, None, None]


@lru_cache(maxsize=32)
def _upsampling(height: int, width: int, size: int) -> Tensor:
    basis = torch.eye(height * width, dtype=torch.float64).reshape(height * width, 1, height, width)
    return F.interpolate(basis, size=(size, size), mode="bilinear", align_corners=False).flatten(1).T.contiguous()


def upsampling(native: torch.Size, size: int) -> Float[Tensor, "n native"]:
    """The matrix U of bilinear resizing from height x width to size x size; its rows sum to 1."""
    return _upsampling(native[0], native[1], size)


def _both_sides(up: Tensor | None, gram: Tensor) -> Tensor:
    return gram if up is None else up @ gram @ up.T


def _squares(up: Tensor | None, flat: Tensor) -> Tensor:
    """Squared lengths of the resized vectors: the diagonal of U (F^T F) U^T."""
    return flat.square().sum(dim=1) if up is None else ((up @ (flat.mT @ flat)) * up).sum(dim=2)


def _cosine(product: Tensor, square_a: Tensor, square_b: Tensor) -> Tensor:
    return product * square_a.clamp_min(1e-24).rsqrt()[:, :, None] * square_b.clamp_min(1e-24).rsqrt()[:, None, :]
