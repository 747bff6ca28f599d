"""Weak scaling, measured: the same batch for each of ever more Ray Train workers."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from lead_ray import ingest
from lead_ray.artefacts import write_json
from lead_ray.augmentation.views import ViewSettings
from lead_ray.data.synthetic import Synthetic
from lead_ray.launch import run
from lead_ray.machine import cores, environment
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.prepare import prepare
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

REPORTS = 5  # lines of metrics of each run; the first, with its start-up, is left out


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Stage 1 on synthetic faces; 0 workers: this process without Ray. CPUs are promised to Ray as needed."""

    workers: tuple[int, ...] = (0, 1, 2, 4)
    batch: int = 64
    """Images of each worker and step."""
    steps: int = 100
    trunk: TrunkSettings = field(default_factory=lambda: TrunkSettings(depth=18, width=0.25))
    views: ViewSettings = field(default_factory=lambda: ViewSettings(size=64))
    out: Path | None = None
    """JSON file that receives what is printed."""

    def __post_init__(self):
        if self.steps < 2 * REPORTS:
            raise ValueError(f"steps must be >= {2 * REPORTS}, got {self.steps}")

    def run(self) -> list[dict[str, float]]:
        with tempfile.TemporaryDirectory() as folder:
            found = self.measure(Path(folder))
        table = Table(title=f"weak scaling, {self.batch} images a worker, {cores()} cores", box=box.SIMPLE)
        for name in ("workers", "images/s", "images/s a worker"):
            table.add_column(name, justify="right")
        for row in found:
            each = row["images_per_second"] / max(1, row["workers"])
            table.add_row(f"{row['workers']:.0f}", f"{row['images_per_second']:,.0f}", f"{each:,.0f}")
        Console().print(table)
        if self.out is not None:
            write_json(self.out, {"settings": self, "found": found, "hardware": environment()})
        return found

    def measure(self, folder: Path) -> list[dict[str, float]]:
        images = 2 * self.batch * max(1, *self.workers)
        faces = Synthetic(raw=folder / "faces", images=images, identities=images // 4, test_share=0.1)
        prepare(faces, folder / "shards", workers=0, progress=False)
        if any(self.workers):
            ingest.connect(num_cpus=max(self.workers) + 1)
        every = self.steps // REPORTS
        found = []
        for workers in self.workers:
            optim = Optim(lr=0.01, batch_size=self.batch * max(1, workers), steps=self.steps)
            stage = Pretrain(
                name=f"workers{workers}",
                data=folder / "shards",
                out=folder / "runs",
                trunk=self.trunk,
                views=self.views,
                objective=ByolSettings(hidden=512, dim=128),
                optim=optim,
                workers=workers,
                report_every=every,
                checkpoint_every=every * REPORTS,
            )
            rates = [line["images_per_second"] for line in run(stage).metrics()]
            found.append({"workers": workers, "images_per_second": median(rates[1:])})
        return found
