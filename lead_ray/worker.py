"""One process of a run, and what the processes of a run must agree on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """One process of a run."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    local: int = 1
    """Workers on this machine."""
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module average its gradients over all workers."""

    def lanes(self, lanes: int) -> tuple[int, ...]:
        """The lanes that this worker holds."""
        return tuple(range(self.rank, lanes, self.world))


def check_agreement(first_step: int, worker: Worker) -> None:
    """Each worker reads the last checkpoint by itself: make sure that all read the same.

    Raises: ValueError naming the steps if they differ.
    """
    if worker.world == 1:
        return
    mine = torch.tensor(first_step, device=worker.device)
    all_workers = [torch.empty_like(mine) for _ in range(worker.world)]
    dist.all_gather(all_workers, mine)
    steps = [int(step) for step in all_workers]
    if len(set(steps)) > 1:
        raise ValueError(
            f"the workers would go on from different steps, {steps}: let all machines share the run's folder, "
            "or delete its newest checkpoint"
        )


def largest(value: float, worker: Worker) -> float:
    """The largest of all workers' values: what one waits for, all wait for."""
    if not dist.is_initialized():
        return value
    found = torch.tensor(value, device=worker.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)


def meet(worker: Worker) -> None:
    """Go on once all workers have come here."""
    largest(0.0, worker)
