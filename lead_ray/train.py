"""The training step and loop of both stages, in plain PyTorch: a generator of metrics."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lead_ray.machine import native_bf16
from lead_ray.optimisers import never_compiled


@dataclass(frozen=True, kw_only=True)
class Optim:
    """SGD with linear warm-up and a cosine decay by step; defaults of LEAD's stage 1 (section 4)."""

    algorithm: Literal["sgd", "adam", "amsgrad"] = "sgd"
    """CL's stage 2 trains with adam, DVE with amsgrad."""
    lr: float = 0.03
    """Peak learning rate, as it stands: never rescaled by the batch size."""
    final_lr: float = 0.0
    """Where the cosine ends, as a share of lr."""
    decay_epochs: float | None = None
    """In place of the cosine: a tenth of the rate every so many epochs."""
    momentum: float = 0.9
    """Of SGD; Adam's first beta."""
    weight_decay: float = 1e-4
    batch_size: int = 256
    """Images per step, summed over all workers."""
    epochs: float = 200.0
    """Passes over the images."""
    steps: int | None = None
    """Steps in all; overrides epochs."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up; at most a tenth of the run."""

    def __post_init__(self):
        for name in ("lr", "batch_size", "epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be > 0, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"optim.steps must be >= 1, got {self.steps}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"optim.final_lr must lie in [0, 1], got {self.final_lr}")
        if self.decay_epochs is not None and self.decay_epochs <= 0:
            raise ValueError(f"optim.decay_epochs must be > 0, got {self.decay_epochs}")

    def schedule(self, steps_per_epoch: int) -> "Schedule":
        """Epochs as steps, for a data set of this length."""
        steps = self.steps or max(1, round(self.epochs * steps_per_epoch))
        warmup = min(round(self.warmup_epochs * steps_per_epoch), steps // 10)
        decay = None if self.decay_epochs is None else max(1, round(self.decay_epochs * steps_per_epoch))
        return Schedule(self.lr, steps, warmup, self.final_lr, decay)


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the step."""

    peak: float
    steps: int
    warmup: int
    final: float = 0.0
    decay: int | None = None

    def learning_rate(self, step: int) -> float:
        """Half a cosine over all steps, or a tenth every `decay`; during warm-up times a line from 1e-4 (mmcv's rule,
        by step)."""
        if self.decay is not None:
            rate = self.peak * 0.1 ** (step // self.decay)
        else:
            cosine = (1 + math.cos(math.pi * step / self.steps)) / 2
            rate = self.peak * (self.final + (1 - self.final) * cosine)
        if step < self.warmup:
            rate *= 1 - (1 - step / self.warmup) * (1 - 1e-4)
        return rate


def make_optimizer(learner: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """What moves the learner's trained parameters; the learning rate is set at every step."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    common = {"lr": 0.0, "weight_decay": optim.weight_decay, "fused": True}
    if optim.algorithm == "sgd":
        return never_compiled(torch.optim.SGD)(trained, momentum=optim.momentum, **common)
    amsgrad = optim.algorithm == "amsgrad"
    return never_compiled(torch.optim.Adam)(trained, betas=(optim.momentum, 0.999), amsgrad=amsgrad, **common)


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, or its distributed wrapper, compiled at its first call; parameters and their names are shared.

    On a GPU its kernels are replayed as CUDA graphs, which the fixed shapes of training allow. Save and load the
    network itself: the compiled one's state dict has other names.
    """
    return torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, ...],
    precision: torch.dtype,
    *,
    shares: int = 1,
) -> dict[str, Tensor]:
    """One step; metrics stay on the device.

    Args:
        shares: equal parts of the batch, which pass through the network one after the other as if each were a
            worker's own: gradients and metrics are their means, as they are the workers' means, BatchNorm and in-batch
            losses see one share, and only the first moves running statistics, as only rank 0's are kept. So it is
            exact, but for what workers exchange in a forward pass: synchronised BatchNorm, MoCo's keys.
    """
    optimizer.zero_grad()
    sums: dict[str, Tensor] = {}
    for number, share in enumerate(zip(*(view.chunk(shares) for view in views), strict=True)):
        last = number == shares - 1
        with _statistics_kept(network) if number else nullcontext(), nullcontext() if last else _apart(network):
            with torch.autocast(views[0].device.type, precision, enabled=precision != torch.float32):
                metrics = network(*share)
            (metrics["loss"] / shares).backward()
        sums = {name: value.detach() + sums[name] if number else value.detach() for name, value in metrics.items()}
    optimizer.step()
    return {name: value / shares for name, value in sums.items()} if shares > 1 else sums


def _apart(network: nn.Module) -> AbstractContextManager:
    """Gradients are summed here, and not averaged over the workers yet."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """BatchNorm normalises as ever, and does not take note of it."""
    tracking = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def train(
    network: nn.Module,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, ...]],
    schedule: Schedule,
    *,
    first_step: int = 0,
    report_every: int,
    precision: torch.dtype = torch.float32,
    shares: int = 1,
    noticed: Callable[[int], bool] = lambda step: False,
) -> Iterator[dict[str, int | float]]:
    """Train from first_step to the schedule's end; yield metrics every report_every steps and at the end.

    Args:
        network: called with the two views, returns metrics with "loss"; the learner, or its distributed wrapper.
        learner: has `after_step(progress)`, called with the share of steps done.
        batches: pairs of views, beginning with first_step's.
        shares: see train_step().
        noticed: whether there must be metrics after so many steps, too; the same for all workers.
    Raises: FloatingPointError naming the first step whose loss was not finite, before it is reported.
    """
    learner.train()
    bad_step, since, seen = None, time.perf_counter(), 0
    for step, views in zip(range(first_step, schedule.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        metrics = train_step(network, optimizer, views, precision, shares=shares)
        learner.after_step(step / schedule.steps)
        seen += len(views[0])
        # Kept on the device: looking at the loss at every step would make the host wait for it.
        broken = torch.where(metrics["loss"].isfinite(), schedule.steps, step)
        bad_step = broken if bad_step is None else torch.minimum(bad_step, broken)
        if noticed(step + 1) or (step + 1) % report_every == 0 or step + 1 == schedule.steps:
            values, bad = _of_all_workers(metrics, bad_step)
            if bad < schedule.steps:
                raise FloatingPointError(
                    f"loss is not finite at step {bad} (learning rate {schedule.learning_rate(bad):.2g}): "
                    "lower optim.lr or lengthen optim.warmup_epochs; the last checkpoint is from before it"
                )
            now = time.perf_counter()
            rates = {"lr": schedule.learning_rate(step), "images_per_second": seen / (now - since)}
            yield {"step": step + 1} | values | rates
            since, seen = time.perf_counter(), 0


def _of_all_workers(metrics: dict[str, Tensor], bad_step: Tensor) -> tuple[dict[str, float], int]:
    """Means over the workers, whose batches are of one size, and the first bad step of any: all must stop at it."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        means = torch.stack([value.float() for value in metrics.values()])
        dist.all_reduce(means)
        dist.all_reduce(bad_step, dist.ReduceOp.MIN)
        metrics = dict(zip(metrics, means / dist.get_world_size(), strict=True))
    return {name: float(value) for name, value in metrics.items()}, int(bad_step)


PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
Precision = Literal["auto", "fp32", "bf16"]


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype that autocast uses; auto takes bf16 where the device multiplies it natively."""
    if precision != "auto":
        return PRECISIONS[precision]
    return torch.bfloat16 if native_bf16(device.type) else torch.float32
