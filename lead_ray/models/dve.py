"""The networks that DVE (Thewlis et al., ICCV 2019) trains from scratch: an hourglass, and the smaller SmallNet.

Parameter names are DVE's, so its checkpoints load by name. Both give one map at half the image's resolution.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class DveNetworkSettings:
    """Which of DVE's networks."""

    network: Literal["hourglass", "smallnet"] = "hourglass"
    """The paper's numbers at 64 channels are the hourglass's, on 96 px; SmallNet's are on 70 px."""
    dim: int = 64
    """Channels of the descriptors."""

    def __post_init__(self):
        if self.dim < 1:
            raise ValueError(f"network.dim must be >= 1, got {self.dim}")


class Bottleneck(nn.Module):
    """Residual bottleneck with normalisation before each convolution; gives 2 * width channels."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1)
        self.downsample = nn.Conv2d(channels, 2 * width, 1) if channels != 2 * width else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        inside = self.conv1(F.relu(self.bn1(features)))
        inside = self.conv2(F.relu(self.bn2(inside)))
        return self.conv3(F.relu(self.bn3(inside))) + self.downsample(features)


def _blocks(channels: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(Bottleneck(channels, width), *(Bottleneck(2 * width, width) for _ in range(count - 1)))


class HourglassBlock(nn.Module):
    """Four times down and up again; the way down feeds both the level below and, at the same size, the way up."""

    DEPTH = 4
    BLOCKS = 4

    def __init__(self, width: int):
        super().__init__()
        for depth in range(self.DEPTH, 0, -1):
            for part in (1, 2, 3, *((4,) if depth == 1 else ())):
                self.add_module(f"layer{depth}_{part}", _blocks(2 * width, width, self.BLOCKS))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self._level(features, self.DEPTH)

    def _level(self, features: Tensor, depth: int) -> Tensor:
        kept = getattr(self, f"layer{depth}_1")(features)
        below = getattr(self, f"layer{depth}_2")(F.max_pool2d(kept, 2))
        below = self.layer1_4(below) if depth == 1 else self._level(below, depth - 1)
        below = getattr(self, f"layer{depth}_3")(below)
        return kept + F.interpolate(below, size=kept.shape[2:], mode="nearest")


class Hourglass(nn.Module):
    """One hourglass on a stem of stride 2. Source: DVE, model/hourglass.py, its defaults with one stack."""

    def __init__(self, settings: DveNetworkSettings):
        super().__init__()
        self.settings = settings
        self.channels = (settings.dim,)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _blocks(64, 64, 1)
        self.layer2 = _blocks(128, 128, 1)
        self.layer3 = _blocks(256, 128, 1)
        self.hg = nn.ModuleList([HourglassBlock(128)])
        output = [_blocks(256, 128, HourglassBlock.BLOCKS), nn.Conv2d(256, 256, 1), nn.BatchNorm2d(256), nn.ReLU()]
        self.output_layers = nn.ModuleList([nn.Sequential(*output, nn.Conv2d(256, settings.dim, 1))])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One block: [b, dim, h / 2, w / 2]; the image's sides are at least 32."""
        stem = F.relu(self.bn1(self.conv1(images)))
        (hourglass,), (output,) = self.hg, self.output_layers
        return [output(hourglass(self.layer3(self.layer2(self.layer1(stem)))))]


class SmallNet(nn.Module):
    """Five convolutions, of which three are dilated, and a pointwise one. Source: DVE, model/smallnet.py."""

    def __init__(self, settings: DveNetworkSettings):
        super().__init__()
        self.settings = settings
        self.channels = (settings.dim,)
        layers = [(3, 20, 5, 1), (20, 48, 5, 1), (48, 64, 5, 2), (64, 80, 3, 4), (80, 256, 3, 2)]
        for number, (channels, out, side, dilation) in enumerate(layers, start=1):
            convolution = nn.Conv2d(channels, out, side, padding=dilation * (side // 2), dilation=dilation)
            self.add_module(f"conv{number}", nn.Sequential(convolution, nn.BatchNorm2d(out), nn.LeakyReLU(0.2)))
        self.conv6 = nn.Conv2d(256, settings.dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One block: [b, dim, h / 2, w / 2]."""
        features = F.max_pool2d(self.conv1(images), 2)
        for number in range(2, 7):
            features = getattr(self, f"conv{number}")(features)
        return [features]


def dve_network(settings: DveNetworkSettings) -> Hourglass | SmallNet:
    """The network that the settings name, with fresh weights."""
    return (Hourglass if settings.network == "hourglass" else SmallNet)(settings)
