"""Batched augmentation on the device: what is drawn and how it is applied are two separate things.

`draw` takes every random number of a batch from one explicit generator; `apply` is a pure function of images and
those numbers. Resampling and blur are products with small per-image matrices: crop, antialiased bicubic resize and
flip are W_y X W_x^T, exactly torchvision's result without its loop over images.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

FACE_MEAN = (0.5084, 0.4224, 0.3769)
FACE_STD = (0.2599, 0.2371, 0.2323)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's grey
BLUR_RADIUS = 8  # pixels: four times the widest sigma
CPU_CHUNK = 16  # images whose views stay in a core's second-level cache from one operation to the next


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


class ViewParameters(NamedTuple):
    """The random numbers of one view of n images."""

    box: Int64[Tensor, "n 4"]
    """Crop: top, left, height, width in pixels."""
    flip: Bool[Tensor, " n"]
    order: Int64[Tensor, "n 4"]
    """Which colour operation comes first, second, ...: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    factors: Float[Tensor, "n 4"]
    """Strength of each colour operation, in the order of their numbers: three factors and a hue shift in turns."""
    jitter: Bool[Tensor, " n"]
    grey: Bool[Tensor, " n"]
    sigma: Float[Tensor, " n"]
    """Blur in pixels; 0 where there is none."""
    solarise: Bool[Tensor, " n"]

    def rows(self, index: slice | Tensor) -> "ViewParameters":
        """The parameters of some of the images."""
        return ViewParameters(*(field[index] for field in self))


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


def apply(images: UInt8[Tensor, "n 3 h w"], parameters: ViewParameters, size: int) -> Float[Tensor, "n 3 size size"]:
    """Augmented views in [0, 1], not yet normalised; on the images' device."""
    if images.device.type == "cpu" and len(images) > CPU_CHUNK:
        pieces = [slice(i, i + CPU_CHUNK) for i in range(0, len(images), CPU_CHUNK)]
        return torch.cat([apply(images[piece], parameters.rows(piece), size) for piece in pieces])
    device = images.device
    views = crop_resize(images, parameters.box.to(device), parameters.flip.to(device), size)
    colour_jitter(views, parameters)
    grey = parameters.grey.nonzero()[:, 0].to(device)
    if len(grey):
        views[grey] = luminance(views[grey]).expand(-1, 3, -1, -1)
    blurred = parameters.sigma.nonzero()[:, 0]
    if len(blurred):
        sigma = parameters.sigma[blurred].to(device)
        views[blurred.to(device)] = gaussian_blur(views[blurred.to(device)], sigma)
    solarised = parameters.solarise.nonzero()[:, 0].to(device)
    if len(solarised):
        chosen = views[solarised]
        views[solarised] = torch.where(chosen >= 128 / 255, 1 - chosen, chosen)
    return views


def normalise(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """[0, 1] -> zero mean and unit deviation over CelebA, channels last in memory (PROTOCOLS of DVE and CL)."""
    mean = images.new_tensor(FACE_MEAN)[:, None, None]
    std = images.new_tensor(FACE_STD)[:, None, None]
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def crop_resize(
    images: UInt8[Tensor, "n 3 h w"], box: Int64[Tensor, "n 4"], flip: Bool[Tensor, " n"], size: int
) -> Float[Tensor, "n 3 size size"]:
    """Crop, antialiased bicubic resize and mirror, as torchvision's resized_crop; clamped to [0, 1]."""
    top, left, height, width = box.unbind(1)
    vertical = resize_matrix(top, height, images.shape[2], size)
    horizontal = resize_matrix(left, width, images.shape[3], size)
    horizontal = torch.where(flip[:, None, None], horizontal.flip(1), horizontal)
    planes = images.to(vertical.dtype).contiguous() / 255
    return (vertical[:, None] @ planes @ horizontal.mT[:, None]).clamp_(0, 1)


def resize_matrix(
    start: Int64[Tensor, " n"], length: Int64[Tensor, " n"], full: int, size: int
) -> Float[Tensor, "n size full"]:
    """Rows of weights that resample pixels start .. start + length - 1 to `size` pixels.

    The antialiased bicubic filter of Pillow and torchvision (a = -0.5), cut at the crop's borders.
    """
    n, device = len(start), start.device
    length = length[:, None, None].float()
    scale = length / size
    support = scale.clamp(min=1)
    centre = (torch.arange(size, device=device)[None, :, None] + 0.5) * scale
    taps = torch.arange(math.ceil(4 * max(1, full / size)) + 1, device=device)
    pixel = (centre - 2 * support - 0.5).ceil() + taps  # within the crop: all that the filter can reach
    distance = ((pixel + 0.5 - centre) / support).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weight = weight * ((pixel >= 0) & (pixel < length))
    weight = weight / weight.sum(dim=2, keepdim=True)
    column = (pixel.long() + start[:, None, None]).clamp_(0, full - 1)  # weights past the border are 0
    return weight.new_zeros(n, size, full).scatter_add_(2, column, weight)


def luminance(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Grey value of each pixel."""
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def colour_jitter(images: Float[Tensor, "n 3 h w"], parameters: ViewParameters) -> None:
    """Brightness, contrast, saturation and hue in each image's own order, in place (torchvision's ColorJitter)."""
    operations = (_brightness, _contrast, _saturation, _hue)
    for place in range(4):
        for number, operation in enumerate(operations):
            chosen = (parameters.jitter & (parameters.order[:, place] == number)).nonzero()[:, 0]
            if len(chosen):
                factor = parameters.factors[chosen, number].to(images.device)[:, None, None, None]
                chosen = chosen.to(images.device)
                images[chosen] = operation(images[chosen], factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = luminance(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luminance(images), images, factor).clamp_(0, 1)


def _hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift of the hue at fixed maximum and minimum of each pixel's channels (HSV), without HSV's branches."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    red, green, blue = images.unbind(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * turns[:, 0]
    # Channel c of a colour with hue h (in sixths), value v and chroma s: v - s * clamp(min(k, 4 - k), 0, 1),
    # k = (offset_c + h) mod 6.
    offset = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (hue[:, None] + offset) % 6
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def gaussian_blur(images: Float[Tensor, "n 3 s s"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n 3 s s"]:
    """Gaussian blur of square images, one sigma (pixels) each; 17 taps, mirrored borders (torchvision's)."""
    matrix = _blur_matrix(sigma, images.shape[3])[:, None]
    return matrix @ images @ matrix.mT


def _blur_matrix(sigma: Tensor, size: int) -> Tensor:
    tap = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (tap / sigma[:, None]) ** 2, dim=1)
    source = torch.arange(size, device=sigma.device)[:, None] + tap
    source = (size - 1) - ((size - 1) - source.abs()).abs()  # mirror without repeating the border pixel
    matrix = sigma.new_zeros(len(sigma), size, size)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, size, -1))


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
        normalise(
            apply(images, draw(settings, total, tuple(images.shape[2:]), view, generator).rows(rows), settings.size)
        )
        for view, images in enumerate((images_a, images_b))
    )
    return a, b
