"""Every measurement of this machine, one after another: what a table of results needs."""

import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lead_ray.speed.ingest import Ingest
from lead_ray.speed.kept import Kept
from lead_ray.speed.profile import Profile
from lead_ray.speed.readout import Readout, ReadoutWhole
from lead_ray.speed.stage2 import Stage2
from lead_ray.speed.steps import Bench, Step, Views
from lead_ray.stage import pick_device


@dataclass(frozen=True, kw_only=True)
class Everything:
    """Steps of both stages, views, read-outs, the loss block, ingest, and where the time of a step goes.

    On a GPU steps are of the paper's 256 images, on a CPU of what `bench step` and the others take. One that fails says
    why, and the others go on. The same command again measures what is missing in the folder.
    """

    out: Path
    """Folder that receives NAME.json of each, and bench.md, a table of all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    """As in `bench step`."""
    rounds: int | None = None
    """Times that every candidate is called; if not given, each measurement's own."""

    def __post_init__(self):
        for name, value in (("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")

    def run(self) -> None:
        """Raises: ValueError naming what failed."""
        pick_device(self.device)  # what is wrong with it is said once
        self.out.mkdir(parents=True, exist_ok=True)
        failed, kept, measurements = [], [], self.measurements()
        for number, (name, bench) in enumerate(measurements.items(), start=1):
            file = self.out / f"{name}.json"
            print(f"{number}/{len(measurements)} {name}" + ": measured before" * file.exists(), flush=True)
            try:
                if not file.exists():
                    replace(bench, out=file, device=self.device, threads=self.threads).run()
            except Exception:  # of others' code, too
                traceback.print_exc()
                failed.append(name)
            else:
                kept += [file] * (not isinstance(bench, Profile))
        if kept:
            Kept(files=tuple(kept), out=self.out / "bench.md").run()
        if failed:
            raise ValueError(f"failed: {', '.join(failed)}; the reasons are above")

    def measurements(self) -> dict[str, Bench]:
        """Name -> what is measured, the most telling first."""
        on_gpu = pick_device(self.device).type == "cuda"
        size = {"batch": 256} if on_gpu else {}
        found: dict[str, Bench] = {
            "step": Step(**size),
            "profile-1": Profile(stage="1", **size),
            "stage2": Stage2(**size),
            "profile-2": Profile(stage="2", batch=size.get("batch", 32)),
            "views": Views(**size),
            "readout": Readout(),
            "readout-whole": ReadoutWhole(),
            "stage2-loss-256": Stage2(loss_only=True, size=256, batch=8 if on_gpu else 2),
            "ingest": Ingest(),
        }
        if self.rounds is None:
            return found
        return {name: replace(one, rounds=self.rounds) for name, one in found.items()}
