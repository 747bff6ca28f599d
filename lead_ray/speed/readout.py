"""Speed of training the landmark read-out, from compact maps and from hypercolumns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.features import extract
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.readouts.regression import fit
from lead_ray.readouts.settings import RegressionSettings, paper
from lead_ray.speed.measure import Candidate, Measured, compare, report
from lead_ray.speed.steps import Bench, pictures

Kind = tuple[tuple[int, int], ...]
FEATURES: dict[str, Kind] = {
    "64-d": ((64, 24),),
    "128-d": ((128, 24),),
    "256-d": ((256, 24),),
    "3840-d": ((256, 24), (512, 12), (1024, 6), (2048, 3)),
}
"""Channels and side of the blocks: LEAD's compact maps, and a ResNet-50's on 96 px."""


@dataclass(frozen=True, kw_only=True)
class Readout(Bench):
    """CL's regressor: 1x1 convolution, soft-argmax, linear layer. Steps of Adam on cached features."""

    batch: int = 32
    steps: int = 8
    """Of one call."""
    grid: int = 48
    """Cells per side of the response maps."""
    marks: int = 5
    points: int = 50
    """Virtual points per landmark."""
    rounds: int = 5

    def run(self) -> list[Measured]:
        device = self.start()
        candidates = []
        for name, kind in FEATURES.items():
            blocks, marks = self.frozen(kind, device)
            traced = device.type != "cpu"
            candidates += [
                Candidate(name=f"{name}, hypercolumn built, as CL", call=self.built(blocks, marks)),
                Candidate(name=f"{name}, lead_ray", call=self.ours(blocks, marks, "fp32"), traced=traced),
                Candidate(name=f"{name}, lead_ray, bf16", call=self.ours(blocks, marks, "bf16"), traced=traced),
            ]
        found = compare(candidates, images=self.steps * self.batch, rounds=self.rounds, device=device)
        title = f"read-out, {self.marks} landmarks, {self.points} points each, grid {self.grid}, batch {self.batch}"
        report(title, found, self.out, self)
        return found

    def frozen(self, kind: Kind, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Features as they are cached, and landmarks."""
        images, source = 4 * self.batch, torch.Generator().manual_seed(0)
        maps = [torch.rand(images, channels, side, side, generator=source) for channels, side in kind]
        marks = torch.rand(images, self.marks, 2, generator=source) - 0.5
        return [each.half().to(device, memory_format=torch.channels_last) for each in maps], marks.to(device)

    def settings(self, precision: Literal["fp32", "bf16"]) -> RegressionSettings:
        size = {"points": self.points, "batch_size": self.batch, "precision": precision}
        return replace(paper(1, epoch_steps=self.steps, grid=self.grid), **size)

    def work(self, kind: Kind) -> "Work":
        """Of one image with these features."""
        channels, maps = sum(count for count, _ in kind), self.marks * self.points
        native = sum(count * side**2 for count, side in kind)
        return Work(2 * maps * channels * self.grid**2, 2 * maps * native, 2 * 2 * maps * 2)

    def built(self, blocks: list[Tensor], marks: Tensor) -> Callable[[], object]:
        """Contrastive Landmarks' eval_face.py: the hypercolumn resized to the grid, then the regressor."""
        device, count = marks.device, self.marks * self.points
        convolution = nn.Conv2d(sum(block.shape[1] for block in blocks), count, 1, bias=False).to(device)
        nn.init.normal_(convolution.weight)
        linear = nn.Conv2d(2 * count, 2 * self.marks, 1, groups=self.marks, bias=False).to(device)
        parameters = [*convolution.parameters(), *linear.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.5, 0.999), weight_decay=5e-4)
        axis = torch.linspace(-1, 1, self.grid, device=device)
        size = self.grid, self.grid

        def step() -> float:
            batch = torch.randperm(len(marks), device=device)[: self.batch]
            resized = [F.interpolate(block[batch].float(), size=size, mode="bilinear") for block in blocks]
            responses = 100 * convolution(torch.cat(resized[::-1], dim=1))
            maps = responses.flatten(2).softmax(-1).unflatten(2, size)
            virtual = torch.stack([(maps.sum(2) * axis).sum(-1), (maps.sum(3) * axis).sum(-1)], dim=-1)
            predicted = linear(virtual.flatten(1)[..., None, None]).view(-1, self.marks, 2)
            loss = F.smooth_l1_loss(10 * predicted, 10 * marks[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

        return lambda: [step() for _ in range(self.steps)]

    def ours(
        self, blocks: list[Tensor], marks: Tensor, precision: Literal["fp32", "bf16"] = "fp32"
    ) -> Callable[[], object]:
        """regression.fit(), its start included."""
        return lambda: fit(blocks, marks, self.settings(precision), torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class ReadoutWhole(Bench):
    """All that `evaluate` does with annotated images: their features, by a network with random weights on 96 px, and
    the default read-out, in closed form. Compact maps come from the decoder on the trunk that gives hypercolumns."""

    annotated: int = 256
    """Images. So many choose the regularisation; of more, only features and one last fit are added."""
    trunk: TrunkSettings = field(default_factory=TrunkSettings)
    readout: RegressionSettings = field(default_factory=RegressionSettings)
    rounds: int = 5

    def __post_init__(self):
        super().__post_init__()
        if self.annotated < 2:
            raise ValueError(f"annotated must be >= 2, got {self.annotated}")

    def run(self) -> list[Measured]:
        device = self.start()
        images, marks = pictures(self.annotated, device), (torch.rand(self.annotated, 5, 2) - 0.5).to(device)
        trunk, settings = Trunk(self.trunk), FpnSettings()
        compact = DenseEncoder(trunk, Fpn(trunk.channels, settings))
        encoders = {f"{settings.dim}-d": compact, f"{sum(trunk.channels)}-d": trunk}

        def call(encoder: nn.Module) -> Callable[[], object]:
            encoder.eval().to(device, memory_format=torch.channels_last)
            return lambda: fit(extract(encoder, images), marks, self.readout, torch.Generator().manual_seed(0))

        candidates = [
            Candidate(name=f"{name}, lead_ray", call=call(encoder), traced=device.type != "cpu")
            for name, encoder in encoders.items()
        ]
        found = compare(candidates, images=self.annotated, rounds=self.rounds, device=device)
        network = f"ResNet-{self.trunk.depth} x {self.trunk.width:g}"
        report(f"read-out, whole: {network}, {self.annotated} annotated images", found, self.out, self)
        return found


class Work(NamedTuple):
    """Operations on one image going forward, two a multiplication; resizing is not counted, as by the paper."""

    built: int
    """Of the convolution of the hypercolumn on the grid; half of it is what LEAD's Table 10 prints as FLOPS."""
    ours: int
    """Of the convolutions of the blocks where they live."""
    linear: int
    """Of the linear layers, in either."""

    def step(self, convolution: int) -> int:
        """Of a gradient step: features are frozen, so the convolution has no gradient but its weights'."""
        return 2 * convolution + 3 * self.linear


class Cost(NamedTuple):
    """One row of LEAD's Table 10: a gradient step, for each image."""

    channels: int
    built_flops: int
    built_seconds: float
    flops: int
    seconds: float
    bf16_seconds: float
    """The same operations, products in bf16."""


def costs(bench: Readout) -> list[Cost]:
    """Operations and median seconds of all FEATURES, measured now; printed and kept as bench.run() does."""
    seconds = {one.name: one.milliseconds / 1e3 for one in bench.run()}
    found = []
    for name, kind in FEATURES.items():
        work = bench.work(kind)
        built, *ours = (seconds[f"{name}, {way}"] for way in ("hypercolumn built, as CL", "lead_ray", "lead_ray, bf16"))
        channels = sum(count for count, _ in kind)
        found.append(Cost(channels, work.step(work.built), built, work.step(work.ours), *ours))
    return found
