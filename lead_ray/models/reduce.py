"""Hypercolumns made compact without learning: principal components, a random projection, non-negative factors.

The first two are pointwise convolutions, which commute with upsampling: the hypercolumn is built neither to apply nor
to fit them. With H_l = F_l U_l^T the blocks' part of all hypercolumns, H_l H_m^T = F_l (U_l^T U_m) F_m^T. Nor does
applying non-negative factors need it, for features enter scikit-learn's updates through that convolution alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lead_ray.models.projection import CompactEncoder, by_block, pointwise
from lead_ray.models.trunk import Trunk
from lead_ray.similarity import upsampling

Method = Literal["pca", "random", "nmf"]
ITERATIONS = 200  # scikit-learn's
TINY = 2.0**-23  # in place of a denominator of 0, scikit-learn's


@dataclass(frozen=True, kw_only=True)
class ReductionSettings:
    """Which reduction; LEAD compares with non-negative factors (Table 1)."""

    method: Method = "pca"
    dim: int = 64
    """Channels of the compact map."""

    def __post_init__(self):
        if self.method not in get_args(Method):
            raise ValueError(f"reduction.method must be one of {get_args(Method)}, got {self.method!r}")
        if self.dim < 1:
            raise ValueError(f"reduction.dim must be >= 1, got {self.dim}")


class Reduction(nn.Module):
    """Blocks -> the compact map at the finest block's resolution. Fresh, it is a random projection."""

    def __init__(self, channels: tuple[int, ...], settings: ReductionSettings):
        super().__init__()
        self.settings = settings
        self.channels = channels
        weight = torch.randn(settings.dim, sum(channels)) / settings.dim**0.5
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.abs() if settings.method == "nmf" else weight)
        self.register_buffer("bias", torch.zeros(settings.dim))

    def forward(self, blocks: list[Tensor], size: Iterable[int] | None = None) -> Float[Tensor, "b dim h w"]:
        """The compact map; `size` (h, w) is the finest block's if not given."""
        size = list(size or blocks[0].shape[2:])
        if self.settings.method != "nmf":
            return pointwise(blocks, by_block(self.weight, self.channels), size) + self.bias[:, None, None]
        mean = torch.full_like(self.weight[:1], 1 / self.weight.shape[1])
        maps = pointwise(blocks, by_block(torch.cat([self.weight, mean]), self.channels), size)
        return _non_negative(maps[:, :-1], maps[:, -1], self.weight @ self.weight.T)


def _non_negative(products: Tensor, means: Tensor, gram: Tensor) -> Tensor:
    """Coefficients W >= 0 of features X over factors H, from X H^T [b, dim, h, w], X's mean over channels and H H^T.

    Multiplicative updates, each image by itself. Source: scikit-learn, MiniBatchNMF.transform with tol=0.
    """
    flat = products.flatten(2)
    coefficients = (means.flatten(1).mean(dim=1) / len(gram)).sqrt()[:, None, None].expand_as(flat)
    for _ in range(ITERATIONS):
        expected = gram @ coefficients
        coefficients = coefficients * flat / torch.where(expected == 0, TINY, expected)
    return coefficients.unflatten(2, products.shape[2:])


@torch.no_grad()
def fit(
    trunk: Trunk,
    batches: Iterable[Float[Tensor, "_ 3 _ _"]],
    settings: ReductionSettings,
    *,
    seed: int = 0,
    locations: int = 64,
) -> CompactEncoder:
    """The trunk under a reduction fitted to its hypercolumns of some images, which are normalised as its input is.

    Args:
        seed: of the random projection, and of the locations and the start of non-negative factors.
        locations: of each image, random ones, that the non-negative factors are fitted to.
    Raises: ValueError if there is no image, or fewer hypercolumns or channels than settings.dim asks for.
    """
    trunk.eval()
    reduction = Reduction(trunk.channels, settings).to(next(trunk.parameters()).device)
    generator = torch.Generator().manual_seed(seed)
    if settings.method == "random":
        reduction.weight.copy_(torch.randn(reduction.weight.shape, generator=generator) / settings.dim**0.5)
    elif settings.method == "pca":
        components, mean = principal_components((trunk(images) for images in batches), settings.dim)
        reduction.weight.copy_(components)
        reduction.bias.copy_(-components @ mean)
    else:
        columns = [sampled_hypercolumns(trunk(images), locations, generator) for images in batches]
        reduction.weight.copy_(non_negative_factors(columns, settings.dim, seed=seed))
    return CompactEncoder(trunk, reduction.eval())


def principal_components(
    batches: Iterable[list[Tensor]], count: int
) -> tuple[Float[Tensor, "{count} c"], Float[Tensor, " c"]]:
    """The first principal components of hypercolumns at the finest block's resolution, and their mean; float64.

    Channels are those of the hypercolumn, coarsest block first. A component's largest entry is positive.
    """
    total, products, seen = None, None, 0
    for blocks in batches:
        blocks = [block.double() for block in blocks[::-1]]  # the hypercolumn's order
        ups = [_up(block, blocks[-1]) for block in blocks]
        sums = torch.cat([(block.flatten(2) @ up.sum(dim=0)).sum(dim=0) for block, up in zip(blocks, ups, strict=True)])
        gram = _products(blocks, ups)
        total, products = (sums, gram) if total is None else (total + sums, products + gram)
        seen += len(blocks[0]) * len(ups[0])
    if seen < 2 or count > min(seen, len(total)):
        raise ValueError(f"reduction.dim must be <= the {seen} hypercolumns and their channels, got {count}")
    mean = total / seen
    _, vectors = torch.linalg.eigh(products / seen - mean[:, None] * mean)
    components = vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return components * largest.sign(), mean


def _up(block: Tensor, finest: Tensor) -> Tensor:
    """The matrix U of bilinear resizing to the finest block's resolution, locations row-major; its rows sum to 1."""
    down, across = (
        upsampling(native, cells, block) for native, cells in zip(block.shape[2:], finest.shape[2:], strict=True)
    )
    return torch.kron(down.contiguous(), across.contiguous())


def _products(blocks: list[Tensor], ups: list[Tensor]) -> Tensor:
    """Sum over images and locations of h h^T, h the hypercolumns, block by block at the coarser one's resolution."""
    rows = []
    flat = [block.flatten(2) for block in blocks]  # coarsest first
    for i, (mine, up) in enumerate(zip(flat, ups, strict=True)):
        row = [rows[j][i].T for j in range(i)]
        for other, other_up in zip(flat[i:], ups[i:], strict=True):
            seen = other @ (other_up.T @ up)  # the finer block as the coarser one's cells see it
            row.append(torch.einsum("bcn,bdn->cd", mine, seen))
        rows.append(row)
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def sampled_hypercolumns(blocks: list[Tensor], locations: int, generator: torch.Generator) -> Float[Tensor, "n c"]:
    """Hypercolumns at so many random locations of each image, at the finest block's resolution; no others are built."""
    blocks = blocks[::-1]
    ups = [_up(block, blocks[-1]) for block in blocks]
    chosen = torch.rand(len(blocks[0]), len(ups[0]), generator=generator).argsort(dim=1)[:, :locations]
    parts = [up[chosen.to(up.device)] @ block.flatten(2).mT for block, up in zip(blocks, ups, strict=True)]
    return torch.cat(parts, dim=2).flatten(0, 1)


def non_negative_factors(columns: list[Tensor], count: int, *, seed: int) -> Float[Tensor, "{count} c"]:
    """Factors that scikit-learn's MiniBatchNMF finds in hypercolumns (rows).

    Raises: ValueError if scikit-learn is missing, there is no row, or a feature is negative.
    """
    try:
        from sklearn.decomposition import MiniBatchNMF
    except ImportError as error:
        raise ValueError("reduction.method=nmf needs scikit-learn: uv pip install scikit-learn") from error
    if not columns:
        raise ValueError("reduction.dim must be <= the 0 hypercolumns and their channels: give some images")
    rows = torch.cat(columns).float().cpu()
    if rows.min() < 0:
        raise ValueError("reduction.method=nmf needs features >= 0, such as a ResNet's blocks: use pca")
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    found = MiniBatchNMF(n_components=count, max_iter=5 * ITERATIONS, random_state=seed).fit(shuffled.numpy())
    return torch.from_numpy(found.components_)
