"""Start a stage: in this process, or on Ray Train workers that Ray Data feeds."""

import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lead_ray import ingest, storage
from lead_ray.artefacts import RunFolder
from lead_ray.errors import WorkerError
from lead_ray.images import feed
from lead_ray.machine import cores
from lead_ray.progress import Phase, phase
from lead_ray.stage import Stage, open_images, pick_device, work
from lead_ray.worker import Worker

RESTARTS = 3  # of all workers together, after one has died; each goes on from the last checkpoint
WAITS = 30  # of a minute each, Ray's own, for a cluster that must grow before the workers find room
LEAST_CPU = 0.1
FAILURE = "error.txt"  # what a worker says that fails for a reason which trying again cannot mend


def run(stage: Stage, *, title: str | None = None) -> RunFolder:
    """Train a stage unless it is finished, from its last checkpoint where there is one; return its folder."""
    # Workers need not stand in this folder.
    paths = {name: storage.absolute(value) for name, value in vars(stage).items() if isinstance(value, Path)}
    stage = dataclasses.replace(stage, **paths)
    steps = stage.schedule().steps
    folder = stage.open()
    title = title or f"{stage.kind} {stage.name}"
    if folder.result is not None:
        print(f"{title}: finished before, {folder.path}")
        return folder
    if stage.ingest == "auto":
        took = "stream" if stage.streams else "resident"
        print(f"{title}: ingest {took}, images take {stage.source().gigabytes():.3g} GB (memory={stage.memory:g})")
    with folder.locked(), phase(title, steps) as shown:
        if folder.result is not None:
            return folder  # by another process, since we looked
        if stage.workers:
            with _followed(folder, shown):
                _on_ray(stage, folder)
        else:
            worker = Worker(device=pick_device(stage.device))
            for metrics in work(stage, folder, open_images(stage, worker, feed.in_threads), worker):
                _show(shown, metrics)
    print(f"{title}: {folder.path}")
    return folder


def _show(shown: Phase, metrics: dict[str, int | float]) -> None:
    shown.update(metrics["step"], f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s")


@contextmanager
def _followed(folder: RunFolder, shown: Phase) -> Iterator[None]:
    """Show what rank 0, in another process, adds to metrics.jsonl."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(20 if storage.is_remote(folder.path) else 1):
            if history := folder.metrics():
                _show(shown, history[-1])

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        if history := folder.metrics():
            _show(shown, history[-1])


def _on_ray(stage: Stage, folder: RunFolder) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ingest.connect()
    resources = ray.cluster_resources()
    use_gpu = wants_gpus(stage.device, stage.workers, resources)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"stage": stage, "folder": folder},
        scaling_config=ScalingConfig(
            num_workers=stage.workers,
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(resources, stage.workers, use_gpu),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage.uri(folder.path),
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=WAITS),
        ),
    )
    follow_up(trainer.fit, folder.path / FAILURE)


def follow_up(fit: Callable[[], Any], failure: Path) -> None:
    """Call a trainer's fit(), whose workers write to `failure` what trying again cannot mend, and say what came of it.

    Raises: WorkerError with what they wrote, or when the cluster has no room for them; Ray's TrainingFailedError when
      they died; KeyboardInterrupt.
    """
    from ray.train import ControllerError, TrainingFailedError

    storage.remove(failure)
    try:
        with _interruptible():
            fit()
    except TrainingFailedError as error:
        if storage.exists(failure):
            raise WorkerError(_said(failure)) from error
        if isinstance(error, ControllerError):
            said = str(error.controller_failure).strip().partition("\n")[0]
            raise WorkerError(
                f"Ray could not bring up the workers, or lost hold of them ({said}). `ray status` says what the "
                "cluster has and waits for: ask for fewer --workers, or add machines, and run the same command again"
            ) from error
        raise
    if storage.exists(failure):
        raise WorkerError(_said(failure))


def _said(failure: Path) -> str:
    """The last line: an error that went through Ray begins with its traceback."""
    lines = storage.read_text(failure).strip().splitlines()
    return lines[-1].strip() if lines else f"a worker could not write to {failure} why it failed: free space, run again"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as Python has it: Ray's fit() takes SIGINT over, exits with code 0 on it and never gives it back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


def wants_gpus(device: str, workers: int, cluster: dict[str, float]) -> bool:
    """auto: GPUs if there is one for each worker."""
    return device == "cuda" or (device == "auto" and cluster.get("GPU", 0) >= workers)


def worker_resources(cluster: dict[str, float], workers: int, use_gpu: bool) -> dict[str, float]:
    """What each worker asks for: a GPU if wanted, and its share of the cores; one is left to Ray Data.

    Were nothing left, Ray Data's tasks would wait for ever, and the workers for them.

    Raises: ValueError when the cluster cannot meet it and nothing says that it might grow.
    """
    grows = bool(os.environ.get("RAY_ADDRESS"))  # a cluster joined by address may have an autoscaler
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    if use_gpu:
        if gpus < workers and grows:
            print(f"the cluster has {gpus:.0f} GPUs, the run needs {workers}; waiting for it to grow", flush=True)
        elif gpus < workers:
            remedy = f"--workers {gpus:.0f}" if gpus else "--device cpu"
            raise ValueError(f"workers={workers} need a GPU each, the cluster has {gpus:.0f}: use {remedy}")
        return {"CPU": 1.0 if cpus > workers else LEAST_CPU, "GPU": 1.0}
    share = min((cpus - 1) / workers, max(1, (cpus - 1) // workers))
    if share < LEAST_CPU and grows:
        print(
            f"the cluster has {cpus:g} CPUs, the run needs {1 + workers * LEAST_CPU:g}; waiting for it to grow",
            flush=True,
        )
    elif share < LEAST_CPU:
        raise ValueError(
            f"workers={workers} need {LEAST_CPU} CPUs each and Ray Data one, the cluster has {cpus:g}: "
            "use --workers 0 for this process alone"
        )
    return {"CPU": max(LEAST_CPU, math.floor(100 * share) / 100)}


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: read its lanes, train, report.

    Ray starts all workers again after any error. That mends a lost process, but not wrong settings or a loss that
    is not finite or a full disk: the worker that meets such an error writes it down, and those started again return
    at once.
    """
    failure = config["folder"].path / FAILURE
    if storage.exists(failure) or config["folder"].result is not None:
        return
    try:
        _train(config["stage"], config["folder"])
    except (ConnectionError, TimeoutError):  # OSErrors too, but what a worker meets whose neighbour died
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        with suppress(OSError):  # on a full disk the file stays empty
            if not storage.is_remote(failure):
                failure.touch()
            storage.write_bytes(failure, f"{error}\n".encode())
        raise


def _train(stage: Stage, folder: RunFolder) -> None:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    device = torch.device("cpu") if stage.device == "cpu" else get_device()  # where a node has both
    if device.type == "cpu":
        torch.set_num_threads(max(1, cores() // context.get_local_world_size()))
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=device,
        local=context.get_local_world_size(),
        wrap=lambda module: prepare_model(
            module,
            move_to_device=device,
            parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True},
        ),
    )
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // worker.world)
    decode = partial(ingest.by_ray_data, at_once=at_once)
    for metrics in work(stage, folder, open_images(stage, worker, decode), worker):
        ray.train.report(metrics)
