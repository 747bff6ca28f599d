"""What more workers cost, by arithmetic: gradients against links, images against memory. Nothing is run."""

from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.byol import Byol, ByolSettings

PIXEL_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """BYOL on many GPUs: bytes a step and what they ask of links, memory and readers."""

    images_per_second: float
    """Of one GPU alone, as `bench step` shows it."""
    gpus: tuple[int, ...] = (8, 16, 32, 64)
    batch_per_gpu: int = 256
    links: tuple[float, ...] = (450.0, 50.0, 12.5)
    """Gigabytes a second that a GPU sends and receives: NVLink 4, 400 Gb/s InfiniBand, 100 Gb/s Ethernet."""
    images: int = 162_770
    """Images of the data set."""
    stored: int = 136
    """Their side in pixels."""
    depth: int = 50

    def run(self) -> list[dict[str, float]]:
        gradients, statistics = exchanged(self.depth)
        step = self.batch_per_gpu / self.images_per_second
        image = PIXEL_BYTES * self.stored**2
        print(
            f"ResNet-{self.depth}: {gradients / 1e6:.0f} MB of gradients a step, {statistics / 1e6:.1f} MB of "
            f"statistics with --sync-batchnorm; {1e3 * step:.1f} ms a step at {self.images_per_second:,.0f} images/s"
        )
        rows = []
        for gpus in self.gpus:
            row = {
                "GPUs": float(gpus),
                "images/s": gpus * self.images_per_second,
                "decoded GB/s": gpus * self.images_per_second * image / 1e9,
                "GB on a GPU": self.images * image / gpus / 1e9,
            }
            for link in self.links:
                row[f"{link:g} GB/s"] = 100 * all_reduce(gradients, gpus, link) / step
            rows.append(row)
        table = Table(
            box=box.SIMPLE, caption="Last columns: share of a step, in %, that an all-reduce takes if nothing hides it."
        )
        for name in rows[0]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*(f"{value:,.1f}".removesuffix(".0") for value in row.values()))
        Console().print(table)
        return rows


def exchanged(depth: int) -> tuple[int, int]:
    """Bytes that every worker contributes to a step: gradients, and BatchNorm's sums when they are synchronised.

    BatchNorm sums two numbers a channel forward and two backward, in each of the online passes of two views, and
    forward alone in the target's.
    """
    with torch.device("meta"):
        learner = Byol(Trunk(TrunkSettings(depth=depth)), ByolSettings())
    gradients = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)
    norms = [module for module in learner.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    trained = sum(norm.num_features for norm in norms if norm.weight.requires_grad)
    frozen = sum(norm.num_features for norm in norms) - trained
    return 4 * gradients, 4 * 2 * (4 * trained + 2 * frozen)


def all_reduce(size: int, workers: int, link: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes over links of `link` gigabytes a second, latency left out."""
    return 2 * (workers - 1) / workers * size / (link * 1e9)
