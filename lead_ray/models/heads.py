"""Heads that training uses and evaluation discards."""

from jaxtyping import Float
from torch import Tensor, nn


def mlp(channels: int, hidden: int, out: int) -> nn.Sequential:
    """BYOL's projector and predictor: linear, BatchNorm, ReLU, linear (biases kept, as OpenSelfSup's)."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


class DenseProjector(nn.Module):
    """LEAD's stage-2 head g^D: two pointwise linear layers with BatchNorm and ReLU between (section 4)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.layers(features)
