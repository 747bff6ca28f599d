"""ResNet trunks that return their four block outputs, at any width.

Parameter names are torchvision's, so its checkpoints (and those of the self-supervised zoos that follow it)
load by name; at width 1 the output equals torchvision's network without its classifier.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

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
        self.relu = nn.ReLU(inplace=True)
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

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Block outputs, finest first.

        Shapes: four maps [b, channels[l], h / 4 / 2^l, w / 4 / 2^l], after their last ReLU.
        """
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        blocks = []
        for level in range(1, 5):
            features = getattr(self, f"layer{level}")(features)
            blocks.append(features)
        return blocks


def _layer(block: type, channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels != width * block.expansion:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width * block.expansion, 1, stride=stride, bias=False),
            nn.BatchNorm2d(width * block.expansion),
        )
    first = block(channels, width, stride, shortcut)
    return nn.Sequential(first, *(block(width * block.expansion, width) for _ in range(count - 1)))


def pooled(blocks: list[Tensor]) -> Float[Tensor, "b c"]:
    """Global average of the coarsest block: the instance-level representation."""
    return blocks[-1].mean(dim=(2, 3), dtype=torch.float32)
