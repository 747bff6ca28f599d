"""Landmarks read out of frozen features by something that also says how far off it may be.

From one annotated image: the places whose descriptors are most like those annotated. From two: an ensemble of
regressors, each of which has not seen some of the images; its mean is the landmark, its spread a measure of doubt.
Features are blocks (see regressor.py). Points are (x, y), normalised: -1 and +1 are the centres of the first and last
pixel of the network's input; so are spreads and widths.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts import regression
from lead_ray.readouts.descent import Annotated
from lead_ray.readouts.regressor import CHUNK, Blocks, Regressor, responses
from lead_ray.readouts.settings import RegressionSettings

MEMBERS = 8
LEFT_OUT = 3  # of eight images, every member has not seen so many
GRID = 24
LARGEST = 2**26  # bytes of all members' convolutions; beyond, they get by with fewer virtual points
PRIOR = 0.45  # standard deviation of a landmark about where it was annotated, normalised units
SHARPNESS = 0.06  # temperature of a match's similarities


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
        every = torch.ones(self.members, len(blocks[0]), dtype=torch.bool, device=blocks[0].device)
        return self.read_by(blocks, every)

    @torch.no_grad()
    def read_by(self, blocks: Blocks, counted: Bool[Tensor, "members n"]) -> Reading:
        """read() by only the members that count for each image; NaN where none does, or for a spread less than two."""
        found = self.regressor.predict(blocks).unflatten(1, (self.members, -1))
        share = counted.mT[:, :, None].float()
        count = share.sum(1)
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
        weights = _levels(kept, "weight")
        grid, members = int(kept["grid"]), int(kept["members"])
        regressor = Regressor(weights, kept["linear"], kept["bias"], float(kept["temperature"]), grid)
        return cls(regressor, members, _levels(kept, "heat"))


class Matcher(NamedTuple):
    """What annotated landmarks look like, for finding the same in other images."""

    queries: tuple[Tensor, ...]
    """Per block [k, c_l]: mean unit descriptor, each image's own mean taken off before."""
    centres: Float[Tensor, "k 2"]
    """Where the landmarks were annotated: of two alike, the nearer one is meant."""

    @torch.no_grad()
    def read(self, blocks: Blocks) -> Reading:
        """Raises: ValueError if the blocks are of other channels than those fitted on."""
        given, wanted = [[each.shape[1] for each in parts] for parts in (blocks, self.queries)]
        if given != wanted:
            raise ValueError(f"blocks must have {wanted} channels, as those fitted on, got {given}")
        parts = [self.read_batch(part) for part in zip(*(block.split(CHUNK) for block in blocks), strict=True)]
        return Reading(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def read_batch(self, blocks: Blocks) -> Reading:
        """read() in one piece."""
        logits = self.similarity(blocks) / SHARPNESS
        grid = geometry.identity_grid(height=GRID, width=GRID, device=logits.device)
        away = (grid - self.centres[:, None, None]).square().sum(-1)
        logits = logits - away / (2 * PRIOR**2)
        points = logits.flatten(2).softmax(-1) @ grid.flatten(0, 1)
        width = heat_width(logits, points)
        return Reading(points, torch.zeros_like(width), width)

    def similarity(self, blocks: Blocks) -> Float[Tensor, "n k grid grid"]:
        """Cosines, mean over the blocks."""
        total: Tensor | float = 0.0
        for block, query in zip(blocks, self.queries, strict=True):
            resized = functional.interpolate(_centred(block), size=(GRID, GRID), mode="bilinear", align_corners=False)
            found = functional.conv2d(functional.normalize(resized, dim=1), query[..., None, None])
            total = total + found / len(self.queries)
        return total

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it; from_tensors() makes it anew."""
        return {"centres": self.centres} | {f"query{level}": query for level, query in enumerate(self.queries)}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> "Matcher":
        return cls(_levels(kept, "query"), kept["centres"])


Readout = Ensemble | Matcher


def from_tensors(kept: Mapping[str, Tensor]) -> Readout:
    """What tensors() gave."""
    kept = {name: value.float() for name, value in kept.items()}
    return Matcher.from_tensors(kept) if "query0" in kept else Ensemble.from_tensors(kept)


def fit_matcher(blocks: Blocks, landmarks: Float[Tensor, "n k 2"], visible: Bool[Tensor, "n k"]) -> Matcher:
    """Raises: ValueError if a landmark is visible nowhere."""
    _check(visible)
    places = landmarks.where(visible.unsqueeze(-1), 0)
    count = visible.sum(0).unsqueeze(-1)
    queries = []
    for block in blocks:
        at = places.clamp(-1, 1).unsqueeze(1)
        found = functional.grid_sample(_centred(block), at, padding_mode="border", align_corners=False)[:, :, 0]
        units = functional.normalize(found, dim=1).mT * visible.unsqueeze(-1)
        queries.append(units.sum(0) / count)
    return Matcher(tuple(queries), places.sum(0) / count)


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
    be left without a landmark sees one more image. Points: virtual points a landmark, of every member, at most.
    Raises: ValueError if a landmark is visible nowhere, or there are fewer than two images.
    """
    _check(visible)
    if len(landmarks) < 2:
        raise ValueError(f"an ensemble needs at least 2 annotated images, got {len(landmarks)}")
    marks, channels = landmarks.shape[1], sum(block.shape[1] for block in blocks)
    affordable = LARGEST // (4 * members * marks * channels)
    settings = RegressionSettings(grid=GRID, points=max(4, min(points, affordable)))
    seen = _design(visible, members, seed)
    sets = []
    for member, own in enumerate(seen):
        rows = own.nonzero().flatten()
        generator = torch.Generator().manual_seed(members * seed + member)
        sets.append(Annotated(rows, landmarks[rows], visible[rows], generator))
    fitted = regression.fit_many(blocks, sets, settings)
    weights = tuple(torch.cat(level) for level in zip(*(each.weights for each in fitted), strict=True))
    linear, bias = torch.cat([each.linear for each in fitted]), torch.cat([each.bias for each in fitted])
    heat = tuple(weight.unflatten(0, (members, marks, -1)).mean((0, 2)) for weight in weights)
    joined = Regressor(weights, linear, bias, settings.temperature, settings.grid)
    return Ensemble(joined, members, heat), seen


def _design(visible: Bool[Tensor, "n k"], members: int, seed: int) -> Bool[Tensor, "members n"]:
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


def _check(visible: Tensor) -> None:
    if missing := (~visible.any(0)).nonzero().flatten().tolist():
        raise ValueError(f"landmarks {missing} are visible in no annotated image; annotate more or drop them")


def _centred(block: Tensor) -> Tensor:
    """Without the image's mean, which says what the image is and not where its parts are."""
    block = block.float()
    return block - block.mean((2, 3), keepdim=True)


def heat_width(logits: Float[Tensor, "n k h w"], points: Float[Tensor, "n k 2"]) -> Float[Tensor, "n k"]:
    """Root mean square distance of a heat map's mass from the points."""
    height, width = logits.shape[-2:]
    grid = geometry.identity_grid(height=height, width=width, device=logits.device).flatten(0, 1)
    mass = logits.flatten(2).softmax(-1)
    # E|x - p|^2 = E|x|^2 - 2 p . E x + |p|^2, with no [n, k, cells] of distances.
    second = mass @ grid.square().sum(-1)
    return (second - 2 * (points * (mass @ grid)).sum(-1) + points.square().sum(-1)).clamp(min=0).sqrt()


def _levels(kept: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    return tuple(kept[f"{name}{level}"] for level in range(sum(key.startswith(name) for key in kept)))
