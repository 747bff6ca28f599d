"""Heat maps of similarity: where points of one face are found in others. Points are pixels, centres at integers."""

import textwrap
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.reporting import drawing as draw
from lead_ray.similarity import Blocks, cl_grid, similarity


def heat_maps(
    images: UInt8[Tensor, "m 3 s s"],
    blocks: Blocks,
    source: int,
    points: Float[Tensor, "p 2"],
    *,
    names: Sequence[str] | None = None,
    truth: Float[Tensor, "m p 2"] | None = None,
    temperature: float = 0.05,
) -> Figure:
    """Where source points are found in other faces: one row per point, one column per face, the source first.

    The heat is the softmax over pixels of the blocks' mean cosine similarity / temperature, as in the
    alignment objective; a cross marks the most similar pixel, a ring the true place.

    Blocks: features of all m images, finest first.
    Raises: ValueError if `source` is none of the images, or the only one.
    Source: LEAD, figure 3.
    """
    targets = _targets(images, source)
    heat = _heat(images, blocks, source, points, targets, temperature)
    labels = [textwrap.fill(name, 12) for name in names or []]
    left = 0.1 + 0.16 * max(label.count("\n") + 1 for label in labels) if labels else 0.0
    figure, panels = draw.faces(len(points), len(targets) + 1, left=left, top=0.25)
    for row, point in enumerate(points.tolist()):
        colour = draw.PALETTE[row % len(draw.PALETTE)]
        draw.image(panels[row, 0], images[source])
        draw.dot(panels[row, 0], point, colour, size=9.0)
        if labels:
            panels[row, 0].set_ylabel(labels[row], fontsize=draw.MEDIUM, color=draw.INK)
        for panel, target, maps in zip(panels[row, 1:], targets, heat, strict=True):
            _found(panel, images[target], maps[row], colour, None if truth is None else truth[target, row])
    panels[0, 0].set_title("source", fontsize=draw.MEDIUM, color=draw.INK)
    panels[0, 1].set_title("found in other faces", fontsize=draw.MEDIUM, color=draw.INK, loc="left")
    rings = ", rings the true places" if truth is not None else ""
    figure.set_label(
        f"{len(points)} points of one face, found in {len(targets)} other faces: heat maps of similarity, "
        f"crosses where it is largest{rings}."
    )
    return figure


def stages(
    images: UInt8[Tensor, "m 3 s s"],
    systems: Mapping[str, Blocks],
    source: int,
    points: Float[Tensor, "p 2"],
    *,
    names: Sequence[str] | None = None,
    truth: Float[Tensor, "m p 2"] | None = None,
    temperature: float = 0.05,
) -> Figure:
    """heat_maps() of several systems on the same faces: the source at the left, one row of faces a system beside it.

    Systems: name -> blocks of all m images, finest first. Names: of the points.
    Raises: ValueError if there is no system, or as heat_maps().
    Source: LEAD, figure 3.
    """
    if not systems:
        raise ValueError("systems must hold at least one, such as stage 1, got none")
    targets = _targets(images, source)
    heats = [_heat(images, blocks, source, points, targets, temperature) for blocks in systems.values()]
    many, gap, left, apart, top = len(systems), 0.06, 0.26, 0.16, 0.26
    side = (draw.WIDTH - 0.02 - left - gap * (len(targets) + many - 1)) / (len(targets) + many)
    tall = many * (side + gap) - gap
    height = top + len(points) * (tall + apart) - apart
    figure = Figure(figsize=(draw.WIDTH, height), facecolor="white")
    start = tall + gap + left
    draw.words(figure, 0, 0.04, "reference")
    draw.words(figure, start, 0.04, "where it is found in other faces")
    for p, point in enumerate(points.tolist()):
        colour, high = draw.PALETTE[p % len(draw.PALETTE)], top + p * (tall + apart)
        panel = draw.place(figure, 0, high, tall, tall)
        draw.image(panel, images[source])
        draw.dot(panel, point, colour, size=11.0)
        if names:
            style = {"fontsize": draw.MEDIUM, "color": "white", "path_effects": draw.halo(2.5), "va": "bottom"}
            panel.annotate(names[p], (0, 0), (5, 5), "axes fraction", textcoords="offset points", **style)
        for row, (name, heat) in enumerate(zip(systems, heats, strict=True)):
            for column, target in enumerate(targets):
                place = (start + column * (side + gap), high + row * (side + gap))
                panel = draw.place(figure, *place, side, side)
                _found(panel, images[target], heat[column, p], colour, None if truth is None else truth[target, p])
                if column == 0:
                    panel.set_ylabel(name, fontsize=draw.MEDIUM, color=draw.INK, labelpad=3)
    rings = ", rings the true places" if truth is not None else ""
    figure.set_label(
        f"{len(points)} points of one face, found in {len(targets)} other faces by {', '.join(systems)}: heat maps of "
        f"similarity, crosses where it is largest{rings}."
    )
    return figure


def _targets(images: Tensor, source: int) -> list[int]:
    targets = [i for i in range(len(images)) if i != source]
    if not 0 < len(targets) < len(images):
        raise ValueError(f"source must be in 0..{len(images) - 1}, one of several images, got {source}")
    return targets


@torch.no_grad()
def _heat(
    images: Tensor, blocks: Blocks, source: int, points: Tensor, targets: Sequence[int], temperature: float
) -> Tensor:
    """Distributions [targets, points, s, s] over the pixels of every target."""
    size = images.shape[3]
    index = cl_grid(image_size=size, cells=size).index(points[None]).cpu()
    here = [block[[source]].float().cpu().expand(len(targets), -1, -1, -1) for block in blocks]
    there = [block[list(targets)].float().cpu() for block in blocks]
    cosines = similarity(here, there, index.expand(len(targets), -1, -1), cells=size) / len(blocks)
    return (cosines.flatten(2) / temperature).softmax(-1).unflatten(2, (size, size))


def _found(panel: Axes, image: Tensor, maps: Tensor, colour: str, truth: Tensor | None) -> None:
    draw.image(panel, draw.pale(image))
    draw.heat(panel, maps)
    if truth is not None:
        draw.ring(panel, truth, "white")
    row, column = divmod(int(maps.argmax()), maps.shape[1])
    draw.cross(panel, column, row, colour)
