"""Crops and thin-plate-spline warps, under one pixel convention.

Points are (x, y) in pixels; pixel centres sit at integers; x runs right, y down. Normalised
coordinates put the centres of the first and of the last pixel at -1 and +1, which is
grid_sample(align_corners=True). A sampling grid [b, h, w, 2] holds for every output pixel the
normalised (x, y) of the input that it shows. A margin is what a centre crop removes: pixels per side.

The warps are DVE's (Thewlis et al., ICCV 2019): random kernel coefficients, nothing is solved for.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CONTROL_POINTS_PER_SIDE = 10


def normalise(points: Float[Tensor, "*n 2"], *, height: int, width: int) -> Float[Tensor, "*n 2"]:
    """Pixels -> [-1, 1]; inverse of pixels()."""
    x, y = (2 * points).unbind(-1)  # divided by plain numbers: a tensor of them would make the host wait for a GPU
    return torch.stack([x / (width - 1), y / (height - 1)], dim=-1) - 1


def pixels(points: Float[Tensor, "*n 2"], *, height: int, width: int) -> Float[Tensor, "*n 2"]:
    """[-1, 1] -> pixels; inverse of normalise()."""
    x, y = ((points + 1) / 2).unbind(-1)
    return torch.stack([x * (width - 1), y * (height - 1)], dim=-1)


def crop_images(images: Tensor, *, margin: int) -> Tensor:
    """Centre crop of [..., h, w], any dtype; a view, not a copy.

    Raises: ValueError if the margin is negative or leaves nothing.
    """
    height, width = images.shape[-2:]
    _check_margin(margin, height, width)
    return images[..., margin : height - margin, margin : width - margin]


def crop_points(points: Float[Tensor, "*n 2"], *, margin: int) -> Float[Tensor, "*n 2"]:
    """Pixels of the full image -> pixels of its centre crop; points outside it are kept."""
    return points - margin


def crop_grids(grids: Float[Tensor, "b h w 2"], *, margin: int) -> Float[Tensor, "b ch cw 2"]:
    """Sampling grids between full images -> the same warps between their centre crops.

    Raises: ValueError if the margin is negative or leaves nothing.
    """
    height, width = grids.shape[1:3]
    _check_margin(margin, height, width)
    inside = grids[:, margin : height - margin, margin : width - margin]
    shifted = crop_points(pixels(inside, height=height, width=width), margin=margin)
    return normalise(shifted, height=height - 2 * margin, width=width - 2 * margin)


def identity_grid(
    *, height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Float[Tensor, "h w 2"]:
    """The sampling grid that changes nothing."""
    down = torch.linspace(-1, 1, height, dtype=dtype, device=device)
    right = torch.linspace(-1, 1, width, dtype=dtype, device=device)
    rows, columns = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


@dataclass(frozen=True, kw_only=True)
class Warper:
    """Strength of random thin-plate-spline warps; the defaults are those of matching.

    Raises: ValueError if a standard deviation or a multiplier is negative.
    Source: DVE, test_matching.py and utils/tps.py.
    """

    kernel_std: float = 0.0005
    """Standard deviation of every kernel coefficient, normalised units."""
    subset_std: float = 0.005
    """The same for the random half of the coefficients that is drawn anew."""
    translation_std: float = 0.05
    """Normalised units, x and y alike."""
    scale_std: float = 0.05
    """Standard deviation of the scale, around 1."""
    rotation_std: float = 2.5
    """Degrees."""
    first_multiplier: float = 1.0
    """Factor on both kernel deviations of the first of two successive warps."""
    first_affine_multiplier: float = 1.0
    """Factor on the affine deviations of the first of two successive warps."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0:
                raise ValueError(f"warper.{field.name} must be >= 0, got {value}")


def limited_annotation_warper() -> Warper:
    """The gentle warps that multiply a handful of annotated images (DVE, WarperSingle)."""
    return Warper(subset_std=0.0, translation_std=0.02, scale_std=0.02, rotation_std=2.0)


def still() -> Warper:
    """No warp at all."""
    return Warper(kernel_std=0.0, subset_std=0.0, translation_std=0.0, scale_std=0.0, rotation_std=0.0)


@dataclass(frozen=True, kw_only=True)
class WarpDraws:
    """The random numbers of b warps, before a Warper scales them."""

    kernel: Float[Tensor, "b 100 2"]
    """Standard normal."""
    choice: Float[Tensor, "b 100 2"]
    """Uniform on [0, 1): above 1/2 the coefficient comes from `subset`."""
    subset: Float[Tensor, "b 100 2"]
    """Standard normal; read only where chosen."""
    rotation: Float[Tensor, " b"]
    """Standard normal."""
    scale: Float[Tensor, " b"]
    """Standard normal."""
    translation: Float[Tensor, "b 2"]
    """Standard normal, (x, y)."""


def draw_warps(count: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> WarpDraws:
    """Random numbers of `count` warps, on the generator's device."""
    setting = {"generator": generator, "dtype": dtype, "device": generator.device}
    coefficients = (count, CONTROL_POINTS_PER_SIDE**2, 2)
    return WarpDraws(
        kernel=torch.randn(coefficients, **setting),
        choice=torch.rand(coefficients, **setting),
        subset=torch.randn(coefficients, **setting),
        rotation=torch.randn(count, **setting),
        scale=torch.randn(count, **setting),
        translation=torch.randn(count, 2, **setting),
    )


def warp_weights(draws: WarpDraws, warper: Warper, *, first: bool = False) -> Float[Tensor, "b 103 2"]:
    """Weights of thin-plate-spline warps.

    `first` scales by the multipliers of the first of two successive warps.

    Returns: 100 kernel rows, then the affine rows: translation, image of the x and of the y axis.
    Source: DVE, utils/tps.py.
    """
    multiplier = warper.first_multiplier if first else 1.0
    affine_multiplier = warper.first_affine_multiplier if first else 1.0
    kernel = multiplier * torch.where(
        draws.choice > 0.5, draws.subset * warper.subset_std, draws.kernel * warper.kernel_std
    )
    scale = 1 + affine_multiplier * warper.scale_std * draws.scale
    angle = torch.deg2rad(affine_multiplier * warper.rotation_std * draws.rotation)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    affine = [
        affine_multiplier * warper.translation_std * draws.translation,
        torch.stack([cosine, -sine], dim=-1),
        torch.stack([sine, cosine], dim=-1),
    ]
    return torch.cat([kernel, torch.stack(affine, dim=1)], dim=1)


def control_points(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Float[Tensor, "100 2"]:
    """Where the kernels sit: 10 x 10 on [-1, 1]^2, row by row."""
    side = CONTROL_POINTS_PER_SIDE
    return identity_grid(height=side, width=side, dtype=dtype, device=device).flatten(0, 1)


def kernel(points: Float[Tensor, "*n 2"], centres: Float[Tensor, "m 2"]) -> Float[Tensor, "*n m"]:
    """U = d^2 ln(d^2 + 1e-5), with d the distance in normalised units; 0 at a centre."""
    squared = (points.unsqueeze(-2) - centres).square().sum(-1)
    return squared * (squared + 1e-5).log()


def warp_points(weights: Float[Tensor, "b 103 2"], points: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n 2"]:
    """Where warps send normalised points, exactly: sum_k U(point, c_k) w_k + affine part."""
    return _basis(points) @ weights


def warp_grids(weights: Float[Tensor, "b 103 2"], *, height: int, width: int) -> Float[Tensor, "b h w 2"]:
    """Sampling grids of warps."""
    identity = identity_grid(height=height, width=width, dtype=weights.dtype, device=weights.device)
    # One product for all warps: they share the basis [h * w, 103].
    coordinates = _basis(identity.flatten(0, 1)) @ weights.transpose(0, 1).flatten(1)
    return coordinates.unflatten(1, (-1, 2)).transpose(0, 1).unflatten(1, (height, width))


def warp_images(images: Float[Tensor, "b c h w"], grids: Float[Tensor, "b gh gw 2"]) -> Float[Tensor, "b c gh gw"]:
    """Look up images at sampling grids: bilinear, zero outside the image."""
    return functional.grid_sample(images, grids, mode="bilinear", padding_mode="zeros", align_corners=True)


def warp_keypoints(grids: Float[Tensor, "b h w 2"], points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k 2"]:
    """Where key points of an image appear in its warped version, in pixels.

    A grid points backwards, from the warped image to the original, so a key point goes to the
    pixel whose sampling position is nearest: whole numbers, on the border if the point has left.

    Source: DVE, utils/tps.py.
    """
    height, width = grids.shape[1:3]
    sampled = pixels(grids, height=height, width=width).flatten(1, 2).unsqueeze(1)
    nearest = (sampled - points.unsqueeze(2)).square().sum(-1).argmin(-1)
    return torch.stack([nearest % width, nearest // width], dim=-1).to(points.dtype)


def flow(grids: Float[Tensor, "b h w 2"]) -> Float[Tensor, "b h w 2"]:
    """Displacement of sampling grids from the identity, in pixels."""
    height, width = grids.shape[1:3]
    identity = identity_grid(height=height, width=width, dtype=grids.dtype, device=grids.device)
    return pixels(grids, height=height, width=width) - pixels(identity, height=height, width=width)


def _basis(points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 103"]:
    """[kernels, 1, x, y]: what the rows of the weights multiply."""
    centres = control_points(dtype=points.dtype, device=points.device)
    return torch.cat([kernel(points, centres), torch.ones_like(points[..., :1]), points], dim=-1)


def _check_margin(margin: int, height: int, width: int) -> None:
    if not 0 <= 2 * margin < min(height, width):
        raise ValueError(f"margin must be >= 0 and below half of the smaller side of {height} x {width}, got {margin}")
