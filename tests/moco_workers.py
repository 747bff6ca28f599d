"""What each of the processes of test_moco.py does that share a batch through gloo; light, as they import it anew."""

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.moco import Moco, MocoSettings

BATCH, WORLD = 8, 2


def learner() -> Moco:
    torch.manual_seed(0)
    return Moco(Trunk(TrunkSettings(depth=18, width=0.125)), MocoSettings(dim=4, queue=24))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    brightness = torch.arange(float(BATCH))[:, None, None, None]  # so that BatchNorm's statistics tell who was there
    a, b = (torch.randn(BATCH, 3, 32, 32, generator=generator) + brightness for _ in range(2))
    return a, b


def steps(moco: Moco, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Two steps in evaluation mode, where BatchNorm does not see who shares a batch; then one as in training."""
    moco.eval()
    losses = [moco(*views)["loss"].detach() for _ in range(2)]
    evaluated = {"losses": torch.stack(losses), "queue": moco.queue.clone(), "pointer": moco.pointer.clone()}
    moco.train()
    loss = moco(*views)["loss"]
    loss.backward()
    first = moco.key[0].bn1
    return evaluated | {"trained loss": loss.detach(), "key mean": first.running_mean, "trained queue": moco.queue}


def work(rank: int, folder: Path) -> None:
    """As one of the workers; results go to <rank>.pt."""
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timedelta(minutes=2), rank=rank, world_size=WORLD)
    try:
        views = tuple(view.chunk(WORLD)[rank] for view in batch())
        torch.save(steps(learner(), views), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
