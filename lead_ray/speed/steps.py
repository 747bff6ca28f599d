"""Speed of stage 1: views alone, and whole steps from uint8 images to updated weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray import train
from lead_ray.augmentation import augment, views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.machine import keep_freed_memory, quickest_convolutions
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.recording import recorded, unrecorded
from lead_ray.speed import peers, solo_learn
from lead_ray.speed.measure import Candidate, Measured, compare, report
from lead_ray.stage import pick_device
from lead_ray.train import Optim


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all measurements share."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    """Of torch on a CPU: 1 makes milliseconds core-milliseconds, and is what a GPU's host trains with."""
    rounds: int = 10
    """Times that every candidate is called."""
    out: Path | None = None
    """JSON file that receives what is printed."""

    def __post_init__(self):
        for name in ("threads", "rounds", "batch"):
            value = getattr(self, name, 1)
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")

    def start(self) -> torch.device:
        """Threads, memory and random numbers as a training run has them."""
        device = pick_device(self.device)
        torch.set_num_threads(self.threads)
        if device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(0)
        return device


def pictures(n: int, device: torch.device, side: int = 136) -> Tensor:
    """Smooth random uint8 images [n, 3, side, side], channels last as shards are decoded."""
    smooth = F.interpolate(torch.rand(n, 3, 20, 20), size=side, mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8).contiguous(memory_format=torch.channels_last).to(device)


def countable(learner: nn.Module, call: Callable[[], object]) -> Callable[[], None]:
    """The call with the learner's own passes, whose operations torch can count."""

    def once() -> None:
        with unrecorded(learner):
            call()

    return once


class Peer(NamedTuple):
    """Another library, where it is installed."""

    name: str
    views: Callable
    step: Callable


def installed() -> list[Peer]:
    found = []
    if peers.LIGHTLY:
        found.append(Peer("lightly", peers.lightly_views, peers.lightly_step))
    if solo_learn.INSTALLED:
        found.append(Peer("solo-learn", solo_learn.views, solo_learn.step))
    return found


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
            pil = peers.as_pil(images)
            for name, make, _ in installed():
                transform = make(self.views)
                candidates.append(Candidate(name=name, call=partial(transform, pil)))

        def batched() -> None:
            for view in (0, 1):
                drawn = views.draw(self.views, self.batch, tuple(images.shape[2:]), view, generator)
                augment.normalise(augment.apply(images, drawn, self.views.size))

        def fast() -> None:
            views.two_views(images, images, self.views, total=self.batch, rows=rows, generator=generator)

        candidates.append(Candidate(name="lead_ray, torch alone", call=batched))
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
        bf16 = train.resolve_precision("auto", device) == torch.bfloat16
        ways = [way for way in peers.WAYS if bf16 or way.precision == torch.float32]
        precisions = [torch.float32, torch.bfloat16] if bf16 else [torch.float32]
        hows = ["eager", *["graphs"] * (device.type == "cuda"), *["compiled"] * self.compile]
        with quickest_convolutions():
            candidates = [self.plain(images, device)]
            candidates += [self.peer(images, device, peer, way) for peer in installed() for way in ways]
            candidates += [self.ours(images, device, precision, how) for how in hows for precision in precisions]
            found = compare(candidates, images=self.batch, rounds=self.rounds, device=device)
        threads = f", {self.threads} threads" * (self.threads > 1)
        title = f"BYOL, ResNet-{self.depth}, {self.views.size} px, batch {self.batch}{threads}"
        report(title, found, self.out, self)
        return found

    def given(self, images: Tensor, make: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        """How another's step comes by its views: made by it on a CPU, for nothing on a GPU, which its way of making
        them one by one could never feed."""
        if images.device.type == "cpu":
            return make
        views = tuple(view.to(images.device) for view in make())
        return lambda: views

    def plain(self, images: Tensor, device: torch.device) -> Candidate:
        step = peers.PlainByol(self.depth, self.objective, self.optim.lr, device).step
        pixels = images.cpu()
        views = self.given(images, lambda: peers.torchvision_views(pixels, self.views))

        made = "torchvision v2" if device.type == "cpu" else "views given"
        return Candidate(name=f"plain torch, {made}, fp32", call=lambda: step(*views()), precision=torch.float32)

    def peer(self, images: Tensor, device: torch.device, peer: Peer, way: peers.Way) -> Candidate:
        step = peer.step(self.depth, self.objective, self.optim.lr, device, way)
        transform, pil = peer.views(self.views), peers.as_pil(images.cpu())
        views = self.given(images, lambda: transform(pil))

        name = f"{peer.name}, {way.name}" + ", views given" * (device.type == "cuda")
        return Candidate(name=name, call=lambda: step(*views()), precision=way.precision)

    def ours(
        self,
        images: Tensor,
        device: torch.device,
        precision: torch.dtype,
        how: Literal["eager", "graphs", "compiled"],
        trunk: TrunkSettings | None = None,
    ) -> Candidate:
        """This package's step; of another trunk than the one that all have."""
        learner = Byol(Trunk(trunk or TrunkSettings(depth=self.depth)), self.objective)
        learner = learner.to(device, memory_format=torch.channels_last).train()
        optimizer = train.make_optimizer(learner, self.optim)
        for group in optimizer.param_groups:
            group["lr"] = self.optim.lr
        rows, generator = torch.arange(self.batch), torch.Generator().manual_seed(0)

        def two() -> tuple[Tensor, Tensor]:
            return views.two_views(images, images, self.views, total=self.batch, rows=rows, generator=generator)

        if how == "graphs":
            recorded(learner, iter([two()]), precision)
        network = train.compiled(learner, device) if how == "compiled" else learner

        def call() -> None:
            train.train_step(network, optimizer, two(), precision)
            learner.after_step(0.5)

        said = {"eager": "", "graphs": ", CUDA graphs", "compiled": ", compiled"}[how]
        name = f"lead_ray, {'bf16' if precision == torch.bfloat16 else 'fp32'}{said}"
        # Torch does not count the operations of what it has compiled.
        shown = None if how == "compiled" else precision
        return Candidate(
            name=name, call=call, precision=shown, traced=how != "graphs", counted=countable(learner, call)
        )
