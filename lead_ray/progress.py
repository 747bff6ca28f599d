"""One tidy line a phase: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_SECONDS = 20


class Phase:
    """A phase of work with a known end."""

    def __init__(self, title: str, total: int, bar: Progress | None):
        self.title, self.total, self.done, self.note = title, total, 0, ""
        self.bar = bar
        self.task = bar.add_task(title, total=total, note="") if bar else None
        self.said = time.monotonic()
        self.first: tuple[float, int] | None = None
        if not bar:
            print(f"{title} ...", flush=True)

    def update(self, done: int, note: str = "") -> None:
        """Set what is done so far, and a few words beside it."""
        self.done, self.note = done, note
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if self.first is None:  # the pace counts from here: starting up says nothing about it
            self.first = now, done
        if now - self.said > LOG_SECONDS and done > self.first[1]:
            left = (now - self.first[0]) / (done - self.first[1]) * (self.total - done)
            print(f"{self.title}: {done}/{self.total}, {note}, {left:.0f} s left", flush=True)
            self.said = now


@contextmanager
def phase(title: str, total: int) -> Iterator[Phase]:
    """Show a phase while it works, and what it took."""
    console = Console(file=sys.stdout)
    started = time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                      console=console) as bar:  # fmt: skip
            yield Phase(title, total, bar)
    else:
        shown = Phase(title, total, None)
        yield shown
        print(f"{title}: done in {time.monotonic() - started:.0f} s. {shown.note}", flush=True)
