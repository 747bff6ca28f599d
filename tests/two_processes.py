"""What each of the two processes of test_two_processes.py does; light, as the second imports it anew."""

from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lead_ray import train
from lead_ray.models.batchnorm import synchronise
from lead_ray.worker import Worker, check_agreement


def network() -> nn.Sequential:
    """Both kinds of BatchNorm, of two and of four dimensions, one after the other."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.BatchNorm1d(5),
    ]
    return nn.Sequential(*layers).train()


def batch() -> Tensor:
    """Four images that are far from centred, in two unlike halves."""
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None, None] + 3


def passes(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output, gradients and statistics after two forward passes and one backward pass."""
    images = images.clone().requires_grad_()
    module(2 * images.detach())
    output = module(images)
    (output**3).mean().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    return {
        "output": output.detach(),
        "gradient of images": images.grad,
        **gradients,
        **dict(module.named_buffers()),
    }


class Number(nn.Module):
    """A loss that is told to it, step by step."""

    def __init__(self, losses: list[float]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.losses = iter(losses)

    def forward(self, *_views: Tensor) -> dict[str, Tensor]:
        loss = self.weight.sum() + next(self.losses)
        return {"loss": loss, "twice": 2 * loss.detach()}

    def after_step(self, progress: float) -> None:
        """Nothing to do."""


def reports(losses: list[float]) -> list[Any]:
    """What train() says of these losses: (loss, twice the loss) of each report, then its error if any."""
    learner, schedule = Number(losses), train.Schedule(peak=1e-9, steps=len(losses), warmup=0)
    optimizer = train.make_optimizer(learner, train.Optim())
    said: list[Any] = []
    try:
        views = repeat((torch.zeros(1), torch.zeros(1)))
        for metrics in train.train(learner, learner, optimizer, views, schedule, report_every=2):
            said.append((metrics["loss"], metrics["twice"]))
    except FloatingPointError as error:
        said.append(str(error))
    return said


def agreement(rank: int, first_steps: tuple[int, int]) -> str:
    """What check_agreement says of the steps that the two workers would go on from."""
    try:
        check_agreement(first_steps[rank], Worker(rank=rank, world=2))
    except ValueError as error:
        return str(error)
    return ""


def work(rank: int, folder: Path) -> None:
    """Everything, as one of two workers; results go to <rank>.pt."""
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", meeting, timedelta(minutes=2), rank=rank, world_size=2)
    try:
        results = {
            "passes": passes(synchronise(network()), batch().chunk(2)[rank]),
            "reports": reports([rank, 1 + rank, 5, 4 * rank]),
            "broken": reports([0, 1, float("nan") if rank else 2, 3]),
            "agreement": [agreement(rank, steps) for steps in ((4, 4), (4, 2))],
        }
        torch.save(results, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
