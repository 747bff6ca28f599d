"""Frozen features: computed once for each image, at native resolution, and kept."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lead_ray import geometry, storage
from lead_ray.artefacts import atomic
from lead_ray.augmentation import augment
from lead_ray.images import shards
from lead_ray.models import weights

MARGIN = weights.FACES.margin
"""Pixels cropped from every side of a 136 px image (PROTOCOLS of DVE and CL), if nothing else is said."""


def crops(images: UInt8[Tensor, "n 3 h w"], *, margin: int = MARGIN) -> Float[Tensor, "n 3 ch cw"]:
    """Stored images -> the encoder's normalised input."""
    return augment.normalise(geometry.crop_images(images, margin=margin).float() / 255)


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: UInt8[Tensor, "n 3 h w"],
    *,
    cropped: bool = False,
    margin: int = MARGIN,
    batch_size: int = 64,
) -> list[Tensor]:
    """Blocks of all images in float16, on the images' device, finest first, channels-last in memory.

    Args:
        cropped: the images are crops already.
        margin: else what is cropped from every side of them.
    Raises: ValueError if the encoder is in training mode: its BatchNorm would mix the images of a batch.
    """
    if encoder.training:
        raise ValueError("the encoder is in training mode: call its eval() first")

    rows: list[Tensor] = []
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        blocks = encoder(augment.normalise(batch.float() / 255) if cropped else crops(batch, margin=margin))
        # Room for all of them at once: to gather batches would need it twice.
        rows = rows or [
            block.new_empty((len(images), *block.shape[2:], block.shape[1]), dtype=torch.float16) for block in blocks
        ]
        for kept, block in zip(rows, blocks, strict=True):
            kept[first : first + len(batch)] = block.permute(0, 2, 3, 1)
    return [kept.permute(0, 3, 1, 2) for kept in rows]


def cached(path: Path, encoder: nn.Module, images: UInt8[Tensor, "n 3 h w"], *, margin: int = MARGIN) -> list[Tensor]:
    """extract(), kept in a file that later calls read instead."""
    if storage.exists(path):
        with storage.fetched(path) as local:
            kept = load_file(local, device=str(images.device))
        if "block0" in kept:  # of an earlier version, channel by channel
            return [kept[f"block{level}"].to(memory_format=torch.channels_last) for level in range(len(kept))]
        return [kept[f"rows{level}"].permute(0, 3, 1, 2) for level in range(len(kept))]
    blocks = extract(encoder, images, margin=margin)
    with atomic(path) as temporary:
        save_file({f"rows{level}": block.permute(0, 2, 3, 1) for level, block in enumerate(blocks)}, temporary)
    return blocks


def normalised_landmarks(images: shards.Images, *, margin: int = MARGIN) -> Tensor:
    """Landmarks of stored images, [-1, 1] over the encoder's crop."""
    side = images.pixels.shape[2] - 2 * margin
    points = geometry.crop_points(torch.from_numpy(images.landmarks), margin=margin)
    return geometry.normalise(points, height=side, width=side)


def stored_pixels(points: Float[Tensor, "*n 2"], *, size: int, margin: int = MARGIN) -> Float[Tensor, "*n 2"]:
    """Back from [-1, 1] over the encoder's crop to pixels of the stored image of that size."""
    side = size - 2 * margin
    return geometry.pixels(points, height=side, width=side) + margin
