"""Speed and memory of stage 2: the step as the paper reads, and the package's."""

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray import train
from lead_ray.machine import quick_products, quickest_convolutions, without_triton
from lead_ray.models import fused
from lead_ray.models.fpn import Fpn
from lead_ray.models.heads import DenseProjector
from lead_ray.models.hypercolumn import Blocks
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.blocked import blocked_alignment
from lead_ray.recording import recorded
from lead_ray.speed.measure import Candidate, Measured, compare, report
from lead_ray.speed.steps import Bench, countable
from lead_ray.train import Optim


def naive_alignment(blocks_a: Blocks, blocks_b: Blocks, a: Tensor, b: Tensor, settings: AlignSettings) -> Tensor:
    """LEAD's equations 2 and 3 on hypercolumns that are built, with whole matrices and autograd."""

    def hypercolumns(blocks: Blocks) -> Tensor:
        columns = []
        for block in blocks:
            column = F.interpolate(block.float(), size=a.shape[2:], mode="bilinear", align_corners=False).flatten(2)
            if settings.teacher == "centred":
                column = column - column.mean(dim=2, keepdim=True)
            columns.append(column if settings.teacher == "global" else F.normalize(column, dim=1))
        return F.normalize(torch.cat(columns, dim=1), dim=1)

    with torch.no_grad():
        teacher = torch.einsum("bcn,bcm->bnm", hypercolumns(blocks_a), hypercolumns(blocks_b))
        target = (teacher / settings.teacher_temperature).softmax(dim=-1)
    a, b = (F.normalize(student.float().flatten(2), dim=1) for student in (a, b))
    log_prob = (torch.einsum("bcn,bcm->bnm", a, b) / settings.temperature).log_softmax(dim=-1)
    return -(target * log_prob).sum(dim=-1).mean()


class NaiveAlign(nn.Module):
    """Stage 2 as LEAD's section 3.3 reads: a target network and a student network, each with its own frozen trunk."""

    def __init__(self, trunk: Trunk, settings: AlignSettings):
        super().__init__()
        self.settings = settings
        self.target = trunk.requires_grad_(False)
        self.trunk = copy.deepcopy(trunk)
        self.fpn = Fpn(trunk.channels, settings.fpn)
        self.head = DenseProjector(settings.fpn.dim, settings.projector) if settings.projector else nn.Identity()

    def train(self, mode: bool = True) -> "NaiveAlign":
        super().train(mode)
        self.target.eval()
        self.trunk.eval()
        return self

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        with without_triton():
            with torch.no_grad():
                teachers = [self.target(view) for view in (view_a, view_b)]
            students = [self.head(self.fpn(self.trunk(view))) for view in (view_a, view_b)]
        kind = view_a.device.type
        with quick_products(kind, torch.is_autocast_enabled(kind)), torch.autocast(kind, enabled=False):
            return {"loss": naive_alignment(*teachers, *students, self.settings)}


@dataclass(frozen=True, kw_only=True)
class Stage2(Bench):
    """A step from two views to updated weights, or with --loss-only the loss block, forward and backward."""

    batch: int = 32
    size: int = 96
    """Side of the views in pixels."""
    trunk: TrunkSettings = field(default_factory=TrunkSettings)
    objective: AlignSettings = field(default_factory=AlignSettings)
    loss_only: bool = False
    compile: bool = False
    """Measure the compiled network, too."""
    rounds: int = 5

    def run(self) -> list[Measured]:
        device = self.start()
        with quickest_convolutions():
            candidates = self.losses(device) if self.loss_only else self.steps(device)
            found = compare(candidates, images=self.batch, rounds=self.rounds, device=device)
        what = "loss" if self.loss_only else "step"
        title = (
            f"stage 2, {what}: ResNet-{self.trunk.depth} x {self.trunk.width:g}, {self.batch} pairs of {self.size} px"
        )
        report(title, found, self.out, self)
        return found

    def steps(self, device: torch.device) -> list[Candidate]:
        precisions = {torch.float32, train.resolve_precision("auto", device)}
        candidates = [
            self.step(kind, precision, device)
            for precision in sorted(precisions, key=lambda precision: -precision.itemsize)
            for kind in (NaiveAlign, Align)
        ]
        quickest = min(precisions, key=lambda kind: kind.itemsize)
        hows = ["graphs"] * (device.type == "cuda") + ["compiled"] * self.compile
        return candidates + [self.step(Align, quickest, device, how) for how in hows]

    def step(
        self,
        kind: type[nn.Module],
        precision: torch.dtype,
        device: torch.device,
        how: Literal["eager", "graphs", "compiled"] = "eager",
    ) -> Candidate:
        torch.manual_seed(0)
        learner = kind(Trunk(self.trunk), self.objective).to(device, memory_format=torch.channels_last).train()
        optimizer = train.make_optimizer(learner, Optim())
        coarse = torch.randn(self.batch, 3, self.size // 8, self.size // 8, generator=torch.Generator().manual_seed(0))
        view = F.interpolate(coarse, size=self.size, mode="bicubic").to(device, memory_format=torch.channels_last)
        views = view, view.roll(4, dims=3)
        if how == "graphs":
            recorded(learner, iter([views]), precision)
        network = train.compiled(learner, device) if how == "compiled" else learner

        def call() -> None:
            train.train_step(network, optimizer, views, precision)

        name = f"{'lead_ray' if kind is Align else 'naive'}, {'bf16' if precision == torch.bfloat16 else 'fp32'}"
        # Torch does not count the operations of what it has compiled, or fused, or left to Triton.
        by_kernels = device.type == "cuda" or fused.usable(device, precision)
        hidden = how == "compiled" or (kind is Align and by_kernels)
        return Candidate(
            name=name + {"eager": "", "graphs": ", CUDA graphs", "compiled": ", compiled"}[how],
            call=call,
            precision=None if hidden else precision,
            traced=how != "graphs",
            counted=countable(learner, call),
        )

    def losses(self, device: torch.device) -> list[Candidate]:
        cells = self.size // 4
        with torch.device("meta"):
            channels = Trunk(self.trunk).channels

        def random(count: int, side: int) -> Tensor:
            return torch.randn(self.batch, count, side, side, device=device).to(memory_format=torch.channels_last)

        blocks = [[random(count, cells >> level) for level, count in enumerate(channels)] for _ in range(2)]
        maps = [random(self.objective.projector or self.objective.fpn.dim, cells) for _ in range(2)]
        settings = self.objective

        def naive() -> None:
            naive_alignment(*blocks, *(each.detach().requires_grad_() for each in maps), settings).backward()

        def ours() -> None:
            loss, _ = blocked_alignment(
                *blocks,
                *(each.detach().requires_grad_() for each in maps),
                temperature=settings.temperature,
                teacher_temperature=settings.teacher_temperature,
                normalisation=settings.teacher,
            )
            loss.backward()

        return [Candidate(name="naive", call=naive), Candidate(name="lead_ray", call=ours)]
