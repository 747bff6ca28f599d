"""Figures: arrays in, matplotlib figures out; nothing is read, written or shown.

Each figure's label says in words what it shows, for those who cannot see it. Points are pixels, pixel centres
at integers; those that are NaN are not drawn.
"""

import textwrap
from collections.abc import Sequence
from statistics import median

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray import drawing as draw
from lead_ray.similarity import Blocks, cl_grid, similarity
from lead_ray.tables import Table


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


def loss_curves(histories: dict[str, list[dict]]) -> Figure:
    """One panel per training: the loss by step and, where it was measured, the teacher's entropy below it.

    Histories: title -> metrics in step order with "step" and "loss"; optional "images_per_second" and
      "teacher_entropy", the lower bound of the loss.
    Raises: ValueError if there is no history, or an empty one.
    """
    if not histories or not all(histories.values()):
        raise ValueError(f"every training needs at least one entry of metrics, got {histories}")
    figure = Figure(figsize=(draw.WIDTH, 2.9), facecolor="white", layout="constrained")
    panels, said = figure.subplots(1, len(histories), squeeze=False)[0], []
    for panel, (title, history) in zip(panels, histories.items(), strict=True):
        steps, losses = [[entry[name] for entry in history] for name in ("step", "loss")]
        mark = "o" if len(steps) == 1 else None
        panel.plot(steps, losses, color=draw.BLUE, linewidth=1.6, marker=mark, solid_capstyle="round")
        draw.end_label(panel, steps[-1], losses[-1], f"loss {losses[-1]:#.3g}", draw.BLUE, above=True)
        if "teacher_entropy" in history[-1]:
            bound = [entry["teacher_entropy"] for entry in history]
            panel.plot(steps, bound, color=draw.GREY, linewidth=1.2, marker=mark)
            text = f"teacher's entropy {bound[-1]:#.3g}, the lower bound"
            draw.end_label(panel, steps[-1], bound[-1], text, draw.GREY, above=False)
        panel.margins(y=0.16)
        panel.set_xlim(left=0)
        draw.plain_axes(panel)
        speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
        speed = f"{median(speeds):,.0f} images/s" if speeds else ""
        panel.set_title(title, loc="left", fontsize=draw.LARGE, color=draw.INK, fontweight="bold")
        panel.set_title(speed, loc="right", fontsize=draw.SMALL, color=draw.GREY)
        panel.set_xlabel("step", fontsize=draw.MEDIUM, color=draw.GREY)
        said.append(f"{title}, from {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]} steps")
    panels[0].set_ylabel("loss", fontsize=draw.MEDIUM, color=draw.GREY)
    figure.set_label("Curves of the loss by training step: " + "; ".join(said) + ".")
    return figure


@torch.no_grad()
def correspondence(
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
    size, targets = images.shape[3], [i for i in range(len(images)) if i != source]
    if not 0 < len(targets) < len(images):
        raise ValueError(f"source must be in 0..{len(images) - 1}, one of several images, got {source}")
    index = cl_grid(image_size=size, cells=size).index(points[None]).cpu()
    here = [block[[source]].float().cpu().expand(len(targets), -1, -1, -1) for block in blocks]
    there = [block[targets].float().cpu() for block in blocks]
    cosines = similarity(here, there, index.expand(len(targets), -1, -1), cells=size) / len(blocks)
    heat = (cosines.flatten(2) / temperature).softmax(-1).unflatten(2, (size, size))
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
            draw.image(panel, 40 + 0.7 * images[target].float().mean(0))
            level = (maps[row] / maps[row].max()).numpy()
            panel.imshow(level, cmap=draw.HEAT, vmin=0, vmax=1, alpha=0.9 * level**0.5)
            if truth is not None:
                draw.ring(panel, truth[target, row], "white")
            best = int(maps[row].argmax())
            cross = {"ms": 10, "mew": 1.7, "color": colour, "path_effects": draw.halo(3.4), "zorder": 4}
            panel.plot(best % size, best // size, "+", clip_on=False, **cross)
    panels[0, 0].set_title("source", fontsize=draw.MEDIUM, color=draw.INK)
    panels[0, 1].set_title("found in other faces", fontsize=draw.MEDIUM, color=draw.INK, loc="left")
    rings = ", rings the true places" if truth is not None else ""
    figure.set_label(
        f"{len(points)} points of one face, found in {len(targets)} other faces: heat maps of similarity, "
        f"crosses where it is largest{rings}."
    )
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
    columns = min(columns, count)
    height, width = images.shape[2:]
    figure, panels = draw.faces(-(-count // columns), columns, aspect=height / width, below=0.25)
    size = 5.0 if truth.shape[1] <= 12 else 3.0
    for i, panel in enumerate(panels.flat):
        if i >= count:
            panel.set_axis_off()
            continue
        draw.image(panel, images[i])
        for p, (guess, true) in enumerate(zip(predicted[i].tolist(), truth[i], strict=True)):
            colour = draw.PALETTE[p % len(draw.PALETTE)]
            draw.ring(panel, true, "white", size=1.7 * size)
            line = zip(guess, true.tolist(), strict=True)
            panel.plot(*line, color=colour, linewidth=1.4, path_effects=draw.halo(2.2), zorder=3)
            draw.dot(panel, guess, colour, size=size)
        word = f"{labels[i]}  " if labels else ""
        panel.set_xlabel(f"{word}{per_image_error[i]:.1f} %", fontsize=draw.MEDIUM, color=draw.INK)
    low, high = per_image_error.min(), per_image_error.max()
    figure.set_label(
        f"{count} faces with true landmarks as rings and predicted ones as dots; "
        f"errors from {low:.1f} to {high:.1f} % of the inter-ocular distance."
    )
    return figure


def error_bars(table: Table, column: int = 0) -> Figure:
    """One column of a table as dots with whiskers of one standard deviation; blank cells are left out.

    Raises: ValueError if the column has no value.
    """
    head = table.columns[column]
    groups = [(name, [row for row in rows if row.values[column]]) for name, rows in table.groups]
    groups = [(name, rows) for name, rows in groups if rows]
    if not groups:
        raise ValueError(f"column {head.name!r} of {table.title!r} has no value to draw")
    figure = Figure(figsize=(draw.WIDTH, 1), facecolor="white", layout="constrained")
    panel, place, said = figure.subplots(), 0.0, []
    ticks: list[tuple[float, str, str, str]] = []
    for number, (group, rows) in enumerate(groups):
        colour = (draw.BLUE, draw.VERMILION, draw.INK)[min(number, 2)]
        if group:
            ticks.append((place, group, colour, "bold"))
            place += 1
        for row in rows:
            cell = row.values[column]
            text = f"{cell.mean:.{head.digits}f}"
            panel.plot([0, cell.mean], [place, place], color=draw.FAINT, linewidth=1, zorder=1)
            style = {"color": colour, "markersize": 6.5, "linewidth": 1.8}
            panel.errorbar(cell.mean, place, xerr=cell.std, fmt="o", **style)
            style = {"va": "center", "fontsize": draw.MEDIUM, "color": draw.INK}
            end = (cell.mean + (cell.std or 0), place)
            panel.annotate(text, end, (8, 0), textcoords="offset points", **style)
            ticks.append((place, row.label, draw.INK, "normal"))
            said.append(f"{row.label} {text}")
            place += 1
        place += 0.4
    figure.set_figheight(0.7 + 0.26 * place)
    draw.plain_axes(panel, keep=("bottom",))
    panel.set(xlim=(0, 1.1 * panel.dataLim.x1 or 1), ylim=(place - 0.7, -0.6))
    panel.set_yticks([tick[0] for tick in ticks], [tick[1] for tick in ticks])
    panel.tick_params(axis="y", length=0)
    for label, (_, _, colour, weight) in zip(panel.get_yticklabels(), ticks, strict=True):
        label.set(color=colour, weight=weight, fontsize=draw.MEDIUM)
    better = f", {head.better} is better" if head.better else ""
    unit = f" ({head.unit})" if head.unit else ""
    panel.set_xlabel(f"{head.name}{unit}{better}", fontsize=draw.MEDIUM, color=draw.GREY)
    figure.set_label(f"{head.name}{unit}: " + ", ".join(said) + ".")
    return figure
