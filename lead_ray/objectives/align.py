"""LEAD's stage 2 (section 3.3): a compact map learns to match between two images as the hypercolumns do."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.fold import Frozen
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.heads import DenseProjector
from lead_ray.models.hypercolumn import Normalisation
from lead_ray.models.teacher import TeacherSettings, load
from lead_ray.models.trunk import Trunk
from lead_ray.objectives.blocked import blocked_alignment


@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """Temperatures, teacher and head of the alignment objective."""

    temperature: float = 0.05
    """Of the student's distribution q (LEAD section 4)."""
    teacher_temperature: float = 0.05
    """Of the teacher's distribution p; the paper names one temperature only."""
    teacher: Normalisation = "per-layer"
    """How hypercolumns are normalised: each block by itself, the concatenated vector, or each block about its mean
    over the image."""
    foreign: TeacherSettings | None = None
    """Any frozen network whose maps are compared in place of the trunk's; the student's trunk stays stage 1's."""
    projector: int = 256
    """Channels of the discarded head g^D; 0 leaves it out (Table 3)."""
    fpn: FpnSettings = field(default_factory=FpnSettings)

    def __post_init__(self):
        for name in ("temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective.{name} must be > 0, got {getattr(self, name)}")


def similarity_alignment(
    teacher: Float[Tensor, "b n m"],
    student_a: Float[Tensor, "b c n"],
    student_b: Float[Tensor, "b c m"],
    *,
    temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy between the teacher's and the student's matching distributions: the plain form of eq. 3.

    p(j | i) = softmax_j(cosine(a_i, b_j) / temperature): where in image b location i of image a lies. Training takes
    blocked_alignment(), which is held to this one.

    Shapes: teacher holds cosine similarities; student features are L2-normalised here; n, m locations, row-major.
    Range: nats, mean over images and locations i; from the teacher's entropy upwards. No gradient reaches it.
    Source: LEAD eq. 2 and 3, as a mean over u where eq. 3 sums.
    """
    target = (teacher.detach() / teacher_temperature).softmax(dim=-1)
    a, b = F.normalize(student_a, dim=1, eps=1e-12), F.normalize(student_b, dim=1, eps=1e-12)
    logits = (a / temperature).mT @ b
    # -sum_j p_j log q_j, with log q_j = logits_j - logsumexp(logits) and sum_j p_j = 1
    return (logits.logsumexp(dim=-1) - (target * logits).sum(dim=-1)).mean()


def teacher_entropy(teacher: Float[Tensor, "b n m"], temperature: float) -> Float[Tensor, ""]:
    """Mean entropy of the teacher's distributions in nats: the loss's lower bound."""
    logits = teacher / temperature
    return (logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)).mean()


class Align(nn.Module):
    """A frozen trunk, the student's encoder and the teacher unless another one is; the trained decoder and head."""

    def __init__(self, trunk: Trunk, settings: AlignSettings):
        super().__init__()
        self.settings = settings
        self.trunk = trunk.requires_grad_(False)
        self.frozen = Frozen(self.trunk)
        self.fpn = Fpn(trunk.channels, settings.fpn)
        self.head = DenseProjector(settings.fpn.dim, settings.projector) if settings.projector else nn.Identity()
        self.foreign = None if settings.foreign is None else load(settings.foreign)

    def train(self, mode: bool = True) -> "Align":
        """Trunk and teacher stay in evaluation mode: frozen weights, frozen BatchNorm statistics."""
        super().train(mode)
        for frozen in (self.trunk, self.foreign):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The loss on a batch of pairs, and its lower bound."""
        views = torch.cat([view_a, view_b])
        blocks = self.frozen(views)
        with torch.no_grad():
            taught = blocks if self.foreign is None else self.foreign(views)
        blocks_a, blocks_b = zip(*(block.chunk(2) for block in taught), strict=True)
        # One view at a time: the head's BatchNorm takes the statistics of what it sees together.
        student_a, student_b = (self.head(compact) for compact in self.fpn(blocks).chunk(2))
        loss, entropy = blocked_alignment(
            blocks_a,
            blocks_b,
            student_a,
            student_b,
            temperature=self.settings.temperature,
            teacher_temperature=self.settings.teacher_temperature,
            normalisation=self.settings.teacher,
        )
        return {"loss": loss, "teacher_entropy": entropy}

    def after_step(self, progress: float) -> None:
        """Nothing moves but what the optimiser moves."""

    def encoder(self) -> nn.Module:
        """What the stage hands on: trunk and decoder, without the head."""
        return DenseEncoder(self.trunk, self.fpn)
