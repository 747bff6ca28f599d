"""Carry out an agenda: in this process, or as trials of Ray Tune on a cluster."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lead_ray import ingest, storage
from lead_ray.machine import cores
from lead_ray.resources import wants_gpus
from sweep import trial
from sweep.agenda import Agenda
from sweep.plan import Task
from sweep.trial import attempt

DEATHS = 3  # of a trial's process, after which its task counts as failed
LEAST_CPU = 0.1  # what a trial asks for that only waits for its workers


@dataclass(frozen=True)
class Place:
    """Where tasks are carried out."""

    workers: int
    """Of each training; 0: this process, without Ray."""
    device: str
    readout_gpus: float
    """What measurements ask for of a GPU, where the cluster has any."""
    logs: Path
    """Receives TensorBoard's files."""
    at_once: int | None = None
    """Trainings that run at a time; None: as many as the cluster has GPUs for, without GPUs one."""


def in_process(agenda: Agenda, place: Place, show: Callable[[], None]) -> None:
    """One task after another."""
    from tensorboardX import SummaryWriter

    while tasks := agenda.next(1):
        for task in tasks:
            show()
            with SummaryWriter(str(place.logs / repr(task))) as writer:

                def write(metrics: dict[str, Any], writer: SummaryWriter = writer) -> None:
                    for name, value in metrics.items():
                        writer.add_scalar(name, value, metrics["step"])

                agenda.tell(task.key, attempt(task.job(agenda.notes), write))
    show()


def on_ray(agenda: Agenda, place: Place, show: Callable[[], None], callbacks: list[Any]) -> None:
    """Each training, and the measurements of each encoder, as a trial; what can run side by side does.

    Raises: KeyboardInterrupt, which Tune takes for itself.
    """
    if agenda.over:
        show()
        return
    # Trainings and read-outs share a machine's cores: threads that wait must sleep. Spinning, two on a core that is
    # busy took forty times as long as one. Read as a process loads torch, so it must be there before a cluster starts.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ingest.connect()
    import ray
    from ray import cloudpickle, tune

    for module in (trial, sys.modules[__name__]):  # other nodes need not have this folder
        cloudpickle.register_pickle_by_value(module)

    def asked(config: dict[str, Any]) -> "tune.PlacementGroupFactory":
        return tune.PlacementGroupFactory([needs(config["jobs"][0].kind, place, ray.cluster_resources())])

    def trainings() -> int:
        """Looked up anew: the cluster may have grown."""
        return room(place, ray.cluster_resources())

    class Watch(Unsaved, tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
            show()

    tuner = tune.Tuner(
        tune.with_resources(_trial, asked),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(agenda, trainings),
            num_samples=-1,
            reuse_actors=True,  # a process that has imported torch serves many trials
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=place.logs.name,
            storage_path=storage.uri(storage.absolute(place.logs.parent)),
            failure_config=tune.FailureConfig(max_failures=DEATHS - 1),
            callbacks=[Watch(), *callbacks],
            verbose=0,
        ),
    )
    tuner.fit()
    show()
    if not agenda.over:
        raise KeyboardInterrupt


def needs(kind: str, place: Place, have: dict[str, float]) -> dict[str, float]:
    """What a trial asks for of a cluster that has so much; GPUs of a training, whole ones, its own workers ask for."""
    if kind != "measure":
        return {"CPU": LEAST_CPU}
    gpus = place.readout_gpus if place.device != "cpu" and have.get("GPU") else 0
    return {"CPU": 0.5} | ({"GPU": gpus} if gpus else {})


def room(place: Place, have: dict[str, float]) -> int:
    """How many trainings run at a time on a cluster that has so much."""
    if place.at_once:
        return place.at_once
    return int(have["GPU"] // place.workers) if wants_gpus(place.device, place.workers, have) else 1


class Unsaved:
    """What Tune need not keep to restore an experiment: ours go on from what is on disk."""

    def __reduce__(self) -> tuple:
        return object, ()


def _name(tune_trial: Any) -> str:
    """Of a trial in logs."""
    first, *others = tune_trial.config["jobs"]
    return f"{first.title} [{first.key}]" + (f" and {len(others)} more" if others else "")


def _trial(config: dict[str, Any]) -> None:
    """What a trial's process does. What it reports reaches TensorBoard and whatever else watches."""
    import torch
    from ray import tune

    torch.set_num_threads(cores())
    for job in config["jobs"]:
        failure = attempt(job, tune.report)
        tune.report({"ended": job.key, "failure": failure})


def _searcher(agenda: Agenda, trainings: Callable[[], int]) -> Any:
    """The agenda as Tune asks for trials and tells what became of them."""
    from ray.tune.search import Searcher

    class Searching(Unsaved, Searcher):
        def __init__(self):
            super().__init__()
            self.begun: dict[str, list[Task]] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if tasks := agenda.next(trainings()):
                self.begun[trial_id] = tasks
                return {"jobs": [task.job(agenda.notes) for task in tasks]}
            if agenda.over:
                return Searcher.FINISHED
            time.sleep(0.1)  # Tune asks again at once
            return None

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if "ended" in result:
                agenda.tell(result["ended"], result["failure"])

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            self.on_trial_result(trial_id, result or {})
            for task in self.begun.pop(trial_id):
                if agenda.states[task.key] == "running":
                    agenda.tell(task.key, f"its process died {DEATHS} times" if error else "it ended without a word")

        def save(self, checkpoint_path: str) -> None:
            """Nothing: all that counts is in run folders."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, as save()."""

    return Searching()
