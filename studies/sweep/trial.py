"""What a trial does, in this process or in one of Ray's: one function of the command lines, and word of how it went.

Sent to Ray's workers as it stands here, so it names nothing of its neighbours.
"""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lead_ray import launch, storage
from lead_ray.artefacts import RunFolder, write_json
from lead_ray.errors import WorkerError
from lead_ray.evaluate import Evaluate, evaluate_each
from lead_ray.foreground import LOOK, followed
from lead_ray.stage import Stage


class Job(NamedTuple):
    """A task whose time has come."""

    key: str
    title: str
    settings: Stage | Evaluate
    """As a command line would be given them."""
    folder: Path
    """Of the run that is trained or measured."""
    notes: Path
    """Receives why jobs failed, and how long they took."""

    @property
    def kind(self) -> str:
        return self.settings.kind if isinstance(self.settings, Stage) else "measure"


def line_by_line(report: Callable[[dict[str, Any]], None]) -> Callable[[list[dict[str, Any]]], None]:
    """Report each line once, however often it comes."""
    seen = 0

    def look(history: list[dict[str, Any]]) -> None:
        nonlocal seen
        for metrics in history:
            if metrics["step"] > seen:
                seen = metrics["step"]
                report(metrics)

    return look


def attempt(job: Job, report: Callable[[dict[str, Any]], None]) -> str | None:
    """Do it, or go on with it; return why it failed, if it did, and keep that. Ctrl-C goes through.

    Every line that a training adds to its metrics.jsonl is reported. A run that another process trains is waited for.
    """
    started = time.monotonic()
    note = job.notes / f"failed-{job.key}.json"
    try:
        if isinstance(job.settings, Stage):
            folder = RunFolder(job.folder)
            _wait_for_others(folder)
            with followed(folder, line_by_line(report)):
                launch.run(job.settings, title=job.title)
        else:
            evaluate_each(job.settings)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        known = isinstance(error, ValueError | OSError | FloatingPointError | WorkerError)
        reason = lines[-1] if known else f"{type(error).__name__}: {lines[-1]}"
        write_json(note, {"task": job.title, "reason": reason, "traceback": traceback.format_exc()})
        return reason
    if storage.exists(note):
        storage.remove(note)
    took = {"task": job.key, "kind": job.kind, "title": job.title, "seconds": time.monotonic() - started}
    storage.make_folder(job.notes)
    storage.append(job.notes / "seconds.jsonl", json.dumps(took))
    return None


def _wait_for_others(folder: RunFolder) -> None:
    """Until no other process holds the run's lock."""
    while storage.exists(folder.path / "config.json") and folder.result is None:
        try:
            with folder.locked():
                return
        except ValueError:
            time.sleep(LOOK)
