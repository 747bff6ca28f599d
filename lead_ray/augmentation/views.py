"""Two random views of each image: what is drawn, from one explicit generator, and by which of two ways it is applied.

`augment` applies it on any device, `augment_cpu` on a CPU, several times faster. On a GPU it is compiled.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lead_ray.augmentation import augment, augment_cpu
from lead_ray.augmentation.augment import BLUR_RADIUS, FACE_MEAN, FACE_STD, ViewParameters
from lead_ray.machine import has_triton, sent


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """BYOL's two-view augmentation as OpenSelfSup ships it; view a is always blurred, view b sometimes solarised."""

    size: int = 96
    """Side of a view in pixels (LEAD section 4)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop."""
    flip: float = 0.5
    """Probability of a mirror image. It makes left and right parts alike: 0 keeps them apart."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Hue shift in turns, drawn from [-hue, hue]."""
    grey: float = 0.2
    """Probability of dropping colour."""
    blur: tuple[float, float] = (1.0, 0.1)
    """Probability of a Gaussian blur in view a and in view b."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels of the view."""
    solarise: tuple[float, float] = (0.0, 0.2)
    """Probability of inverting all values from 128/255 up, in view a and in view b."""

    def __post_init__(self):
        for name in ("flip", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"views.{name} is a probability in [0, 1], got {getattr(self, name)}")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"views.scale must satisfy 0 < low <= high <= 1, got {self.scale}")
        if self.size < 32:
            raise ValueError(f"views.size must be >= 32 (the trunk's stride), got {self.size}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] <= BLUR_RADIUS / 4:
            raise ValueError(f"views.blur_sigma must lie in (0, {BLUR_RADIUS / 4}], got {self.blur_sigma}")


def draw(
    settings: ViewSettings, n: int, image_size: tuple[int, int], view: int, generator: torch.Generator
) -> ViewParameters:
    """Random numbers for view 0 (a) or 1 (b) of n images of image_size (height, width)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def chance(probability: float) -> Tensor:
        return torch.rand(n, generator=generator) < probability

    strengths = (settings.brightness, settings.contrast, settings.saturation)
    factors = [uniform(max(0.0, 1 - s), 1 + s, n) for s in strengths] + [uniform(-settings.hue, settings.hue, n)]
    blurred = chance(settings.blur[view])
    return ViewParameters(
        box=_crop_boxes(settings, n, image_size, generator),
        flip=chance(settings.flip),
        order=torch.rand(n, 4, generator=generator).argsort(dim=1),
        factors=torch.stack(factors, dim=1),
        jitter=chance(settings.jitter),
        grey=chance(settings.grey),
        sigma=uniform(*settings.blur_sigma, n) * blurred,
        solarise=chance(settings.solarise[view]),
    )


def _crop_boxes(settings: ViewSettings, n: int, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """torchvision's RandomResizedCrop: the first of ten draws that fits, else the whole image."""
    height, width = image_size
    low, high = (math.log(r) for r in settings.ratio)
    area = torch.rand(n, 10, generator=generator) * (settings.scale[1] - settings.scale[0]) + settings.scale[0]
    ratio = torch.exp(torch.rand(n, 10, generator=generator) * (high - low) + low)
    w = (area * height * width * ratio).sqrt().round().long()
    h = (area * height * width / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    w = torch.where(found, w.gather(1, first)[:, 0], width)
    h = torch.where(found, h.gather(1, first)[:, 0], height)
    position = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    top = (position[:, 0] * (height - h + 1)).long()
    left = (position[:, 1] * (width - w + 1)).long()
    return torch.stack([top, left, h, w], dim=1)


def whole_view(images: Tensor, packed: Tensor, size: int) -> Tensor:
    """Augmented and normalised, in operations whose shapes are always the same, from ViewParameters.packed()."""
    return augment.normalise(augment.apply_to_all(images, ViewParameters.unpacked(packed), size))


@cache
def _compiled() -> Callable[[Tensor, Tensor, int], Tensor]:
    return torch.compile(whole_view, dynamic=False)


_SEEN: set[tuple[int, ...]] = set()  # shapes that were compiled for


def _on_gpu(images: Tensor, packed: Tensor, size: int) -> Tensor:
    if not has_triton():
        return whole_view(images, packed, size)
    shape = (*images.shape, size)
    if shape in _SEEN:
        return _compiled()(images, packed, size)
    # At the first call only: every look at the filters has all warnings of the process said anew.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # pixels are to have all digits
        found = _compiled()(images, packed, size)
    _SEEN.add(shape)
    return found


def render(images: UInt8[Tensor, "n 3 h w"], parameters: ViewParameters, size: int) -> Float[Tensor, "n 3 size size"]:
    """Augmented views of zero mean and unit deviation over CelebA, channels last in memory."""
    if images.device.type == "cpu":
        return augment_cpu.apply(images, parameters, size, FACE_MEAN, FACE_STD)
    if images.device.type == "cuda":
        return _on_gpu(images, sent(parameters.packed(), images.device), size)
    return augment.normalise(augment.apply(images, parameters, size))


def two_views(
    images_a: UInt8[Tensor, "n 3 h w"],
    images_b: UInt8[Tensor, "n 3 h w"],
    settings: ViewSettings,
    *,
    total: int,
    rows: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 3 size size"], Float[Tensor, "n 3 size size"]]:
    """View a of the first images and view b of the second (the same ones, or their partners), normalised.

    All `total` images of the global batch are drawn for, then `rows` are taken: what an image gets does not depend
    on how many workers share the batch.
    """
    a, b = (
        render(images, draw(settings, total, tuple(images.shape[2:]), view, generator).rows(rows), settings.size)
        for view, images in enumerate((images_a, images_b))
    )
    return a, b
