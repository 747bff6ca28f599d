"""Landmarks from frozen features and annotated images: fit a Regressor, measure it, compare with the floor.

Features are blocks (see regressor.py), computed once by a frozen encoder. Landmarks are (x, y), normalised:
-1 and +1 are the centres of the first and last pixel of the encoder's input.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from lead_ray import geometry, metrics
from lead_ray.detectors import fit_detectors
from lead_ray.regressor import Blocks, Regressor, loss, random_start


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """How a regressor is started and trained: the defaults are ours, paper() and paper_limited() CL's.

    Raises: ValueError if a field is outside its range.
    """

    start: Literal["random", "detectors"] = "detectors"
    """random: DVE and CL. detectors: closed form, from the annotations and the features' correlations."""
    grid: int = 48
    """Cells per side of the response maps; 24 costs a third and was as good."""
    points: int = 50
    """Virtual points per landmark."""
    temperature: float = 2.0
    """Factor on the responses inside the softmax."""
    spread: float = 0.2
    """Standard deviation of the detectors' places around their landmark, normalised units."""
    folds: int = 10
    """Runs of images that judge each other when the start chooses its regularisation; see detectors.py."""
    epochs: int = 0
    """Epochs of gradient descent after the start."""
    schedule_epochs: int | None = None
    """Epochs of the whole cosine; None: all of `epochs`. CL stops early on a longer one."""
    epoch_steps: int | None = None
    """Steps that count as an epoch; None: until every image was seen once."""
    batch_size: int = 32
    lr: float = 1e-3
    final_lr: float = 8e-4
    """Where the cosine would end, as a share of lr."""
    weight_decay: float = 0.0
    """Adam's: added to the gradient."""

    def __post_init__(self):
        if self.start not in ("random", "detectors"):
            raise ValueError(f"regression.start must be random or detectors, got {self.start!r}")
        bounds = {
            ">= 1": ("grid", "points", "folds", "schedule_epochs", "epoch_steps", "batch_size"),
            ">= 0": ("epochs", "spread", "weight_decay", "final_lr"),
            "> 0": ("temperature", "lr"),
        }
        for bound, name in [(bound, name) for bound, names in bounds.items() for name in names]:
            value = getattr(self, name)
            if value is not None and (value < int(bound[-1]) or (bound == "> 0" and value == 0)):
                raise ValueError(f"regression.{name} must be {bound}, got {value}")
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs must be >= epochs={self.epochs}, got {self.schedule_epochs}")


def paper(stop: int = 120, *, epoch_steps: int | None = None, grid: int = 48) -> RegressionSettings:
    """CL's read-out, which LEAD took over: 120 epochs on MAFL, 45 on AFLW, 80 on 300W, of a cosine over 200.

    `epoch_steps` keeps the original's steps on fewer images: 317 for AFLW's 10,122 in batches of 32.
    Beware: on features of many channels it starts saturated and only the linear layer learns.
    Source: CL, eval_face.py and README.
    """
    schedule = {"epochs": stop, "schedule_epochs": 200, "epoch_steps": epoch_steps}
    return RegressionSettings(start="random", temperature=100.0, weight_decay=5e-4, grid=grid, **schedule)


def paper_limited(epochs: int = 1000, *, grid: int = 48) -> RegressionSettings:
    """CL's read-out of a few annotated images: train it on warped_copies() that make 1,000.

    CL warps anew in every epoch; frozen features are computed once, so here the copies stay.
    Source: CL, eval_face.py (lr 0.01, weight decay 0.05, 1,000 epochs).
    """
    return replace(paper(1, grid=grid), epochs=epochs, schedule_epochs=None, lr=0.01, weight_decay=0.05)


def learning_rate(epoch: int, settings: RegressionSettings) -> float:
    """Rate of an epoch, counted from 0: CL steps its cosine before each epoch, so the first is below lr."""
    lowest = settings.final_lr * settings.lr
    share = (epoch + 1) / (settings.schedule_epochs or settings.epochs)
    return lowest + (settings.lr - lowest) * (1 + math.cos(math.pi * share)) / 2


def fit(
    blocks: Blocks,
    landmarks: Float[Tensor, "n k 2"],
    settings: RegressionSettings,
    generator: torch.Generator,
    *,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Regressor:
    """Start a regressor, then train it if the settings ask for epochs.

    Every random number comes from the generator. Copies of one image should follow each other.

    Raises: ValueError if images and landmarks do not pair up, a landmark is visible nowhere, or the loss
      stops being finite.
    """
    if counts := sorted({len(block) for block in blocks} - {len(landmarks)}):
        raise ValueError(f"every block must hold the {len(landmarks)} annotated images, got {counts}")
    if visible is None:
        visible = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=landmarks.device)
    if missing := (~visible.any(0)).nonzero().flatten().tolist():
        raise ValueError(f"landmarks {missing} are visible in no annotated image; annotate more or drop them")
    landmarks = landmarks.where(visible.unsqueeze(-1), 0)  # what is not visible may be anything, NaN included
    head = {"points": settings.points, "temperature": settings.temperature, "grid": settings.grid}
    if settings.start == "random":
        channels = [block.shape[1] for block in blocks]
        start = random_start(channels, landmarks.shape[1], generator=generator, **head).to(landmarks.device)
        deviations = [torch.ones(count, device=landmarks.device) for count in channels]
    else:
        spread = {"spread": settings.spread, "folds": settings.folds}
        start, deviations = fit_detectors(blocks, landmarks, visible, generator=generator, **head, **spread)
    if settings.epochs == 0:
        return start
    return _train(start, deviations, blocks, landmarks, visible, settings, generator)


def _train(
    start: Regressor,
    deviations: list[Tensor],
    blocks: Blocks,
    landmarks: Tensor,
    visible: Tensor,
    settings: RegressionSettings,
    generator: torch.Generator,
) -> Regressor:
    """Adam on the convolution, in units of the channels' deviations, and on the linear layer."""
    scaled = [(old * size).requires_grad_() for old, size in zip(start.weights, deviations, strict=True)]
    linear, bias = start.linear.clone().requires_grad_(), start.bias.clone()
    parameters = [*scaled, linear]
    if settings.start == "detectors":
        parameters.append(bias.requires_grad_())
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.5, 0.999), weight_decay=settings.weight_decay)

    def current() -> Regressor:
        weights = tuple(weight / size for weight, size in zip(scaled, deviations, strict=True))
        return start._replace(weights=weights, linear=linear, bias=bias)

    epoch_steps = settings.epoch_steps or math.ceil(len(landmarks) / settings.batch_size)
    steps = settings.epochs * epoch_steps
    batches = _batches(len(landmarks), settings.batch_size, generator)
    for step, batch in zip(range(steps), batches, strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(step // epoch_steps, settings)
        batch = batch.to(landmarks.device)
        predicted = current().landmarks([block[batch] for block in blocks])
        value = loss(predicted, landmarks[batch], visible=visible[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if (step % 100 == 0 or step == steps - 1) and not value.isfinite():
            raise ValueError(f"the loss is {value.item()} at step {step}; lower regression.lr={settings.lr}")
    return current().detach()


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, " _"]]:
    """Shuffled epochs without end; the last batch of an epoch may be small."""
    while True:
        yield from torch.randperm(count, generator=generator, device=generator.device).split(size)


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
