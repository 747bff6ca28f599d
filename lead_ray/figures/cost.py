"""Comparisons of numbers that are there already: a table's column, and what a read-out costs."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lead_ray.reporting import drawing as draw
from lead_ray.reporting.tables import Table


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a read-out costs, an image.

    Raises: ValueError if a number that is given is not above 0.
    """

    system: str
    dim: int
    """Channels of the features."""
    milliseconds: float | None = None
    """Of a training step."""
    gflops: float | None = None
    """10^9 operations of its forward pass, two a product."""

    def __post_init__(self):
        for name in ("dim", "milliseconds", "gflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of {self.system!r} must be > 0, got {value}")


def error_bars(table: Table, column: int = 0) -> Figure:
    """One column of a table as dots with whiskers of one standard deviation; blank cells are left out.

    Raises: ValueError if the column has no value.
    """
    head = table.columns[column]
    groups = [(name, [row for row in rows if row.cell(column)]) for name, rows in table.groups]
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
            cell = row.cell(column)
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


def cost(rows: Sequence[Cost], *, title: str = "") -> Figure:
    """Time of a step and operations of the forward pass of a read-out by the features' channels; a line a system.

    Both axes are logarithmic. A quantity that no row gives has no panel.
    Raises: ValueError if no row gives any.
    Source: LEAD, table 10.
    """
    quantities = [("milliseconds", "time of a step, ms an image"), ("gflops", "forward pass, GFLOP an image")]
    quantities = [each for each in quantities if any(getattr(row, each[0]) for row in rows)]
    if not quantities:
        raise ValueError(f"none of {len(rows)} rows gives milliseconds or gflops: there is nothing to draw")
    systems = list(dict.fromkeys(row.system for row in rows))
    texts = {system: textwrap.fill(system, 20) for system in systems}
    room, top, bottom, wide, high = draw.room_for(list(texts.values())), 0.62 if title else 0.38, 0.55, 2.9, 2.3
    whole = 0.62 + wide + room
    figure = Figure(figsize=(whole * len(quantities), top + high + bottom), facecolor="white")
    if title:
        draw.words(figure, 0.05, 0.06, title, fontsize=draw.LARGE, fontweight="bold")
    said = []
    for number, (name, words) in enumerate(quantities):
        panel = draw.place(figure, whole * number + 0.62, top, wide, high)
        draw.plain_axes(panel)
        panel.set(xscale="log", yscale="log")
        panel.grid(axis="y", color=draw.FAINT, linewidth=0.6)
        ends, values = [], []
        for order, system in enumerate(systems):
            own = sorted((row.dim, getattr(row, name)) for row in rows if row.system == system and getattr(row, name))
            if not own:
                continue
            colour = draw.LINES[order % len(draw.LINES)]
            look = {"color": colour, "linewidth": 1.7, "marker": draw.MARKERS[order % 7], "markersize": 5}
            panel.plot(*zip(*own, strict=True), **look)
            ends.append((own[-1][1], texts[system], colour))
            values += [value for _, value in own]
            said.append(f"{system} {', '.join(f'{value:.3g} {name} at {dim}-d' for dim, value in own)}")
        draw.plain_log(panel.xaxis, sorted({row.dim for row in rows}))
        low, high_value = min(values) / 1.6, max(values) * 1.6
        panel.set_ylim(low, high_value)
        ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 3)]
        draw.plain_log(panel.yaxis, [tick for tick in ticks if low < tick < high_value])
        draw.titles(panel, "", "channels of the features", words)
        draw.names_at_right(panel, ends)
    figure.set_label(
        f"Cost of the read-out by channels: time of a training step, operations of the forward pass: {'; '.join(said)}."
    )
    return figure
