"""An ensemble of regressors: its mean is the landmark, its spread a measure of doubt.

Each member is fitted without some of the annotated images, so an error in images that were not seen comes with it. All
members together are one Regressor: one pass, one file. Features are blocks (see regressor.py). Points are (x, y),
normalised: -1 and +1 are the centres of the first and last pixel of the network's input; so are spreads and widths.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lead_ray import geometry
from lead_ray.readouts import regression
from lead_ray.readouts.descent import Annotated
from lead_ray.readouts.regressor import CHUNK, Blocks, Regressor, responses
from lead_ray.readouts.settings import RegressionSettings

MEMBERS = 8
LEFT_OUT = 3  # of eight images, every member has not seen so many
GRID = 24
LARGEST = 2**26  # bytes of all members' convolutions; beyond, they get by with fewer virtual points
MAPS = 8800  # of all members, likewise: of 68 landmarks, 16 points each are as good as 50, and faster


class Reading(NamedTuple):
    """Landmarks of n images, and what hints at their errors."""

    points: Float[Tensor, "n k 2"]
    spread: Float[Tensor, "n k"]
    """Root mean square distance of the ensemble's members from their mean; 0 where there is no ensemble."""
    width: Float[Tensor, "n k"]
    """Root mean square distance of the heat map's mass from the point."""


class Ensemble(NamedTuple):
    """Several regressors in one."""

    regressor: Regressor
    """Of members * k landmarks, member by member."""
    members: int
    heat: tuple[Tensor, ...]
    """Per block [k, c_l]: what responds to a landmark's surroundings, over all members."""

    @torch.no_grad()
    def read(self, blocks: Blocks) -> Reading:
        """Raises: ValueError if the blocks are of other channels than those fitted on."""
        found = self.regressor.predict(blocks).unflatten(1, (self.members, -1))
        return self._reading(blocks, found, torch.ones_like(found[:, :, 0, 0]))

    @torch.no_grad()
    def read_by(self, blocks: Blocks, counted: Bool[Tensor, "members n"]) -> Reading:
        """read() by only the members that count for each image; NaN where none does, or for a spread less than two."""
        marks = len(self.regressor.linear) // self.members
        found = self.regressor.linear.new_zeros(counted.shape[1], self.members, marks, 2)
        for number, own in enumerate(counted):
            if own.any():
                found[own, number] = self._member(number).predict([block[own] for block in blocks])
        return self._reading(blocks, found, counted.mT.float())

    def _member(self, number: int) -> Regressor:
        weights = tuple(weight.chunk(self.members)[number] for weight in self.regressor.weights)
        linear, bias = (values.chunk(self.members)[number] for values in (self.regressor.linear, self.regressor.bias))
        return self.regressor._replace(weights=weights, linear=linear, bias=bias)

    def _reading(
        self, blocks: Blocks, found: Float[Tensor, "n members k 2"], counted: Float[Tensor, "n members"]
    ) -> Reading:
        """Mean, spread and width of what the members that count have found."""
        share, count = counted[..., None], counted.sum(1, keepdim=True)
        points = (share[..., None] * found).sum(1) / count[..., None].where(count[..., None] > 0, torch.nan)
        squares = (share * (found - points.unsqueeze(1)).square().sum(-1)).sum(1)
        spread = (squares / (count - 1).where(count > 1, torch.nan)).sqrt()
        sharpened = [self.regressor.temperature * weight for weight in self.heat]
        parts = zip(points.split(CHUNK), *(block.split(CHUNK) for block in blocks), strict=True)
        width = [heat_width(responses(part, sharpened, grid=GRID).transpose(0, 1), at) for at, *part in parts]
        return Reading(points, spread, torch.cat(width))

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it; from_tensors() makes it anew."""
        parts = {"linear": self.regressor.linear, "bias": self.regressor.bias}
        for level, (weight, heat) in enumerate(zip(self.regressor.weights, self.heat, strict=True)):
            parts |= {f"weight{level}": weight, f"heat{level}": heat}
        scalars = {"members": self.members, "temperature": self.regressor.temperature, "grid": self.regressor.grid}
        return parts | {name: torch.tensor(float(value)) for name, value in scalars.items()}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> "Ensemble":
        """Raises: KeyError if something is missing."""
        levels = range(sum(name.startswith("weight") for name in kept))
        weights, heat = (tuple(kept[f"{name}{level}"] for level in levels) for name in ("weight", "heat"))
        grid, members = int(kept["grid"]), int(kept["members"])
        return cls(Regressor(weights, kept["linear"], kept["bias"], float(kept["temperature"]), grid), members, heat)


def fit_ensemble(
    blocks: Blocks,
    landmarks: Float[Tensor, "n k 2"],
    visible: Bool[Tensor, "n k"],
    *,
    members: int = MEMBERS,
    points: int = 50,
    seed: int = 0,
) -> tuple[Ensemble, Bool[Tensor, "members n"]]:
    """An ensemble, and which images each of its members has seen.

    Every member leaves out three images of eight, every image is left out by about as many members; whoever would
    be left without a landmark sees one more image. The closed form's shrinkage, one of three, is chosen once, on all
    images by cross-validation: searching anew in every member takes four times as long. Points: virtual points a
    landmark, of every member, at most.
    Raises: ValueError if a landmark is visible nowhere, or there are fewer than two images.
    """
    if len(landmarks) < 2:
        raise ValueError(f"an ensemble needs at least 2 annotated images, got {len(landmarks)}")
    marks, channels = landmarks.shape[1], sum(block.shape[1] for block in blocks)
    affordable = min(LARGEST // (4 * channels), MAPS) // (members * marks)
    settings = RegressionSettings(grid=GRID, points=max(4, min(points, affordable)))

    def some(rows: Tensor, number: int) -> Annotated:
        return Annotated(rows, landmarks[rows], visible[rows], torch.Generator().manual_seed(number))

    every = some(torch.arange(len(landmarks), device=landmarks.device), members * seed).checked()
    settings = replace(settings, shrinkage=regression.closed_form(blocks, every, settings).shrinkage)
    seen = design(visible, members, seed)
    sets = [some(own.nonzero().flatten(), members * seed + member) for member, own in enumerate(seen)]
    fitted = regression.fit_many(blocks, sets, settings)
    weights = tuple(torch.cat(level) for level in zip(*(each.weights for each in fitted), strict=True))
    linear, bias = torch.cat([each.linear for each in fitted]), torch.cat([each.bias for each in fitted])
    heat = tuple(weight.unflatten(0, (members, marks, -1)).mean((0, 2)) for weight in weights)
    joined = Regressor(weights, linear, bias, settings.temperature, settings.grid)
    return Ensemble(joined, members, heat), seen


def design(visible: Bool[Tensor, "n k"], members: int, seed: int) -> Bool[Tensor, "members n"]:
    """Which images every member sees: runs of one random order are left out, the next member's after the last's."""
    count = len(visible)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(visible.device)
    left = LEFT_OUT * count // 8
    seen = torch.ones(members, count, dtype=torch.bool, device=visible.device)
    for member in range(members):
        run = (torch.arange(left, device=visible.device) + member * left) % count
        seen[member, order[run]] = False
        for mark in (~visible[seen[member]].any(0)).nonzero().flatten().tolist():
            shown = order[visible[order, mark]]
            seen[member, shown[member % len(shown)]] = True
    return seen


def heat_width(logits: Float[Tensor, "n k h w"], points: Float[Tensor, "n k 2"]) -> Float[Tensor, "n k"]:
    """Root mean square distance of a heat map's mass from the points."""
    height, width = logits.shape[-2:]
    grid = geometry.identity_grid(height=height, width=width, device=logits.device).flatten(0, 1)
    mass = logits.flatten(2).softmax(-1)
    # E|x - p|^2 = E|x|^2 - 2 p . E x + |p|^2, with no [n, k, cells] of distances.
    second = mass @ grid.square().sum(-1)
    return (second - 2 * (points * (mass @ grid)).sum(-1) + points.square().sum(-1)).clamp(min=0).sqrt()
