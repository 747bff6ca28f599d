"""Which training images are annotated in each of several repeats, and their features: what regressors are fitted on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lead_ray import features
from lead_ray.images import shards
from lead_ray.readouts import regression
from lead_ray.readouts.descent import Annotated

POOL = 2**32  # bytes of features of warped copies that are held at a time


class Draw(NamedTuple):
    """What one repeat annotates: the same images on every machine."""

    count: int
    """Annotated images."""
    copies: int
    """Warped copies of each to learn from in its place; 0: the image itself."""
    seed: int
    """Of the choice of images, the warps, and the regressor."""


def annotate(
    draws: Sequence[Draw],
    images: shards.Images,
    encoder: nn.Module,
    device: torch.device,
    everyone: Callable[[], list[Tensor]],
    *,
    margin: int = features.MARGIN,
) -> Iterator[tuple[list[Tensor], list[Annotated]]]:
    """Blocks and the sets of some draws on them, until no draw is left; they keep their order.

    Images are encoded once, however many repeats annotate them. Everyone: blocks of all images, called if a draw
    annotates all of them. Margin: cropped from every side of an image.

    Raises: ValueError if there are fewer images than a draw annotates.
    """
    chosen = [regression.annotations(draw.count, len(images.ids), draw.seed) for draw in draws]
    if any(draw.copies for draw in draws):
        yield from _of_copies(draws, chosen, images, encoder, device, margin)
        return
    if any(draw.count == len(images.ids) for draw in draws):
        pool, blocks = torch.arange(len(images.ids)), everyone()
    else:
        pool = torch.cat(chosen).unique()
        blocks = features.extract(encoder, images.pixels[pool].to(device), margin=margin)
    points, visible = features.normalised_landmarks(images, margin=margin), torch.from_numpy(images.visible)
    yield (
        blocks,
        [
            _annotated(torch.searchsorted(pool, rows), points[rows], visible[rows], _generator(draw), device)
            for draw, rows in zip(draws, chosen, strict=True)
        ],
    )


def _of_copies(
    draws: Sequence[Draw],
    chosen: Sequence[Tensor],
    images: shards.Images,
    encoder: nn.Module,
    device: torch.device,
    margin: int,
) -> Iterator[tuple[list[Tensor], list[Annotated]]]:
    held: list[list[Tensor]] = []
    sets: list[Annotated] = []
    points, visible = torch.from_numpy(images.landmarks), torch.from_numpy(images.visible)
    for draw, rows in zip(draws, chosen, strict=True):
        generator = _generator(draw)
        marks = points[rows]
        pixels, moved = regression.warped_copies(images.pixels[rows], marks, draw.copies, generator, margin=margin)
        begin = sum(len(blocks[0]) for blocks in held)
        held.append(features.extract(encoder, pixels.to(device), cropped=True))
        seen = visible[rows].repeat_interleave(draw.copies, dim=0)
        made = torch.arange(begin, begin + len(pixels))
        sets.append(_annotated(made, moved, seen, generator, device)._replace(copies=draw.copies))
        if sum(block.nbytes for blocks in held for block in blocks) >= POOL:
            yield [torch.cat(level) for level in zip(*held, strict=True)], sets
            held, sets = [], []
    if sets:
        yield [torch.cat(level) for level in zip(*held, strict=True)], sets


def _generator(draw: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw.seed)


def _annotated(
    rows: Tensor, points: Tensor, visible: Tensor, generator: torch.Generator, device: torch.device
) -> Annotated:
    return Annotated(rows.to(device), points.to(device), visible.to(device), generator)
