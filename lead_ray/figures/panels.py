"""Small multiples: the same systems by the same setting, a panel for each quantity that was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lead_ray.figures.curves import Series
from lead_ray.reporting import drawing as draw

HIGH, TOP, BELOW, LEFT = 2.5, 0.62, 0.55, 0.55
"""Inches of a panel's axes, and of the room above, below and left of them."""
DASHES = (0, (4, 2))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity of every system that has it.

    Raises: ValueError if there is no series.
    """

    title: str
    y: str
    """The quantity and its unit."""
    series: Sequence[Series]
    """One that was printed looks like the measured one of its name, pale and dashed."""

    def __post_init__(self):
        if not self.series:
            raise ValueError(f"panel {self.title!r} needs at least one series, got none")


def side_by_side(panels: Sequence[Panel], *, x: str, same_scale: bool = False) -> Figure:
    """Panels in a row, value axes from 0; systems have one colour and mark in all of them, named once above.

    Means over seeds, with whiskers of one standard deviation.
    X: name of the setting, the same in all; its axis is logarithmic. Same_scale: whether the panels show one quantity.
    Raises: ValueError if there is no panel, or a place is not above 0.
    """
    if not panels:
        raise ValueError("panels must hold at least one, got none")
    places = sorted({place for panel in panels for series in panel.series for place in series.places})
    if places[0] <= 0:
        raise ValueError(f"places must be > 0 on a logarithmic axis, got {places[0]}")
    names = list(dict.fromkeys(each.name for panel in panels for each in panel.series))
    own = [(draw.LINES[i % len(draw.LINES)], draw.MARKERS[i % len(draw.MARKERS)]) for i in range(len(names))]
    looks, each = dict(zip(names, own, strict=True)), draw.WIDTH / max(len(panels), 2)
    figure = Figure(figsize=(each * len(panels), TOP + HIGH + BELOW), facecolor="white")
    said, margin = [], (places[-1] / places[0]) ** 0.07 if len(places) > 1 else 2.0
    for number, panel in enumerate(panels):
        axes = draw.place(figure, number * each + LEFT, TOP, each - LEFT - 0.15, HIGH)
        draw.plain_axes(axes)
        axes.grid(axis="y", color=draw.FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.set_xscale("log")
        axes.set_xlim(places[0] / margin, places[-1] * margin)
        draw.plain_log(axes.xaxis, places)
        said += [f"{panel.title}, {panel.y}: {_curve(axes, series, *looks[series.name])}" for series in panel.series]
        axes.set_ylim(bottom=0)
        draw.titles(axes, panel.title, x, panel.y)
    if same_scale:
        highest = max(axes.get_ylim()[1] for axes in figure.axes)
        for axes in figure.axes:
            axes.set_ylim(top=highest)
    _legend(figure, looks, printed=any(series.printed for panel in panels for series in panel.series))
    figure.set_label(f"By {x}. {'; '.join(said)}.")
    return figure


def _curve(axes: Axes, series: Series, colour: str, marker: str) -> str:
    """Draw it, and say it in words."""
    means = [fmean(values) for values in series.values]
    if series.printed:
        look = {"linestyle": DASHES, "linewidth": 1.1, "mfc": "white", "alpha": 0.6}
    else:
        look = {"linewidth": 1.7}
    spread = [stdev(values) if len(values) > 1 else 0.0 for values in series.values]
    bars = spread if any(spread) else None
    axes.errorbar(
        series.places, means, yerr=bars, color=colour, marker=marker, markersize=5, elinewidth=1.2, capsize=2.5, **look
    )
    listed = ", ".join(f"{mean:.3g} at {place:.10g}" for place, mean in zip(series.places, means, strict=True))
    return f"{series.name}{' (printed)' if series.printed else ''} {listed}"


def _legend(figure: Figure, looks: dict[str, tuple[str, str]], *, printed: bool) -> None:
    """Above the panels, from the left."""
    marks = [Line2D([], [], color=colour, marker=marker, ms=5, lw=1.7) for colour, marker in looks.values()]
    names = list(looks)
    if printed:
        marks.append(Line2D([], [], color=draw.GREY, linestyle=DASHES, lw=1.1))
        names.append("printed by the paper, of its own networks")
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 1.0), "ncols": len(names), "columnspacing": 1.6}
    figure.legend(marks, names, frameon=False, fontsize=draw.SMALL, labelcolor=draw.INK, borderaxespad=0.2, **place)
