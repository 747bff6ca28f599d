"""Prepared shards -> images on each worker's device, through Ray Data."""

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8
from torch import Tensor

from lead_ray import shards

if TYPE_CHECKING:
    import ray.data


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, else start a local one that ends with this process; quietly.

    num_cpus is what a cluster started here offers (None: this machine's cores). Does nothing when connected.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # otherwise thousands of lines in logs
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # otherwise `uv run` rebuilds the environment
    # Otherwise a warning that eight worker processes are many for two cores; more at once only wait for each other.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # its log file in the session folder stays complete
            handler.setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:  # "local": a stale address file must not make this join a stranger's cluster
        ray.init(address="local", num_cpus=num_cpus, **quiet)


def of_worker(manifest: shards.Manifest, split: str, *, rank: int, workers: int, lanes: int) -> list[shards.Shard]:
    """The files of one worker's lanes, lane after lane."""
    files = shards.select(manifest, split)
    return [shard for lane in range(rank, lanes, workers) for shard in files[lane::lanes]]


def shards_by_worker(folder: Path, split: str, *, workers: int, lanes: int) -> dict[str, "ray.data.Dataset"]:
    """A lazy data set for each worker: the files of its lanes, lane after lane, decoded where Ray has a core free."""
    import ray

    manifest = shards.read_manifest(folder)
    decode = functools.partial(_decode, size=manifest.size)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    return {
        f"worker-{rank}": ray.data.read_parquet(
            [
                str(Path(folder).absolute() / shard.file)
                for shard in of_worker(manifest, split, rank=rank, workers=workers, lanes=lanes)
            ],
            columns=["image"],
            partitioning=None,
        ).map_batches(decode, batch_format="pyarrow", zero_copy_batch=True)
        for rank in range(workers)
    }


def _decode(table: pa.Table, *, size: int) -> dict[str, np.ndarray]:
    return {"pixels": shards.decode(table["image"].to_pylist(), size)}


def resident(iterator: "ray.data.DataIterator", count: int, device: torch.device) -> UInt8[Tensor, "n 3 h w"]:
    """All images of a worker's data set, on its device, in the order of its files.

    Raises: ValueError if there are not `count` of them.
    """
    pieces = [
        torch.from_numpy(np.ascontiguousarray(batch["pixels"])).to(device)
        for batch in iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
    ]
    pixels = torch.cat(pieces).permute(0, 3, 1, 2)
    if len(pixels) != count:
        raise ValueError(f"{len(pixels)} images arrived, the manifest promises {count}: prepare the data anew")
    return pixels
