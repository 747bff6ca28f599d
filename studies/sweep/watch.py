"""What a person sees of a study: its plan before, one screen while it runs, and loggers that were asked for."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lead_ray import storage
from sweep.agenda import Agenda
from sweep.pace import Paces
from sweep.plan import Task, Train

Watcher = Literal["mlflow", "wandb"]
PACKAGES: dict[Watcher, str] = {"mlflow": "mlflow", "wandb": "wandb"}
SAID_EVERY = 20.0  # seconds between lines where there is no terminal
STATES = ("done", "running", "waiting", "failed")


class Screen:
    """Counts, what runs and how far it is, what failed, the best so far, time left; in a log a line now and then."""

    def __init__(self, title: str, agenda: Agenda, paces: Paces, best: Callable[[], str], *, live: bool):
        self.title, self.agenda, self.paces, self.best = title, agenda, paces, best
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if live and self.console.is_terminal else None
        self.said, self.at, self.started = "", 0.0, time.monotonic()
        self.found = "", ""

    def __enter__(self) -> "Screen":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self) -> None:
        """Once a second at most on a terminal; in a log when something ended, and now and then."""
        now, counts = time.monotonic(), self.counts()
        if self.live:
            if now - self.at > 1:
                self.at = now
                self.live.update(self.picture(), refresh=True)
        elif counts != self.said or now - self.at > SAID_EVERY:
            self.said, self.at = counts, now
            running = "; ".join(self._progress(task) for task in self.agenda.among("running"))
            print(
                " | ".join(filter(None, (f"{self.title}: {counts}", self.left(), running, self.leader()))), flush=True
            )

    def counts(self) -> str:
        return ", ".join(f"{len(self.agenda.among(state))} {state}" for state in STATES)

    def leader(self) -> str:
        """The best so far, looked up when something has ended."""
        counts = self.counts()
        if self.found[0] != counts:
            self.found = counts, self.best()
        return self.found[1]

    def left(self) -> str:
        """Of what is known: trainings that run count in full."""
        tasks = [*self.agenda.among("running"), *self.agenda.among("waiting")]
        known = [pace.seconds for task in tasks if (pace := self.paces.of(task)) and pace.source == "measured here"]
        if not known:
            return ""
        unknown = len(tasks) - len(known)
        return f"{duration(sum(known))} of work left" + (f" and {unknown} tasks of unknown length" if unknown else "")

    def picture(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(f"{self.title}, {duration(time.monotonic() - self.started)}", style="bold"))
        grid.add_row(Text(", ".join(filter(None, (self.counts(), self.left())))))
        for task in self.agenda.among("running"):
            grid.add_row(Text(f"  {self._progress(task)}", style="cyan"))
        for task in self.agenda.among("failed")[:5]:
            grid.add_row(Text(f"  {task.title}: {self.agenda.reasons[task.key]}", style="red"))
        if best := self.leader():
            grid.add_row(Text(best))
        return grid

    def _progress(self, task: Task) -> str:
        history = task.folder.metrics() if isinstance(task, Train) and not storage.is_remote(task.folder.path) else []
        if not history:
            return task.title
        steps = task.settled().schedule().steps
        return f"{task.title} {history[-1]['step']}/{steps}, loss {history[-1]['loss']:.3f}"


def duration(seconds: float) -> str:
    """Such as 42 s, 7 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def print_plan(title: str, agenda: Agenda, paces: Paces) -> None:
    """Every task, whether it is done, and the hours that what is left should take on one device."""
    print(f"{title}: state, time on one device and how it is known, task")
    hours, unknown = {"measured here": 0.0, "estimated": 0.0}, 0
    for key, task in agenda.tasks.items():
        state = agenda.states[key]
        pace = paces.of(task) if state != "done" else None
        unknown += state != "done" and pace is None
        if pace:
            hours[pace.source] += pace.seconds / 3600
        known = f"{duration(pace.seconds):>8} {pace.source}" if pace else " " * 9 + "unknown" * (state != "done")
        print(f"{state:8} {known:24} {task!r}")
    kinds = {kind: sum(task.kind == kind for task in agenda.tasks.values()) for kind in ("stage1", "stage2", "measure")}
    print(
        f"{len(agenda.tasks)} tasks: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; "
        f"{len(agenda.among('done'))} done. Left, in hours of one device: {hours['measured here']:,.2f} by what runs "
        f"measured here; {hours['estimated']:,.2f} estimated from counted operations at {paces.tflops:g} TFLOP/s, an "
        f"assumption that --tflops replaces; {unknown} tasks of unknown length."
    )
    if agenda.source is not None:
        trials, tasks = agenda.source.left()
        seconds = sum(pace.seconds for task in tasks if isinstance(task, Train) and (pace := paces.of(task)))
        print(
            f"Beside these a search of {trials} more trials, each of at most {len(tasks)} tasks that trials may share: "
            f"at most {trials * seconds / 3600:,.2f} hours of training."
        )


def loggers(watch: tuple[Watcher, ...], study: str, *, workers: int) -> list[Any]:
    """Ray's own callbacks for services that were asked for. Raises: ValueError if one cannot be had."""
    for name in watch:
        if not workers:
            raise ValueError(f"watch={name} needs Ray: use --workers 1 or more; TensorBoard is written without it too")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"watch={name} needs the package {PACKAGES[name]}: uv pip install {PACKAGES[name]}")
    made: list[Any] = []
    if "mlflow" in watch:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made.append(MLflowLoggerCallback(experiment_name=study))
    if "wandb" in watch:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made.append(WandbLoggerCallback(project=study))
    return made
