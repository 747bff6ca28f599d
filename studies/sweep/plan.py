"""What is to be done: trainings, and measurements of what they made.

A task is named by its settings and by the tasks that it begins from. So tasks of several tables and studies that are
the same are found to be the same before anything has run, and are done once. What is done stands in run folders,
nowhere else: `result.json` of a training, `eval/*.json` of a measurement.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lead_ray import storage
from lead_ray.artefacts import RunFolder, digest, plain, read_json
from lead_ray.dense import Dense
from lead_ray.evaluate import Evaluate, paths
from lead_ray.models import weights
from lead_ray.pretrain import Pretrain
from lead_ray.stage import ELSEWHERE
from sweep.trial import Job

LATER = Path("what this plan trains")
"""Stands in settings for the folder of a run that may not be there yet."""


class Task(ABC):
    """Something to do once."""

    kind: str

    @property
    @abstractmethod
    def needs(self) -> tuple["Task", ...]:
        """What must be done before."""

    @cached_property
    def key(self) -> str:
        """Eight digits that name it: the settings that matter, and the names of what it needs."""
        return digest({"kind": self.kind, "settings": self._matters(), "needs": [task.key for task in self.needs]})

    @property
    @abstractmethod
    def title(self) -> str:
        """A few words for people."""

    @abstractmethod
    def done(self) -> bool:
        """Whether its result is on disk."""

    @abstractmethod
    def job(self, notes: Path) -> Job:
        """What a trial is given, once all that it needs is done."""

    @abstractmethod
    def _matters(self) -> dict[str, Any]: ...

    def __repr__(self) -> str:
        return f"{self.title} [{self.key}]"


@dataclass(frozen=True, repr=False, eq=False)
class Train(Task):
    """A stage and the run whose weights it begins from: `init` of stage 1, `stage1` of stage 2."""

    stage: Pretrain | Dense
    start: "Train | Given | None" = None

    def __post_init__(self):
        if (self.start is not None) != (getattr(self.stage, self._begins) == LATER):
            raise ValueError(f"{self.stage.kind} {self.stage.name}: {self._begins} must be LATER where, and only where,"
                             " it begins from a task")  # fmt: skip

    @property
    def kind(self) -> str:
        return self.stage.kind

    @property
    def needs(self) -> tuple[Task, ...]:
        return () if self.start is None else (self.start,)

    @property
    def title(self) -> str:
        dims = [f"{self.dim}-d"] if self.dim else []
        objective = type(self.stage.objective).__name__.removesuffix("Settings").lower()
        return " ".join([self.stage.kind, self.stage.name, objective, *dims, f"seed {self.stage.seed}"])

    @property
    def dim(self) -> int | None:
        """Channels of a compact map; None of stage 1."""
        parts = (getattr(self.stage.objective, name, None) for name in ("fpn", "decoder", "network"))
        return next((part.dim for part in parts if part is not None), None)

    @property
    def data(self) -> Path:
        return self.stage.data

    @property
    def seed(self) -> int:
        return self.stage.seed

    @property
    def _begins(self) -> str:
        return "stage1" if isinstance(self.stage, Dense) else "init"

    def settled(self) -> Pretrain | Dense:
        """The stage as a command line is given it. Raises: FileNotFoundError if what it begins from is not done."""
        return self.stage if self.start is None else replace(self.stage, **{self._begins: self.start.folder.path})

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder, made or not: the one that Stage.open() makes. Raises: as settled()."""
        stage = self.settled()
        return RunFolder(storage.absolute(stage.out) / f"{stage.kind}-{stage.name}-{digest(stage.matters())}")

    def done(self) -> bool:
        try:
            return all(task.done() for task in self.needs) and self.folder.result is not None
        except FileNotFoundError:  # the data are not prepared, so nothing was learned from them
            return False

    def job(self, notes: Path) -> Job:
        return Job(self.key, self.title, self.settled(), self.folder.path, notes)

    def _matters(self) -> dict[str, Any]:
        return {name: value for name, value in plain(self.stage).items() if name not in ELSEWHERE}


@dataclass(frozen=True, repr=False, eq=False)
class Given(Task):
    """A finished run, or a file of weights, in place of a training."""

    path: Path
    data: Path
    """What stage 2 is to learn from."""
    seed: int = 0
    kind = "given"
    needs = ()

    @property
    def title(self) -> str:
        return f"given {self.path.name}"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(storage.absolute(self.path))

    def done(self) -> bool:
        return storage.exists(weights.find(self.path))

    def job(self, notes: Path) -> Job:
        raise TypeError(f"{self.title} is there or it is not: there is nothing to do")

    def _matters(self) -> dict[str, Any]:
        return {"path": str(self.path)}


Encoder = Train | Given


@dataclass(frozen=True, repr=False, eq=False)
class Measure(Task):
    """What is measured of an encoder: `lead-ray evaluate` with `run` still to come."""

    settings: Evaluate
    encoder: Encoder
    kind = "measure"

    def __post_init__(self):
        if self.settings.run != LATER:
            raise ValueError(f"settings.run must be LATER, got {self.settings.run}: the plan names the encoder")

    @property
    def needs(self) -> tuple[Task, ...]:
        return (self.encoder,)

    @property
    def title(self) -> str:
        return f"{self.settings.task} on {self.settings.data.name} of {self.encoder.title}"

    def settled(self) -> Evaluate:
        return replace(self.settings, run=self.encoder.folder.path)

    @cached_property
    def paths(self) -> list[Path]:
        """The results' files, one for each number of annotations."""
        return paths(self.settled())

    def results(self) -> list[dict[str, Any]] | None:
        """The results, one for each number of annotations; None if it is not done."""
        return [read_json(path) for path in self.paths] if self.done() else None

    def done(self) -> bool:
        try:
            return self.encoder.done() and all(storage.exists(path) for path in self.paths)
        except FileNotFoundError:
            return False

    def job(self, notes: Path) -> Job:
        return Job(self.key, self.title, self.settled(), self.encoder.folder.path, notes)

    def _matters(self) -> dict[str, Any]:
        return {name: value for name, value in plain(self.settings).items() if name != "device"}


def closure(tasks: Iterable[Task]) -> dict[str, Task]:
    """The tasks and all that they need, each once and after what it needs, by key."""
    found: dict[str, Task] = {}

    def visit(task: Task) -> None:
        for needed in task.needs:
            visit(needed)
        found.setdefault(task.key, task)

    for task in tasks:
        visit(task)
    return found


def chain(*stages: Pretrain | Dense) -> Train:
    """Stages that each begin from the one before."""
    run: Train | None = None
    for stage in stages:
        run = Train(stage, run)
    if run is None:
        raise ValueError("stages must be at least one, got none")
    return run


def changed(run: Encoder, change: Callable[[Pretrain | Dense], Pretrain | Dense]) -> Encoder:
    """A run, and those that it goes back to, with their stages changed; what is given stays."""
    if isinstance(run, Given):
        return run
    return Train(change(run.stage), run.start and changed(run.start, change))
