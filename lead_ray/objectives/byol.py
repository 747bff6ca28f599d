"""BYOL (Grill et al., 2020; LEAD section 3.2): predict the target network's view of an image from another view."""

import copy
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.heads import mlp
from lead_ray.models.trunk import Trunk, pooled_views


@dataclass(frozen=True, kw_only=True)
class ByolSettings:
    """Heads and moving average of BYOL; defaults are OpenSelfSup's r50_bs256_ep200, LEAD's base."""

    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    dim: int = 256
    """Channels that projector and predictor return."""
    momentum: float = 0.996
    """Share of the target network kept at the first step; rises to 1 by a half cosine."""

    def __post_init__(self):
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"objective.momentum must lie in [0, 1], got {self.momentum}")


def byol_loss(
    prediction_a: Float[Tensor, "b d"],
    prediction_b: Float[Tensor, "b d"],
    target_a: Float[Tensor, "b d"],
    target_b: Float[Tensor, "b d"],
) -> Float[Tensor, ""]:
    """Symmetric BYOL loss: -2 cos(prediction_a, target_b) - 2 cos(prediction_b, target_a), batch mean.

    Range: -4 (aligned) to 4. No gradient reaches the targets.
    Source: LEAD eq. 1 up to normalisation and a constant, in OpenSelfSup's symmetric form.
    """
    a_to_b = F.cosine_similarity(prediction_a, target_b.detach(), dim=1, eps=1e-12)
    b_to_a = F.cosine_similarity(prediction_b, target_a.detach(), dim=1, eps=1e-12)
    return -2 * (a_to_b.mean() + b_to_a.mean())


def target_momentum(progress: float, base: float) -> float:
    """Share of the target kept: base at progress 0, 1 at progress 1, half a cosine between.

    Source: OpenSelfSup's BYOLHook; progress = step / steps, so the last step stays below 1.
    """
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


class Byol(nn.Module):
    """Online trunk, projector and predictor, with the moving-average target beside them."""

    def __init__(self, trunk: Trunk, settings: ByolSettings):
        super().__init__()
        self.settings = settings
        self.trunk = trunk
        self.projector = mlp(trunk.channels[-1], settings.hidden, settings.dim)
        self.predictor = mlp(settings.dim, settings.hidden, settings.dim)
        self.target = nn.ModuleList([copy.deepcopy(trunk), copy.deepcopy(self.projector)]).requires_grad_(False)

    def forward(self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The loss on one batch, and how spread the targets are (0 = collapsed to one vector, 1 = isotropic)."""
        # As OpenSelfSup's, BatchNorm must not see both views of an image at once.
        prediction_a, prediction_b = (
            self.predictor(self.projector(view)).float() for view in pooled_views(self.trunk, view_a, view_b)
        )
        with torch.no_grad():
            trunk, projector = self.target
            target_a, target_b = (projector(view).float() for view in pooled_views(trunk, view_a, view_b))
            spread = F.normalize(target_a, dim=1).std(dim=0).mean() * math.sqrt(self.settings.dim)
        return {"loss": byol_loss(prediction_a, prediction_b, target_a, target_b), "target_spread": spread}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target's parameters towards the online network's; buffers are the target's own."""
        keep = target_momentum(progress, self.settings.momentum)
        online = [*self.trunk.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(list(self.target.parameters()), online, 1 - keep)

    def encoder(self) -> nn.Module:
        """What the stage hands on: the online trunk."""
        return self.trunk
