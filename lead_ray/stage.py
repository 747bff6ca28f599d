"""One training run, of either stage, as a single worker sees it. No Ray here: `launch` brings the workers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor, nn

from lead_ray import sampling, shards, train, views
from lead_ray.artefacts import RunFolder, atomic, plain
from lead_ray.machine import keep_freed_memory
from lead_ray.models import weights
from lead_ray.models.batchnorm import synchronise
from lead_ray.sampling import Sampling
from lead_ray.train import Optim
from lead_ray.views import ViewSettings

# Settings that change where and how fast a run goes, not what it computes.
ELSEWHERE = ("out", "workers", "device", "report_every", "checkpoint_every")


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
    optim: Optim = field(default_factory=Optim)
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

    def __post_init__(self):
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")
        if self.report_every < 1 or self.checkpoint_every % self.report_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of report_every >= 1, "
                f"got {self.checkpoint_every} and {self.report_every}"
            )

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

    def matters(self) -> dict:
        """The settings that the result depends on, and the data's checksum."""
        settings = {name: value for name, value in plain(self).items() if name not in ELSEWHERE}
        return settings | {"data": shards.read_manifest(self.data).fingerprint, "lanes": self.lanes}

    def open(self) -> RunFolder:
        """This run's folder."""
        return RunFolder.open(self.out, f"{self.kind}-{self.name}", plain(self), self.matters())

    def sampling(self) -> Sampling:
        """Which images make up which step."""
        sizes = [0] * self.lanes
        files = shards.select(shards.read_manifest(self.data), self.split)
        if len(files) < self.lanes:
            raise ValueError(f"workers must be at most {len(files)}, one shard each, got {self.workers}")
        for ordinal, shard in enumerate(files):
            sizes[ordinal % self.lanes] += shard.rows
        return Sampling(tuple(sizes), self.optim.batch_size, self.seed)

    def schedule(self) -> train.Schedule:
        return self.optim.schedule(self.sampling().steps_per_epoch)


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """One process of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module average its gradients over all workers."""

    def lanes(self, lanes: int) -> tuple[int, ...]:
        """The lanes that this worker holds."""
        return tuple(range(self.rank, lanes, self.world))


def pick_device(device: str) -> torch.device:
    """auto: the GPU if there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU here: use --device cpu, or check nvidia-smi")
    return torch.device(device)


def load_resident(stage: Stage, worker: Worker) -> UInt8[Tensor, "n 3 h w"]:
    """This worker's lanes one after another, decoded, on its device; read by pyarrow in this process."""
    lanes = [shards.load(stage.data, stage.split, lanes=[lane]).pixels for lane in worker.lanes(stage.lanes)]
    return torch.cat(lanes).to(worker.device)


def view_pairs(
    stage: Stage, pixels: UInt8[Tensor, "n 3 h w"], worker: Worker, first_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs of augmented views, beginning with first_step's."""
    plan = stage.sampling()
    per_lane = plan.per_lane
    if stage.pairs == "images" and per_lane < 2:
        raise ValueError(f"optim.batch_size must be >= {2 * stage.lanes} to pair images, got {plan.batch_size}")
    batches = plan.batches(first_step, worker.lanes(stage.lanes))
    for step, rows, places in batches:
        # A partner is the next image of the same lane's share, so that it does not depend on the number of workers.
        partners = rows if stage.pairs == "views" else rows.view(-1, per_lane).roll(-1, dims=1).flatten()
        yield views.two_views(
            pixels[rows.to(pixels.device)],
            pixels[partners.to(pixels.device)],
            stage.views,
            total=stage.optim.batch_size,
            rows=places,
            generator=sampling.generator(stage.seed, sampling.AUGMENT, step),
        )


def check_agreement(first_step: int, worker: Worker) -> None:
    """Each worker reads the last checkpoint by itself: make sure that all read the same.

    Raises: ValueError naming the steps if they differ.
    """
    if worker.world == 1:
        return
    mine = torch.tensor(first_step, device=worker.device)
    all_workers = [torch.empty_like(mine) for _ in range(worker.world)]
    dist.all_gather(all_workers, mine)
    steps = [int(step) for step in all_workers]
    if len(set(steps)) > 1:
        raise ValueError(
            f"the workers would go on from different steps, {steps}: let all machines share the run's folder, "
            "or delete its newest checkpoint"
        )


def work(
    stage: Stage, folder: RunFolder, pixels: UInt8[Tensor, "n 3 h w"], worker: Worker
) -> Iterator[dict[str, int | float]]:
    """Train from the last checkpoint to the end, keep what must be kept, yield the metrics.

    Rank 0 writes metrics, checkpoints, weights and the result; all workers compute the same.
    """
    if worker.device.type == "cpu":
        keep_freed_memory()
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
    schedule = stage.schedule()
    spent = {metrics["step"]: metrics["seconds"] for metrics in folder.metrics()}.get(first_step, 0.0)
    started = time.perf_counter() - spent
    for metrics in train.train(
        worker.wrap(learner),
        learner,
        optimizer,
        view_pairs(stage, pixels, worker, first_step),
        schedule,
        first_step=first_step,
        report_every=stage.report_every,
        precision=train.resolve_precision(stage.precision, worker.device),
    ):
        step = metrics["step"]
        metrics["images_per_second"] *= worker.world
        metrics["seconds"] = time.perf_counter() - started
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
        "images": sum(stage.sampling().lane_sizes),
        "steps": schedule.steps,
        "batch_size": stage.optim.batch_size,
        "settings": plain(stage),
    }
    with atomic(folder.path / "encoder.safetensors") as temporary:
        weights.save(temporary, learner.encoder(), trained)
    folder.finish({"steps": schedule.steps, "images": trained["images"], **history[-1]})
