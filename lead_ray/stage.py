"""One training run, of either stage, as a single worker sees it. No Ray here: `launch` brings the workers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lead_ray import train
from lead_ray.artefacts import RunFolder, atomic, plain
from lead_ray.augmentation.noise import Noise, noisy_views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.images import feed, sampling, shards
from lead_ray.images.sampling import Sampling
from lead_ray.machine import denormals_flushed, keep_freed_memory
from lead_ray.models import weights
from lead_ray.models.batchnorm import synchronise
from lead_ray.train import Optim
from lead_ray.worker import Worker, check_agreement, largest, meet

# Settings that change where and how fast a run goes, not what it computes.
ELSEWHERE = ("out", "workers", "device", "compile", "report_every", "checkpoint_every")
ORDER = ("ingest", "memory", "window", "reshuffle_epochs")  # Stage.order() says which of them matter


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """What both stages are told."""

    data: Path
    """Prepared folder (`lead-ray prepare`)."""
    split: str = "train"
    """Which split of it to learn from."""
    out: Path = Path("runs")
    """Parent of the run's folder."""
    name: str = "lead"
    """Beginning of the run folder's name."""
    seed: int = 0
    views: ViewSettings = field(default_factory=ViewSettings)
    noise: Noise = field(default_factory=Noise)
    """JPEG and colour noise on views, and a crop of them, as DVE and CL have it in both stages; none in LEAD."""
    optim: Optim = field(default_factory=Optim)
    ingest: Literal["auto", "resident", "stream"] = "auto"
    """resident: images are decoded once and stay on the device; stream: decoded anew every epoch, for data that do not
    fit. The two shuffle differently. So auto must not look at what is free just now, nor at the number of workers: it
    takes resident if the whole split, decoded, has at most `memory` GB."""
    memory: float = 12.0
    """GB of decoded images, of all workers together, up to which auto takes resident."""
    window: int = 4
    """Shards of each lane that stream shuffles among, and keeps in memory decoded."""
    reshuffle_epochs: int = 0
    """Epochs after which resident deals shards anew to the lanes and reads them; 0: never. stream does at every one."""
    precision: train.Precision = "auto"
    """Multiplications in bf16 or fp32; auto takes bf16 where the device has it."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all workers; off, as in the paper's base, each worker uses its own."""
    report_every: int = 100
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; a multiple of report_every."""
    workers: int = 0
    """0: this process, without Ray. From 1: that many Ray Train workers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    """Compile the network with torch.compile, for long runs on GPUs; losses are the same up to rounding."""

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")
        if self.report_every < 1 or self.checkpoint_every % self.report_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of report_every >= 1, "
                f"got {self.checkpoint_every} and {self.report_every}"
            )
        for name, least in (("window", 1), ("reshuffle_epochs", 0), ("memory", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    kind: ClassVar[str]
    """Beginning of the run folder's name."""
    pairs: ClassVar[Literal["views", "images"]] = "views"
    """Whether the two views show one image, or an image and another one."""

    @property
    def lanes(self) -> int:
        """Lanes of the data; see `sampling`. Eight serve 1, 2, 4 and 8 workers alike; others get one each."""
        return shards.LANES if shards.LANES % max(1, self.workers) == 0 else self.workers

    @abstractmethod
    def build(self) -> nn.Module:
        """The learner: views -> metrics with a loss; `after_step`, `encoder`."""

    def pair_views(
        self, images: Tensor, partners: Tensor, *, rows: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """What the learner is called with: a view of each image and one of its partner."""
        total = self.optim.batch_size
        return noisy_views(images, partners, self.views, self.noise, total=total, rows=rows, generator=generator)

    def matters(self) -> dict:
        """The settings that the result depends on, and the data's checksum.

        What came later and is not used is left out: runs from before there was a choice stay what they are.
        """
        settings = {name: value for name, value in plain(self).items() if name not in ELSEWHERE + ORDER}
        if self.noise == Noise():
            del settings["noise"]
        data = shards.read_manifest(self.data).fingerprint
        return settings | self.order() | {"data": data, "lanes": self.lanes}

    def order(self) -> dict:
        """The settings beside the seed that decide which images make up a step.

        None for resident that never deals anew: runs from before there was a choice stay what they are.
        """
        if self.streams:
            return {"ingest": "stream", "window": self.window}
        return {"reshuffle_epochs": self.reshuffle_epochs} if self.reshuffle_epochs else {}

    @property
    def streams(self) -> bool:
        """Whether ingest is stream, or auto takes it for these data."""
        return self.ingest == "stream" or (self.ingest == "auto" and self.source().gigabytes() > self.memory)

    def source(self) -> feed.Source:
        """The shards to learn from."""
        return feed.Source.open(self.data, self.split)

    def open(self) -> RunFolder:
        """This run's folder."""
        return RunFolder.open(self.out, f"{self.kind}-{self.name}", plain(self), self.matters())

    def sampling(self) -> Sampling:
        """Which images make up which step."""
        sizes = tuple(shard.rows for shard in self.source().shards)
        if len(sizes) < self.lanes:
            raise ValueError(f"workers must be at most {len(sizes)}, one shard each, got {self.workers}")
        window, deal_every = (self.window, 1) if self.streams else (0, self.reshuffle_epochs)
        if self.streams and self.reshuffle_epochs:
            raise ValueError(
                f"reshuffle_epochs={self.reshuffle_epochs} is of ingest=resident: stream deals every epoch"
            )
        return Sampling(sizes, self.lanes, self.optim.batch_size, self.seed, window, deal_every)

    def schedule(self) -> train.Schedule:
        return self.optim.schedule(self.sampling().steps_per_epoch)


def pick_device(device: str) -> torch.device:
    """auto: the GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU here: use --device cpu, or check nvidia-smi")
    return torch.device(device)


def open_images(stage: Stage, worker: Worker, decode: feed.Decode) -> feed.Images:
    """The images of this worker's lanes, step by step.

    Raises: ValueError when they are to stay on the device and do not fit.
    """
    plan, lanes, source = stage.sampling(), worker.lanes(stage.lanes), stage.source()
    if stage.streams:
        return feed.stream(plan, lanes, source, decode, worker.device, steps=stage.schedule().steps)
    feed.check_room(source.gigabytes(plan.held(0, lanes)), worker.device, worker.local)
    meet(worker)  # before another takes of what is free
    return feed.resident(plan, lanes, source, decode, worker.device)


def view_pairs(stage: Stage, batches: Iterator[feed.Batch]) -> Iterator[tuple[Tensor, ...]]:
    """Pairs of augmented views of each batch."""
    per_lane = stage.sampling().per_lane
    if stage.pairs == "images" and per_lane < 2:
        raise ValueError(f"optim.batch_size must be >= {2 * stage.lanes} to pair images, got {stage.optim.batch_size}")
    for step, images, places in batches:
        partners = images
        if stage.pairs == "images":
            # The next image of the same lane's share, so that it does not depend on the number of workers.
            rows = torch.arange(len(images), device=images.device).view(-1, per_lane)
            partners = images[rows.roll(-1, dims=1).flatten()]
        yield stage.pair_views(
            images, partners, rows=places, generator=sampling.generator(stage.seed, sampling.AUGMENT, step)
        )


def work(stage: Stage, folder: RunFolder, images: feed.Images, worker: Worker) -> Iterator[dict[str, int | float]]:
    """Train from the last checkpoint to the end, keep what must be kept, yield the metrics.

    Rank 0 writes metrics, checkpoints, weights and the result; all workers compute the same.
    """
    if worker.device.type != "cpu":
        yield from _work(stage, folder, images, worker)
        return
    keep_freed_memory()
    with denormals_flushed():
        yield from _work(stage, folder, images, worker)


def _work(stage: Stage, folder: RunFolder, images: feed.Images, worker: Worker) -> Iterator[dict[str, int | float]]:
    torch.manual_seed(sampling.generator(stage.seed, sampling.WEIGHTS).initial_seed())
    learner = stage.build()
    if stage.sync_batchnorm:
        synchronise(learner)
    learner = learner.to(worker.device, memory_format=torch.channels_last)
    optimizer = train.make_optimizer(learner, stage.optim)
    first_step = 0
    if (state := folder.latest_checkpoint(worker.device)) is not None:
        try:
            learner.load_state_dict(state["learner"])
            optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint in {folder.path / 'checkpoints'} is of another network or objective: "
                "delete it to start this run again from its first step"
            ) from error
        first_step = state["step"]
    check_agreement(first_step, worker)
    network = worker.wrap(learner)
    if stage.compile:
        network = train.compiled(network, worker.device)
    schedule = stage.schedule()
    batches = feed.Waits(images(first_step))
    spent = {metrics["step"]: metrics["seconds"] for metrics in folder.metrics()}.get(first_step, 0.0)
    started = time.perf_counter() - spent
    for metrics in train.train(
        network,
        learner,
        optimizer,
        view_pairs(stage, batches),
        schedule,
        first_step=first_step,
        report_every=stage.report_every,
        precision=train.resolve_precision(stage.precision, worker.device),
    ):
        step = metrics["step"]
        metrics["images_per_second"] *= worker.world
        metrics["seconds"] = time.perf_counter() - started
        metrics["stall"] = largest(batches.share(), worker)
        if worker.rank == 0:
            folder.append_metrics(metrics)
            if step % stage.checkpoint_every == 0 or step == schedule.steps:
                folder.save_checkpoint(step, {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()})
        yield metrics
    if worker.rank == 0:
        _finish(stage, folder, learner, schedule)


def _finish(stage: Stage, folder: RunFolder, learner: nn.Module, schedule: train.Schedule) -> None:
    history = folder.metrics()
    trained = {
        "run": folder.path.name,
        "data": plain(stage.data),
        "images": sum(stage.sampling().shard_sizes),
        "steps": schedule.steps,
        "batch_size": stage.optim.batch_size,
        "settings": plain(stage),
    }
    with atomic(folder.path / "encoder.safetensors") as temporary:
        weights.save(temporary, learner.encoder(), trained)
    folder.finish({"steps": schedule.steps, "images": trained["images"], **history[-1]})
