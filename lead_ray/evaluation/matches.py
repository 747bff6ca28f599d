"""What the matching protocol found: predictions, errors, and what they are to be compared with."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the matching table on one grid, for p pairs of images with k points."""

    predicted: Float[Tensor, "p k 2"]
    """Pixels of the crop."""
    error: Float[Tensor, "p k"]
    """Published pixels: those of a 70 px image."""
    iod_percent: Float[Tensor, "p k"]
    """The same error in % of the target image's inter-ocular distance; NaN where its eyes are not visible, or nowhere
    said to be."""
    floor: Float[Tensor, "p k"]
    """Published pixels that this grid alone costs; see match_pairs()."""
    baseline: Float[Tensor, "p k"]
    """Published pixels of the guess that nothing moved: the source's coordinates."""
    counted: Bool[Tensor, "p k"]
    """Points that are visible in every image of this column."""

    def means(self) -> dict[str, float]:
        """Means over the points that count, of all pairs."""
        values = {name: getattr(self, name)[self.counted] for name in ("error", "iod_percent", "floor", "baseline")}
        values["iod_percent"] = values["iod_percent"][~values["iod_percent"].isnan()]
        return {name: value.mean().item() for name, value in values.items() if len(value)}

    def shown(self, name: str) -> np.ndarray:
        """One of the fields [p, k], NaN where a point does not count."""
        return getattr(self, name).where(self.counted, torch.nan).float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Predictions and errors of match_pairs()."""

    cl_same: Column
    cl_diff: Column
    dve_same: Column
    dve_diff: Column
    source: Float[Tensor, "p k 2"]
    """Points of A warped twice, where the search starts; like the next two in pixels of the crop."""
    same: Float[Tensor, "p k 2"]
    """Points of A warped once."""
    diff: Float[Tensor, "p k 2"]
    """Points of B warped once."""
    found: Float[Tensor, "p k 2"]
    """What cl_diff predicted, B's warp undone: pixels of the image that was given."""

    def summary(self) -> dict[str, float]:
        """Means by name, such as cl_same_error or dve_diff_floor."""
        columns = {name: getattr(self, name) for name in ("cl_same", "cl_diff", "dve_same", "dve_diff")}
        return {f"{name}_{key}": value for name, column in columns.items() for key, value in column.means().items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """What details.details() documents of matching, but for the images and their points."""
        return {
            "found": self.found.float().cpu().numpy(),
            "point_errors": self.cl_diff.shown("error"),
            "same_point_errors": self.cl_same.shown("error"),
            "baseline": self.cl_diff.shown("baseline"),
            "floor": self.cl_diff.shown("floor"),
        }


def concatenate(parts: list) -> Matches | Column | Tensor:
    """Join the batches' results along the pairs."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    joined = {f.name: concatenate([getattr(part, f.name) for part in parts]) for f in fields(parts[0])}
    return type(parts[0])(**joined)
