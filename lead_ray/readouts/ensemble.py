"""Regressors of all annotated images, whose mean is the landmark, and an ensemble, whose spread measures the doubt.

Each member of the ensemble is fitted without some of the images, so an error in images that were not seen comes with
it. Where there are few images that costs more than averaging gains, so the landmark is left to regressors that miss
none; averaging several, which look for other places, gains a little more. All are one Regressor: one pass, one file.
Features are blocks (see regressor.py). Points are (x, y), normalised: -1 and +1 are the centres of the first and last
pixel of the network's input; so are spreads and widths.
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
WHOLE = 4  # regressors of all images, which differ in the places that their virtual points look for
GRID = 24
LARGEST = 2**26  # bytes of all convolutions; beyond, regressors get by with fewer virtual points
MAPS = 9800  # of all, likewise: of 68 landmarks 12 points each, 1 % less exact than 16 and a fifth faster


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
    """Of (whole + members) * k landmarks: all of one regressor after all of another, first those of all images."""
    whole: int
    """Regressors of all images. 0 in files of format 1: there the mean of the members is the landmark."""
    members: int
    heat: tuple[Tensor, ...]
    """Per block [k, c_l]: what responds to a landmark's surroundings, over all regressors."""

    @torch.no_grad()
    def read(self, blocks: Blocks) -> Reading:
        """Raises: ValueError if the blocks are of other channels than those fitted on."""
        points, spread = self.judged(self.regressor.predict(blocks))
        return Reading(points, spread, self._width(blocks, points))

    def judged(self, found: Float[Tensor, "n all_k 2"]) -> tuple[Float[Tensor, "n k 2"], Float[Tensor, "n k"]]:
        """Points and spread out of what the regressor finds."""
        each = found.unflatten(1, (self.whole + self.members, -1))
        members = each[:, self.whole :]
        squares = (members - members.mean(1, keepdim=True)).square().sum(-1).sum(1)
        points = each[:, : self.whole].mean(1) if self.whole else members.mean(1)
        return points, (squares / (self.members - 1)).sqrt()

    @torch.no_grad()
    def read_by(self, blocks: Blocks, counted: Bool[Tensor, "members n"]) -> Reading:
        """What the members that count for each image say: points are their mean, spread is theirs.

        The width is of the heat of all regressors, those of all images too. NaN where none counts, or for a spread less
        than two.
        """
        marks = len(self.regressor.linear) // (self.whole + self.members)
        found = self.regressor.linear.new_zeros(counted.shape[1], self.members, marks, 2)
        for number, own in enumerate(counted):
            if own.any():
                found[own, number] = self._member(number).predict([block[own] for block in blocks])
        share = counted.mT.to(found)[..., None]
        count = share.sum(1)
        points = (share[..., None] * found).sum(1) / count[..., None].where(count[..., None] > 0, torch.nan)
        squares = (share * (found - points.unsqueeze(1)).square().sum(-1)).sum(1)
        spread = (squares / (count - 1).where(count > 1, torch.nan)).sqrt()
        return Reading(points, spread, self._width(blocks, points))

    def _member(self, number: int) -> Regressor:
        def own(values: Tensor) -> Tensor:
            return values.chunk(self.whole + self.members)[self.whole + number]

        weights, linear, bias = self.regressor.weights, self.regressor.linear, self.regressor.bias
        return self.regressor._replace(weights=tuple(map(own, weights)), linear=own(linear), bias=own(bias))

    def _width(self, blocks: Blocks, points: Float[Tensor, "n k 2"]) -> Float[Tensor, "n k"]:
        sharpened = [self.regressor.temperature * weight for weight in self.heat]
        parts = zip(points.split(CHUNK), *(block.split(CHUNK) for block in blocks), strict=True)
        width = [heat_width(responses(part, sharpened, grid=GRID).transpose(0, 1), at) for at, *part in parts]
        return torch.cat(width)

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it; from_tensors() makes it anew."""
        parts = {"linear": self.regressor.linear, "bias": self.regressor.bias}
        for level, (weight, heat) in enumerate(zip(self.regressor.weights, self.heat, strict=True)):
            parts |= {f"weight{level}": weight, f"heat{level}": heat}
        scalars = {"whole": self.whole, "members": self.members}
        scalars |= {"temperature": self.regressor.temperature, "grid": self.regressor.grid}
        return parts | {name: torch.tensor(float(value)) for name, value in scalars.items()}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> "Ensemble":
        """Raises: KeyError if something is missing, but for `whole`, which files of format 1 do not hold; ValueError if
        parts do not go together."""
        levels = range(sum(name.startswith("weight") for name in kept))
        weights, heat = (tuple(kept[f"{name}{level}"] for level in levels) for name in ("weight", "heat"))
        regressor = Regressor(weights, kept["linear"], kept["bias"], float(kept["temperature"]), int(kept["grid"]))
        found = cls(regressor, int(kept.get("whole", 0)), int(kept["members"]), heat)
        if len(regressor.linear) != (found.whole + found.members) * len(heat[0]):
            raise ValueError(
                f"{len(regressor.linear)} landmarks of all regressors are not {found.whole} + {found.members} times "
                f"{len(heat[0])}"
            )
        return found


def fit_ensemble(
    blocks: Blocks,
    landmarks: Float[Tensor, "n k 2"],
    visible: Bool[Tensor, "n k"],
    *,
    whole: int = WHOLE,
    members: int = MEMBERS,
    points: int = 32,
    seed: int = 0,
) -> tuple[Ensemble, Bool[Tensor, "members n"]]:
    """Regressors of all images with an ensemble, and which images each of its members has seen.

    Every member leaves out three images of eight, every image is left out by about as many members; whoever would
    be left without a landmark sees one more image. The closed form's shrinkage, one of three, is chosen once, on all
    images by cross-validation, which is also how the first regressor of all images is found: searching anew in every
    member takes four times as long.

    Args:
        whole: regressors of all images, one at least.
        members: of the ensemble, two at least.
        points: virtual points a landmark, of every regressor, at most.
    Raises: ValueError if a landmark is visible nowhere, or there are fewer than two images, or too few regressors.
    """
    if whole < 1 or members < 2:
        raise ValueError(f"whole must be >= 1 and members >= 2, got {whole} and {members}")
    if len(landmarks) < 2:
        raise ValueError(f"an ensemble needs at least 2 annotated images, got {len(landmarks)}")
    marks, channels = landmarks.shape[1], sum(block.shape[1] for block in blocks)
    affordable = min(LARGEST // (4 * channels), MAPS) // ((whole + members) * marks)
    settings = RegressionSettings(grid=GRID, points=max(4, min(points, affordable)))

    def some(rows: Tensor, number: int) -> Annotated:
        return Annotated(rows, landmarks[rows], visible[rows], torch.Generator().manual_seed(number))

    every = torch.arange(len(landmarks), device=landmarks.device)
    drawn = (whole + members) * seed
    first = regression.closed_form(blocks, some(every, drawn).checked(), settings)
    settings = replace(settings, shrinkage=first.shrinkage)
    seen = design(visible, members, seed)
    sets = [every] * (whole - 1) + [own.nonzero().flatten() for own in seen]
    sets = [some(rows, drawn + 1 + place) for place, rows in enumerate(sets)]
    fitted = [first.regressor, *regression.fit_many(blocks, sets, settings)]
    weights = tuple(torch.cat(level) for level in zip(*(each.weights for each in fitted), strict=True))
    linear, bias = torch.cat([each.linear for each in fitted]), torch.cat([each.bias for each in fitted])
    heat = tuple(weight.unflatten(0, (len(fitted), marks, -1)).mean((0, 2)) for weight in weights)
    joined = Regressor(weights, linear, bias, settings.temperature, settings.grid)
    return Ensemble(joined, whole, members, heat), seen


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
