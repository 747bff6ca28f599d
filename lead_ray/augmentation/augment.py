"""A view's random numbers, and what they do to an image; a pure function, in torch, on any device.

Resampling and blur are products with small per-image matrices: crop, antialiased bicubic resize and flip are
W_y X W_x^T, exactly torchvision's result without its loop over images.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

FACE_MEAN = (0.5084, 0.4224, 0.3769)
FACE_STD = (0.2599, 0.2371, 0.2323)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's grey
BLUR_RADIUS = 8  # pixels: four times the widest sigma
CPU_CHUNK = 16  # images whose views stay in a core's second-level cache from one operation to the next


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

    def packed(self) -> Float[Tensor, "n 17"]:
        """All of it in one table, for one way to a GPU: numbers of pixels are whole in single precision, too."""
        return torch.cat([field.float().reshape(len(field), -1) for field in self], dim=1)

    @classmethod
    def unpacked(cls, table: Float[Tensor, "n 17"]) -> "ViewParameters":
        """What was packed()."""
        box, flip, order, factors, jitter, grey, sigma, solarise = table.split([4, 1, 4, 4, 1, 1, 1, 1], dim=1)

        def flag(column: Tensor) -> Tensor:
            return column[:, 0] > 0

        colours = order.long(), factors, flag(jitter), flag(grey)
        return cls(box.long(), flag(flip), *colours, sigma[:, 0], flag(solarise))


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


def apply_to_all(
    images: UInt8[Tensor, "n 3 h w"], parameters: ViewParameters, size: int
) -> Float[Tensor, "n 3 size size"]:
    """apply() with every operation on every image and the ones that were drawn kept: shapes do not depend on the draw.

    On a GPU, where arithmetic is cheap and launches and transfers are not: it can be compiled to a few kernels.
    The parameters are on the images' device.
    """

    def chosen(flag: Tensor) -> Tensor:
        return flag[:, None, None, None]

    views = crop_resize(images, parameters.box, parameters.flip, size)
    for place in range(4):
        number = parameters.order[:, place]
        result = views
        for kind, operation in enumerate(COLOUR):
            changed = operation(views, chosen(parameters.factors[:, kind]))
            result = torch.where(chosen(parameters.jitter & (number == kind)), changed, result)
        views = result
    views = torch.where(chosen(parameters.grey), luminance(views), views)
    views = gaussian_blur(views, parameters.sigma.clamp_min(1e-3))  # of so little, exactly none
    inverted = torch.where(views >= 128 / 255, 1 - views, views)
    return torch.where(chosen(parameters.solarise), inverted, views)


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
    for place in range(4):
        for number, operation in enumerate(COLOUR):
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


COLOUR = (_brightness, _contrast, _saturation, _hue)
"""By their numbers."""


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
