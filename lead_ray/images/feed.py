"""How images reach a step: decoded once and kept on the device (resident), or decoded anew every epoch (stream).

Both take from `sampling` which images a step sees, and get pixels from a `Decode`: threads of this process here, Ray
Data in `ingest`.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lead_ray.images.decoding import decode_shard
from lead_ray.images.sampling import Sampling
from lead_ray.images.shards import Manifest, Shard, read_manifest, select
from lead_ray.machine import cores, sent

RESIDENT_SHARE = 0.8  # of a device's free memory; the rest is for the network and its activations
AHEAD = 8  # shards at least that are decoded before they are needed

Batch = tuple[int, UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]]
Images = Callable[[int], Iterator[Batch]]
"""First step -> (step, this worker's images, their places in the global batch), at least to the end of the run."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """The shards of a prepared split."""

    folder: Path
    manifest: Manifest
    shards: list[Shard]

    @classmethod
    def open(cls, folder: Path, split: str) -> "Source":
        """Raises: FileNotFoundError, ValueError: not prepared, unknown split."""
        manifest = read_manifest(folder)
        return cls(folder, manifest, select(manifest, split))

    def gigabytes(self, numbers: Iterable[int] | None = None) -> float:
        """Of the images of these shards, or of all, decoded."""
        shards = self.shards if numbers is None else [self.shards[number] for number in numbers]
        return sum(shard.rows for shard in shards) * 3 * self.manifest.size**2 / 1e9


Decode = Callable[[Source, Iterable[int], int], Iterator[UInt8[np.ndarray, "n h w 3"]]]
"""A source, the numbers of the shards that are wanted, in order, how many may be decoded ahead -> their images, in
arrays of the caller's own."""


def in_threads(source: Source, wanted: Iterable[int], ahead: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Decode in threads of this process.

    Raises: ValueError naming a file that is damaged and the command that mends it.
    """
    read = partial(decode_shard, source.folder, size=source.manifest.size, command=source.manifest.command)
    shards = (source.shards[number] for number in wanted)
    pool = ThreadPoolExecutor(cores())
    try:
        pending = deque(pool.submit(read, shard) for shard in islice(shards, ahead))
        while pending:
            pixels = pending.popleft().result()
            pending.extend(pool.submit(read, shard) for shard in islice(shards, 1))
            yield pixels
    finally:
        pool.shutdown(cancel_futures=True)


def resident(plan: Sampling, lanes: tuple[int, ...], source: Source, decode: Decode, device: torch.device) -> Images:
    """The lanes' images on the device, read before the first step, and again when their shards are dealt anew."""
    size = source.manifest.size

    def load(shards: list[int]) -> UInt8[Tensor, "n 3 h w"]:
        rows = [plan.shard_sizes[shard] for shard in shards]
        pixels = torch.empty((sum(rows), size, size, 3), dtype=torch.uint8, device=device)
        for part, found in zip(pixels.split(rows), decode(source, shards, AHEAD), strict=True):
            part.copy_(torch.from_numpy(found))
        return pixels.permute(0, 3, 1, 2)

    def batches(first_step: int, shards: list[int], pixels: UInt8[Tensor, "n 3 h w"]) -> Iterator[Batch]:
        for step, rows, places in plan.batches(first_step, lanes):
            if step % plan.steps_per_epoch == 0 and (now := plan.held(step // plan.steps_per_epoch, lanes)) != shards:
                del pixels  # to make room
                shards, pixels = now, load(now)
            yield step, pixels[sent(rows, device)], places

    def images(first_step: int) -> Iterator[Batch]:
        shards = plan.held(first_step // plan.steps_per_epoch, lanes)
        return batches(first_step, shards, load(shards))

    return images


def stream(
    plan: Sampling, lanes: tuple[int, ...], source: Source, decode: Decode, device: torch.device, *, steps: int
) -> Images:
    """Images decoded anew every epoch: a window of shards a lane is in memory, and what is decoded ahead of it.

    Args:
        steps: of the whole run; nothing is read for later ones.
    """

    def batches(first_step: int) -> Iterator[Batch]:
        reads, ahead = (takewhile(lambda read: read.step < steps, plan.reads(first_step, lanes)) for _ in range(2))
        decoded = decode(source, (read.shard for read in ahead), max(AHEAD, 2 * len(lanes)))
        window: dict[int, UInt8[Tensor, "h w 3"]] = {}  # an image leaves as it is drawn, a shard with its last image
        read = next(reads, None)
        for step, rows, places in islice(plan.batches(first_step, lanes), max(0, steps - first_step)):
            while read is not None and read.step <= step:
                pixels = torch.from_numpy(next(decoded))
                window |= {row: pixels[row - read.start] for row in read.rows}
                read = next(reads, None)
            drawn = torch.stack([window.pop(row) for row in rows.tolist()])
            if device.type == "cuda":
                drawn = drawn.pin_memory().to(device, non_blocking=True)
            yield step, drawn.permute(0, 3, 1, 2), places

    return lambda first_step: in_background(batches(first_step), depth=2)


def in_background(items: Iterator[Item], *, depth: int) -> Iterator[Item]:
    """The same items, made by a thread while those before are in use, at most `depth` of them; waits for the first."""
    over = object()
    pool = ThreadPoolExecutor(1)
    pending = deque(pool.submit(next, items, over) for _ in range(depth))
    wait([pending[0]])

    def taken() -> Iterator[Item]:
        try:
            while (item := pending.popleft().result()) is not over:
                pending.append(pool.submit(next, items, over))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)

    return taken()


class Waits(Iterator[Item]):
    """Items, and the share of the time that was spent waiting for them."""

    def __init__(self, items: Iterator[Item]):
        self.items, self.waited, self.since = items, 0.0, time.perf_counter()

    def __next__(self) -> Item:
        asked = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.waited += time.perf_counter() - asked

    def share(self) -> float:
        """Since the last call."""
        now = time.perf_counter()
        share = self.waited / (now - self.since)
        self.waited, self.since = 0.0, now
        return share


def check_room(gigabytes: float, device: torch.device, sharing: int) -> None:
    """Make sure that so many images fit: on a GPU of one's own, or in memory that so many workers share.

    Raises: ValueError saying what to do if not.
    """
    free = free_memory(device) / (sharing if device.type == "cpu" else 1) / 1e9
    if gigabytes > RESIDENT_SHARE * free:
        raise ValueError(
            f"ingest=resident keeps {gigabytes:.2g} GB of images in the {device.type} memory of a worker, which has "
            f"{free:.2g} GB free ({RESIDENT_SHARE:.0%} of it for images): use --ingest stream, or more --workers"
        )


def free_memory(device: torch.device) -> float:
    """Bytes; endless where the machine does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = math.inf
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError, StopIteration):  # what a container may take; caches make way
        group = Path("/sys/fs/cgroup")
        most, taken = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        cache = next(float(line.split()[1]) for line in lines if line.startswith("inactive_file"))
        free = min(free, most - taken + cache)
    return free
