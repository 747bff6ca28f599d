"""What a process that a person waits for does while a run goes: show how far it is, hear signals."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lead_ray import storage
from lead_ray.artefacts import RunFolder
from lead_ray.progress import Phase

LOOK = 1.0  # seconds between looks at what a run has written


def show(shown: Phase, metrics: dict[str, int | float]) -> None:
    shown.update(metrics["step"], f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s")


@contextmanager
def followed(folder: RunFolder, report: Callable[[list[dict[str, Any]]], None]) -> Iterator[None]:
    """Report again and again, in a thread, the lines of metrics.jsonl, as another thread or process adds to them."""
    over = threading.Event()
    pause = LOOK * (20 if storage.is_remote(folder.path) else 1)

    def look() -> None:
        if history := folder.metrics():
            report(history)

    def follow() -> None:
        while not over.wait(pause):
            look()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
    look()


@contextmanager
def on_sigterm(act: Callable[[], object]) -> Iterator[None]:
    """Do this on the first SIGTERM, as schedulers send it some time before they kill; a second acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have its say
        return
    before = signal.getsignal(signal.SIGTERM)

    def first(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        act()

    signal.signal(signal.SIGTERM, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C as Python has it: Ray's fit() takes SIGINT over, exits with code 0 on it and never gives it back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)
