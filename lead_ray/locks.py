"""One process at a time in a run's folder, wherever that lies."""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lead_ray import storage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
LEASE = 60.0  # seconds after which the lock of a process that no longer renews it counts as given up
RENEWALS = 4  # in that time


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out; the lock goes with this process, however it ends: at once where the folder is local or
    on NFS, after LEASE seconds in an object store.

    Raises: ValueError if another process holds it.
    """
    if storage.is_remote(folder):
        with _leased(folder):
            yield
        return
    with (folder / NAME).open("a") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is training {folder}") from error
        yield


@contextmanager
def _leased(folder: Path) -> Iterator[None]:
    """Object stores know no locks. Each process writes an object of its own before it looks for those of others, so of
    two that start together at least one sees the other."""
    mine = folder / NAME / f"{os.getpid()}-{secrets.token_hex(8)}"
    over = threading.Event()

    def renew() -> None:
        while not over.wait(LEASE / RENEWALS):
            with suppress(OSError):  # the next may succeed; if none does, training cannot write either
                storage.write_bytes(mine, b"")

    storage.write_bytes(mine, b"")
    renewing = threading.Thread(target=renew, daemon=True)
    try:
        if others := _alive(folder, mine):
            raise ValueError(
                f"another process is training {storage.uri(folder)}, or ended without a word less than "
                f"{LEASE:.0f} seconds ago ({others[0]}): try again after that"
            )
        renewing.start()
        yield
    finally:
        over.set()
        if renewing.is_alive():
            renewing.join()
        with suppress(OSError):
            storage.remove(mine)


def _alive(folder: Path, mine: Path) -> list[str]:
    """The names of other locks that were renewed of late, by the store's own clock."""
    written = storage.written(folder / NAME, "*")
    now = written[mine]
    return sorted(path.name for path, when in written.items() if path != mine and now - when < LEASE)
