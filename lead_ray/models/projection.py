"""Contrastive Landmarks' stage-2 network: hypercolumns, one pointwise convolution, a softmax over the image.

The convolution commutes with bilinear upsampling, whose weights sum to 1: each block is convolved where it lives and
`dim` maps are upsampled. The 3840 channels of a ResNet-50's hypercolumn are never built.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class ProjectionSettings:
    """CL's feature projector."""

    dim: int = 64
    """Channels of the compact map (CL: 64, 128 or 256)."""
    sharpness: float | None = None
    """Factor on the responses before the softmax; if not given CL's, 6.5 for 64 channels and 7 for more."""
    finer: int = 1
    """How many times finer than the finest block the finished network's map is. CL matches with 4, at the image's own
    resolution: a softmax over more places is not the upsampled softmax over fewer."""

    def __post_init__(self):
        for name in ("dim", "finer"):
            if getattr(self, name) < 1:
                raise ValueError(f"projection.{name} must be >= 1, got {getattr(self, name)}")
        if self.sharpness is not None and self.sharpness <= 0:
            raise ValueError(f"projection.sharpness must be > 0, got {self.sharpness}")

    @property
    def factor(self) -> float:
        """The sharpness, or CL's."""
        return self.sharpness or (6.5 if self.dim <= 64 else 7.0)


def by_block(weight: Float[Tensor, "dim c"], channels: tuple[int, ...]) -> list[Tensor]:
    """Weights of the hypercolumn's channels, whose coarsest block comes first, as those of each block, finest first."""
    return list(weight.split(channels[::-1], dim=1))[::-1]


def pointwise(
    blocks: Sequence[Float[Tensor, "_ _ _ _"]], weights: Sequence[Float[Tensor, "dim _"]], size: Sequence[int]
) -> Float[Tensor, "b dim h w"]:
    """A pointwise convolution of the hypercolumn at size (h, w), without the hypercolumn; weights [dim, c] by block.

    Bilinear, align_corners=False.
    """
    total = None
    for block, weight in zip(blocks, weights, strict=True):
        part = F.conv2d(block, weight[:, :, None, None])
        if tuple(part.shape[2:]) != tuple(size):
            part = F.interpolate(part, size=tuple(size), mode="bilinear", align_corners=False)
        total = part if total is None else total + part
    return total


class Projection(nn.Module):
    """Blocks -> responses at the finest block's resolution, whose softmax over the image makes each channel a place.

    The softmax does not see the convolution's bias: it stays as it began, but for weight decay. It is CL's.
    Source: CL, models/feat_distiller.py.
    """

    def __init__(self, channels: tuple[int, ...], settings: ProjectionSettings):
        super().__init__()
        self.settings = settings
        self.channels = channels
        self.convolution = nn.Conv2d(sum(channels), settings.dim, 1)

    def forward(self, blocks: list[Tensor], size: Sequence[int] | None = None) -> Float[Tensor, "b dim h w"]:
        """The compact map; every channel sums to 1 over the image. `size` (h, w) is the finest block's if not given."""
        weights = by_block(self.convolution.weight.flatten(1), self.channels)
        responses = pointwise(blocks, weights, size or blocks[0].shape[2:]) + self.convolution.bias[:, None, None]
        return (self.settings.factor * responses).flatten(2).softmax(dim=2).unflatten(2, responses.shape[2:])


class CompactEncoder(nn.Module):
    """A trunk under a decoder of its blocks, as one network: image -> [compact map], `finer` times the finest block."""

    def __init__(self, trunk: Trunk, decoder: nn.Module, *, finer: int = 1):
        super().__init__()
        self.trunk = trunk
        self.decoder = decoder
        self.finer = finer
        self.channels = (decoder.settings.dim,)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One block: [b, dim, h / 4 * finer, w / 4 * finer]."""
        blocks = self.trunk(images)
        return [self.decoder(blocks, [self.finer * side for side in blocks[0].shape[2:]])]
