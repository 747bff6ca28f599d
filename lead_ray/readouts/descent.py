"""Gradient descent on many regressors at once: other annotated images and other random numbers for each of them.

Their weights are stacked, [repeats, points, channels]. A step is one product a block for all repeats, one softmax, one
Adam; on a CPU one compiled pass a repeat. Nothing passes from one repeat to another, so each ends in the regressor
that it would become alone, up to rounding.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lead_ray.machine import quick_products
from lead_ray.optimisers import never_compiled
from lead_ray.readouts.regressor import Blocks, Regressor, descriptors, loss, soft_argmax, upsample
from lead_ray.readouts.regressor_cpu import Passes
from lead_ray.readouts.settings import RegressionSettings, learning_rate

ROOM = 2**31  # bytes to work in on a CPU; of a GPU half of what is free


class Annotated(NamedTuple):
    """What one regressor learns from."""

    images: Int64[Tensor, " n"]
    """Which of the blocks' images."""
    landmarks: Float[Tensor, "n k 2"]
    visible: Bool[Tensor, "n k"]
    generator: torch.Generator
    """Every random number of this regressor comes from it."""
    copies: int = 1
    """So many images in a row are copies of one."""

    def checked(self) -> "Annotated":
        """The same, with hidden landmarks at 0: they may be anything, NaN included.

        Raises: ValueError if images and landmarks do not pair up, or a landmark is visible nowhere.
        """
        if len({len(values) for values in self[:3]}) > 1:
            raise ValueError(
                f"images, landmarks, visible must pair up, got {[len(values) for values in self[:3]]} rows"
            )
        if missing := (~self.visible.any(0)).nonzero().flatten().tolist():
            raise ValueError(f"landmarks {missing} are visible in no annotated image; annotate more or drop them")
        return self._replace(landmarks=self.landmarks.where(self.visible.unsqueeze(-1), 0))


class Batch(NamedTuple):
    """One step's images of all repeats; where a repeat has fewer, it is filled up with images that show nothing."""

    images: Int64[Tensor, "r b"]
    landmarks: Float[Tensor, "r b k 2"]
    visible: Bool[Tensor, "r b k"]


Gradients = Callable[[Batch], tuple[Float[Tensor, " r"], list[Tensor]]]
"""Each repeat's loss; the gradients of weights, linear and bias, stacked."""


class Stack(NamedTuple):
    """The regressors of all repeats."""

    weights: list[Tensor]
    """Per block [r, k * points, c_l], in units of the channels' deviations."""
    deviations: list[Tensor]
    """Per block [r, 1, c_l]."""
    linear: Float[Tensor, "r k points_2 2"]
    bias: Float[Tensor, "r k 2"]
    temperature: float
    grid: int

    def factors(self) -> list[Tensor]:
        """What turns the weights into a convolution that has the temperature in it."""
        return [self.temperature / deviation for deviation in self.deviations]

    def convolution(self) -> list[Tensor]:
        return [weight * factor for weight, factor in zip(self.weights, self.factors(), strict=True)]

    def regressors(self) -> list[Regressor]:
        weights = zip(*(each / size for each, size in zip(self.weights, self.deviations, strict=True)), strict=True)
        heads = zip(weights, self.linear, self.bias, strict=True)
        return [Regressor(each, linear, bias, self.temperature, self.grid) for each, linear, bias in heads]


class Course(NamedTuple):
    """How long a repeat is trained."""

    epoch_steps: int
    steps: int

    def rate(self, step: int, settings: RegressionSettings) -> float:
        """Learning rate; 0 after its end: while others go on, it stays as it is."""
        return learning_rate(step // self.epoch_steps, settings) if step < self.steps else 0.0


def train(
    starts: Sequence[Regressor],
    deviations: Sequence[Sequence[Float[Tensor, " _"]]],
    sets: Sequence[Annotated],
    blocks: Blocks,
    settings: RegressionSettings,
) -> list[Regressor]:
    """Adam on the convolutions, in units of the channels' deviations, and on the linear layers.

    Deviations: for every start, per block. Biases are trained where the start has them.
    Raises: ValueError if a loss stops being finite.
    """
    stack = _stack(starts, deviations)
    courses = [course_of(len(each.images), settings) for each in sets]
    trained = [*stack.weights, stack.linear, *([stack.bias] if settings.start == "detectors" else [])]
    # Neighbours that are trained for as long share their rate, and so one group of the optimiser.
    spans = [list(span) for _, span in groupby(range(len(sets)), key=lambda repeat: courses[repeat])]
    slices = [slice(span[0], span[-1] + 1) for span in spans]
    groups = [{"params": [tensor[span] for tensor in trained]} for span in slices]
    how = {"lr": settings.lr, "betas": (0.5, 0.999), "weight_decay": settings.weight_decay}
    optimizer = never_compiled(torch.optim.Adam)(groups, fused=True, **how)
    device = stack.linear.device.type
    gradients = (_compiled if device == "cpu" else _differentiated)(stack, blocks)
    steps = max(course.steps for course in courses)
    for step, batch in enumerate(_batches(sets, courses, settings.batch_size, steps)):
        with quick_products(device, settings.precision == "bf16"):
            losses, found = gradients(batch)
        for group, span in zip(optimizer.param_groups, slices, strict=True):
            group["lr"] = courses[span.start].rate(step, settings)
            for tensor, gradient in zip(group["params"], found, strict=False):
                tensor.grad = gradient[span]
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            stop_if_not_finite(losses, step, settings)
    return stack.regressors()


def stop_if_not_finite(losses: Float[Tensor, " r"], step: int, settings: RegressionSettings) -> None:
    """Raises: ValueError if a loss is not finite."""
    if not losses.isfinite().all():
        value = losses[~losses.isfinite()][0].item()
        raise ValueError(f"the loss is {value} at step {step}; lower regression.lr={settings.lr}")


def most_together(blocks: Blocks, marks: int, settings: RegressionSettings) -> int:
    """How many repeats have room at a time, at least 1."""
    maps, channels = marks * settings.points, sum(block.shape[1] for block in blocks)
    numbers = 4 * maps * channels  # weights, gradients, Adam's two moments
    room = ROOM
    if blocks[0].device.type == "cuda":
        room = torch.cuda.mem_get_info(blocks[0].device)[0] // 2
        native = sum(block[0, 0].numel() for block in blocks)
        features = sum(block[0].numel() for block in blocks)
        numbers += settings.batch_size * (features + maps * (4 * native + 6 * settings.grid**2))
    return max(1, room // (4 * numbers))


def _stack(starts: Sequence[Regressor], deviations: Sequence[Sequence[Tensor]]) -> Stack:
    sizes = [torch.stack(each).unsqueeze(1) for each in zip(*deviations, strict=True)]
    weights = [torch.stack(each) for each in zip(*(start.weights for start in starts), strict=True)]
    return Stack(
        weights=[weight * size for weight, size in zip(weights, sizes, strict=True)],
        deviations=sizes,
        linear=torch.stack([start.linear for start in starts]),
        bias=torch.stack([start.bias for start in starts]),
        temperature=starts[0].temperature,
        grid=starts[0].grid,
    )


def course_of(count: int, settings: RegressionSettings) -> Course:
    """Of a regressor with so many annotated images."""
    epoch_steps = settings.epoch_steps or math.ceil(count / settings.batch_size)
    return Course(epoch_steps, settings.epochs * epoch_steps)


def _batches(sets: Sequence[Annotated], courses: Sequence[Course], size: int, steps: int) -> Iterator[Batch]:
    images, landmarks, visible = (pad_sequence([each[field] for each in sets], batch_first=True) for field in range(3))
    repeats = torch.arange(len(sets), device=images.device).unsqueeze(1)
    draws = [
        islice(shuffled(len(each.images), size, each.generator), course.steps)
        for each, course in zip(sets, courses, strict=True)
    ]
    nothing = torch.empty(0, dtype=torch.int64, device=sets[0].generator.device)
    for _ in range(steps):
        drawn = [next(draw, nothing) for draw in draws]
        places = pad_sequence(drawn, batch_first=True, padding_value=-1).to(images.device)
        at = repeats, places.clamp(min=0)
        yield Batch(images[at], landmarks[at], visible[at] & (places >= 0).unsqueeze(-1))


def shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, " _"]]:
    """Shuffled epochs without end; the last batch of an epoch may be small."""
    while True:
        yield from torch.randperm(count, generator=generator, device=generator.device).split(size)


def _compiled(stack: Stack, blocks: Blocks) -> Gradients:
    """Losses and gradients of weights, linear and bias, one repeat after another."""
    marks, width = stack.linear.shape[1:3]
    passes = Passes(blocks, marks=marks, points=width // 2, grid=stack.grid)

    def gradients(batch: Batch) -> tuple[Float[Tensor, " r"], list[Tensor]]:
        weights = zip(*stack.convolution(), strict=True)
        each_repeat = zip(weights, stack.linear, stack.bias, *batch, strict=True)
        losses, found = zip(*(passes.gradients(*each) for each in each_repeat), strict=True)
        *convolution, linear, bias = (torch.stack(each) for each in zip(*found, strict=True))
        slopes = [slope.mul_(factor) for slope, factor in zip(convolution, stack.factors(), strict=True)]
        return torch.stack(losses), [*slopes, linear, bias]

    return gradients


def _differentiated(stack: Stack, blocks: Blocks) -> Gradients:
    """The same for all repeats at once, by automatic differentiation."""

    def gradients(batch: Batch) -> tuple[Float[Tensor, " r"], list[Tensor]]:
        repeats, images = batch.images.shape
        leaves = [tensor.detach().requires_grad_() for tensor in (*stack.weights, stack.linear, stack.bias)]
        *weights, linear, bias = leaves
        maps = []
        for block, weight in zip(blocks, stack._replace(weights=weights).convolution(), strict=True):
            read = descriptors(block, batch.images.flatten(), weight.dtype)
            maps.append((weight @ read.view(repeats, -1, read.shape[-1]).mT).reshape(-1, *read.shape[1:3]))
        points = soft_argmax(upsample(maps, grid=stack.grid)).view(repeats, linear.shape[1], -1, images, 2)
        virtual = points.transpose(2, 3).flatten(3)
        predicted = (virtual @ linear).transpose(1, 2) + bias.unsqueeze(1)
        losses = loss(predicted, batch.landmarks, visible=batch.visible)
        return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves))

    return gradients
