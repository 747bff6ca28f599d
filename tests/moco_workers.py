"""What each of the processes of test_moco.py does that share a batch through gloo; light, as they import it anew."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.moco import Moco, MocoSettings

BATCH, WORLD, GROUPS = 16, 2, (2, 4)
"""Groups: as many as workers, as CL has it, and two for each of them."""


def learner(groups: int) -> Moco:
    """With a trunk of double precision, where no ReLU opens by rounding."""
    torch.manual_seed(0)
    moco = Moco(Trunk(TrunkSettings(depth=18, width=0.125)), MocoSettings(dim=4, queue=64, groups=groups))
    moco.trunk.double()
    moco.key[0].double()
    return moco


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    brightness = torch.arange(float(BATCH))[:, None, None, None]  # so that BatchNorm's statistics tell who was there
    a, b = (torch.randn(BATCH, 3, 32, 32, generator=generator) + brightness for _ in range(2))
    return a.double(), b.double()


def steps(moco: Moco, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Two steps in training mode; what BatchNorm's statistics are of tells who shared a batch."""
    losses = torch.stack([moco.train()(*views)["loss"] for _ in range(2)])
    losses.sum().backward()
    first = moco.key[0].bn1
    found = {"losses": losses.detach(), "key mean": first.running_mean}
    return found | {"gradient": moco.trunk.conv1.weight.grad, "queue": moco.queue, "pointer": moco.pointer}


def work(rank: int, folder: Path) -> None:
    """As one of the workers; what it found with each number of groups goes to <rank>.pt."""
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timedelta(minutes=2), rank=rank, world_size=WORLD)
    try:
        views = tuple(view.chunk(WORLD)[rank] for view in batch())
        torch.save({groups: steps(learner(groups), views) for groups in GROUPS}, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
