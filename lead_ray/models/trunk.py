"""ResNet trunks that return their four block outputs, at any width.

Parameter names are torchvision's, so its checkpoints (and those of the self-supervised zoos that follow it)
load by name; at width 1 the output equals torchvision's network without its classifier.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True, kw_only=True)
class TrunkSettings:
    """Which ResNet. The paper's is ResNet-50 at full width (section 4)."""

    depth: Literal[18, 34, 50] = 50
    """Number of layers: 18 and 34 have basic blocks, 50 has bottlenecks."""
    width: float = 1.0
    """Multiplier of every channel count; 0.25 makes a ResNet-18 of 0.7 million parameters."""

    def __post_init__(self):
        if self.depth not in LAYERS:
            raise ValueError(f"trunk.depth must be one of {sorted(LAYERS)}, got {self.depth}")
        if self.width <= 0 or (64 * self.width) % 8:
            raise ValueError(f"trunk.width must make 64 * width a multiple of 8, got {self.width}")


class Trunk(nn.Module):
    """A ResNet without its classifier: image -> four maps at strides 4, 8, 16 and 32."""

    def __init__(self, settings: TrunkSettings):
        super().__init__()
        self.settings = settings
        block = Bottleneck if settings.depth == 50 else BasicBlock
        planes = [int(64 * settings.width) * 2**level for level in range(4)]
        self.conv1 = nn.Conv2d(3, planes[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = planes[0]
        for level, (width, count) in enumerate(zip(planes, LAYERS[settings.depth], strict=True), start=1):
            layer = _layer(block, channels, width, count, stride=1 if level == 1 else 2)
            self.add_module(f"layer{level}", layer)
            channels = width * block.expansion
        self.channels = tuple(width * block.expansion for width in planes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "b 3 h w"], batches: int = 1) -> list[Tensor]:
        """Block outputs, finest first.

        Args:
            batches: equal parts of the images, one after another, each of which BatchNorm sees by itself in training:
                what as many calls would give, in fewer and larger operations.
        Shapes: four maps [b, channels[l], h / 4 / 2^l, w / 4 / 2^l], after their last ReLU.
        """
        features = _max_pooled(self.maxpool, normed(self.bn1, self.conv1(images), batches=batches))
        blocks = []
        for level in range(1, 5):
            features = getattr(self, f"layer{level}")(features, batches)
            blocks.append(features)
        return blocks


class Block(nn.Module):
    """Convolutions beside a shortcut: x -> relu(f(x) + shortcut(x)).

    Its own rather than torchvision's, whose import takes every command as long as torch's own.
    """

    expansion: ClassVar[int]
    """Channels that come out over those within."""

    def __init__(self, sizes: Sequence[tuple[int, int, int, int]], shortcut: nn.Module | None):
        """Sizes: channels in, channels out, kernel, stride of every convolution."""
        super().__init__()
        for number, (channels, width, kernel, stride) in enumerate(sizes, start=1):
            convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
        self.count = len(sizes)
        self.downsample = shortcut

    def forward(self, features: Tensor, batches: int = 1) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features, batches)
        for number in range(1, 1 + self.count):
            norm, last = getattr(self, f"bn{number}"), number == self.count
            convolved = getattr(self, f"conv{number}")(features)
            features = normed(norm, convolved, shortcut if last else None, batches=batches)
        return features


class Shortcut(nn.Sequential):
    """A 1x1 convolution and its norm, where a block changes the size of its maps."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, features: Tensor, batches: int = 1) -> Tensor:
        convolution, norm = self
        return normed(norm, convolution(features), relu=False, batches=batches)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module | None):
        super().__init__([(channels, width, 3, stride), (width, width, 3, 1)], shortcut)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1; the stride is the second's (ResNet v1.5, as torchvision has it)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module | None):
        super().__init__([(channels, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)], shortcut)


class Layer(nn.Sequential):
    """Blocks of one size of maps."""

    def forward(self, features: Tensor, batches: int = 1) -> Tensor:
        for block in self:
            features = block(features, batches)
        return features


def normed(
    norm: nn.Module, features: Tensor, shortcut: Tensor | None = None, *, relu: bool = True, batches: int = 1
) -> Tensor:
    """relu(norm(features) + shortcut). Where the norm was folded away, the result takes the place of the features.

    Args:
        batches: equal parts of the features, one after another, each of which is normalised by itself in training.
    Raises: ValueError when in training the parts are not equal.
    """
    if norm.training and len(features) % batches:
        raise ValueError(f"batches must divide the {len(features)} images, got {batches}")
    kind = "" if torch.compiler.is_compiling() else features.device.type
    if kind == "cuda":
        from lead_ray.models import norm_triton

        if norm_triton.usable(norm, features, shortcut, batches):
            return norm_triton.fused(norm, features, shortcut, relu, batches)
        if norm_triton.frozen_usable(norm, features, shortcut):
            return norm_triton.frozen(norm, features, shortcut, relu)
    if norm.training and batches > 1:
        shortcuts = [None] * batches if shortcut is None else shortcut.chunk(batches)
        parts = zip(features.chunk(batches), shortcuts, strict=True)
        return torch.cat([normed(norm, part, beside, relu=relu) for part, beside in parts])
    if kind == "cpu" and norm.training:
        from lead_ray.models import norm_cpu

        if norm_cpu.usable(norm, features, shortcut):
            return norm_cpu.fused(norm, features, shortcut, relu)
    features = norm(features)
    if shortcut is not None:
        features += shortcut
    return F.relu(features, inplace=True) if relu else features


def _layer(block: type[Block], channels: int, width: int, count: int, stride: int) -> Layer:
    shortcut = None
    if stride != 1 or channels != width * block.expansion:
        shortcut = Shortcut(channels, width * block.expansion, stride)
    first = block(channels, width, stride, shortcut)
    return Layer(first, *(block(width * block.expansion, width, 1, None) for _ in range(count - 1)))


def _max_pooled(pool: nn.Module, features: Tensor) -> Tensor:
    if features.device.type == "cuda" and not torch.compiler.is_compiling():
        from lead_ray.models import pool_triton

        if pool_triton.usable(pool, features):
            return pool_triton.pooled(features)
    return pool(features)


def pooled(blocks: list[Tensor]) -> Float[Tensor, "b c"]:
    """Global average of the coarsest block: the instance-level representation."""
    return blocks[-1].mean(dim=(2, 3), dtype=torch.float32)


def pooled_views(trunk: Trunk, *views: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c"]]:
    """pooled() of each view, between whose images BatchNorm makes no connection.

    In one pass where a kernel normalises batches apart, on GPUs, which want few large operations; else one after
    another.
    """
    if views[0].device.type == "cuda" and not torch.compiler.is_compiling():
        from lead_ray.triton_code import serves

        norm = trunk.bn1
        if serves(views[0].device) and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
            return list(pooled(trunk(torch.cat(views), batches=len(views))).chunk(len(views)))
    return [pooled(trunk(view)) for view in views]
