"""Curves: losses by step, errors by annotations or by a setting, by zoom-out factor, and their distributions.

Arrays in, matplotlib figures out; each figure's label says in words what it shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray.reporting import drawing as draw
from lead_ray.summary import by_range, cumulative

SIZE = (7.2, 3.6)
"""Inches of a chart with one panel."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One system's measurements.

    Raises: ValueError if places and values are not as many, there are none, or a place has no value.
    """

    name: str
    places: Sequence[float | int]
    """Such as numbers of annotated images, ascending."""
    values: Sequence[Sequence[float]]
    """For each of the places, one a seed."""
    printed: bool = False
    """Numbers from a paper, not measured here: drawn pale and dashed."""

    def __post_init__(self):
        if not self.places or len(self.places) != len(self.values) or not all(self.values):
            raise ValueError(
                f"series {self.name!r} needs a place and at least one value each, got {len(self.places)} places, "
                f"values {[len(each) for each in self.values]}"
            )


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


def against(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    title: str = "",
    log_x: bool = True,
    log_y: bool = False,
    from_zero: bool = True,
) -> Figure:
    """Means over seeds by what was varied, with whiskers of one standard deviation; a line a system.

    Such as errors by the number of annotated images (LEAD, Table 5) or by a temperature.
    X, y: names of the axes with their units. Title: what was measured on what, n included. From_zero: whether a
      linear value axis begins at 0, as lengths should that are compared; not to see where the best setting lies.
    Raises: ValueError if there is no series, or a place is not above 0 on a logarithmic axis.
    """
    if not series:
        raise ValueError("series must hold at least one, got none")
    places = sorted({place for each in series for place in each.places})
    if log_x and places[0] <= 0:
        raise ValueError(f"places must be > 0 on a logarithmic axis, got {places[0]}: use log_x=False")
    figure, panel = _chart(title, x, y, [each.name for each in series])
    if log_x:
        panel.set_xscale("log")
        draw.plain_log(panel.xaxis, places)
    if log_y:
        panel.set_yscale("log")
    names, said, taken = [], [], 0
    for each in series:
        means = [fmean(values) for values in each.values]
        colour = draw.GREY if each.printed else draw.LINES[taken % len(draw.LINES)]
        if each.printed:
            look = {"linestyle": (0, (4, 2)), "linewidth": 1.1, "marker": draw.MARKERS[len(names) % 7], "mfc": "white"}
        else:
            look = {"linewidth": 1.7, "marker": draw.MARKERS[taken % len(draw.MARKERS)]}
            taken += 1
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in each.values]
        bars = spread if any(spread) else None
        panel.errorbar(each.places, means, yerr=bars, color=colour, markersize=5, elinewidth=1.2, capsize=2.5, **look)
        names.append((means[-1], each.name, colour))
        listed = ", ".join(f"{mean:.3g} at {place:.10g}" for place, mean in zip(each.places, means, strict=True))
        said.append(f"{each.name} {listed}")
    if from_zero and not log_y and min(mean for mean, _, _ in names) >= 0:
        panel.set_ylim(bottom=0)
    draw.names_at_right(panel, names)
    figure.set_label(f"{y} by {x}: {'; '.join(said)}.")
    return figure


def distribution(
    systems: Mapping[str, Float[Tensor, " _"]],
    *,
    limit: float,
    unit: str = "% of inter-ocular distance",
    title: str = "",
) -> Figure:
    """Cumulative error distributions: which share of the images has an error of at most so much; a line a system.

    Beside each curve the area below it (AUC) and the images beyond the limit. Errors: one an image, NaN where it has
      none.
    Raises: ValueError if there is no system, or as summary.cumulative().
    """
    if not systems:
        raise ValueError("systems must hold at least one system's errors, got none")
    curves = {name: cumulative(errors.cpu(), limit=limit) for name, errors in systems.items()}
    texts = [f"{name}\nAUC {c.auc:.1f} %, beyond {c.failures:.1f} %" for name, c in curves.items()]
    figure, panel = _chart(title, f"error of an image, {unit}", "images, %", texts)
    names, said = [], []
    for number, (name, found) in enumerate(curves.items()):
        count, colour = len(found.errors), draw.LINES[number % len(draw.LINES)]
        values = numpy.concatenate([[0.0], found.errors.double().numpy(), [max(limit, float(found.errors[-1]))]])
        share = numpy.concatenate([numpy.arange(count + 1), [count]]) * (100 / count)
        style = ("-", "--", "-.", ":")[number // len(draw.LINES) % 4]
        panel.step(values, share, where="post", color=colour, linewidth=1.7, linestyle=style)
        names.append((100 - found.failures, texts[number], colour))
        said.append(f"{name} AUC {found.auc:.1f} %, {found.failures:.1f} % of {count} images beyond {limit:g}")
    panel.set(xlim=(0, limit), ylim=(0, 100))
    draw.names_at_right(panel, names)
    figure.set_label(f"Cumulative distribution of the error of images: {'; '.join(said)}.")
    return figure


def zoom(
    systems: Mapping[str, Float[Tensor, " n"]],
    factors: Float[Tensor, " n"],
    *,
    seen: tuple[float, float],
    unit: str = "% of inter-ocular distance",
    title: str = "",
    ranges: int = 10,
) -> Figure:
    """Error by zoom-out factor of the same images, in equal ranges; a line a system.

    Bands are of one standard error; there is none where a range has one image only.

    Errors: one an image, NaN where it has none. Factors: how much wider than the face's box the crop is.
    Seen: least and largest factor in training; what lies outside is shaded.
    Raises: ValueError if there is no system, or all factors are the same.
    Source: LEAD, figures 9 and 17.
    """
    low, high = float(factors.min()), float(factors.max())
    if not systems or not low < high:
        raise ValueError(f"zoom needs a system and factors that differ, got {len(systems)} systems, {low}..{high}")
    x = "zoom-out factor: side of the crop / longer side of the face's box"
    figure, panel = _chart(title, x, f"error, {unit}", list(systems))
    edges, names, said = torch.linspace(low, high, ranges + 1), [], []
    for number, (name, errors) in enumerate(systems.items()):
        found = by_range(factors.float().cpu(), errors.float().cpu(), edges)
        colour, kept = draw.LINES[number % len(draw.LINES)], found.count > 0
        centre, mean, error = (each[kept].numpy() for each in found[:3])
        panel.fill_between(centre, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
        panel.plot(centre, mean, color=colour, linewidth=1.7, marker=draw.MARKERS[number % 7], markersize=4.5)
        names.append((float(mean[-1]), name, colour))
        said.append(f"{name} from {mean[0]:.1f} at {centre[0]:.2f} to {mean[-1]:.1f} at {centre[-1]:.2f}")
    panel.set_ylim(bottom=0)
    panel.set_xlim(low, high)
    for start, end in ((low, min(high, seen[0])), (max(low, seen[1]), high)):
        if start < end:
            panel.axvspan(start, end, color="#f0f0f0", zorder=0, linewidth=0)
    for start, end, word in ((max(low, seen[0]), min(high, seen[1]), "seen in training"), (seen[1], high, "unseen")):
        if start < end:
            style = {"ha": "center", "va": "bottom", "fontsize": draw.SMALL, "color": draw.GREY}
            panel.annotate(word, ((start + end) / 2, 0), (0, 4), textcoords="offset points", **style)
    draw.names_at_right(panel, names)
    figure.set_label(f"Error ({unit}) by zoom-out factor; {'; '.join(said)}.")
    return figure


def _chart(title: str, x: str, y: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with one panel and room for the curves' names at its right."""
    width, height = SIZE
    figure = Figure(figsize=SIZE, facecolor="white")
    panel = draw.place(figure, 0.62, 0.38, width - 0.62 - draw.room_for(names), height - 0.38 - 0.55)
    draw.plain_axes(panel)
    panel.grid(axis="y", color=draw.FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    draw.titles(panel, title, x, y)
    return figure, panel
