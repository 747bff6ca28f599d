"""Landmarks read out of frozen features by something that also says how far off it may be.

From one annotated image: the places whose descriptors are most like those annotated. From two: regressors of all and an
ensemble (readouts/ensemble.py), whose conventions are also those here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lead_ray import geometry
from lead_ray.readouts.ensemble import GRID, Ensemble, Reading, heat_width
from lead_ray.readouts.regressor import CHUNK, Blocks

PRIOR = 0.45  # standard deviation of a landmark about where it was annotated, normalised units
SHARPNESS = 0.06  # temperature of a match's similarities


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
        """Raises: KeyError if something is missing."""
        levels = range(sum(name.startswith("query") for name in kept))
        return cls(tuple(kept[f"query{level}"] for level in levels), kept["centres"])


Readout = Ensemble | Matcher


def from_tensors(kept: Mapping[str, Tensor]) -> Readout:
    """What tensors() gave."""
    kept = {name: value.float() for name, value in kept.items()}
    return Matcher.from_tensors(kept) if "query0" in kept else Ensemble.from_tensors(kept)


def fit_matcher(blocks: Blocks, landmarks: Float[Tensor, "n k 2"], visible: Bool[Tensor, "n k"]) -> Matcher:
    """Raises: ValueError if a landmark is visible nowhere."""
    if missing := (~visible.any(0)).nonzero().flatten().tolist():
        raise ValueError(f"landmarks {missing} are visible in no annotated image; annotate more or drop them")
    places = landmarks.where(visible.unsqueeze(-1), 0)
    count = visible.sum(0).unsqueeze(-1)
    queries = []
    for block in blocks:
        at = places.clamp(-1, 1).unsqueeze(1)
        found = functional.grid_sample(_centred(block), at, padding_mode="border", align_corners=False)[:, :, 0]
        units = functional.normalize(found, dim=1).mT * visible.unsqueeze(-1)
        queries.append(units.sum(0) / count)
    return Matcher(tuple(queries), places.sum(0) / count)


def _centred(block: Tensor) -> Tensor:
    """Without the image's mean, which says what the image is and not where its parts are."""
    block = block.float()
    return block - block.mean((2, 3), keepdim=True)
