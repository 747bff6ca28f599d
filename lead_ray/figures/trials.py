"""Trials of a search for settings: two aims against each other, or two settings and the error that they give."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.reporting import drawing as draw
from lead_ray.summary import pareto_front


class Tried(NamedTuple):
    """A trial of two settings."""

    first: float
    second: float
    error: float | None
    """None: stopped before it had the whole budget."""


def scatter(
    values: Float[Tensor, "n 2"],
    *,
    x: str,
    y: str,
    kinds: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    higher: tuple[bool, bool] = (False, False),
    title: str = "",
) -> Figure:
    """Every trial as a mark, those that no other beats joined by a staircase; NaN, a failed trial, is left out.

    X, y: names of the aims with their units. Kinds: a word for each trial that its colour stands for, such as an
      objective. Labels: a short word for each, written beside those on the front. Higher: whether more is better.
    Raises: ValueError if no trial has both values, or kinds or labels are not as many as trials.
    """
    for what, given in (("kinds", kinds), ("labels", labels)):
        if given is not None and len(given) != len(values):
            raise ValueError(f"{what} must be as many as the {len(values)} trials, got {len(given)}")
    kept = ~values.isnan().any(1)
    if not kept.any():
        raise ValueError(f"none of {len(values)} trials has both values: there is nothing to draw")
    front = pareto_front(values, higher=higher)
    figure = Figure(figsize=(5.8, 4.0), facecolor="white", layout="constrained")
    panel = figure.subplots()
    draw.plain_axes(panel)
    panel.grid(color=draw.FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    draw.titles(panel, title, x, y)
    kinds = list(kinds or [""] * len(values))
    for number, kind in enumerate(dict.fromkeys(kinds)):
        of_kind = torch.tensor([each == kind for each in kinds])
        colour, marker = draw.LINES[number % len(draw.LINES)], draw.MARKERS[number % len(draw.MARKERS)]
        look = {"color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.8, "zorder": 3}
        panel.scatter(*values[of_kind & kept & ~front].T.numpy(), alpha=0.45, s=24, **look)
        panel.scatter(*values[of_kind & front].T.numpy(), s=58, **look)
        panel.scatter([], [], s=36, label=kind, **look)
    _staircase(panel, values[front], higher)
    for place in front.nonzero().flatten().tolist() if labels else []:
        style = {"fontsize": draw.SMALL, "color": draw.INK, "textcoords": "offset points"}
        panel.annotate(labels[place], values[place].tolist(), (6, 5), **style)
    if len(set(kinds)) > 1:
        panel.legend(fontsize=draw.SMALL, frameon=False, labelcolor=draw.INK)
    better = [" or ".join(["higher" if more else "lower"]) for more in higher]
    best = "; ".join(f"{a:.4g}, {b:.4g}" for a, b in sorted(values[front].tolist()))
    figure.set_label(
        f"{int(kept.sum())} trials by {x} ({better[0]} is better) and {y} ({better[1]} is better); those that no "
        f"other beats: {best}."
    )
    return figure


def _staircase(panel, front: Tensor, higher: tuple[bool, bool]) -> None:
    """The border of what is beaten: from each trial of the front on, only what is worse in one aim."""
    ordered = front[front[:, 0].argsort(descending=higher[0])]
    steps = {"color": draw.INK, "linewidth": 1.1, "zorder": 2, "linestyle": (0, (3, 2))}
    # Moving away from the best of the first aim, the second only improves at the next trial.
    panel.step(*ordered.T.numpy(), where="post", label="no trial beats these", **steps)


def over_two(
    grid: Mapping[float, Sequence[float]],
    tried: Sequence[Tried],
    *,
    first: str,
    second: str,
    y: str,
    ticks: Sequence[float],
) -> Figure:
    """Errors of a grid in which two settings are alike, and of a search that was free in both.

    Left the error by the first setting, the grid as a line with whiskers of one standard deviation; right where each
    trial lies, with its error as a colour, those that were stopped early hollow, the best ringed.

    Grid: setting -> errors, one a repeat. First, second: the settings' names. Y: the error and its unit. Ticks: of the
      logarithmic axes of the settings, ascending.
    Raises: ValueError if there is nothing to draw.
    """
    ended = [each for each in tried if each.error is not None]
    known = [*ended, *(Tried(place, place, fmean(errors)) for place, errors in sorted(grid.items()))]
    if not known:
        raise ValueError(f"none of {len(tried)} trials ended and the grid is empty: there is nothing to draw")
    figure = Figure(figsize=(draw.WIDTH, 3.6), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel, axes in ((left, "x"), (right, "xy")):
        draw.plain_axes(panel)
        panel.grid(color=draw.FAINT, linewidth=0.6)
        panel.set_axisbelow(True)
        for name in axes:
            panel.set(**{f"{name}scale": "log", f"{name}lim": (ticks[0], ticks[-1])})
            draw.plain_log(getattr(panel, f"{name}axis"), ticks)
    _by_first(left, grid, ended)
    draw.titles(left, "Error", first, y)
    stopped = [each for each in tried if each.error is None]
    _map(right, known, stopped)
    marks = right.scatter(
        [each.first for each in known], [each.second for each in known], c=[each.error for each in known],
        cmap="viridis", s=62, zorder=3, edgecolors="white", linewidths=0.9,
    )  # fmt: skip
    bar = figure.colorbar(marks, ax=right, pad=0.02)
    bar.set_label(y, fontsize=draw.MEDIUM, color=draw.GREY)
    bar.ax.tick_params(labelsize=draw.SMALL, color=draw.GREY, labelcolor=draw.GREY)
    bar.outline.set_visible(False)
    draw.titles(right, "Where the trials lie", first, second)
    told = "; ".join(f"{each.first:.3g}, {each.second:.3g}: {each.error:.3g}" for each in known)
    figure.set_label(f"{y} by {first} and {second}: {told}; stopped early: {len(stopped)}.")
    return figure


def _by_first(panel: Axes, grid: Mapping[float, Sequence[float]], ended: Sequence[Tried]) -> None:
    if grid:
        places = sorted(grid)
        spread = [stdev(grid[place]) if len(grid[place]) > 1 else 0.0 for place in places]
        look = {"color": draw.BLUE, "marker": "o", "markersize": 5, "linewidth": 1.7, "elinewidth": 1.2, "capsize": 2.5}
        errors = [fmean(grid[place]) for place in places]
        panel.errorbar(places, errors, yerr=spread, label="grid, both alike", **look)
    if ended:
        look = {"color": draw.VERMILION, "marker": "D", "s": 26, "edgecolors": "white", "linewidths": 0.8, "zorder": 4}
        panel.scatter(
            *zip(*((each.first, each.error) for each in ended), strict=True), label="search, both free", **look
        )
    panel.legend(fontsize=draw.SMALL, frameon=False, labelcolor=draw.INK)


def _map(panel: Axes, known: Sequence[Tried], stopped: Sequence[Tried]) -> None:
    """What lies under and around the coloured marks."""
    panel.plot([0, 1], [0, 1], transform=panel.transAxes, color=draw.FAINT, linewidth=1, zorder=1)
    look = {"facecolors": "white", "edgecolors": draw.GREY, "linewidths": 1, "s": 30, "zorder": 2}
    panel.scatter([each.first for each in stopped], [each.second for each in stopped], **look)
    best = min(known, key=lambda each: each.error)
    ring = {"facecolors": "none", "edgecolors": draw.INK, "linewidths": 1.4, "s": 170, "zorder": 3}
    panel.scatter(best.first, best.second, **ring)
    style = {"fontsize": draw.SMALL, "color": draw.INK, "textcoords": "offset points", "va": "center"}
    aside = (-12, 0) if best.first > panel.get_xlim()[1] / 3 else (12, 0)
    side = "right" if aside[0] < 0 else "left"
    panel.annotate(f"{best.error:.2f}", (best.first, best.second), aside, ha=side, **style)
