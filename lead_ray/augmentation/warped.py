"""Pairs of views that a known warp relates: what DVE (Thewlis et al., ICCV 2019) learns from.

As in DVE: an image is warped once (view b) and twice (view a), cropped, truncated to bytes, and only then do both take
their own colours. So a grid says exactly where in view b each pixel of view a came from.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from lead_ray import geometry
from lead_ray.augmentation.noise import Noise, noisy_views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.geometry import Warper


def dve_warper() -> Warper:
    """The warps that DVE trains with (utils/tps.py's defaults): twice matching's, the first one half as strong."""
    return Warper(
        kernel_std=0.001,
        subset_std=0.01,
        translation_std=0.1,
        scale_std=0.1,
        rotation_std=5.0,
        first_multiplier=0.5,
    )


def dve_views(size: int = 96) -> ViewSettings:
    """DVE's jitter of brightness, contrast and saturation, of whole images; its JPEG and PCA noise are dve_noise()."""
    return ViewSettings(
        size=size,
        scale=(1.0, 1.0),
        flip=0.0,
        jitter=1.0,
        saturation=0.4,
        hue=0.0,
        grey=0.0,
        blur=(0.0, 0.0),
        solarise=(0.0, 0.0),
    )


def dve_noise() -> Noise:
    """JPEG and colour noise as DVE and CL train with them."""
    return Noise(jpeg=True, pca=0.1)


def cl_views() -> ViewSettings:
    """CL's crop of a fifth or more of the image to 136 px, with DVE's jitter; cl_noise() goes with it."""
    return replace(dve_views(size=136), scale=(0.2, 1.0))


def cl_noise() -> Noise:
    """CL's noise, and its second crop: 96 of the 136 px."""
    return replace(dve_noise(), margin=20)


def warped_views(
    images: UInt8[Tensor, "n 3 h w"],
    settings: ViewSettings,
    warper: Warper,
    *,
    margin: int,
    total: int,
    rows: Int64[Tensor, " n"],
    generator: torch.Generator,
    noise: Noise | None = None,
) -> tuple[Float[Tensor, "n 3 size size"], Float[Tensor, "n 3 size size"], Float[Tensor, "n size size 2"]]:
    """Views a (warped twice) and b (warped once) of each image, normalised, and the grid that leads from a to b.

    All `total` images of the global batch are drawn for, then `rows` are taken, as in views.two_views.

    Args:
        margin: pixels cropped from every side after warping; they keep the black around the image out of it.
        noise: if not given there is none.
    Returns: grid[:, y, x] is the normalised (x, y) in view b of what view a shows at (x, y).
    Raises: ValueError if the settings crop, mirror or resize: no grid would be true any more.
    """
    noise = noise or Noise()
    if noise.margin:
        raise ValueError(f"noise.margin={noise.margin} is not for warped views, which have their own: leave it 0")
    side = images.shape[3] - 2 * margin
    if settings.scale != (1.0, 1.0) or settings.flip or settings.size != side:
        raise ValueError(
            f"warped views show the whole crop: use --views.scale 1 1 --views.flip 0 --views.size {side}, "
            f"got scale {settings.scale}, flip {settings.flip}, size {settings.size}"
        )
    first, second = (
        geometry.warp_grids(
            geometry.warp_weights(geometry.draw_warps(total, generator=generator), warper, first=first)[rows].to(
                images.device
            ),
            height=images.shape[2],
            width=images.shape[3],
        )
        for first in (True, False)
    )
    once = geometry.warp_images(images.float(), first)
    twice = geometry.warp_images(once, second)
    view_a, view_b = noisy_views(
        *(geometry.crop_images(warped, margin=margin).to(torch.uint8) for warped in (twice, once)),
        settings,
        noise,
        total=total,
        rows=rows,
        generator=generator,
    )
    return view_a, view_b, geometry.crop_grids(second, margin=margin)
