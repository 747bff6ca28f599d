"""In-batch InfoNCE (SimCLR, Chen et al., 2020): a stage-1 objective that moves within minutes on a CPU.

Not LEAD's: BYOL needs no negatives and is the default. Its use here is small budgets, where BYOL has not begun to
tell parts of a face apart.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.heads import mlp
from lead_ray.models.trunk import Trunk, pooled_views


@dataclass(frozen=True, kw_only=True)
class ContrastSettings:
    """Head and temperature of in-batch InfoNCE."""

    hidden: int = 2048
    """Width of the projector's hidden layer."""
    dim: int = 128
    """Channels that the projector returns."""
    temperature: float = 0.1

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature must be > 0, got {self.temperature}")


def info_nce(a: Float[Tensor, "b d"], b: Float[Tensor, "b d"], *, temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy of finding each vector's partner among the other view's batch, both ways.

    Vectors are L2-normalised here. Range: nats, >= 0; log(b) when nothing is told apart.
    """
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    partner = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2


class Contrast(nn.Module):
    """Trunk and projector; the negatives are the worker's own batch."""

    def __init__(self, trunk: Trunk, settings: ContrastSettings):
        super().__init__()
        self.settings = settings
        self.trunk = trunk
        self.projector = mlp(trunk.channels[-1], settings.hidden, settings.dim)

    def forward(self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The loss on one batch."""
        a, b = (self.projector(view).float() for view in pooled_views(self.trunk, view_a, view_b))
        with torch.autocast(view_a.device.type, enabled=False):
            return {"loss": info_nce(a, b, temperature=self.settings.temperature)}

    def after_step(self, progress: float) -> None:
        """Nothing moves but what the optimiser moves."""

    def encoder(self) -> nn.Module:
        """What the stage hands on: the trunk."""
        return self.trunk
