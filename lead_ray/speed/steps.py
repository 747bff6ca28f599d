"""Speed of stage 1: views alone, and whole steps from uint8 images to updated weights."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lead_ray import train
from lead_ray.augmentation import augment, views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.machine import keep_freed_memory
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.speed import peers
from lead_ray.speed.measure import Candidate, Measured, compare, report
from lead_ray.stage import pick_device
from lead_ray.train import Optim


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements share."""

    device: str = "auto"
    threads: int = 1
    """Of torch on a CPU: 1 makes milliseconds core-milliseconds."""
    rounds: int = 10
    """Times that every candidate is called."""
    out: Path | None = None
    """JSON file that receives what is printed."""

    def start(self) -> torch.device:
        """Threads, memory and random numbers as a training run has them."""
        device = pick_device(self.device)
        if device.type == "cpu":
            torch.set_num_threads(self.threads)
            keep_freed_memory()
        torch.manual_seed(0)
        return device


def pictures(n: int, device: torch.device, side: int = 136) -> Tensor:
    """Smooth random uint8 images [n, 3, side, side], channels last as shards are decoded."""
    smooth = F.interpolate(torch.rand(n, 3, 20, 20), size=side, mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).contiguous(memory_format=torch.channels_last).to(device)


@dataclass(frozen=True, kw_only=True)
class Views(Bench):
    """Two augmented, normalised views of 136 px images."""

    batch: int = 64
    views: ViewSettings = field(default_factory=ViewSettings)

    def run(self) -> list[Measured]:
        device = self.start()
        images, generator = pictures(self.batch, device), torch.Generator().manual_seed(0)
        rows = torch.arange(self.batch)
        candidates = []
        if device.type == "cpu":
            candidates.append(
                Candidate(name="torchvision v2", call=lambda: peers.torchvision_views(images, self.views))
            )
            if peers.LIGHTLY:
                transform, pil = peers.lightly_views(self.views), peers.as_pil(images)
                candidates.append(Candidate(name="lightly", call=lambda: transform(pil)))

        def batched() -> None:
            for view in (0, 1):
                drawn = views.draw(self.views, self.batch, tuple(images.shape[2:]), view, generator)
                augment.normalise(augment.apply(images, drawn, self.views.size))

        candidates.append(Candidate(name="lead_ray, torch alone", call=batched))
        if device.type != "cpu" or views.augment_cpu is not None:

            def fast() -> None:
                views.two_views(images, images, self.views, total=self.batch, rows=rows, generator=generator)

            candidates.append(Candidate(name="lead_ray", call=fast, traced=device.type != "cpu"))
        found = compare(candidates, images=self.batch, rounds=self.rounds, device=device)
        report(f"two {self.views.size} px views of an image", found, self.out, self)
        return found


@dataclass(frozen=True, kw_only=True)
class Step(Bench):
    """BYOL from uint8 images in memory: two views, forward, backward, optimiser, moving average."""

    batch: int = 64
    depth: int = 50
    views: ViewSettings = field(default_factory=ViewSettings)
    objective: ByolSettings = field(default_factory=ByolSettings)
    optim: Optim = field(default_factory=lambda: Optim(lr=1e-3, steps=1))
    compile: bool = False
    """Measure the compiled network, too."""
    rounds: int = 3

    def run(self) -> list[Measured]:
        device = self.start()
        images = pictures(self.batch, device)
        candidates = [self.plain(images, device)]
        if peers.LIGHTLY and device.type == "cpu":
            candidates += [self.lightly(images, device, last) for last in (False, True)]
        precisions = [torch.float32]
        if train.resolve_precision("auto", device) == torch.bfloat16:
            precisions.append(torch.bfloat16)
        ways = (False, True) if self.compile else (False,)
        candidates += [self.ours(images, device, precision, way) for way in ways for precision in precisions]
        found = compare(candidates, images=self.batch, rounds=self.rounds, device=device)
        report(f"BYOL, ResNet-{self.depth}, {self.views.size} px, batch {self.batch}", found, self.out, self)
        return found

    def plain(self, images: Tensor, device: torch.device) -> Candidate:
        step = peers.PlainByol(self.depth, self.objective, self.optim.lr, device).step
        pixels = images.cpu()

        def call() -> None:
            step(*(view.to(device) for view in peers.torchvision_views(pixels, self.views)))

        return Candidate(name="plain torch, torchvision v2, fp32", call=call, precision=torch.float32)

    def lightly(self, images: Tensor, device: torch.device, channels_last: bool) -> Candidate:
        step = peers.lightly_step(self.depth, self.objective, self.optim.lr, device, channels_last=channels_last)
        transform, pil = peers.lightly_views(self.views), peers.as_pil(images)
        name = "lightly, fp32" + ", channels last" * channels_last
        return Candidate(name=name, call=lambda: step(*transform(pil)), precision=torch.float32)

    def ours(self, images: Tensor, device: torch.device, precision: torch.dtype, compiled: bool) -> Candidate:
        learner = Byol(Trunk(TrunkSettings(depth=self.depth)), self.objective)
        learner = learner.to(device, memory_format=torch.channels_last).train()
        network = train.compiled(learner, device) if compiled else learner
        optimizer = train.make_optimizer(learner, self.optim)
        for group in optimizer.param_groups:
            group["lr"] = self.optim.lr
        rows, generator = torch.arange(self.batch), torch.Generator().manual_seed(0)

        def call() -> None:
            two = views.two_views(images, images, self.views, total=self.batch, rows=rows, generator=generator)
            train.train_step(network, optimizer, two, precision)
            learner.after_step(0.5)

        name = f"lead_ray, {'bf16' if precision == torch.bfloat16 else 'fp32'}" + ", compiled" * compiled
        # Torch does not count the operations of what it has compiled.
        return Candidate(name=name, call=call, precision=None if compiled else precision)
