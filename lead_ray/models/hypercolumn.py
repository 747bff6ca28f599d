"""Hypercolumns: block outputs resized to one grid and concatenated; and their similarities, without building them.

Bilinear upsampling is linear: with block outputs F_l and upsampling matrices U_l,
H_i^T H_j = sum_l U_l (F_il^T F_jl) U_l^T. Gram matrices are taken at native resolution and upsampled instead of
channels, of which the paper's ResNet-50 has 3840.
"""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Normalisation = Literal["per-layer", "global"]


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
    normalises the concatenated vector.
    Source: LEAD section 3.3; per-layer as in Contrastive Landmarks' matching.
    """
    products, squares_a, squares_b = [], [], []
    for a, b in zip(blocks_a, blocks_b, strict=True):
        # Without resizing U is the identity.
        up = None if a.shape[2:] == (size, size) else upsampling(a.shape[2:], size).to(a)
        flat_a, flat_b = a.flatten(2), b.flatten(2)
        products.append(_both_sides(up, flat_a.mT @ flat_b))
        squares_a.append(_diagonal(up, flat_a.mT @ flat_a))
        squares_b.append(_diagonal(up, flat_b.mT @ flat_b))
    if normalisation == "per-layer":
        cosines = [_cosine(*terms) for terms in zip(products, squares_a, squares_b, strict=True)]
        return torch.stack(cosines).mean(dim=0)
    if normalisation == "global":
        return _cosine(sum(products), sum(squares_a), sum(squares_b))
    raise ValueError(f"normalisation must be 'per-layer' or 'global', got {normalisation!r}")


@lru_cache(maxsize=32)
def _upsampling(height: int, width: int, size: int) -> Tensor:
    basis = torch.eye(height * width, dtype=torch.float64).reshape(height * width, 1, height, width)
    return F.interpolate(basis, size=(size, size), mode="bilinear", align_corners=False).flatten(1).T.contiguous()


def upsampling(native: torch.Size, size: int) -> Float[Tensor, "n native"]:
    """The matrix U of bilinear resizing from height x width to size x size; its rows sum to 1."""
    return _upsampling(native[0], native[1], size)


def _both_sides(up: Tensor | None, gram: Tensor) -> Tensor:
    return gram if up is None else up @ gram @ up.T


def _diagonal(up: Tensor | None, gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=1, dim2=2) if up is None else ((up @ gram) * up).sum(dim=2)


def _cosine(product: Tensor, square_a: Tensor, square_b: Tensor) -> Tensor:
    return product * square_a.clamp_min(1e-24).rsqrt()[:, :, None] * square_b.clamp_min(1e-24).rsqrt()[:, None, :]
