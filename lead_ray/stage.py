"""What a training run of either stage is told, and what follows from that."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lead_ray import train
from lead_ray.artefacts import RunFolder, plain
from lead_ray.augmentation.noise import Noise, noisy_views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.images import feed, shards
from lead_ray.images.sampling import Sampling
from lead_ray.train import Optim
from lead_ray.worker import Crew

# Settings that change where and how fast a run goes, not what it computes: workers up to the share of a batch that a
# BatchNorm without sync_batchnorm sees.
ELSEWHERE = ("out", "workers", "device", "compile", "cuda_graphs", "report_every", "checkpoint_every", "encoder_every")
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
    """Of the first weights, the order of the images and their views."""
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
    """Multiplications in bf16 or fp32, of which a GPU does convolutions in TF32, as torch has it; auto takes bf16 where
    the device has it."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all workers; off, as in the paper's base, each worker uses its own."""
    report_every: int = 100
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; a multiple of report_every."""
    encoder_every: int = 0
    """Steps between encoders that stay in the run's folder, encoders/step-00001000.safetensors, to see what appears
    when; a multiple of report_every. 0: the last alone, encoder.safetensors."""
    workers: int | str = 0
    """0: this process, without Ray. From 1: that many Ray Train workers. FEWEST:MOST, such as 2:8: as many as the
    cluster has room for, at any time, in the steps that MOST would take; fewer work through the shares of the others
    one by one, so that none needs more memory than of MOST."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there is one for each worker, else the CPU."""
    compile: bool = False
    """Compile the network with torch.compile; losses are the same up to rounding."""
    cuda_graphs: bool = True
    """On a GPU, record the network's kernels once and replay them. Not done with torch.compile, where the number of
    workers changes, and where workers meet within a forward pass (MoCo's, synchronised BatchNorm)."""

    def __post_init__(self):
        if self.crew.elastic and self.compile:
            raise ValueError(f"compile is not for a number of workers that changes, workers={self.workers}: give one")
        if self.report_every < 1 or self.checkpoint_every % self.report_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of report_every >= 1, "
                f"got {self.checkpoint_every} and {self.report_every}"
            )
        if self.encoder_every < 0 or self.encoder_every % self.report_every:
            raise ValueError(
                f"encoder_every must be 0 or a multiple of report_every={self.report_every}, got {self.encoder_every}"
            )
        for name, least in (("window", 1), ("reshuffle_epochs", 0), ("memory", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    kind: ClassVar[str]
    """Beginning of the run folder's name."""
    pairs: ClassVar[Literal["views", "images"]] = "views"
    """Whether the two views show one image, or an image and another one."""

    @property
    def crew(self) -> Crew:
        """How many workers there may be."""
        return Crew.of(self.workers)

    @property
    def lanes(self) -> int:
        """Lanes of the data; see `sampling`. Eight serve 1, 2, 4 and 8 workers alike; others get one each."""
        most = self.crew.most
        return shards.LANES if shards.LANES % max(1, most) == 0 else most

    @property
    def meets(self) -> bool:
        """Whether workers exchange anything within a forward pass."""
        return self.sync_batchnorm

    def records(self, device: torch.device, world: int) -> bool:
        """Whether the network's kernels are recorded as CUDA graphs."""
        possible = device.type == "cuda" and not self.compile and not self.crew.elastic
        return self.cuda_graphs and possible and not (self.meets and world > 1)

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
