"""Faces with points: predictions over the truth, landmarks matched between faces.

Arrays in, matplotlib figures out; nothing is read, written or shown. Each figure's label says in words what it shows,
for those who cannot see it. Points are pixels, pixel centres at integers; those that are NaN are not drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.reporting import drawing as draw

FEW = 12
"""Up to so many points have each a colour of its own; of more, such as 68, only the errors' lines are told apart."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A face, where its landmarks are and where they were found."""

    image: UInt8[Tensor, "3 h w"]
    predicted: Float[Tensor, "k 2"]
    truth: Float[Tensor, "k 2"]
    words: str = ""
    """Below the face, such as its error."""


def spread(errors: Float[Tensor, " n"], count: int) -> Int64[Tensor, " count"]:
    """Which images stand for all: at evenly spaced quantiles of the error, the best first, the worst last.

    NaN, an image without visible points, is passed over.
    Raises: ValueError unless 1 <= count <= the number of images with an error.
    """
    order = errors.argsort()
    order = order[: int((~errors.isnan()).sum())]
    if not 1 <= count <= len(order):
        raise ValueError(f"count must be in 1..{len(order)}, the images with an error, got {count}")
    if count == 1:
        return order[[len(order) // 2]]
    return order[torch.linspace(0, len(order) - 1, count, dtype=torch.float64).round().long()]


def landmarks(
    images: UInt8[Tensor, "n 3 h w"],
    predicted: Float[Tensor, "n k 2"],
    truth: Float[Tensor, "n k 2"],
    per_image_error: Float[Tensor, " n"],
    *,
    labels: Sequence[str] | None = None,
    columns: int = 6,
) -> Figure:
    """Faces with true landmarks as rings, predicted ones as dots, and the error as the line between.

    Errors: % of the inter-ocular distance, printed under each face.
    Labels: a word for each face, such as "median".
    """
    count = len(images)
    said = [f"{labels[i]}  " if labels and labels[i] else "" for i in range(count)]
    cells = [
        Marked(image=image, predicted=guess, truth=true, words=f"{word}{error:.1f} %")
        for image, guess, true, word, error in zip(
            images, predicted, truth, said, per_image_error.tolist(), strict=True
        )
    ]
    columns = min(columns, count)
    rows = [cells[first : first + columns] for first in range(0, count, columns)]
    figure = overlays([row + [None] * (columns - len(row)) for row in rows])
    low, high = per_image_error.min(), per_image_error.max()
    figure.set_label(
        f"{count} faces with true landmarks as rings and predicted ones as dots; "
        f"errors from {low:.1f} to {high:.1f} % of the inter-ocular distance."
    )
    return figure


def overlays(
    cells: Sequence[Sequence[Marked | None]],
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Figure:
    """A grid of faces with true landmarks as rings, predicted ones as dots, and the error as the line between.

    Cells: rows of faces; None leaves its place empty. Rows, columns: names of them, such as data sets at the left
      and numbers of annotated images at the top.
    Raises: ValueError if rows are not of one length, there is no face, or names are not as many.
    Source: LEAD, figures 7, 8, 10, 12, 13 and 17.
    """
    present = [cell for row in cells for cell in row if cell is not None]
    if not present or len({len(row) for row in cells}) != 1:
        raise ValueError(f"cells must be rows of one length with a face, got rows of {[len(row) for row in cells]}")
    for names, many, what in ((rows, len(cells), "rows"), (columns, len(cells[0]), "columns")):
        if names is not None and len(names) != many:
            raise ValueError(f"{what} must name {many}, got {list(names)}")
    height, width = present[0].image.shape[1:]
    below = 0.25 if any(cell.words for cell in present) else 0.0
    left, top = (0.1 + 0.16 * _lines(names) if names else 0.0 for names in (rows, columns))
    figure, panels = draw.faces(len(cells), len(cells[0]), aspect=height / width, left=left, top=top, below=below)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            if cell is None:
                panels[i, j].set_axis_off()
                continue
            _marks(panels[i, j], cell)
            panels[i, j].set_xlabel(cell.words, fontsize=draw.MEDIUM, color=draw.INK)
        if rows:
            panels[i, 0].set_ylabel(rows[i], fontsize=draw.MEDIUM, color=draw.INK)
    for panel, name in zip(panels[0], columns or [], strict=False):
        panel.set_title(name, fontsize=draw.MEDIUM, color=draw.INK)
    named = [f"; {what}: {', '.join(' '.join(n.split()) for n in names)}" for what, names in
             (("rows", rows), ("columns", columns)) if names]  # fmt: skip
    figure.set_label(f"{len(present)} faces with true landmarks as rings and predicted ones as dots{''.join(named)}.")
    return figure


def matching_arrows(
    source_images: UInt8[Tensor, "#k 3 h w"],
    target_images: UInt8[Tensor, "k 3 h w"],
    source_points: Float[Tensor, "#k p 2"],
    predicted: Float[Tensor, "k p 2"],
    truth: Float[Tensor, "k p 2"] | None = None,
    *,
    columns: int = 3,
) -> Figure:
    """Pairs of faces side by side, arrows from points of the source to where they were found in the target.

    Rings: the true places. One source image may serve all targets.
    """
    count, width = len(target_images), target_images.shape[3]
    gap = width // 12
    offset = torch.tensor([float(width + gap), 0.0])
    columns = min(columns, count)
    aspect = target_images.shape[2] / (2 * width + gap)
    figure, panels = draw.faces(-(-count // columns), columns, aspect=aspect, gap=0.16)
    source_images = source_images.expand_as(target_images)
    source_points = source_points.expand_as(predicted).cpu()
    for k, panel in enumerate(panels.flat):
        if k >= count:
            panel.set_axis_off()
            continue
        draw.image(panel, source_images[k])
        draw.image(panel, target_images[k], left=width + gap)
        panel.set_xlim(-0.5, 2 * width + gap - 0.5)
        for p, (start, end) in enumerate(zip(source_points[k], predicted[k].cpu() + offset, strict=True)):
            colour = draw.PALETTE[p % len(draw.PALETTE)]
            look = {"color": colour, "linewidth": 1.2, "path_effects": draw.halo(2.0)}
            arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **look}
            panel.annotate("", end.tolist(), start.tolist(), arrowprops=arrow, zorder=3)
            draw.dot(panel, start.tolist(), colour)
            if truth is not None:
                draw.ring(panel, truth[k, p].cpu() + offset, colour)
    rings = "; rings are the true places" if truth is not None else ""
    figure.set_label(f"{count} pairs of faces with arrows from points of the left to their matches{rings}.")
    return figure


def matching_grid(
    references: UInt8[Tensor, "k 3 h w"],
    queries: UInt8[Tensor, "k 3 h w"],
    points: Float[Tensor, "k p 2"],
    predicted: Mapping[str, Float[Tensor, "k p 2"]],
    truth: Float[Tensor, "k p 2"],
    *,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Landmarks of annotated faces, the upper row, found in other faces by several systems, a row each.

    Dots: found; rings: the truth, with the error as the line between. Words: below each face of a system, such as
      its error.
    Raises: ValueError if there is no system.
    Source: LEAD, figure 4.
    """
    if not predicted:
        raise ValueError("predicted must hold at least one system's points, got none")
    nowhere = torch.full_like(truth[0], torch.nan)
    cells = [
        [Marked(image=image, predicted=dots, truth=nowhere) for image, dots in zip(references, points, strict=True)]
    ]
    for name, found in predicted.items():
        below = (words or {}).get(name, [""] * len(queries))
        every = zip(queries, found, truth, below, strict=True)
        cells.append([Marked(image=i, predicted=p, truth=t, words=word) for i, p, t, word in every])
    figure = overlays(cells, rows=["reference", *predicted])
    figure.set_label(
        f"Landmarks of {len(references)} reference faces, found in other faces by {', '.join(predicted)}; dots are "
        "found places, rings the true ones."
    )
    return figure


def _lines(names: Sequence[str]) -> int:
    return max(name.count("\n") + 1 for name in names)


def _marks(panel: Axes, face: Marked) -> None:
    few = len(face.truth) <= FEW
    size = 5.0 if few else 2.6
    draw.image(panel, face.image)
    for p, (guess, true) in enumerate(zip(face.predicted.cpu(), face.truth.cpu(), strict=True)):
        colour = draw.PALETTE[p % len(draw.PALETTE)] if few else draw.PALETTE[0]
        draw.ring(panel, true, "white", size=1.7 * size, width=1.2 if few else 0.8)
        line = zip(guess.tolist(), true.tolist(), strict=True)
        panel.plot(*line, color=colour, linewidth=1.4, path_effects=draw.halo(2.2), zorder=3)
        draw.dot(panel, guess.tolist(), colour, size=size)
