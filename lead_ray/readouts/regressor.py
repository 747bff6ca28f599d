"""The tiny regressor of DVE and CL: 1x1 convolution, soft-argmax, one linear layer per landmark.

A 1x1 convolution gives every landmark 50 response maps, a soft-argmax turns each map into a virtual point,
and a linear layer turns a landmark's 50 points into its position. Features are blocks: maps [n, c, h, w] of
one encoder at native resolution, finest first. The convolution commutes with bilinear upsampling, so each
block is convolved where it lives and only response maps are upsampled; the hypercolumn is never built.
Blocks that are channels-last in memory are read fastest.

Landmarks are (x, y), normalised: -1 and +1 are the centres of the first and last pixel of the encoder's
input.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts.regressor_cpu import Passes
from lead_ray.similarity import upsampling

Blocks = Sequence[Float[Tensor, "_ _ _ _"]]
CHUNK = 32  # images per forward pass outside training


def soft_argmax(maps: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n 2"]:
    """Expected normalised (x, y) under the softmax of every map."""
    height, width = maps.shape[-2:]
    grid = geometry.identity_grid(height=height, width=width, dtype=maps.dtype, device=maps.device)
    return maps.flatten(-2).softmax(-1) @ grid.flatten(0, 1)


def upsample(maps: Sequence[Float[Tensor, "m _ _"]], *, grid: int) -> Float[Tensor, "m grid grid"]:
    """Maps of several blocks, bilinearly resized to grid x grid and added.

    Exact up to rounding: with D, A the upsampling along each side, sum_l D_l M_l A_l^T; columns first, where the
    maps are small, then one product adds the blocks up along their rows.
    """
    rows = []
    for block in maps:
        count, height, width = block.shape
        across = upsampling(width, grid, block)
        rows.append((block.reshape(-1, width) @ across.mT).view(count, height, grid))
    down = torch.cat([upsampling(block.shape[1], grid, block) for block in maps], dim=1)
    return down @ torch.cat(rows, dim=1)


def responses(blocks: Blocks, weights: Sequence[Float[Tensor, "m _"]], *, grid: int) -> Float[Tensor, "m b grid grid"]:
    """A 1x1 convolution of the hypercolumn at grid x grid, without the hypercolumn.

    Weights: one matrix [m, c_l] per block. Blocks of any floating type are read in the weights' type.
    """
    maps = []
    for block, weight in zip(blocks, weights, strict=True):
        channels, _, height, width = (flat := block.transpose(0, 1)).shape
        found = weight @ flat.to(weight.dtype).reshape(channels, -1)
        maps.append(found.view(-1, height, width))
    return upsample(maps, grid=grid).unflatten(0, (len(weights[0]), -1))


def descriptors(
    block: Float[Tensor, "n c h w"], images: Int64[Tensor, " b"], dtype: torch.dtype
) -> Float[Tensor, "b h w c"]:
    """Some images of a block, channels last in memory: then one product convolves them, and one gives its gradient."""
    return block.permute(0, 2, 3, 1).index_select(0, images).to(dtype)


class Regressor(NamedTuple):
    """A trained read-out; all that prediction needs."""

    weights: tuple[Tensor, ...]
    """Per block [k * points, c_l]; virtual point i of landmark k is row k * points + i."""
    linear: Float[Tensor, "k points_2 2"]
    """From a landmark's virtual points x0, y0, x1, y1, ... to its (x, y)."""
    bias: Float[Tensor, "k 2"]
    """Zero in DVE and CL."""
    temperature: float
    grid: int

    def virtual_points(self, blocks: Blocks) -> Float[Tensor, "k b points_2"]:
        """Virtual points of every landmark, x0, y0, x1, y1, ...; carries gradients."""
        # The temperature on the weights spares a pass over the maps.
        sharpened = [self.temperature * weight for weight in self.weights]
        marks, weight = len(self.linear), sharpened[0]
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.requires_grad:
            passes = Passes(blocks, marks=marks, points=len(weight) // marks, grid=self.grid)
            return passes.virtual_points(sharpened)
        points = soft_argmax(responses(blocks, sharpened, grid=self.grid))
        return points.unflatten(0, (marks, -1)).transpose(1, 2).flatten(2)

    def landmarks(self, blocks: Blocks) -> Float[Tensor, "b k 2"]:
        """Normalised landmarks of one batch; carries gradients."""
        return (self.virtual_points(blocks) @ self.linear).transpose(0, 1) + self.bias

    @torch.no_grad()
    def predict(self, blocks: Blocks) -> Float[Tensor, "n k 2"]:
        """Normalised landmarks of any number of images.

        Raises: ValueError if the blocks' channels are not those that the regressor was fitted on.
        """
        channels = [weight.shape[1] for weight in self.weights]
        given = [block.shape[1] for block in blocks]
        if given != channels:
            raise ValueError(f"blocks must have {channels} channels, as in fit(), got {given}")
        parts = zip(*(block.split(CHUNK) for block in blocks), strict=True)
        return torch.cat([self.landmarks(part) for part in parts])

    def detach(self) -> "Regressor":
        """The same without gradients."""
        weights = tuple(weight.detach() for weight in self.weights)
        return self._replace(weights=weights, linear=self.linear.detach(), bias=self.bias.detach())

    def to(self, device: torch.device | str) -> "Regressor":
        """The same on another device."""
        weights = tuple(weight.to(device) for weight in self.weights)
        return self._replace(weights=weights, linear=self.linear.to(device), bias=self.bias.to(device))


def random_start(
    channels: Sequence[int],
    marks: int,
    *,
    points: int,
    temperature: float,
    grid: int,
    generator: torch.Generator,
) -> Regressor:
    """N(0, 1) convolutions and PyTorch's default linear layer, U(-1, 1) / sqrt(its inputs); no bias.

    Source: DVE, keypoint_prediction.py.
    """
    device = generator.device
    rows, inputs = marks * points, 2 * points
    weights = torch.randn(rows, sum(channels), generator=generator, device=device)
    linear = (2 * torch.rand(marks, inputs, 2, generator=generator, device=device) - 1) / math.sqrt(inputs)
    bias = torch.zeros(marks, 2, device=device)
    return Regressor(weights.split(list(channels), dim=1), linear, bias, temperature, grid)


def loss(
    predicted: Float[Tensor, "*r b k 2"],
    target: Float[Tensor, "*r b k 2"],
    *,
    visible: Bool[Tensor, "*r b k"] | None = None,
    scale: float = 10.0,
) -> Float[Tensor, "*r"]:
    """Smooth L1 of scaled normalised coordinates, mean over the visible ones; 0 where nothing is visible.

    Source: DVE, keypoint_prediction.py.
    """
    each = functional.smooth_l1_loss(scale * predicted, scale * target, reduction="none")
    if visible is None:
        return each.mean((-3, -2, -1))
    used = visible.unsqueeze(-1).expand_as(each)
    return each.where(used, 0).sum((-3, -2, -1)) / used.sum((-3, -2, -1)).clamp(min=1)
