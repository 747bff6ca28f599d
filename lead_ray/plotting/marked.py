"""Pictures of faces with the points that evaluation found on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.figures import faces
from lead_ray.plotting.sources import Picture, Result, name_all, named, read_all, same_images

Results = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Matching(Picture):
    """Landmarks of reference faces found in others, by one system or by several; faces ordered by how they turn."""

    results: Results
    """Of matching on the same pairs, a row each."""
    pairs: int = 7
    names: tuple[str, ...] = ()

    def figure(self) -> Figure:
        results = read_all(self.results, "matching")
        first = results[0]
        same_images(results)
        turned = _turn(first.points("truth"))
        kept = torch.from_numpy(first.arrays["visible"]).all(1) & turned.isfinite()
        chosen = faces.spread(turned.where(kept, torch.nan), self.pairs)
        ids = first.arrays["ids"][chosen.numpy()]
        predicted, words = {}, {}
        for name, result in zip(name_all(self.names, results), results, strict=True):
            predicted[name] = result.points("found")[chosen]
            words[name] = [f"{error:.1f} px" for error in result.arrays["errors"][chosen.numpy()]]
        crops = (first.crops(ids[:, side].tolist()) for side in (0, 1))
        shown = (first.points("points")[chosen], predicted, first.points("truth", visible=True)[chosen])
        return faces.matching_grid(*crops, *shown, words=words)


@dataclass(frozen=True, kw_only=True)
class Landmarks(Picture):
    """Predicted and true landmarks, a row a result, such as one a data set."""

    results: Results
    """Of regression."""
    columns: int = 7
    by: Literal["error", "factor"] = "error"
    """From the best to the worst image, or from the least to the largest zoom-out factor."""
    names: tuple[str, ...] = ()
    """Of the rows, if not the data sets'."""

    def figure(self) -> Figure:
        results = read_all(self.results, "regression")
        sets = [result.content["data"] for result in results]
        rows = named(self.names, sets, [result.system for result in results])
        cells = []
        for result in results:
            if self.by not in result.arrays:
                raise ValueError(
                    f"{result.path} has no {self.by}: its images were not cropped by a box; use --by error"
                )
            errors = torch.from_numpy(result.arrays["error"])
            order = torch.from_numpy(result.arrays[self.by]).float().where(~errors.isnan(), torch.nan)
            chosen = faces.spread(order, self.columns)
            words = [f"{errors[i]:.1f} %" for i in chosen]
            if self.by == "factor":
                words = [f"{order[i]:.2f}x   {word}" for i, word in zip(chosen, words, strict=True)]
            cells.append(_cells(result, chosen, words))
        names = [f"{name}\nn = {len(result.arrays['ids']):,}" for name, result in zip(rows, results, strict=True)]
        return faces.overlays(cells, rows=names)


@dataclass(frozen=True, kw_only=True)
class FewAnnotations(Picture):
    """The same faces with landmarks read out after more and more annotated images."""

    results: Results
    """Of regression on one data set, with different numbers of annotations."""
    rows: int = 4
    """Faces: evenly spaced ones by the error with the most annotations."""

    def figure(self) -> Figure:
        results = sorted(read_all(self.results, "regression"), key=lambda result: result.annotated)
        same_images(results)
        chosen = faces.spread(torch.from_numpy(results[-1].arrays["error"]), self.rows)
        columns = []
        for result in results:
            columns.append(_cells(result, chosen, [f"{result.arrays['error'][i]:.1f} %" for i in chosen]))
        means = [np.nanmean(result.arrays["errors"]) for result in results]
        heads = [f"{r.annotated:,} annotated\nmean {mean:.1f} %" for r, mean in zip(results, means, strict=True)]
        return faces.overlays([list(row) for row in zip(*columns, strict=True)], columns=heads)


def _cells(result: Result, chosen: Int64[Tensor, " c"], words: list[str]) -> list[faces.Marked]:
    crops = result.crops([result.arrays["ids"][i] for i in chosen])
    predicted, truth = result.points("predicted", visible=True)[chosen], result.points("truth", visible=True)[chosen]
    every = zip(crops, predicted, truth, words, strict=True)
    return [faces.Marked(image=image, predicted=p, truth=t, words=word) for image, p, t, word in every]


def _turn(points: Float[Tensor, "n k 2"]) -> Float[Tensor, " n"]:
    """How far faces with 5 landmarks turn: the nose from the eyes' middle, in eyes' distances; else position alone."""
    if points.shape[1] != 5:
        return points[:, :, 0].mean(1)
    left, right, nose = points[:, :3].unbind(1)
    across = right - left
    return ((nose - (left + right) / 2) * across).sum(-1) / across.square().sum(-1)
