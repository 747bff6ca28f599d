"""Landmarks from frozen features and annotated images: fit a Regressor, measure it, compare with the floor.

Features are blocks (see regressor.py), computed once by a frozen encoder. Landmarks are (x, y), normalised:
-1 and +1 are the centres of the first and last pixel of the encoder's input.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lead_ray import geometry, metrics
from lead_ray.readouts.convolution_head import Fitted, train_head
from lead_ray.readouts.descent import Annotated, most_together, train
from lead_ray.readouts.detectors import SHRINKAGES, Start, fit_detectors
from lead_ray.readouts.regressor import Blocks, Regressor, random_start
from lead_ray.readouts.settings import RegressionSettings


def fit(
    blocks: Blocks,
    landmarks: Float[Tensor, "n k 2"],
    settings: RegressionSettings,
    generator: torch.Generator,
    *,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Fitted:
    """Start a regressor, then train it if the settings ask for epochs.

    Every random number comes from the generator. Copies of one image should follow each other.

    Raises: ValueError if images and landmarks do not pair up, a landmark is visible nowhere, or the loss
      stops being finite.
    """
    return fit_many(blocks, [_all_of(blocks, landmarks, visible, generator)], settings)[0]


def fit_many(
    blocks: Blocks, sets: Sequence[Annotated], settings: RegressionSettings, *, mixed: bool | None = None
) -> list[Fitted]:
    """fit() on several sets of annotated images, trained together: each ends as it would alone, up to rounding.

    Mixed: train sets of different sizes in one pass, filling up the smaller batches. It spares an accelerator
      launches and a CPU nothing; None: wherever there is no CPU.
    Raises: ValueError as fit().
    """
    found = dict(fit_each(blocks, sets, settings, mixed=mixed))
    return [found[place] for place in range(len(sets))]


def fit_each(
    blocks: Blocks, sets: Sequence[Annotated], settings: RegressionSettings, *, mixed: bool | None = None
) -> Iterator[tuple[int, Fitted]]:
    """fit_many() as it goes on: (which set, its regressor), as soon as those that are trained together are finished.

    Smaller sets come first. What is wrong with the sets is said at once, not when the first regressor is asked for.
    """
    sets = [each.checked() for each in sets]
    mixed = blocks[0].device.type != "cpu" if mixed is None else mixed
    return _fitted(blocks, sets, settings, mixed)


def _fitted(
    blocks: Blocks, sets: Sequence[Annotated], settings: RegressionSettings, mixed: bool
) -> Iterator[tuple[int, Fitted]]:
    if not sets:
        return
    # What needs no training gains nothing from company.
    alone = settings.epochs == 0 or settings.head == "convolutions"
    most = 1 if alone else most_together(blocks, sets[0].landmarks.shape[1], settings)
    for some in _passes([len(each.images) for each in sets], mixed, most):
        given = [sets[place] for place in some]
        if settings.head == "convolutions":
            found: list[Fitted] = [train_head(blocks, each, settings) for each in given]
        else:
            starts, deviations = zip(*(_start(blocks, each, settings) for each in given), strict=True)
            found = list(starts) if settings.epochs == 0 else train(starts, deviations, given, blocks, settings)
        yield from zip(some, found, strict=True)


def _all_of(blocks: Blocks, landmarks: Tensor, visible: Tensor | None, generator: torch.Generator) -> Annotated:
    """All of the blocks' images as one set."""
    if counts := sorted({len(block) for block in blocks} - {len(landmarks)}):
        raise ValueError(f"every block must hold the {len(landmarks)} annotated images, got {counts}")
    if visible is None:
        visible = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=landmarks.device)
    images = torch.arange(len(landmarks), device=landmarks.device)
    return Annotated(images, landmarks, visible, generator)


def _start(blocks: Blocks, given: Annotated, settings: RegressionSettings) -> tuple[Regressor, list[Tensor]]:
    """A regressor to train, or to use as it is, and the unit of its weights: a deviation for every channel."""
    if settings.start == "random":
        head = {"points": settings.points, "temperature": settings.temperature, "grid": settings.grid}
        channels, device = [block.shape[1] for block in blocks], given.landmarks.device
        start = random_start(channels, given.landmarks.shape[1], generator=given.generator, **head).to(device)
        return start, [torch.ones(count, device=device) for count in channels]
    found = closed_form(blocks, given, settings)
    return found.regressor, found.deviations


def closed_form(blocks: Blocks, given: Annotated, settings: RegressionSettings) -> Start:
    """fit_detectors() as the settings say."""
    return fit_detectors(
        blocks,
        *given[:3],
        grid=settings.grid,
        points=settings.points,
        spread=settings.spread,
        temperature=settings.temperature,
        folds=settings.folds,
        generator=given.generator,
        copies=given.copies,
        shrinkages=(settings.shrinkage,) if settings.shrinkage else SHRINKAGES,
    )


def _passes(counts: Sequence[int], mixed: bool, most: int) -> Iterator[list[int]]:
    """Which sets are trained together, by their numbers of images."""
    order = sorted(range(len(counts)), key=lambda place: counts[place])
    for _, same in groupby(order, key=lambda place: None if mixed else counts[place]):
        some = list(same)
        yield from (some[first : first + most] for first in range(0, len(some), most))


class Evaluation(NamedTuple):
    """Errors in % of the inter-ocular distance."""

    per_image: Float[Tensor, " n"]
    """NaN where no point is visible."""
    mean: float
    """Over all visible points of all images."""


def evaluate(
    predicted: Float[Tensor, "n k 2"],
    landmarks: Float[Tensor, "n k 2"],
    *,
    eyes: tuple[int, int] = metrics.EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Evaluation:
    """Inter-ocular errors of predictions, be they a regressor's or mean_face().

    Raises: ValueError as metrics.inter_ocular_error().
    """
    how = {"eyes": eyes, "visible": visible}
    mean = float(metrics.inter_ocular_error(predicted, landmarks, **how))
    return Evaluation(metrics.inter_ocular_error_per_image(predicted, landmarks, **how), mean)


def mean_face(
    landmarks: Float[Tensor, "n k 2"], count: int, *, visible: Bool[Tensor, "n k"] | None = None
) -> Float[Tensor, "count k 2"]:
    """The floor: the mean of the visible training landmarks, for every one of `count` images."""
    if visible is None:
        visible = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=landmarks.device)
    used = visible.unsqueeze(-1)
    return (landmarks.where(used, 0).sum(0) / used.sum(0).clamp(min=1)).expand(count, -1, -1)


def annotations(count: int, total: int, seed: int) -> Int64[Tensor, " count"]:
    """Which `count` of `total` training images are annotated: nested for one seed, the same on every machine.

    Raises: ValueError unless 1 <= count <= total.
    """
    if not 1 <= count <= total:
        raise ValueError(f"annotations must be in 1..{total}, the number of training images, got {count}")
    return torch.from_numpy(numpy.random.default_rng(seed).permutation(total)[:count])


def warped_copies(
    images: UInt8[Tensor, "n 3 h w"],
    landmarks: Float[Tensor, "n k 2"],
    copies: int,
    generator: torch.Generator,
    *,
    warper: geometry.Warper | None = None,
    margin: int = 20,
) -> tuple[UInt8[Tensor, "m 3 ch cw"], Float[Tensor, "m k 2"]]:
    """Copies of a few annotated images under fresh thin-plate-spline warps, cropped for the encoder.

    Landmarks: pixels of the full image; those returned, normalised to the crop. They move to the nearest
      pixel of the grid. The copies of an image follow each other.
    Source: DVE, WarperSingle; PROTOCOLS of LEAD's baselines.
    """
    if copies < 1:
        raise ValueError(f"copies must be >= 1, got {copies}")
    height, width = images.shape[-2:]
    pixels, points = [], []
    for image, marks in zip(images, landmarks, strict=True):
        draws = geometry.draw_warps(copies, generator=generator)
        weights = geometry.warp_weights(draws, warper or geometry.limited_annotation_warper())
        grids = geometry.warp_grids(weights.to(image.device), height=height, width=width)
        warped = geometry.warp_images(image.float().expand(copies, -1, -1, -1), grids)
        pixels.append(geometry.crop_images(warped, margin=margin).to(torch.uint8))
        moved = geometry.warp_keypoints(grids, marks.to(grids).expand(copies, -1, -1))
        points.append(geometry.crop_points(moved, margin=margin))
    cropped = torch.cat(pixels)
    return cropped, geometry.normalise(torch.cat(points), height=cropped.shape[2], width=cropped.shape[3])
