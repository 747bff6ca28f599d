"""Where the time of a training step goes: kernels on a GPU, operators on a CPU."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from lead_ray import train
from lead_ray.artefacts import write_json
from lead_ray.machine import environment, quickest_convolutions
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import Align
from lead_ray.speed.measure import synchronise, timed
from lead_ray.speed.stage2 import Stage2
from lead_ray.speed.steps import Bench, Step, pictures
from lead_ray.stage import pick_device

WARM = 3


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one kernel or operator takes of a step."""

    name: str
    calls: float
    milliseconds: float
    share: float
    """Of the time of all of them."""


@dataclass(frozen=True, kw_only=True)
class Profile(Bench):
    """Where a step spends its time: kernels on a GPU, on a CPU operators without those that they call.

    Stage 1's step is views, forward, backward, optimiser and moving average; stage 2's begins with finished views.
    """

    stage: Literal["1", "2"] = "1"
    batch: int = 64
    """Images, or pairs of stage 2."""
    trunk: TrunkSettings = field(default_factory=TrunkSettings)
    rounds: int = 3
    """Steps that are looked at."""
    rows: int = 25
    """Lines that are printed; --out receives all of them."""

    def run(self) -> list[Spent]:
        device = self.start()
        with quickest_convolutions():
            call = self.call(device)
            for _ in range(WARM):
                call()
            whole = timed(call, device, self.rounds)
            found = spent(call, device, self.rounds)
        self.show(found, whole)
        if self.out is not None:
            kept = {"seconds_a_step": whole, "found": [asdict(one) for one in found]}
            write_json(self.out, {"title": self.title, "settings": self, **kept, "hardware": environment()})
        return found

    def call(self, device: torch.device) -> Callable[[], Any]:
        """One step."""
        precision = train.resolve_precision("auto", device)
        how = "graphs" if device.type == "cuda" else "eager"
        if self.stage == "2":
            return Stage2(batch=self.batch, trunk=self.trunk).step(Align, precision, device, how).call
        images = pictures(self.batch, device)
        return Step(batch=self.batch).ours(images, device, precision, how, self.trunk).call

    @property
    def title(self) -> str:
        return f"a step of stage {self.stage}: ResNet-{self.trunk.depth} x {self.trunk.width:g}, batch {self.batch}"

    def show(self, found: list[Spent], whole: float) -> None:
        total = sum(one.milliseconds for one in found)
        kind = "kernels" if pick_device(self.device).type == "cuda" else "operators"
        print(f"{self.title}\n{1e3 * whole:.1f} ms; looked at by the profiler, {total:.1f} ms in {len(found)} {kind}")
        table = Table(box=box.SIMPLE)
        table.add_column("")
        for name in ("calls", "ms", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in found[: self.rows]:
            table.add_row(one.name[:90], f"{one.calls:,.0f}", f"{one.milliseconds:.3f}", f"{one.share:.1%}")
        Console().print(table)


def spent(call: Callable[[], Any], device: torch.device, steps: int) -> list[Spent]:
    """Time of every kernel, or of every operator without those that it calls, in one call; the longest first."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as run:
        for _ in range(steps):
            call()
        synchronise(device)
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in run.events():
        if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu:
            microseconds = event.device_time if on_gpu else event.self_cpu_time_total
            sums[event.name][0] += 1
            sums[event.name][1] += microseconds
    total = sum(time for _, time in sums.values()) or 1.0
    found = [
        Spent(name=name, calls=calls / steps, milliseconds=time / 1e3 / steps, share=time / total)
        for name, (calls, time) in sums.items()
    ]
    return sorted(found, key=lambda one: -one.milliseconds)
