"""What each of two processes does in the test of synchronised BatchNorm; light, as each imports it anew."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lead_ray.models.batchnorm import synchronise


def network() -> nn.Sequential:
    """Both kinds of BatchNorm, of two and of four dimensions, one after the other."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5)]
    return nn.Sequential(*layers).train()


def batch() -> Tensor:
    """Four images that are far from centred, in two unlike halves."""
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None, None] + 3


def step(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of two steps' forward passes and one backward pass."""
    images = images.clone().requires_grad_()
    module(2 * images.detach())
    output = module(images)
    (output**3).mean().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    return {"output": output.detach(), "gradient of images": images.grad, **gradients, **dict(module.named_buffers())}


def work(rank: int, folder: Path) -> None:
    """Half a batch through the synchronised network."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(step(synchronise(network()), batch().chunk(2)[rank]), folder / f"{rank}.pt")
    dist.destroy_process_group()
