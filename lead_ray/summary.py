"""What many measurements come down to: cumulative distributions, means by range, the front of two aims."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Cumulative(NamedTuple):
    """How the errors of many images are distributed up to a limit."""

    errors: Float[Tensor, " m"]
    """Ascending; those of images that have one."""
    auc: float
    """Area under the cumulative distribution from 0 to the limit, in % of the whole: 100 if every error is 0."""
    failures: float
    """Images whose error is above the limit, in %."""


def cumulative(errors: Float[Tensor, " n"], *, limit: float) -> Cumulative:
    """The cumulative error distribution of images; NaN, an image without visible points, counts nowhere.

    The area is exact, no sum over bins: an error e adds (limit - e) / limit where it is below the limit, else 0.
    Units: errors and limit alike, such as % of the inter-ocular distance.
    Raises: ValueError if the limit is not above 0 or no image has an error.
    Source: AUC and failure rate as 300-W's papers report them.
    """
    if not limit > 0:
        raise ValueError(f"limit must be > 0, got {limit}")
    errors = errors[~errors.isnan()].sort().values
    if not len(errors):
        raise ValueError("no image has an error: there is no distribution")
    exact = errors.double()
    auc = 100 * (limit - exact).clamp(min=0).mean().item() / limit
    return Cumulative(errors, auc, 100 * (exact > limit).double().mean().item())


class Ranges(NamedTuple):
    """Means of values in ranges of what they depend on; NaN in a range without values."""

    centre: Float[Tensor, " r"]
    mean: Float[Tensor, " r"]
    standard_error: Float[Tensor, " r"]
    """NaN where there is one value only."""
    count: Int64[Tensor, " r"]


def by_range(places: Float[Tensor, " n"], values: Float[Tensor, " n"], edges: Float[Tensor, " e"]) -> Ranges:
    """Means of the values whose places lie between neighbouring edges: from each edge on, the last edge included.

    NaN values and places outside of the edges count nowhere.
    Raises: ValueError if the edges do not ascend or there are fewer than two.
    """
    if len(edges) < 2 or not (edges.diff() > 0).all():
        raise ValueError(f"edges must be at least two ascending numbers, got {edges.tolist()}")
    number = torch.bucketize(places, edges, right=True) - 1
    number = torch.where(places == edges[-1], len(edges) - 2, number)
    found = []
    for each in range(len(edges) - 1):
        inside = values[(number == each) & ~values.isnan()].double()
        error = inside.std() / len(inside) ** 0.5 if len(inside) > 1 else torch.tensor(torch.nan)
        mean = inside.mean() if len(inside) else torch.tensor(torch.nan)
        found.append((float(mean), float(error), len(inside)))
    means, errors, counts = zip(*found, strict=True)
    centre = (edges[1:] + edges[:-1]) / 2
    return Ranges(centre, torch.tensor(means), torch.tensor(errors), torch.tensor(counts))


def pareto_front(values: Float[Tensor, "n d"], *, higher: tuple[bool, ...] | None = None) -> Bool[Tensor, " n"]:
    """Which rows no other row beats: none is as good in every aim and better in one. Rows with NaN are none of them.

    Higher: for each aim, whether more is better; if not given, less is better in all.
    Raises: ValueError if `higher` does not name every aim.
    """
    if higher is not None and len(higher) != values.shape[1]:
        raise ValueError(f"higher must say so for each of the {values.shape[1]} aims, got {higher}")
    if higher is not None:
        values = torch.where(torch.tensor(higher, device=values.device), -values, values)
    no_worse = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    return ~(no_worse & better).any(0) & ~values.isnan().any(-1)
