"""Which images make up which step: a pure function of seed and step, the same for any number of workers.

Shards are dealt to `lanes`; every batch takes the same number of images from each lane, and each lane is shuffled
anew every epoch. A worker holds whole lanes, so data are sharded, and yet the global batch of a step does not depend
on the number of workers: one worker with four lanes draws what four workers with one lane each draw together. Nothing
is stored to resume: step 1000 is computed, not reached.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SHUFFLE, AUGMENT, WEIGHTS, DEAL = range(4)  # what random numbers are for; each use has a stream of its own


def generator(seed: int, *keys: int) -> torch.Generator:
    """A CPU generator whose stream belongs to these keys alone."""
    state = np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class Read(NamedTuple):
    """A shard that must be at hand from a step on, until what is drawn of it in this epoch has been drawn."""

    step: int
    shard: int
    start: int
    """Row, among the worker's images, of its first image."""
    rows: list[int]
    """Rows, among the worker's images, of those drawn, in their order."""


@dataclass(frozen=True)
class Sampling:
    """Batches over lanes of images.

    Args:
        shard_sizes: images in each shard.
        lanes: shard i belongs to lane i % lanes.
        batch_size: images per step, of all workers; a multiple of the number of lanes.
        window: shards that each lane draws from at a time; 0: from all of them, a lane is shuffled whole.
        deal_every: epochs after which shards are dealt anew, in random order; 0: never.
    """

    shard_sizes: tuple[int, ...]
    lanes: int
    batch_size: int
    seed: int
    window: int = 0
    deal_every: int = 0

    def __post_init__(self):
        if not self.smallest_lane:
            images = sum(self.shard_sizes)
            raise ValueError(f"the split holds {images} images, fewer than the {self.lanes} lanes: add some")
        if self.batch_size % self.lanes:
            raise ValueError(f"optim.batch_size must be a multiple of the {self.lanes} lanes, got {self.batch_size}")
        if self.per_lane > self.smallest_lane:
            raise ValueError(
                f"optim.batch_size={self.batch_size} takes {self.per_lane} images of each of {self.lanes} lanes, and "
                f"the smallest holds {self.smallest_lane}: lower it to at most {self.smallest_lane * self.lanes}"
            )

    @property
    def per_lane(self) -> int:
        return self.batch_size // self.lanes

    @cached_property
    def smallest_lane(self) -> int:
        """Images in the smallest lane, however shards are dealt."""
        if self.deal_every:
            return sum(sorted(self.shard_sizes)[: len(self.shard_sizes) // self.lanes])
        return min(sum(self.shard_sizes[lane :: self.lanes]) for lane in range(self.lanes))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; what is left over of a pass is dropped, as in the reference codes."""
        return self.smallest_lane // self.per_lane

    def held(self, epoch: int, lanes: tuple[int, ...]) -> list[int]:
        """The shards of these lanes in one epoch, lane after lane."""
        dealt = list(range(len(self.shard_sizes)))
        if self.deal_every:
            random = generator(self.seed, DEAL, epoch // self.deal_every)
            dealt = torch.randperm(len(dealt), generator=random).tolist()
        return [shard for lane in lanes for shard in dealt[lane :: self.lanes]]

    def order(self, epoch: int, lane: int) -> Tensor:
        """The order in which the images of a lane are drawn in one epoch.

        A window slides over the lane's shards: each image of shard i is drawn at a random time between i and
        i + window, in units of one shard's share of the epoch. So shards come into use one by one, evenly spread, and
        at most `window` are in use at a time; fewer as an epoch begins and ends.
        """
        sizes = torch.tensor([self.shard_sizes[shard] for shard in self.held(epoch, (lane,))])
        random = generator(self.seed, SHUFFLE, epoch, lane)
        if not self.window:
            return torch.randperm(int(sizes.sum()), generator=random)
        shard = torch.arange(len(sizes)).repeat_interleave(sizes)
        delay = torch.rand(len(shard), generator=random, dtype=torch.float64)
        return (shard + self.window * delay).argsort(stable=True)

    def batches(self, first_step: int, lanes: tuple[int, ...]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Endless (step, rows among this worker's images, places in the global batch).

        Args:
            lanes: the lanes that this worker holds. Rows count the images of its shards in the order of held().
        """
        places = torch.cat([torch.arange(self.per_lane) + lane * self.per_lane for lane in lanes])
        step, epoch, orders = first_step, None, []
        while True:
            if epoch != (epoch := step // self.steps_per_epoch):
                orders = [self.order(epoch, lane) for lane in lanes]
                offsets = accumulate(map(len, orders), initial=0)
                orders = [order + offset for order, offset in zip(orders, offsets, strict=False)]
            start = step % self.steps_per_epoch * self.per_lane
            yield step, torch.cat([order[start : start + self.per_lane] for order in orders]), places
            step += 1

    def reads(self, first_step: int, lanes: tuple[int, ...]) -> Iterator[Read]:
        """The shards that batches() of the same arguments draws from, endless, in the order of first use."""
        for epoch in count(first_step // self.steps_per_epoch):
            begin = max(epoch * self.steps_per_epoch, first_step)
            drawn = slice(begin % self.steps_per_epoch * self.per_lane, self.steps_per_epoch * self.per_lane)
            first, reads = 0, []
            for lane in lanes:
                held = self.held(epoch, (lane,))
                sizes = np.array([self.shard_sizes[shard] for shard in held])
                starts = sizes.cumsum() - sizes
                rows = self.order(epoch, lane).numpy()[drawn]
                source = np.searchsorted(starts, rows, side="right") - 1
                for position in np.unique(source).tolist():
                    turns = np.flatnonzero(source == position)
                    step = begin + int(turns[0]) // self.per_lane
                    start = first + int(starts[position])
                    reads.append(Read(step, held[position], start, (first + rows[turns]).tolist()))
                first += int(sizes.sum())
            yield from sorted(reads, key=lambda read: read[:2])
