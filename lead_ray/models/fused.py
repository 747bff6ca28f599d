"""A folded trunk in bf16 on a CPU: ReLUs and sums of residuals happen while a convolution's results are in the cache.

By oneDNN's fused convolutions, which torch's own compiler calls, too. In bf16, where ReLUs and sums of residuals cost
as much as convolutions, a ResNet-50 takes two thirds of the time; in fp32 nothing is gained, so it is left alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lead_ray.machine import native_bf16
from lead_ray.models.trunk import LAYERS, Block, Trunk

OPERATOR = "_convolution_pointwise"  # torch's own name, not a public one: where it is missing, nothing is fused


def usable(device: torch.device, precision: torch.dtype | None) -> bool:
    """Whether this machine and this torch can, and it pays."""
    fitting = device.type == "cpu" and precision == torch.bfloat16
    return fitting and native_bf16("cpu") and hasattr(torch.ops.mkldnn, OPERATOR)


@torch.no_grad()
def blocks(trunk: Trunk, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
    """What the forward of a folded trunk gives, up to rounding: sums are rounded once, not twice.

    Shapes: as Trunk.forward. Precision is the trunk's; channels-last.
    """
    images = images.to(trunk.conv1.weight.dtype, memory_format=torch.channels_last)
    features, found = trunk.maxpool(_convolved(trunk.conv1, images, "relu")), []
    for level in range(1, 1 + len(LAYERS[trunk.settings.depth])):
        for block in getattr(trunk, f"layer{level}"):
            features = _residual(block, features)
        found.append(features)
    return found


def _residual(block: Block, features: Tensor) -> Tensor:
    shortcut = features if block.downsample is None else _convolved(block.downsample[0], features, "none")
    *first, last = (getattr(block, f"conv{number}") for number in range(1, 1 + block.count))
    for convolution in first:
        features = _convolved(convolution, features, "relu")
    operator = getattr(torch.ops.mkldnn, OPERATOR).binary
    return operator(features, shortcut, *_arguments(last), "add", 1.0, "relu", [], "")


def _convolved(convolution: nn.Conv2d, features: Tensor, activation: str) -> Tensor:
    return getattr(torch.ops.mkldnn, OPERATOR)(features, *_arguments(convolution), activation, [], "")


def _arguments(convolution: nn.Conv2d) -> tuple:
    how = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    return convolution.weight, convolution.bias, *how
