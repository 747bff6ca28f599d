"""Timing that can be trusted on a machine that others use: candidates in turn, medians, ratios pair by pair."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lead_ray.artefacts import write_json
from lead_ray.machine import environment


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way of doing the work that is measured."""

    name: str
    call: Callable[[], Any]
    """Does it once."""
    precision: torch.dtype | None = None
    """Of its multiplications, where achieved FLOP/s are to be shown."""
    traced: bool = True
    """Whether torch sees its allocations; False for compiled loops of other kinds, and for CUDA graphs."""
    counted: Callable[[], Any] | None = None
    """The same multiplications where torch can count them, if not in the call."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of one candidate."""

    name: str
    milliseconds: float
    """Median per image, on all the threads used."""
    least: float
    """Minimum per image."""
    images_per_second: float
    times_faster: float
    """Median over the rounds of the first candidate's time over this one's, both of one round."""
    gflops: float | None
    """Floating-point operations of convolutions and products, in 10^9 a second."""
    share_of_peak: float | None
    """Of what a large matrix product reaches here in the same precision."""
    peak_megabytes: float | None
    """Most memory that one call held at a time above what it found."""


def compare(candidates: Sequence[Candidate], *, images: int, rounds: int, device: torch.device) -> list[Measured]:
    """Call all candidates in turn, `rounds` times after one warm-up; the first is what the others are compared with.

    images: how many one call handles.
    """
    for candidate in candidates:
        candidate.call()
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(rounds):
        for candidate in candidates:
            seconds[candidate.name].append(timed(candidate.call, device, several(device)))
    peaks = {
        precision: peak_flops(precision, device)
        for precision in {candidate.precision for candidate in candidates if candidate.precision}
    }
    reference = seconds[candidates[0].name]
    found = []
    for candidate in candidates:
        taken = seconds[candidate.name]
        flops = count_flops(candidate.counted or candidate.call) / median(taken) if candidate.precision else None
        found.append(
            Measured(
                name=candidate.name,
                milliseconds=1e3 * median(taken) / images,
                least=1e3 * min(taken) / images,
                images_per_second=images / median(taken),
                times_faster=median(first / own for first, own in zip(reference, taken, strict=True)),
                gflops=flops and flops / 1e9,
                share_of_peak=flops and flops / peaks[candidate.precision],
                peak_megabytes=peak_bytes(candidate.call, device) / 1e6 if candidate.traced else None,
            )
        )
    return found


def several(device: torch.device) -> int:
    """Calls that are timed together: on a GPU so many that its host runs ahead, as it does in training."""
    return 10 if device.type == "cuda" else 1


def timed(call: Callable[[], Any], device: torch.device, times: int = 1) -> float:
    """Seconds of one call of so many, its work on the device included."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronise(device)
    return (time.perf_counter() - started) / times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(call: Callable[[], Any]) -> int:
    """Operations of all convolutions and matrix products of one call, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def peak_flops(precision: torch.dtype, device: torch.device, *, seconds: float = 1.0) -> float:
    """Operations a second of a large square matrix product: what this machine can do at best."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    a @ b
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        times.append(timed(lambda: a @ b, device, several(device)))
    return 2 * side**3 / min(times)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors that one call holds at a time, above what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    changes = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in sorted(changes, key=lambda e: e.start_ns())), initial=0))


def report(title: str, found: Sequence[Measured], out: Path | None, settings: Any) -> None:
    """Print a table; add it to a JSON file of several if one is named."""
    columns: list[tuple[str, str, list[float | None]]] = [
        ("ms/image", ".3f", [one.milliseconds for one in found]),
        ("images/s", ",.0f" if found[0].images_per_second >= 100 else ",.1f", [one.images_per_second for one in found]),
        ("times faster", ".2f", [one.times_faster for one in found]),
        ("GFLOP/s", ",.0f", [one.gflops for one in found]),
        ("of peak", ".0%", [one.share_of_peak for one in found]),
        ("peak MB", ",.0f", [one.peak_megabytes for one in found]),
    ]
    columns = [column for column in columns if any(value is not None for value in column[2])]
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for name, _, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row, one in enumerate(found):
        cells = ("" if values[row] is None else format(values[row], how) for _, how, values in columns)
        table.add_row(one.name, *cells)
    Console().print(table)
    if out is not None:
        write_json(
            out,
            {
                "title": title,
                "settings": settings,
                "found": [asdict(one) for one in found],
                "hardware": environment(),
            },
        )
