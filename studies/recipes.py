"""How to train when all there is are two CPU cores: what the studies of small networks share."""

from pathlib import Path

from lead_ray.artefacts import RunFolder
from lead_ray.launch import run
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.contrast import ContrastSettings
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim
from lead_ray.views import ViewSettings


def small_views(size: int, least: float) -> ViewSettings:
    """Crops of at least that share of the image. Mirror images are off: they make left and right alike."""
    return ViewSettings(size=size, scale=(least, 1.0), flip=0.0, blur=(0.5, 0.1))


def coarse_to_fine(name: str, small_steps: int, steps: int, *, data: Path, out: Path, workers: int = 0) -> RunFolder:
    """Stage 1 of a quarter-width ResNet-18 by in-batch InfoNCE: batches of 128 at 64 px, then some at 96 px.

    BYOL needs more images than two cores see in hours; a 64 px crop costs less than half of a 96 px one.
    """
    common = {
        "data": data,
        "out": out,
        "workers": workers,
        "trunk": TrunkSettings(depth=18, width=0.25),
        "objective": ContrastSettings(hidden=512),
    }
    coarse = Optim(lr=0.2, batch_size=128, steps=small_steps, warmup_epochs=4.0)
    start = run(Pretrain(name=f"{name}64", views=small_views(64, 0.2), optim=coarse, **common))
    fine = Optim(lr=0.1, batch_size=128, steps=steps, warmup_epochs=0.5)
    return run(Pretrain(name=f"{name}96", init=start.path, views=small_views(96, 0.2), optim=fine, **common))
