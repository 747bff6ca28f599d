"""Clusters of an encoder's locations: the plane of t-SNE, the cells of images, and patches, in the same colours."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lead_ray.reporting import drawing as draw

GAP = 0.05
"""Inches between pictures."""


def clusters(
    plane: Float[Tensor, "m 2"],
    of_plane: Int64[Tensor, " m"],
    images: UInt8[Tensor, "i 3 s s"],
    of_cells: Int64[Tensor, "i h w"],
    patches: Sequence[UInt8[Tensor, "_ 3 q q"]],
    *,
    title: str = "",
) -> Figure:
    """Part clusters three times: locations in t-SNE's plane, the cells of some images, patches of every cluster.

    Args:
        plane, of_plane: places of locations in the plane, and their clusters.
        images, of_cells: faces, and the cluster of each of their cells; up to nine are shown.
        patches: for each cluster the image patches nearest to its centre, best first; its number is its place.
    Raises: ValueError if a cluster has no entry in `patches`, or there is none.
    Source: LEAD, figures 5, 6, 15 and 16.
    """
    count = len(patches)
    labels = torch.cat([of_plane, of_cells.flatten()])
    if not count or int(labels.max()) >= count:
        raise ValueError(f"patches must hold an entry for each of {int(labels.max()) + 1} clusters, got {count}")
    colours, longest = draw.colours(count), max(len(each) for each in patches)
    columns, top = 1 + (count > 15), 0.52 if title else 0.26
    middle, side = 3.3, 0.92
    room = draw.WIDTH - middle - 0.3 - 3 * (side + GAP) - 0.35 * columns
    patch = min(room / (columns * max(longest, 1)) - 0.02, 0.46)
    rows = -(-count // columns)
    height = top + max(rows * (patch + GAP), 3 * (side + GAP)) + 0.02
    figure = Figure(figsize=(draw.WIDTH, height), facecolor="white")
    if title:
        draw.words(figure, 0.02, 0.02, title, fontsize=draw.LARGE, fontweight="bold")
    heads = ((0.02, "locations, by t-SNE"), (middle, "cells of images"), (middle + 3 * (side + GAP) + 0.3, "patches"))
    for left, text in heads:
        draw.words(figure, left, top - 0.22, text, color=draw.GREY)
    _plane(figure, plane, of_plane, colours, top, height)
    for number, (image, cells) in enumerate(zip(images[:9], of_cells, strict=False)):
        left, high = middle + (number % 3) * (side + GAP), top + (number // 3) * (side + GAP)
        _cells(figure, image, cells, colours, (left, high, side))
    for number, given in enumerate(patches):
        left = middle + 3 * (side + GAP) + 0.3 + (number // rows) * (0.35 + longest * (patch + 0.02))
        high = top + (number % rows) * (patch + GAP)
        name = {"ha": "center", "va": "center", "color": draw.INK}
        mark = draw.place(figure, left, high, 0.26, patch)
        mark.set_axis_off()
        mark.add_patch(Rectangle((0, 0), 0.22, 1, color=colours[number], transform=mark.transAxes))
        mark.text(0.62, 0.5, str(number + 1), fontsize=draw.SMALL, transform=mark.transAxes, **name)
        for place, shown in enumerate(given):
            panel = draw.place(figure, left + 0.28 + place * (patch + 0.02), high, patch, patch)
            draw.image(panel, shown)
    figure.set_label(
        f"{len(plane)} locations of images in a plane by t-SNE, coloured by {count} clusters; the cells of "
        f"{min(len(images), 9)} images and the patches nearest to each cluster's centre in the same colours."
    )
    return figure


def _plane(figure: Figure, plane: Tensor, labels: Tensor, colours: Sequence[str], top: float, height: float) -> None:
    side = min(3.1, height - top - 0.02)
    panel = draw.place(figure, 0.02, top, 3.1, side)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(color=draw.FAINT)
    chosen = [colours[label] for label in labels.tolist()]
    panel.scatter(*plane.T.numpy(), c=chosen, s=5, linewidths=0, alpha=0.85)
    for number in labels.unique().tolist():
        # The member nearest to the others' median lies inside of its cluster, whatever the cluster's shape.
        own = plane[labels == number]
        inside = own[(own - own.median(0).values).square().sum(1).argmin()].tolist()
        style = {"fontsize": draw.SMALL, "color": "white", "ha": "center", "va": "center", "fontweight": "bold"}
        panel.annotate(str(number + 1), inside, path_effects=draw.halo(2.2), **style)


def _cells(
    figure: Figure, image: Tensor, cells: Tensor, colours: Sequence[str], where: tuple[float, float, float]
) -> None:
    left, top, side = where
    panel = draw.place(figure, left, top, side, side)
    draw.image(panel, draw.pale(image))
    height, width = cells.shape
    wide, high = image.shape[2] / width, image.shape[1] / height
    for row in range(height):
        for column in range(width):
            number = int(cells[row, column])
            corner = (column * wide - 0.5, row * high - 0.5)
            edge = {"edgecolor": "white", "linewidth": 0.5 if width <= 6 else 0.0}
            panel.add_patch(Rectangle(corner, wide, high, facecolor=colours[number], alpha=0.62, **edge))
            if width <= 4:
                middle = (corner[0] + wide / 2, corner[1] + high / 2)
                style = {"fontsize": draw.SMALL, "color": "white", "ha": "center", "va": "center"}
                panel.annotate(str(number + 1), middle, path_effects=draw.halo(2.0), **style)
