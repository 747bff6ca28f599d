"""A frozen network's BatchNorms folded into its convolutions: the same up to rounding, with one pass less a layer.

Not on a GPU with Triton: there one kernel applies BatchNorm, shortcut and ReLU, and torch's convolutions add a bias in
a pass of its own.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lead_ray import triton_code
from lead_ray.models import fused
from lead_ray.models.trunk import Block, Trunk


@torch.no_grad()
def folded(trunk: Trunk) -> Trunk:
    """A copy of the trunk, in evaluation mode and without gradients, whose convolutions scale and shift themselves.

    Exact in real numbers: at evaluation a BatchNorm is an affine map of each channel, and a convolution's weights take
    it up. Train and save the original; the copy does not follow it, and knows no other mode.
    Memory layout, device and precision are the original's.
    """
    copied = copy.deepcopy(trunk).eval().requires_grad_(False)
    _fold(copied, "conv1", "bn1")
    for module in copied.modules():
        if isinstance(module, Block):
            for number in range(1, 1 + module.count):
                _fold(module, f"conv{number}", f"bn{number}")
            if module.downsample is not None:
                _fold(module.downsample, "0", "1")
    return copied


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(module.get_submodule(convolution), module.get_submodule(norm))
    module.set_submodule(convolution, fused.requires_grad_(False))
    module.set_submodule(norm, nn.Identity())


@torch.no_grad()
def narrowed(trunk: Trunk, precision: torch.dtype | None) -> Trunk:
    """A copy of the trunk, in evaluation mode and without gradients, whose convolutions alone have the precision."""
    copied = copy.deepcopy(trunk).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.to(precision)
    return copied


class Frozen:
    """A frozen trunk's outputs, computed by a copy that is quicker, in the precision of autocast.

    Not a module: the copy is in no state dict, and is made anew when the trunk was loaded, moved or changed.
    """

    def __init__(self, trunk: Trunk):
        self.trunk = trunk
        self.copies: dict[torch.dtype | None, tuple[tuple, Trunk]] = {}

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """As the trunk's forward in evaluation mode, without gradients."""
        kind = images.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        copied = self._copy(precision)
        if copied is not self.trunk and fused.usable(images.device, precision):
            return fused.blocks(copied, images)
        with torch.no_grad():
            return copied(images)

    def _copy(self, precision: torch.dtype | None) -> Trunk:
        if torch.compiler.is_compiling():  # the compiler joins a BatchNorm with the ReLU after it
            return self.trunk
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in self.trunk.state_dict().values())
        kept = self.copies.get(precision)
        if kept is None or kept[0] != state:
            by_kernels = triton_code.serves(self.trunk.conv1.weight.device)
            quick = narrowed(self.trunk, precision) if by_kernels else folded(self.trunk).to(precision)
            kept = self.copies[precision] = state, quick
        return kept[1]
