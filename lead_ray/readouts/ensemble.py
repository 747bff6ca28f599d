"""Several regressors of the same annotated images: where they disagree, annotations are missing."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lead_ray.readouts.convolution_head import Fitted
from lead_ray.readouts.regressor import Blocks


class Agreement(NamedTuple):
    """What the members of an ensemble say together; normalised units."""

    landmarks: Float[Tensor, "n k 2"]
    """Their mean."""
    spread: Float[Tensor, "n k"]
    """Root mean square distance of the members from the mean; 0 where there is one member."""


def resamples(visible: Bool[Tensor, "n k"], members: int, seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """For each member the images that it learns from, and its own random numbers; the same on every machine.

    A bootstrap resample of n images without its repeats, 63 % of the images in the mean: the closed form judges itself
    by images that it left out, and a repeat would let it see them. Where a landmark is visible in none of them, one
    image that shows it is added. In ascending order, so that copies that follow each other still do.
    """
    draws = torch.Generator().manual_seed(seed)
    shown = visible.cpu()
    for _ in range(members):
        chosen = torch.randint(len(shown), (len(shown),), generator=draws)
        for mark in (~shown[chosen].any(0)).nonzero().flatten().tolist():
            showing = shown[:, mark].nonzero().flatten()
            chosen = torch.cat([chosen, showing[torch.randint(len(showing), (1,), generator=draws)]])
        own = int(torch.randint(2**62, (), generator=draws))
        yield chosen.unique(), torch.Generator().manual_seed(own)


def agreement(members: Sequence[Fitted], blocks: Blocks) -> Agreement:
    """Landmarks of any number of images, and how far the members agree on each.

    Raises: ValueError if there is no member, or the blocks' channels are not those that they were fitted on.
    """
    if not members:
        raise ValueError("members must hold at least one regressor: see regression.fit_ensemble()")
    said = torch.stack([member.predict(blocks) for member in members])
    mean = said.mean(0)
    return Agreement(mean, (said - mean).square().sum(-1).mean(0).sqrt())
