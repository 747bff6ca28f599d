"""What the figures are drawn with: colours, type sizes, grids of faces, marks that show on any picture.

Colours: Okabe and Ito's, which the colour-blind can tell apart. Fonts: 8 pt and more.
"""

from collections.abc import Sequence

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from torch import Tensor

PALETTE = ("#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#E69F00", "#0072B2", "#D55E00")
BLUE, VERMILION, INK, GREY, FAINT = "#0072B2", "#D55E00", "#222222", "#666666", "#dddddd"
HEAT = LinearSegmentedColormap.from_list("heat", ["#8c2d04", "#D55E00", "#F0A020", "#fff7bc"])
WIDTH = 9.3  # inches: the text width of a report's page
SMALL, MEDIUM, LARGE = 8, 9, 10  # points


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


def image(panel: Axes, pixels: Tensor, left: int = 0) -> None:
    """An image [3, h, w] or, grey, [h, w], its pixel centres at integers."""
    height, width = pixels.shape[-2:]
    values = pixels.cpu().to(torch.uint8).numpy()
    shown = numpy.moveaxis(values, 0, -1) if values.ndim == 3 else values
    extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
    panel.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="bicubic")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)


def halo(width: float) -> list[withStroke]:
    """What sets a thin mark off from any picture."""
    return [withStroke(linewidth=width, foreground="#000000a0")]


def dot(panel: Axes, point: Sequence[float], colour: str, size: float = 5.0) -> None:
    """A filled dot with a white edge."""
    edge = {"mec": "white", "mew": size / 7, "path_effects": halo(size / 3)}
    panel.plot(*point, "o", ms=size, mfc=colour, zorder=5, **edge)


def ring(panel: Axes, point: Tensor, colour: str, size: float = 8.5) -> None:
    """The true place of a point."""
    edge = {"mec": colour, "mew": 1.2, "path_effects": halo(2.4)}
    panel.plot(*point.tolist(), "o", ms=size, mfc="none", zorder=3, **edge)


def end_label(panel: Axes, step: float | int, value: float, text: str, colour: str, *, above: bool) -> None:
    """A curve's name and last value, at its end."""
    shift, align = (7, "bottom") if above else (-7, "top")
    style = {
        "fontsize": SMALL,
        "color": colour,
        "path_effects": [withStroke(linewidth=3, foreground="white")],
    }
    panel.annotate(text, (step, value), (0, shift), textcoords="offset points", ha="right", va=align, **style)


def plain_axes(panel: Axes, keep: Sequence[str] = ("bottom", "left")) -> None:
    """Only what is read: thin lines and a few numbers."""
    for side, spine in panel.spines.items():
        spine.set(visible=side in keep, color=GREY, linewidth=0.8)
    panel.tick_params(labelsize=SMALL, color=GREY, labelcolor=GREY, width=0.8)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
