"""BYOL as solo-learn does it: its own method, moving average and transforms, called without Lightning's trainer.

Its release asks for torch 1.9 and pl_bolts, but what a step needs of it runs on this torch:

$ uv pip install --no-deps solo-learn pytorch-lightning lightning-utilities torchmetrics einops "timm<0.9"
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor

from lead_ray.augmentation.augment import FACE_MEAN, FACE_STD
from lead_ray.augmentation.views import ViewSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.speed.peers import Way

NEEDED = ("solo", "pytorch_lightning", "torchmetrics", "einops", "timm")
INSTALLED = all(find_spec(name) for name in NEEDED)


def _spare_pl_bolts() -> None:
    """solo-learn imports a schedule from pl_bolts, which no longer imports; a step calls no schedule."""
    try:
        import pl_bolts.optimizers.lr_scheduler  # noqa: F401
    except ImportError:
        for name in ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler"):
            sys.modules[name] = ModuleType(name)
        sys.modules["pl_bolts.optimizers.lr_scheduler"].LinearWarmupCosineAnnealingLR = None


def views(settings: ViewSettings) -> Callable[[list[Image.Image]], tuple[Tensor, Tensor]]:
    """solo-learn's transforms with this recipe's numbers, but its own radii of blur."""
    _spare_pl_bolts()
    from solo.utils.pretrain_dataloader import prepare_n_crop_transform, prepare_transform

    common = {
        "brightness": settings.brightness,
        "contrast": settings.contrast,
        "saturation": settings.saturation,
        "hue": settings.hue,
        "color_jitter_prob": settings.jitter,
        "gray_scale_prob": settings.grey,
        "horizontal_flip_prob": settings.flip,
        "min_scale": settings.scale[0],
        "max_scale": settings.scale[1],
        "crop_size": settings.size,
        "mean": FACE_MEAN,
        "std": FACE_STD,
    }
    each = [
        prepare_transform(
            "custom", gaussian_prob=settings.blur[view], solarization_prob=settings.solarise[view], **common
        )
        for view in (0, 1)
    ]
    transform = prepare_n_crop_transform(each, [1, 1])

    def two(images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        a, b = zip(*(transform(image) for image in images), strict=True)
        return torch.stack(a), torch.stack(b)

    return two


def step(
    depth: int, settings: ByolSettings, learning_rate: float, device: torch.device, way: Way
) -> Callable[[Tensor, Tensor], Tensor]:
    """solo.methods.BYOL's training step, with what Lightning does around it; returns BYOL's own part of the loss.

    Beside it, the method always trains a linear classifier on detached features: a small part of the time.
    """
    _spare_pl_bolts()
    from solo.methods import BYOL

    schedule = {"max_epochs": 1, "scheduler": "none", "min_lr": 0.0, "warmup_start_lr": 0.0, "warmup_epochs": 0}
    method = BYOL(
        proj_output_dim=settings.dim,
        proj_hidden_dim=settings.hidden,
        pred_hidden_dim=settings.hidden,
        base_tau_momentum=settings.momentum,
        final_tau_momentum=1.0,
        momentum_classifier=False,
        encoder=f"resnet{depth}",
        backbone_args={},
        num_classes=2,
        batch_size=0,
        optimizer="sgd",
        lars=False,
        lr=learning_rate,
        classifier_lr=learning_rate,
        weight_decay=1e-4,
        exclude_bias_n_norm=False,
        accumulate_grad_batches=1,
        extra_optimizer_args={"momentum": 0.9},
        num_large_crops=2,
        num_small_crops=0,
        **schedule,
    ).to(device)
    said: dict[str, Tensor] = {}
    method.log_dict = lambda metrics, **options: said.update(metrics)  # the trainer's
    if way.channels_last:
        method.to(memory_format=torch.channels_last)
    optimizer = method.configure_optimizers()

    def call(a: Tensor, b: Tensor) -> Tensor:
        labels = torch.zeros(len(a), dtype=torch.int64, device=device)
        with way.autocast(device):
            loss = method.training_step((None, [way.laid_out(a), way.laid_out(b)], labels), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for pair in method.momentum_pairs:
            method.momentum_updater.update(*pair)
        return said["train_neg_cos_sim"].detach()

    return call
