"""How long tasks take: from runs that were measured here, else by arithmetic that says so."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from lead_ray import storage
from lead_ray.artefacts import plain, read_json
from lead_ray.dense import Dense
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.pretrain import Pretrain
from lead_ray.speed.readout import Kind, Readout
from sweep.plan import Encoder, Measure, Task, Train

PASSES = {"byol": 8, "contrast": 6, "moco": 4, "stage2": 2}
"""Forward passes of the trunk for an image of a step. A backward pass counts as two forward ones. BYOL: two views, each
forward and backward, and forward through the target; contrast: without the target; MoCo: one view forward and backward,
one forward; stage 2: two views forward through the frozen trunk."""
DECODER = 1.5
"""What stage 2's decoder and loss add, in units of its trunk's share: forward and backward of fewer channels."""


class Size(NamedTuple):
    """Of a data set that may not be prepared yet."""

    train: int
    """Images to learn from."""
    test: int = 0
    landmarks: int = 0


@dataclass(frozen=True)
class Pace:
    """Seconds that a task takes on one device, and how that is known."""

    seconds: float
    source: str


class Paces:
    """What the runs below a folder say of trainings like them.

    Args:
        tflops: 10^12 floating-point operations a second that are reached, for what nothing was measured of.
        sizes: data sets by name, for those that are not prepared.
    """

    def __init__(self, out: Path, notes: Path, *, tflops: float, sizes: dict[str, Size] | None = None):
        self.tflops, self.sizes = tflops, sizes or {}
        self.measured: dict[tuple, list[float]] = {}
        self.readouts: dict[str, list[float]] = {}
        self.told: dict[str, Pace] = {}
        for path in storage.listed(out, "*/result.json"):
            config, result = read_json(path.with_name("config.json")), read_json(path)
            if "seconds" in result and "optim" in config:
                images = result["steps"] * config["optim"]["batch_size"]
                trunk = weights.read_card(path.parent).trunk
                self.measured.setdefault(_kind(config, trunk), []).append(result["seconds"] / images)
        if storage.exists(notes / "seconds.jsonl"):
            lines = [json.loads(line) for line in storage.read_text(notes / "seconds.jsonl").splitlines()]
            for line in lines:
                self.readouts.setdefault(alike(line["title"]), []).append(line["seconds"])

    def of(self, task: Task) -> Pace | None:
        """None where the data are not prepared and nobody has said how many they are."""
        if task.key not in self.told and (found := self._look_up(task)) is not None:
            self.told[task.key] = found
        return self.told.get(task.key)

    def _look_up(self, task: Task) -> Pace | None:
        if isinstance(task, Train):
            images = self._images(task)
            known = images and self.measured.get(_kind(plain(task.stage), trunk_of(task)))
            seconds = known and median(known) * images
            gigaflop = images and images * forward(trunk_of(task), task.stage.views.size) * _passes(task)
        else:
            known = self.readouts.get(alike(task.title))
            seconds = known and median(known)
            gigaflop = self._measuring(task) if isinstance(task, Measure) else None
        if seconds:
            return Pace(seconds, "measured here")
        return Pace(gigaflop / (1000 * self.tflops), "estimated") if gigaflop else None

    def _measuring(self, task: Measure) -> float | None:
        """GFLOP: every image once through the trunk, each repeat of a read-out by gradient descent."""
        settings, size = task.settings, self.sizes.get(task.settings.data.name)
        if size is None:
            return None
        side = 96
        seen = (settings.limit or size.test) * (len(settings.seeds) if settings.task == "matching" else 1)
        gigaflop = 0.0
        if settings.task == "regression":
            seen += size.train
            how = settings.regressor()
            bench = Readout(grid=how.grid, marks=size.landmarks, points=how.points)
            work = bench.work(_features(task.encoder, settings.features, settings.reduce.dim, side))
            for single in settings.each():
                learned = (single.annotations or size.train) * max(single.copies, 1) * len(settings.seeds)
                gigaflop += learned * how.epochs * work.step(work.ours) / 1e9
                seen += learned if single.copies else 0
        return gigaflop + seen * forward(trunk_of(task.encoder), side)

    def _images(self, task: Train) -> int | None:
        """Of all steps together."""
        optim = task.stage.optim
        try:
            return task.stage.schedule().steps * optim.batch_size
        except FileNotFoundError:
            size = self.sizes.get(task.stage.data.name)
            return optim.steps * optim.batch_size if optim.steps else size and round(optim.epochs * size.train)
        except ValueError:  # what is wrong with it will be said when it is tried
            return None


def alike(title: str) -> str:
    """What tasks have in common that differ in their seed alone."""
    return re.sub(r" seed \d+", "", title)


def forward(trunk: TrunkSettings, size: int) -> float:
    """GFLOP of one image's way through a trunk, counted by torch, 2 for a multiplication and addition."""
    return _forward(trunk.depth, trunk.width, size)


@cache
def _forward(depth: int, width: float, size: int) -> float:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        Trunk(TrunkSettings(depth=depth, width=width)).eval()(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def _passes(task: Train) -> float:
    if isinstance(task.stage, Dense):
        return PASSES["stage2"] * (1 + DECODER)
    return PASSES[type(task.stage.objective).__name__.removesuffix("Settings").lower()]


def trunk_of(task: Encoder) -> TrunkSettings:
    """Of the first run that it goes back to; DVE's own networks, and what is given, count as a ResNet-50."""
    while isinstance(task, Train) and task.start is not None:
        task = task.start
    return task.stage.trunk if isinstance(task, Train) and isinstance(task.stage, Pretrain) else TrunkSettings()


def _features(encoder: Encoder, features: str, reduced: int, side: int) -> Kind:
    """Channels and sides of the blocks that are read out."""
    if features in ("nmf", "pca", "random-projection"):
        return ((reduced, side // 4),)
    if isinstance(encoder, Train) and isinstance(encoder.stage, Dense):
        return ((encoder.dim or 64, side // 4),)
    trunk = trunk_of(encoder)
    return tuple((count, side // (4 * 2**level)) for level, count in enumerate(_channels(trunk.depth, trunk.width)))


@cache
def _channels(depth: int, width: float) -> tuple[int, ...]:
    with torch.device("meta"):
        return Trunk(TrunkSettings(depth=depth, width=width)).channels


def _kind(config: dict, trunk: TrunkSettings | None) -> tuple:
    """What makes two trainings cost alike: the fields of an objective tell which it is, their values matter little."""
    return (
        "pairing" in config,
        trunk,
        config["views"]["size"],
        config["optim"]["batch_size"],
        _fields(config["objective"]),
    )


def _fields(settings: dict) -> tuple:
    """Names of what is set, at all depths."""
    given = {name: value for name, value in settings.items() if value is not None}
    return tuple(sorted((name, _fields(value) if isinstance(value, dict) else ()) for name, value in given.items()))
