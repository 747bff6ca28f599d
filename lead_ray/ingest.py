"""Prepared shards -> images, through Ray Data."""

import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
from jaxtyping import UInt8

from lead_ray.images.decoding import decode_row
from lead_ray.images.feed import Source, in_background
from lead_ray.machine import variables

SECTION = 256  # shards of one data set: a list of them that Ray Data takes in no time
DECODING = 0.1  # of a core, that a task of one shard asks for
STARTS = 3  # attempts at a local cluster: Ray gives each of its parts 15 seconds (ray-project/ray#65983)
STORED = 4  # times as many shards as are fetched ahead lie finished, or are under way, in Ray's object store


def connect(num_cpus: int | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, else start a local one that ends with this process; quietly.

    num_cpus is what a cluster started here offers (None: this machine's cores). Does nothing when connected.
    Raises: OSError if no local cluster could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # otherwise thousands of lines in logs
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # otherwise `uv run` rebuilds the environment
    # Otherwise any call after ray.shutdown() starts a cluster that nobody asked for, and a minute later this process is
    # ended; Ray Data's prefetcher of an iteration left half way makes such calls. Read as Ray is imported.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Otherwise a warning that eight worker processes are many for two cores; more at once only wait for each other.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")
    if not os.environ.get("RAY_ADDRESS"):
        # By default Ray listens wherever other machines can reach this one, and runs what they send. This is its own
        # switch for a cluster of one machine, on Linux too; it is read as Ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
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
        return
    # "local": a stale address file must not make this join a stranger's cluster.
    here = {"address": "local", "num_cpus": num_cpus}
    for attempt in range(STARTS):
        try:
            with _named():
                ray.init(**here, **quiet)
            return
        except Exception as error:
            if type(error) is not Exception:  # which is what Ray raises when a part of it is slow to start
                raise
            if attempt == STARTS - 1:
                raise OSError(
                    f"Ray did not start on this machine in {STARTS} attempts, as when other work keeps it busy "
                    f"({error}): run the same command again later, or with --workers 0 for this process alone"
                ) from error


@contextmanager
def _named() -> Iterator[None]:
    """Of a cluster that is started meanwhile, the processes know its address.

    They otherwise look for the cluster of this machine, and fail where there are two: so does what Ray Train has free
    the place of a run that died, which then stays taken.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with variables({"RAY_GCS_SERVER_PORT": str(port), "RAY_API_SERVER_ADDRESS": f"127.0.0.1:{port}"}):
        yield


def by_ray_data(
    source: Source, wanted: Iterable[int], ahead: int, *, at_once: int
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Decode by Ray Data, anywhere in the cluster.

    Args:
        at_once: most tasks of one shard each that run at a time.
    Raises: ValueError naming a file that is damaged and the command that mends it.
    """
    wanted = iter(wanted)
    sections = iter(lambda: list(islice(wanted, SECTION)), [])
    for section in in_background((_start(source, numbers, ahead, at_once) for numbers in sections), depth=1):
        for row in section:
            if row["error"][0]:
                raise ValueError(row["error"][0])
            yield np.array(row["pixels"][0])  # a copy, which frees Ray's


def _start(source: Source, numbers: list[int], ahead: int, at_once: int) -> Iterator[dict[str, np.ndarray]]:
    """One row a shard, in order, as Ray Data's execution, which starts here, brings them."""
    import ray.data

    wanted = [source.shards[number] for number in numbers]
    manifest = source.manifest
    settings = {"folder": source.folder, "shards": wanted, "size": manifest.size, "command": manifest.command}
    rows = ray.data.from_items(list(range(len(wanted))), override_num_blocks=len(wanted))
    # Less than a core: what runs at a time is set by at_once, and workers that train may have left but one.
    rows = rows.map(decode_row, fn_kwargs=settings, num_cpus=DECODING, compute=ray.data.TaskPoolStrategy(size=at_once))
    rows.context.enable_progress_bars = False
    options = rows.context.execution_options
    options.preserve_order = True
    stored = STORED * ahead * max(source.gigabytes([number]) for number in numbers)
    options.resource_limits = ray.data.ExecutionResources(object_store_memory=1e9 * stored)
    return iter(rows.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=ahead))


def by_actors(worker: type, settings: dict, rows: Sequence[dict], *, workers: int) -> Iterator[dict]:
    """worker(**settings)(row) of every row, as they finish, by so many processes that each make the worker once."""
    if not rows:
        return
    connect()
    import ray.data

    found = ray.data.from_items(list(rows), override_num_blocks=len(rows))
    pool = ray.data.ActorPoolStrategy(size=min(workers, len(rows)))
    found = found.map(worker, fn_constructor_kwargs=settings, compute=pool)
    found.context.enable_progress_bars = False
    yield from found.iter_rows()
