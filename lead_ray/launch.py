"""Start a stage: in this process, or on Ray Train workers that Ray Data feeds."""

import dataclasses
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lead_ray import ingest, storage
from lead_ray.artefacts import RunFolder
from lead_ray.errors import Preempted, WorkerError
from lead_ray.foreground import followed, interruptible, on_sigterm, show
from lead_ray.images import feed
from lead_ray.machine import cores
from lead_ray.notice import End, Notice
from lead_ray.progress import Phase, phase
from lead_ray.resources import wants_gpus, worker_resources
from lead_ray.stage import Stage, pick_device
from lead_ray.work import open_images, work
from lead_ray.worker import Worker

RESTARTS = 3  # of all workers together, after one has died; each goes on from the last checkpoint
WAITS = 30  # of a minute each, Ray's own, for a cluster that must grow before the workers find room
GROWTH = 300.0  # seconds between looks at whether there is room for more workers, which costs a start of all
LOOK = 1.0  # seconds between looks at whether workers are done or dead, where Ray's own are two
HEED = 10  # steps between looks, of all workers together, at whether a node or the run is to end
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
        wanted = range(stage.encoder_every, steps + 1, stage.encoder_every) if stage.encoder_every else ()
        if set(wanted) - folder.encoders().keys():
            print(f"{title}: it kept other encoders on its way, or none; another --name trains it again, with these")
        return folder
    if stage.ingest == "auto":
        took = "stream" if stage.streams else "resident"
        print(f"{title}: ingest {took}, images take {stage.source().gigabytes():.3g} GB (memory={stage.memory:g})")
    with folder.locked(), phase(title, steps) as shown:
        if folder.result is not None:
            return folder  # by another process, since we looked
        if kept := folder.kept_step():
            print(f"{title}: goes on from step {kept}")
        if stage.workers:
            with followed(folder, lambda history: show(shown, history[-1])):
                _on_ray(stage, folder)
        else:
            _here(stage, folder, shown)
    print(f"{title}: {folder.path}")
    return folder


def _here(stage: Stage, folder: RunFolder, shown: Phase) -> None:
    """In this process. Raises: Preempted after SIGTERM, once the step is finished and kept."""
    told = threading.Event()
    with on_sigterm(told.set):
        worker = Worker(device=pick_device(stage.device), notice=lambda step: Notice.STOP if told.is_set() else None)
        for metrics in work(stage, folder, open_images(stage, worker, feed.in_threads), worker):
            show(shown, metrics)
    _check_finished(folder)


def _check_finished(folder: RunFolder) -> None:
    if folder.result is None:
        raise Preempted(f"stopped by SIGTERM after step {folder.metrics()[-1]['step']}, which is kept")


def _on_ray(stage: Stage, folder: RunFolder) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(LOOK))
    ingest.connect()  # before Ray is imported here, which is when it reads what this sets
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    crew, resources = stage.crew, ray.cluster_resources()
    use_gpu = wants_gpus(stage.device, crew.fewest, resources)
    # Beside this process: it outlives the nodes of the workers.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    end = ray.remote(num_cpus=0, scheduling_strategy=here)(End).remote()
    kind = TorchTrainer
    if crew.elastic:
        from lead_ray.elastic import EvenTrainer as kind
    trainer = kind(
        _worker,
        train_loop_config={"stage": stage, "folder": folder, "end": end},
        scaling_config=ScalingConfig(
            num_workers=(crew.fewest, crew.most) if crew.elastic else crew.most,
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(resources, crew, use_gpu),
            elastic_resize_monitor_interval_s=GROWTH,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=storage.uri(folder.path),
            failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=WAITS),
        ),
    )

    def stop() -> None:
        if not ray.get(end.tell.remote(), timeout=5):
            raise Preempted("stopped by SIGTERM before its workers had begun")

    with on_sigterm(stop):
        follow_up(trainer.fit, folder.path / FAILURE)
    _check_finished(folder)


def follow_up(fit: Callable[[], Any], failure: Path) -> None:
    """Call a trainer's fit(), whose workers write to `failure` what trying again cannot mend, and say what came of it.

    Raises: WorkerError with what they wrote, or when the cluster has no room for them; Ray's TrainingFailedError when
      they died; KeyboardInterrupt.
    """
    from ray.train import ControllerError, TrainingFailedError

    storage.remove(failure)
    try:
        with interruptible():
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


def _worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: read its lanes and train.

    Ray starts all workers again after any error. That mends a lost process, but not wrong settings or a loss that
    is not finite or a full disk: the worker that meets such an error writes it down, and those started again return
    at once.
    """
    failure = config["folder"].path / FAILURE
    if storage.exists(failure) or config["folder"].result is not None:
        return
    try:
        _train(**config)
    except (ConnectionError, TimeoutError):  # OSErrors too, but what a worker meets whose neighbour died
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        with suppress(OSError):  # on a full disk the file stays empty
            if not storage.is_remote(failure):
                failure.touch()
            storage.write_bytes(failure, f"{error}\n".encode())
        raise


def _train(stage: Stage, folder: RunFolder, end: Any) -> None:
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    shares, left = divmod(stage.crew.most, context.get_world_size())
    if left:
        raise ValueError(f"workers={stage.workers} do not go together with Ray's {context.get_world_size()} of them")
    device = torch.device("cpu") if stage.device == "cpu" else get_device()  # where a node has both
    if device.type == "cpu":
        torch.set_num_threads(max(1, cores() // context.get_local_world_size()))
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=device,
        local=context.get_local_world_size(),
        shares=shares,
        notice=_notices(end),
        wrap=lambda module: prepare_model(
            module,
            move_to_device=device,
            parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True},
        ),
    )
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)) // worker.world)
    decode = partial(ingest.by_ray_data, at_once=at_once)
    # What it yields is in metrics.jsonl. Told to Ray as well, it would wait wherever it comes faster than Ray's
    # controller looks, every LOOK seconds.
    for _ in work(stage, folder, open_images(stage, worker, decode), worker):
        pass


def _notices(end: Any) -> Callable[[int], Notice | None]:
    """What all workers hear together every HEED steps: of a node that Ray drains, once, and of the run's end."""
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    first = ray.train.get_context().get_world_rank() == 0
    saved = False

    def told() -> bool:
        try:
            return first and ray.get(end.hear.remote())
        except ray.exceptions.RayError:  # the driver is gone, and with it the run
            return False

    def notice(step: int) -> Notice | None:
        nonlocal saved
        if step % HEED:
            return None
        if broadcast_from_rank_zero(told()):
            return Notice.STOP
        if saved or ray.train.get_preemption_info() is None:
            return None
        saved = True
        return Notice.SAVE

    told()  # from now on there is someone to hear
    return notice
