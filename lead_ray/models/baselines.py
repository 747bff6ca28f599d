"""Features that learned nothing: what a trained encoder has to beat."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models import weights


class ColourPatches(nn.Module):
    """The pixels around a place as its descriptor: patches of the normalised image, one every 4 pixels."""

    def __init__(self, side: int = 12):
        super().__init__()
        if side % 4:
            raise ValueError(f"side must be a multiple of the stride 4, got {side}")
        self.side = side
        self.channels = (3 * side * side,)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """One block: [b, 3 side^2, h / 4, w / 4]."""
        border = (self.side - 4) // 2
        padded = F.pad(images, (border,) * 4, mode="replicate")
        patches = F.unfold(padded, self.side, stride=4)
        return [patches.unflatten(2, (images.shape[2] // 4, images.shape[3] // 4))]


def untrained(card: weights.Card, seed: int = 0) -> nn.Module:
    """A network of the same architecture with random weights.

    Its BatchNorm has the statistics of a fresh network (mean 0, variance 1), as any network before its first step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return weights.build(card).eval()
