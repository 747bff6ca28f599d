"""The same work as others would do it: plain torch and torchvision, and lightly where it is installed.

solo-learn, which needs more explaining, is in solo_learn.py.
"""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lead_ray.augmentation.augment import FACE_MEAN, FACE_STD
from lead_ray.augmentation.views import ViewSettings
from lead_ray.objectives.byol import ByolSettings, byol_loss

LIGHTLY = find_spec("lightly") is not None


class Way(NamedTuple):
    """How a peer's network is run; its documentation has it as it comes, and so slowest."""

    name: str
    channels_last: bool = False
    precision: torch.dtype = torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def laid_out(self, view: Tensor) -> Tensor:
        return view.contiguous(memory_format=torch.channels_last) if self.channels_last else view


WAYS = (
    Way("fp32"),
    Way("fp32, channels last", channels_last=True),
    Way("bf16, channels last", channels_last=True, precision=torch.bfloat16),
)
BLUR_TAPS = 9  # a tenth of a 96 px view, BYOL's share; the package's own blur sums 17


def torchvision_view(settings: ViewSettings, view: int) -> Callable[[Tensor], Tensor]:
    """torchvision's transforms for one uint8 image [3, h, w], in the order of BYOL's recipe."""
    from torchvision.transforms import v2  # takes as long as all other imports together

    jitter = v2.ColorJitter(settings.brightness, settings.contrast, settings.saturation, settings.hue)
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                settings.size,
                settings.scale,
                settings.ratio,
                interpolation=v2.InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(settings.flip),
            v2.RandomApply([jitter], settings.jitter),
            v2.RandomGrayscale(settings.grey),
            v2.RandomApply([v2.GaussianBlur(BLUR_TAPS, settings.blur_sigma)], settings.blur[view]),
            v2.RandomSolarize(128, settings.solarise[view]),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(FACE_MEAN, FACE_STD),
        ]
    )


def torchvision_views(images: Tensor, settings: ViewSettings) -> tuple[Tensor, Tensor]:
    """Both views of uint8 images [n, 3, h, w], image by image as a data loader's worker makes them."""
    transforms = [torchvision_view(settings, view) for view in (0, 1)]
    a, b = (torch.stack([transform(image) for image in images]) for transform in transforms)
    return a, b


def as_pil(images: Tensor) -> list[Image.Image]:
    """Images as lightly's transforms take them."""
    return [Image.fromarray(np.ascontiguousarray(image)) for image in images.permute(0, 2, 3, 1).numpy()]


def lightly_views(settings: ViewSettings) -> Callable[[list[Image.Image]], tuple[Tensor, Tensor]]:
    """lightly's own BYOL transform with this recipe's numbers."""
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    common = {
        "input_size": settings.size,
        "cj_prob": settings.jitter,
        "cj_bright": settings.brightness,
        "cj_contrast": settings.contrast,
        "cj_sat": settings.saturation,
        "cj_hue": settings.hue,
        "min_scale": settings.scale[0],
        "random_gray_scale": settings.grey,
        "sigmas": settings.blur_sigma,
        "hf_prob": settings.flip,
        "normalize": {"mean": list(FACE_MEAN), "std": list(FACE_STD)},
    }
    transforms = (
        kind(gaussian_blur=settings.blur[view], solarization_prob=settings.solarise[view], **common)
        for view, kind in enumerate((BYOLView1Transform, BYOLView2Transform))
    )
    transform = BYOLTransform(*transforms)

    def views(images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        a, b = zip(*(transform(image) for image in images), strict=True)
        return torch.stack(a), torch.stack(b)

    return views


def _plain_mlp(channels: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def _trunk(depth: int) -> tuple[nn.Module, int]:
    from torchvision import models

    network = getattr(models, f"resnet{depth}")()
    channels = network.fc.in_features
    network.fc = nn.Identity()
    return network, channels


class PlainByol:
    """BYOL's step as its paper reads, torchvision's ResNet, everything at its default."""

    def __init__(self, depth: int, settings: ByolSettings, learning_rate: float, device: torch.device):
        trunk, channels = _trunk(depth)
        self.online = nn.Sequential(trunk, _plain_mlp(channels, settings.hidden, settings.dim)).to(device)
        self.predictor = _plain_mlp(settings.dim, settings.hidden, settings.dim).to(device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.keep = settings.momentum
        parameters = [*self.online.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=1e-4)

    def step(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss, after one update of everything."""
        predictions = [self.predictor(self.online(view)) for view in (a, b)]
        with torch.no_grad():
            targets = [self.target(view) for view in (a, b)]
        loss = byol_loss(*predictions, *targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                old.mul_(self.keep).add_(new, alpha=1 - self.keep)
        return loss.detach()


def lightly_step(
    depth: int, settings: ByolSettings, learning_rate: float, device: torch.device, way: Way
) -> Callable[[Tensor, Tensor], Tensor]:
    """BYOL's step as lightly's documentation writes it."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    trunk, channels = _trunk(depth)
    trunk = nn.Sequential(*list(trunk.children())[:-1], nn.Flatten()).to(device)
    head = BYOLProjectionHead(channels, settings.hidden, settings.dim).to(device)
    predictor = BYOLPredictionHead(settings.dim, settings.hidden, settings.dim).to(device)
    if way.channels_last:
        trunk.to(memory_format=torch.channels_last)
    target_trunk, target_head = copy.deepcopy(trunk), copy.deepcopy(head)
    deactivate_requires_grad(target_trunk)
    deactivate_requires_grad(target_head)
    parameters = [*trunk.parameters(), *head.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    criterion = NegativeCosineSimilarity()

    def step(a: Tensor, b: Tensor) -> Tensor:
        update_momentum(trunk, target_trunk, m=settings.momentum)
        update_momentum(head, target_head, m=settings.momentum)
        a, b = way.laid_out(a), way.laid_out(b)
        with way.autocast(device):
            predictions = [predictor(head(trunk(view))) for view in (a, b)]
            with torch.no_grad():
                targets = [target_head(target_trunk(view)) for view in (a, b)]
            loss = 0.5 * (criterion(predictions[0], targets[1]) + criterion(predictions[1], targets[0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
