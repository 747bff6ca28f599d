"""What the tests of objectives on descriptors share: pictures, a trunk, a stage 2 on forty of them, one step."""

from collections.abc import Callable
from pathlib import Path

import layouts
import torch
from torch import nn
from torch.nn import functional

from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.models import weights
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.train import Optim

FPN = FpnSettings(dim=8, lateral=16, branch=32)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, rtol=1e-8, atol=1e-9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.flatten(2), dim=1)


def pixels_of(side: int, stride: int) -> torch.Tensor:
    """(x, y) of every stride-th pixel, row-major, from a loop."""
    return torch.tensor([[float(x), float(y)] for y in range(0, side, stride) for x in range(0, side, stride)])


def smooth(n: int, size: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(n, 3, 6, 6, generator=generator(seed))
    return functional.interpolate(coarse, size=size, mode="bilinear")


def trunk() -> Trunk:
    torch.manual_seed(0)
    return Trunk(TrunkSettings(depth=18, width=0.125))


def step(learner: nn.Module, optimizer: torch.optim.Optimizer, views: tuple[torch.Tensor, ...]) -> float:
    loss = learner(*views)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def stage2(folder: Path) -> Callable[..., Dense]:
    """Makes stage 2 of pictures and a trunk that lie in this folder; takes what is to be otherwise."""
    data = layouts.prepared_pictures(folder / "data")
    weights.save(folder / "trunk.safetensors", trunk(), {})

    def make(out: Path, **changes) -> Dense:
        common = {
            "views": ViewSettings(size=32),
            "optim": Optim(lr=0.05, batch_size=16, steps=4),
            "precision": "fp32",
            "report_every": 2,
            "checkpoint_every": 2,
            "device": "cpu",
            "stage1": folder / "trunk.safetensors",
        }
        return Dense(**{"data": data, "out": out} | common | changes)

    return make
