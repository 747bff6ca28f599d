"""Which task comes next, and what became of those that were begun."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from lead_ray import storage
from lead_ray.artefacts import read_json
from sweep.plan import Given, Measure, Task, Train, closure

State = Literal["waiting", "running", "done", "failed"]


class Source(Protocol):
    """What thinks of further tasks while others are done: a search."""

    def more(self, agenda: "Agenda", room: int) -> Sequence[Task]:
        """Tasks to do now, or that are being done; `room` trainings fit side by side."""

    @property
    def over(self) -> bool:
        """Nothing will be added."""

    def left(self) -> tuple[int, list[Task]]:
        """How many more trials there will be at most, and the tasks of one."""

    def said(self) -> str:
        """One line on how it stands."""


class Agenda:
    """Tasks in an order in which each comes after what it needs, and their states.

    Done means on disk. A failure's reason is kept in `notes` until the task succeeds: tables show it. Failed tasks
    are tried again by the next command, not by this one.
    """

    def __init__(self, tasks: Iterable[Task], *, notes: Path, source: Source | None = None):
        self.notes, self.source = notes, source
        self.tasks: dict[str, Task] = {}
        self.states: dict[str, State] = {}
        self.reasons: dict[str, str] = {}
        self.add(tasks)

    def add(self, tasks: Iterable[Task]) -> None:
        """Tasks and all that they need; what is known already is passed over."""
        for key, task in closure(tasks).items():
            if key not in self.tasks:
                self.tasks[key] = task
                self.states[key] = "done" if task.done() else "waiting"
                if isinstance(task, Given) and not task.done():
                    self.tell(key, f"no weights at {task.path}: give a finished run's folder or a .safetensors file")

    def next(self, trainings: int) -> list[Task]:
        """What to begin now, marked as running: a training, or all measurements of one encoder that can be made.

        Measurements come first, they are short. Those of one encoder are made one after another, so its features are
        computed once.

        Args:
            trainings: how many may run at a time.
        """
        self._spread_failures()
        while not (chosen := self._choose(trainings)) and self.source is not None and not self.source.over:
            running = self.among("running")
            if sum(isinstance(task, Train) for task in running) >= trainings:
                break
            self.add(self.source.more(self, trainings))
            self._spread_failures()
            if running:
                chosen = self._choose(trainings)
                break  # what comes next may depend on these; else all that it asked for is done: it thinks further
        for task in chosen:
            self.states[task.key] = "running"
        return chosen

    def _choose(self, trainings: int) -> list[Task]:
        running = self.among("running")
        measured = {task.encoder.key for task in running if isinstance(task, Measure)}
        ready = [task for task in self.among("waiting") if all(self.states[n.key] == "done" for n in task.needs)]
        measures = [task for task in ready if isinstance(task, Measure) and task.encoder.key not in measured]
        if measures:
            return [task for task in measures if task.encoder.key == measures[0].encoder.key]
        if sum(isinstance(task, Train) for task in running) >= trainings:
            return []
        return [task for task in ready if isinstance(task, Train)][:1]

    def _spread_failures(self) -> None:
        for task in self.among("waiting"):
            lost = next((need for need in task.needs if self.states[need.key] == "failed"), None)
            if lost is not None:
                self.states[task.key] = "failed"
                self.reasons[task.key] = f"{lost.title}: {self.reasons[lost.key]}"

    def tell(self, key: str, failure: str | None) -> None:
        """A task has ended: None if it succeeded, else why not."""
        self.states[key] = "done" if failure is None else "failed"
        if failure is not None:
            self.reasons[key] = failure

    def among(self, state: State) -> list[Task]:
        """The tasks in a state, in order."""
        return [task for key, task in self.tasks.items() if self.states[key] == state]

    @property
    def over(self) -> bool:
        """Nothing runs and nothing will."""
        self._spread_failures()
        idle = not self.among("running") and not self.among("waiting")
        return idle and (self.source is None or self.source.over)


def failure_of(task: Task, notes: Path) -> str | None:
    """Why a task, or what it needs, failed when it was last tried; None if it did not."""
    for each in closure([task]).values():
        note = notes / f"failed-{each.key}.json"
        if storage.exists(note) and not each.done():
            reason = read_json(note)["reason"]
            return reason if each is task else f"{each.title}: {reason}"
    return None
