"""Trials of a search for settings: two aims against each other, and the front that nothing beats."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.reporting import drawing as draw
from lead_ray.summary import pareto_front


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
