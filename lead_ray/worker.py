"""One process of a run, and what the processes of a run must agree on."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from lead_ray.notice import Notice

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Crew:
    """How many workers a run may have. Its steps are those of `most`, whatever the number at the time."""

    fewest: int
    most: int

    @classmethod
    def of(cls, workers: int | str) -> "Crew":
        """A number, or FEWEST:MOST.

        Raises: ValueError for anything else.
        """
        found = re.fullmatch(r"(\d+):(\d+)", workers) if isinstance(workers, str) else None
        fewest, most = map(int, found.groups()) if found else (workers, workers)
        if isinstance(most, str) or fewest < 0 or (found and not 1 <= fewest < most):
            raise ValueError(f"workers must be >= 0, or FEWEST:MOST such as 2:8, got {workers!r}")
        return cls(fewest, most)

    @property
    def elastic(self) -> bool:
        return self.fewest < self.most

    def fitting(self, room: int) -> int:
        """How many of `room` workers are used: as many as divide `most`, for each takes as many shares of a step."""
        return max((count for count in range(1, min(room, self.most) + 1) if self.most % count == 0), default=0)


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
    shares: int = 1
    """Of a step's batch: of as many workers as this one stands for."""
    notice: Callable[[int], Notice | None] = lambda step: None
    """What is to be heeded after so many steps of the run; the same for all workers."""

    def lanes(self, lanes: int) -> tuple[int, ...]:
        """The lanes that this worker holds, share after share."""
        crew = self.world * self.shares
        return tuple(lane for first in range(self.rank, crew, self.world) for lane in range(first, lanes, crew))


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
