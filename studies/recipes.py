"""How to train when all there is are two CPU cores: what the studies of small networks share."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lead_ray.artefacts import RunFolder
from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.launch import run
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.projection import ProjectionSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.objectives.contrast import ContrastSettings
from lead_ray.objectives.equivariance import DveSettings, EquivarianceSettings
from lead_ray.objectives.moco import MocoSettings
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

Stage1 = Literal["contrast", "byol", "moco"]
Stage2 = Literal["lead", "cl", "cl-fpn", "dve"]

# Heads of a quarter-width network; moving averages that forget within thousands of steps, not a million.
STAGE1: dict[Stage1, Any] = {
    "contrast": ContrastSettings(hidden=512),
    "byol": ByolSettings(hidden=512, dim=128, momentum=0.99),
    "moco": MocoSettings(hidden=512, momentum=0.99),
}


def small_views(size: int, least: float) -> ViewSettings:
    """Crops of at least that share of the image. Mirror images are off: they make left and right alike."""
    return ViewSettings(size=size, scale=(least, 1.0), flip=0.0, blur=(0.5, 0.1))


def coarse_and_fine(
    name: str,
    small_steps: int,
    steps: int,
    *,
    objective: Stage1 = "contrast",
    init: Path | None = None,
    **common: Any,
) -> tuple[Pretrain, Pretrain]:
    """Stage 1 of a quarter-width ResNet-18: batches of 128 at 64 px, then some at 96 px that go on from `init`.

    By in-batch InfoNCE if nothing else is asked for: BYOL needs more images than two cores see in hours. A 64 px crop
    costs less than half of a 96 px one. `common`: data, out, workers, seed and device, as a command line has them.
    """
    common |= {"trunk": TrunkSettings(depth=18, width=0.25), "objective": STAGE1[objective]}
    coarse = Optim(lr=0.2, batch_size=128, steps=small_steps, warmup_epochs=4.0)
    fine = Optim(lr=0.1, batch_size=128, steps=steps, warmup_epochs=0.5)
    return (
        Pretrain(name=f"{name}64", views=small_views(64, 0.2), optim=coarse, **common),
        Pretrain(name=f"{name}96", views=small_views(96, 0.2), optim=fine, init=init, **common),
    )


def coarse_to_fine(name: str, small_steps: int, steps: int, **options: Any) -> RunFolder:
    """Train both of coarse_and_fine(); what is finished is not trained again."""
    coarse, fine = coarse_and_fine(name, small_steps, steps, **options)
    return run(replace(fine, init=run(coarse).path))


def compact_stage(
    name: str,
    objective: Stage2,
    stage1: Path,
    steps: int,
    *,
    dim: int = 64,
    head: int = 64,
    align: dict[str, Any] | None = None,
    **common: Any,
) -> Dense:
    """Stage 2 on a small trunk: 32 images a step, each paired with itself.

    lead: alignment under a centred teacher; cl: CL's projection; cl-fpn and dve: CL's and DVE's losses on LEAD's
    decoder (the paper's Table 6). Optimisers are each method's own.

    Args:
        dim: channels of the map.
        head: channels of LEAD's discarded head; 0 leaves it out.
        align: other fields of LEAD's objective.
        common: data, out, workers, seed and device, as a command line has them.
    """
    fpn = FpnSettings(dim=dim, lateral=64, branch=64)
    lead = {"fpn": fpn, "projector": head, "teacher": "centred", **(align or {})}
    settings, optim = {
        "lead": (AlignSettings(**lead), Optim(lr=0.1, batch_size=32, steps=steps)),
        "cl": (EquivarianceSettings(decoder=ProjectionSettings(dim=dim)), _adam("adam", 0.5, steps)),
        "cl-fpn": (EquivarianceSettings(decoder=fpn), _adam("adam", 0.5, steps)),
        "dve": (DveSettings(network=fpn), _adam("amsgrad", 0.9, steps)),
    }[objective]
    views = small_views(96, 1.0 if objective == "dve" else 0.4)  # DVE warps in place of cropping
    return Dense(name=name, stage1=stage1, pairing="views", views=views, objective=settings, optim=optim, **common)


def compact(name: str, objective: Stage2, stage1: Path, steps: int, **options: Any) -> RunFolder:
    """Train compact_stage(), unless it is finished."""
    return run(compact_stage(name, objective, stage1, steps, **options))


def _adam(algorithm: Literal["adam", "amsgrad"], beta: float, steps: int) -> Optim:
    return Optim(algorithm=algorithm, lr=1e-3, momentum=beta, weight_decay=5e-4, batch_size=32, steps=steps)
