"""Photographs where they lie: in a folder, or in an object store, of which a task reads what it needs."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

from lead_ray import storage
from lead_ray.data.folder import Folder
from lead_ray.data.rows import BadImage, Reader, Record

FETCHED = 16  # objects that one task reads at a time
MAX_BYTES = 2**28  # an object of more is no picture that rows.MAX_PIXELS lets pass


def records(reader: Reader) -> Iterator[Record]:
    """Its records, wherever its folder and its list of landmarks lie.

    Raises: ValueError for an object store, if the reader is of a data set with a layout of its own.
    """
    if not storage.is_remote(reader.raw):
        yield from reader.records()
        return
    if not isinstance(reader, Folder):
        raise ValueError(
            f"raw={storage.uri(reader.raw)!r}: only `prepare folder` reads an object store; copy this one to a disk"
        )
    if reader.landmarks is None:
        yield from reader.records_of(storage.names_below(reader.raw))
        return
    with storage.fetched(reader.landmarks) as local:
        yield from dataclasses.replace(reader, landmarks=local).records_of(())


def contents(listed: Sequence[Record], raw: Path) -> Iterator[Callable[[], bytes | None]]:
    """How to get each record's bytes from an object store, of which some are fetched ahead; None from a disk."""
    if not storage.is_remote(raw):
        yield from repeat(lambda: None, len(listed))
        return
    pool = ThreadPoolExecutor(FETCHED)
    try:
        ahead = deque()
        paths = iter([record.path for record in listed])
        for _ in listed:
            ahead.extend(pool.submit(_fetch, path, raw) for path in islice(paths, FETCHED - len(ahead)))
            yield ahead.popleft().result
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(path: Path, raw: Path) -> bytes:
    """Raises: BadImage if it is missing or of no picture's size; OSError when the store fails."""
    if not below(path, raw):
        return b""  # packing.check_name() says so
    try:
        content = storage.read_bytes(path, MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadImage("is listed but the file is missing") from None
    if len(content) > MAX_BYTES:
        raise BadImage(f"is larger than {MAX_BYTES:,} bytes")
    return content


def below(path: Path, raw: Path) -> bool:
    """By its words alone: links are not looked at."""
    return Path(os.path.normpath(path)).is_relative_to(os.path.normpath(raw))
