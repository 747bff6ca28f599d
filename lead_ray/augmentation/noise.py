"""What DVE and Contrastive Landmarks (CL) add to views: JPEG's artefacts before, colour noise and a crop after.

Their order: JPEG at a random size and quality; crop and jitter of colours (`views`); noise along the principal
components of colours; a centre crop of the finished view. Source: DVE, data_loaders.py (JPEGNoise, PcaAug), and CL.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from lead_ray import geometry
from lead_ray.augmentation.augment import FACE_STD
from lead_ray.augmentation.views import ViewSettings, two_views
from lead_ray.machine import cores, sent

EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Of ImageNet's colours in [0, 1], as AlexNet's successors use them; the vectors are the columns."""
LEAST_SIZE = 0.8  # of the image's side


@dataclass(frozen=True, kw_only=True)
class Noise:
    """None, unless asked for."""

    jpeg: bool = False
    """Shrink or enlarge, save as a JPEG, and back again, before colours are jittered."""
    quality: tuple[int, int] = (30, 98)
    """Least and largest quality of that JPEG."""
    zoom: float = 0.5
    """Standard deviation of its side over the image's, around 1; at least 0.8 remains."""
    pca: float = 0.0
    """Standard deviation of noise along the principal components of colours, in units of their variance; 0.1 in DVE
    and CL."""
    margin: int = 0
    """Pixels cropped from every side of a finished view: CL shows 96 of 136 (views.size 136, margin 20)."""

    def __post_init__(self):
        low, high = self.quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"noise.quality must satisfy 1 <= low <= high <= 100, got {self.quality}")
        for name in ("zoom", "pca", "margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"noise.{name} must be >= 0, got {getattr(self, name)}")


def noisy_views(
    images_a: UInt8[Tensor, "n 3 h w"],
    images_b: UInt8[Tensor, "n 3 h w"],
    settings: ViewSettings,
    noise: Noise,
    *,
    total: int,
    rows: Int64[Tensor, " n"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 3 size size"], Float[Tensor, "n 3 size size"]]:
    """views.two_views() with noise; without any, exactly that.

    Shapes: views are settings.size less two margins wide.
    """
    images = [images_a, images_b]
    if noise.jpeg:
        images = [jpeg(each, *_draw_jpeg(each.shape[3], noise, total, rows, generator)) for each in images]
    pair = two_views(*images, settings, total=total, rows=rows, generator=generator)
    if noise.pca:
        shifts = (noise.pca * torch.randn(total, 3, generator=generator)[rows] for _ in pair)
        pair = tuple(view + sent(colour_shift(shift), view.device) for view, shift in zip(pair, shifts, strict=True))
    if noise.margin:
        pair = tuple(_cropped(view, noise.margin) for view in pair)
    return pair


def _draw_jpeg(
    side: int, noise: Noise, total: int, rows: Tensor, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Sides and qualities; all of the global batch are drawn for, as everywhere."""
    factors = 1 + noise.zoom * torch.randn(total, generator=generator)[rows]
    low, high = noise.quality
    qualities = torch.randint(low, high + 1, (total,), generator=generator)[rows]
    return [max(int(LEAST_SIZE * side), int(side * factor)) for factor in factors.tolist()], qualities.tolist()


def jpeg(images: UInt8[Tensor, "n 3 s s"], sides: list[int], qualities: list[int]) -> UInt8[Tensor, "n 3 s s"]:
    """Every image resized (bilinear, antialiased) to its side, saved at its quality, and resized back.

    In this process's memory, by Pillow, on as many cores as torch uses, or on all beside a GPU; the result lies on the
    images' device.
    """
    given = zip(images.permute(0, 2, 3, 1).cpu().numpy(), sides, qualities, strict=True)
    with ThreadPoolExecutor(torch.get_num_threads() if images.device.type == "cpu" else cores()) as pool:
        done = np.stack(list(pool.map(lambda each: _saved(*each), given)))
    return torch.from_numpy(done).permute(0, 3, 1, 2).to(images.device)


def _saved(pixels: np.ndarray, side: int, quality: int) -> np.ndarray:
    shape, buffer = pixels.shape[1::-1], io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer).resize(shape, Image.Resampling.BILINEAR))


def colour_shift(strengths: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 1 1"]:
    """What strengths along the three components add to normalised images."""
    values, vectors = torch.tensor(EIGENVALUES), torch.tensor(EIGENVECTORS)
    return ((strengths * values) @ vectors.T / torch.tensor(FACE_STD))[:, :, None, None]


def _cropped(view: Tensor, margin: int) -> Tensor:
    return geometry.crop_images(view, margin=margin).contiguous(memory_format=torch.channels_last)
