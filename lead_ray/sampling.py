"""Which images make up which step: a pure function of seed and step, the same for any number of workers.

Shards fall into `lanes`; every batch takes the same number of images from each lane, and each lane is shuffled anew
every epoch. A worker holds whole lanes, so data are sharded, and yet the global batch of a step does not depend on
the number of workers: one worker with four lanes draws what four workers with one lane each draw together. Nothing
is stored to resume: step 1000 is computed, not reached.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHUFFLE, AUGMENT, WEIGHTS = range(3)  # what random numbers are for; each use has a stream of its own


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator whose stream belongs to these keys alone."""
    state = np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class Sampling:
    """Batches over lanes of images.

    Args:
        lane_sizes: images in each lane, of all workers.
        batch_size: images per step, of all workers; a multiple of the number of lanes.
    """

    lane_sizes: tuple[int, ...]
    batch_size: int
    seed: int

    def __post_init__(self):
        lanes = len(self.lane_sizes)
        if not min(self.lane_sizes):
            raise ValueError(f"the split holds {sum(self.lane_sizes)} images, fewer than the {lanes} lanes: add some")
        if self.batch_size % lanes:
            raise ValueError(f"optim.batch_size must be a multiple of the {lanes} lanes, got {self.batch_size}")
        if self.per_lane > min(self.lane_sizes):
            raise ValueError(
                f"optim.batch_size={self.batch_size} takes {self.per_lane} images of each of {lanes} lanes, and the "
                f"smallest holds {min(self.lane_sizes)}: lower it to at most {min(self.lane_sizes) * lanes}"
            )

    @property
    def per_lane(self) -> int:
        return self.batch_size // len(self.lane_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; what is left over of a pass is dropped, as in the reference codes."""
        return min(self.lane_sizes) // self.per_lane

    def batches(self, first_step: int, lanes: tuple[int, ...]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Endless (step, rows among this worker's images, places in the global batch).

        Args:
            lanes: the lanes that this worker holds, their images one after another in this order.
        """
        offsets = np.cumsum([0, *(self.lane_sizes[lane] for lane in lanes)]).tolist()
        places = torch.cat([torch.arange(self.per_lane) + lane * self.per_lane for lane in lanes])
        step, epoch, orders = first_step, None, []
        while True:
            if epoch != (epoch := step // self.steps_per_epoch):
                orders = [
                    torch.randperm(self.lane_sizes[lane], generator=generator(self.seed, SHUFFLE, epoch, lane)) + offset
                    for lane, offset in zip(lanes, offsets, strict=False)
                ]
            start = step % self.steps_per_epoch * self.per_lane
            yield step, torch.cat([order[start : start + self.per_lane] for order in orders]), places
            step += 1
