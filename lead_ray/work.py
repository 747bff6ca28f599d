"""One training run, of either stage, as a single worker sees it. No Ray here: `launch` brings the workers."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lead_ray import storage, train
from lead_ray.artefacts import RunFolder, atomic, plain
from lead_ray.images import feed, sampling
from lead_ray.machine import denormals_flushed, keep_freed_memory, quickest_convolutions, single_thread
from lead_ray.models import weights
from lead_ray.models.batchnorm import synchronise
from lead_ray.notice import Notice
from lead_ray.recording import recorded
from lead_ray.stage import Stage
from lead_ray.worker import Worker, check_agreement, largest, meet


def open_images(stage: Stage, worker: Worker, decode: feed.Decode) -> feed.Images:
    """The images of this worker's lanes, step by step.

    Raises: ValueError when they are to stay on the device and do not fit.
    """
    plan, lanes, source = stage.sampling(), worker.lanes(stage.lanes), stage.source()
    if stage.streams:
        return feed.stream(plan, lanes, source, decode, worker.device, steps=stage.schedule().steps)
    feed.check_room(source.gigabytes(plan.held(0, lanes)), worker.device, worker.local)
    meet(worker)  # before another takes of what is free
    return feed.resident(plan, lanes, source, decode, worker.device)


def view_pairs(stage: Stage, batches: Iterator[feed.Batch]) -> Iterator[tuple[Tensor, ...]]:
    """Pairs of augmented views of each batch."""
    per_lane = stage.sampling().per_lane
    if stage.pairs == "images" and per_lane < 2:
        raise ValueError(f"optim.batch_size must be >= {2 * stage.lanes} to pair images, got {stage.optim.batch_size}")
    for step, images, places in batches:
        partners = images
        if stage.pairs == "images":
            # The next image of the same lane's share, so that it does not depend on the number of workers.
            rows = torch.arange(len(images), device=images.device).view(-1, per_lane)
            partners = images[rows.roll(-1, dims=1).flatten()]
        yield stage.pair_views(
            images, partners, rows=places, generator=sampling.generator(stage.seed, sampling.AUGMENT, step)
        )


def work(stage: Stage, folder: RunFolder, images: feed.Images, worker: Worker) -> Iterator[dict[str, int | float]]:
    """Train from the last checkpoint to the end, or until told to stop; keep what must be kept, yield the metrics.

    Rank 0 writes metrics, checkpoints, weights and the result; all workers compute the same.
    """
    if worker.device.type == "cpu":
        keep_freed_memory()
        with denormals_flushed():
            yield from _work(stage, folder, images, worker)
    else:
        with single_thread(), quickest_convolutions():
            yield from _work(stage, folder, images, worker)


def _work(stage: Stage, folder: RunFolder, images: feed.Images, worker: Worker) -> Iterator[dict[str, int | float]]:
    torch.manual_seed(sampling.generator(stage.seed, sampling.WEIGHTS).initial_seed())
    learner = stage.build()
    if stage.sync_batchnorm:
        synchronise(learner)
    learner = learner.to(worker.device, memory_format=torch.channels_last)
    optimizer = train.make_optimizer(learner, stage.optim)
    first_step, precision = _resume(folder, learner, optimizer, worker)
    precision = precision or train.resolve_precision(stage.precision, worker.device)
    check_agreement(first_step, worker)
    if worker.rank == 0:
        _keep_on_the_way(stage, folder, learner, first_step, precision)  # a kill may have come after its checkpoint
    learner.train()
    schedule = stage.schedule()
    batches = feed.Waits(images(first_step))
    spent = {metrics["step"]: metrics["seconds"] for metrics in folder.metrics()}.get(first_step, 0.0)
    started = time.perf_counter() - spent
    pairs = view_pairs(stage, batches)
    if first_step < schedule.steps and stage.records(worker.device, worker.world):
        pairs = recorded(learner, pairs, precision)
    network = worker.wrap(learner)
    if stage.compile:
        network = train.compiled(network, worker.device)
    heard: Notice | None = None

    def noticed(step: int) -> bool:
        nonlocal heard
        heard = worker.notice(step)
        return heard is not None

    for metrics in train.train(
        network,
        learner,
        optimizer,
        pairs,
        schedule,
        first_step=first_step,
        report_every=stage.report_every,
        precision=precision,
        shares=1 if stage.sync_batchnorm else worker.shares,  # such a BatchNorm has all images in one pass
        noticed=noticed,
    ):
        step = metrics["step"]
        metrics["images_per_second"] *= worker.world
        metrics["seconds"] = time.perf_counter() - started
        metrics["stall"] = largest(batches.share(), worker)
        if worker.rank == 0:
            folder.append_metrics(metrics)
            if heard or step % stage.checkpoint_every == 0 or step == schedule.steps:
                parts = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "precision": precision}
                folder.save_checkpoint(step, parts)
            _keep_on_the_way(stage, folder, learner, step, precision)
        yield metrics
        if heard is Notice.STOP and step < schedule.steps:
            return
    if worker.rank == 0:
        _finish(stage, folder, learner, schedule.steps, precision)


def _resume(
    folder: RunFolder, learner: nn.Module, optimizer: torch.optim.Optimizer, worker: Worker
) -> tuple[int, torch.dtype | None]:
    """Load the last checkpoint, if there is one; returns the steps that are done, and in which precision.

    A run ends in the precision that it began in, whatever "auto" would be on this machine.
    """
    if (state := folder.latest_checkpoint(worker.device)) is None:
        return 0, None
    try:
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the checkpoint in {folder.path / 'checkpoints'} is of another network or objective: "
            "delete it to start this run again from its first step"
        ) from error
    return state["step"], state.get("precision")


def _finish(stage: Stage, folder: RunFolder, learner: nn.Module, steps: int, precision: torch.dtype) -> None:
    trained = _keep(folder.path / "encoder.safetensors", stage, folder, learner, steps, precision)
    folder.finish({"steps": steps, "images": trained["images"], **folder.metrics()[-1]})


def _keep_on_the_way(stage: Stage, folder: RunFolder, learner: nn.Module, step: int, precision: torch.dtype) -> None:
    """Write this step's encoder if it is one of those that stay, unless it is there."""
    path = folder.encoder(step)
    if stage.encoder_every and step and step % stage.encoder_every == 0 and not storage.exists(path):
        _keep(path, stage, folder, learner, step, precision)


def _keep(
    path: Path, stage: Stage, folder: RunFolder, learner: nn.Module, steps: int, precision: torch.dtype
) -> dict[str, Any]:
    """Write the encoder as it is after so many steps; returns what its card says of its training."""
    trained = {
        "run": folder.path.name,
        "data": plain(stage.data),
        "images": sum(stage.sampling().shard_sizes),
        "steps": steps,
        "batch_size": stage.optim.batch_size,
        "precision": str(precision).removeprefix("torch."),
        "settings": plain(stage),
    }
    with atomic(path) as temporary:
        weights.save(temporary, learner.encoder(), trained)
    return trained
