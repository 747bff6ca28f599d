"""What a read-out costs."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from lead_ray.reporting import drawing as draw


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


def drawn(rows: Sequence[Cost], *, title: str = "") -> Figure:
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
