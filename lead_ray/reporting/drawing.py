"""What the figures are drawn with: colours, type sizes, grids of faces, marks that show on any picture.

Colours: Okabe and Ito's, which the colour-blind can tell apart. Fonts: 8 pt and more.
"""

import colorsys
from collections.abc import Sequence

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
from torch import Tensor

PALETTE = ("#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#E69F00", "#0072B2", "#D55E00")
BLUE, VERMILION, INK, GREY, FAINT = "#0072B2", "#D55E00", "#222222", "#666666", "#dddddd"
LINES = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
"""Of curves on white, where PALETTE's yellow would not be seen."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""What tells curves apart without their colours."""
HEAT = LinearSegmentedColormap.from_list("heat", ["#8c2d04", "#D55E00", "#F0A020", "#fff7bc"])
WIDTH = 9.3  # inches: the text width of a report's page
SMALL, MEDIUM, LARGE = 8, 9, 10  # points


def colours(count: int) -> list[str]:
    """As many different colours: the palette's, or, beyond them, hues in turn light and dark; number those, too."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = [(number / count, (0.62, 0.4, 0.78)[number % 3]) for number in range(count)]
    channels = [colorsys.hls_to_rgb(hue, light, 0.75) for hue, light in shades]
    return ["#" + "".join(f"{round(255 * value):02x}" for value in each) for each in channels]


def faces(
    rows: int,
    columns: int,
    *,
    aspect: float = 1.0,
    gap: float = 0.06,
    left: float = 0.0,
    top: float = 0.0,
    below: float = 0.0,
) -> tuple[Figure, numpy.ndarray]:
    """A figure and its panels [rows, columns], `aspect` times as high as wide; room for text in inches."""
    side = min((WIDTH - left + gap) / columns - gap, 3)
    width = left + columns * (side + gap) - gap
    height = top + rows * (side * aspect + below + gap) - gap
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.add_gridspec(
        rows, columns, left=left / width, right=1, top=1 - top / height, bottom=below / height,
        wspace=gap / side, hspace=(below + gap) / (side * aspect),
    )  # fmt: skip
    return figure, grid.subplots(squeeze=False)


def place(figure: Figure, left: float | int, top: float, width: float, height: float) -> Axes:
    """A panel of that size, so far from the figure's left and upper edge, in inches."""
    whole, high = figure.get_size_inches()
    return figure.add_axes((left / whole, 1 - (top + height) / high, width / whole, height / high))


def words(figure: Figure, left: float | int, top: float, text: str, **style) -> None:
    """Text whose upper left corner is so many inches from the figure's."""
    whole, high = figure.get_size_inches()
    look = {"fontsize": MEDIUM, "color": INK, "va": "top"} | style
    figure.text(left / whole, 1 - top / high, text, **look)


def image(panel: Axes, pixels: Tensor, left: int = 0) -> None:
    """An image [3, h, w] or, grey, [h, w], its pixel centres at integers."""
    height, width = pixels.shape[-2:]
    values = pixels.cpu().to(torch.uint8).numpy()
    shown = numpy.moveaxis(values, 0, -1) if values.ndim == 3 else values
    extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
    panel.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bicubic")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    panel.autoscale(False)  # marks outside of the image must not shrink it


def pale(pixels: Tensor) -> Tensor:
    """An image in light grey, for colours to lie on."""
    return 40 + 0.7 * pixels.float().mean(0)


def heat(panel: Axes, maps: Tensor) -> None:
    """A map [h, w] over the panel's image, its largest value opaque."""
    level = (maps / maps.max()).numpy()
    panel.imshow(level, cmap=HEAT, vmin=0, vmax=1, alpha=0.9 * level**0.5)


def halo(width: float) -> list[withStroke]:
    """What sets a thin mark off from any picture."""
    return [withStroke(linewidth=width, foreground="#000000a0")]


def dot(panel: Axes, point: Sequence[float], colour: str, size: float = 5.0) -> None:
    """A filled dot with a white edge."""
    edge = {"mec": "white", "mew": size / 7, "path_effects": halo(size / 3)}
    panel.plot(*point, "o", ms=size, mfc=colour, zorder=5, **edge)


def ring(panel: Axes, point: Tensor, colour: str, size: float = 8.5, width: float = 1.2) -> None:
    """The true place of a point."""
    edge = {"mec": colour, "mew": width, "path_effects": halo(2 * width)}
    panel.plot(*point.tolist(), "o", ms=size, mfc="none", zorder=3, **edge)


def cross(panel: Axes, column: int, row: int, colour: str, size: float = 10.0) -> None:
    """The best place that was found."""
    look = {"ms": size, "mew": 1.7, "color": colour, "path_effects": halo(3.4), "zorder": 4}
    panel.plot(column, row, "+", clip_on=False, **look)


def end_label(panel: Axes, step: float | int, value: float, text: str, colour: str, *, above: bool) -> None:
    """A curve's name and last value, at its end."""
    shift, align = (7, "bottom") if above else (-7, "top")
    style = {
        "fontsize": SMALL,
        "color": colour,
        "path_effects": [withStroke(linewidth=3, foreground="white")],
    }
    panel.annotate(text, (step, value), (0, shift), textcoords="offset points", ha="right", va=align, **style)


def names_at_right(panel: Axes, ends: Sequence[tuple[float | int, str, str]]) -> None:
    """Names of curves (last value, text, colour) right of the axes, each beside its end as far as they do not overlap.

    For panels that place() put where they stay; call it once the limits are set. room_for() says how wide they are.
    """
    ends = sorted(ends, key=lambda end: -end[0])
    to_axes = panel.transData + panel.transAxes.inverted()
    points = 72 * panel.get_position().height * panel.figure.get_figheight()
    gap = (SMALL + 3.5) * (1 + max((text.count("\n") for _, text, _ in ends), default=0)) / points
    places: list[float] = []
    for value, _, _ in ends:  # downwards: beside the curve, or below the name before
        wanted = min(max(float(to_axes.transform((panel.get_xlim()[1], value))[1]), 0.0), 1.0)
        places.append(min(wanted, places[-1] - gap) if places else wanted)
    lowest = 0.0
    for number in reversed(range(len(places))):  # and up again from where that led below the axes
        places[number] = max(places[number], lowest)
        lowest = places[number] + gap
    for height, (_, text, colour) in zip(places, ends, strict=True):
        style = {"fontsize": SMALL, "color": colour, "va": "center", "annotation_clip": False}
        panel.annotate(text, (1, height), (7, 0), xycoords="axes fraction", textcoords="offset points", **style)


def room_for(names: Sequence[str]) -> float:
    """Inches that names_at_right() takes up."""
    return 0.2 + 0.068 * max(len(line) for name in names for line in name.split("\n"))


def plain_axes(panel: Axes, keep: Sequence[str] = ("bottom", "left")) -> None:
    """Only what is read: thin lines and a few numbers."""
    for side, spine in panel.spines.items():
        spine.set(visible=side in keep, color=GREY, linewidth=0.8)
    panel.tick_params(labelsize=SMALL, color=GREY, labelcolor=GREY, width=0.8)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))


def plain_log(axis, ticks: Sequence[float | int]) -> None:
    """Numbers, not powers, at those places of a logarithmic axis, and no small ticks."""
    axis.set_ticks(list(ticks), [f"{tick:,.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def titles(panel: Axes, title: str, x: str, y: str) -> None:
    """What a chart says around its axes."""
    panel.set_xlabel(x, fontsize=MEDIUM, color=GREY)
    panel.set_ylabel(y, fontsize=MEDIUM, color=GREY)
    panel.set_title(title, loc="left", fontsize=LARGE, color=INK, fontweight="bold")
