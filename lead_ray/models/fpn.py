"""The stage-2 network: a frozen trunk under a Panoptic-FPN semantic branch, image -> one dense compact map."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class FpnSettings:
    """The decoder; widths are Panoptic-FPN's."""

    dim: int = 64
    """Channels of the compact map (LEAD: 64, 128 or 256)."""
    lateral: int = 256
    """Channels of the top-down pathway."""
    branch: int = 128
    """Channels of the upsampling blocks."""

    def __post_init__(self):
        if self.dim < 1:
            raise ValueError(f"fpn.dim must be >= 1, got {self.dim}")
        if self.branch % 32:
            raise ValueError(f"fpn.branch must be a multiple of GroupNorm's 32 groups, got {self.branch}")


class Fpn(nn.Module):
    """Laterals, top-down sum, upsampling blocks to a quarter of the image, their sum, a pointwise output."""

    def __init__(self, channels: tuple[int, ...], settings: FpnSettings):
        super().__init__()
        self.settings = settings
        self.laterals = nn.ModuleList(nn.Conv2d(c, settings.lateral, 1) for c in channels)
        self.branches = nn.ModuleList(
            nn.ModuleList(_block(settings.lateral if i == 0 else settings.branch, settings.branch) for i in range(n))
            for n in (max(1, level) for level in range(len(channels)))
        )
        self.output = nn.Conv2d(settings.branch, settings.dim, 1)

    def forward(self, blocks: list[Tensor]) -> Float[Tensor, "b dim h w"]:
        """Shapes: blocks at strides 4, 8, 16, 32 -> the map at stride 4."""
        merged: list[Tensor] = []
        for block, lateral in zip(blocks[::-1], list(self.laterals)[::-1], strict=True):
            level = lateral(block)
            if merged:
                level += F.interpolate(merged[-1], size=level.shape[2:], mode="nearest")
            merged.append(level)
        # Resizing is linear: levels that have come to one size are added before their last step, which lands on the
        # finest map's size, also where image sides are odd multiples.
        sums: dict[tuple[int, ...], Tensor] = {}
        for level, branch in zip(merged[::-1], self.branches, strict=True):
            for stage, block in enumerate(branch):
                if stage > 0:
                    level = _resized(level, tuple(2 * side for side in level.shape[2:]))
                level = block(level)
            size = tuple(level.shape[2:])
            sums[size] = sums[size] + level if size in sums else level
        first, *others = (_resized(level, blocks[0].shape[2:]) for level in sums.values())
        return self.output(sum(others, start=first))


def _resized(level: Tensor, size: tuple[int, ...]) -> Tensor:
    return level if level.shape[2:] == size else F.interpolate(level, size=size, mode="bilinear", align_corners=False)


class GroupNorm(nn.GroupNorm):
    """In its weights' precision, as autocast has it on GPUs; a CPU's kernel for half takes three times as long.

    The layout of the input stays: on GPUs torch's forgets that channels are last, and what resizes such maps then takes
    a hundred times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input.to(self.weight.dtype)).to(input.dtype)
        last = input.is_contiguous(memory_format=torch.channels_last)
        return found.contiguous(memory_format=torch.channels_last) if last else found


def _block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), GroupNorm(32, out), nn.ReLU(inplace=True))


class DenseEncoder(nn.Module):
    """Trunk and decoder as one network: image -> [compact map]."""

    def __init__(self, trunk: Trunk, fpn: Fpn):
        super().__init__()
        self.trunk = trunk
        self.fpn = fpn
        self.channels = (fpn.settings.dim,)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One block: [b, dim, h / 4, w / 4]."""
        return [self.fpn(self.trunk(images))]
