"""Parts discovered in faces, each in the same colour in all of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional

from lead_ray.reporting import drawing as draw

ORDER = (5, 4, 1, 6, 0, 3, 2)
"""Of the palette, so that the first few differ most."""


def overlay(
    images: UInt8[Tensor, "n 3 s s"],
    presence: Float[Tensor, "n parts h w"],
    *,
    most: Sequence[float] | None = None,
    truth: Float[Tensor, "n k 2"] | None = None,
    columns: int = 8,
) -> Figure:
    """Images, and below each the parts in it: the strongest part's colour, as dense as the part is present.

    Presence: at least 0; what counts as fully present, `most`, is each part's 99th percentile over the images given
      unless it is named (such as that of more images than are shown). Truth: landmarks, drawn as small rings.
    Raises: ValueError if images and presence are not as many.
    Source: LEAD, figure 14.
    """
    if len(images) != len(presence):
        raise ValueError(f"presence must be that of the {len(images)} images, got {len(presence)}")
    count, parts, side = len(images), presence.shape[1], images.shape[3]
    columns = min(columns, count)
    full = torch.tensor(list(most)) if most is not None else strongest(presence)
    level = (presence.float().cpu() / full.clamp(min=1e-12)[:, None, None]).clamp(max=1)
    level = functional.interpolate(level, size=images.shape[2:], mode="bilinear", align_corners=False)
    chosen = [draw.PALETTE[each] for each in ORDER] if parts <= len(ORDER) else draw.colours(parts)
    colours = torch.tensor([to_rgb(colour) for colour in chosen[:parts]])
    gap, legend = 0.05, 0.3
    width = (draw.WIDTH + gap) / columns - gap
    rows = -(-count // columns)
    height = legend + rows * (2 * width + gap + 0.12) - 0.12
    figure = Figure(figsize=(columns * (width + gap) - gap, height), facecolor="white")
    for number in range(parts):
        swatch = draw.place(figure, 0.02 + 0.75 * number, 0.05, 0.16, 0.14)
        swatch.set_axis_off()
        swatch.add_patch(Rectangle((0, 0), 1, 1, color=chosen[number], transform=swatch.transAxes))
        draw.words(figure, 0.23 + 0.75 * number, 0.045, f"part {number + 1}", fontsize=draw.SMALL)
    for i in range(count):
        left, top = (i % columns) * (width + gap), legend + (i // columns) * (2 * width + gap + 0.12)
        draw.image(draw.place(figure, left, top, width, width), images[i])
        panel = draw.place(figure, left, top + width + 0.03, width, width)
        grey = draw.pale(images[i].cpu())[..., None].expand(-1, -1, 3) / 255
        dense, part = level[i].max(0)
        dense = 0.8 * dense[..., None]
        mixed = (1 - dense) * grey + dense * colours[part]
        draw.image(panel, (255 * mixed).movedim(2, 0))
        for point in truth[i] if truth is not None else []:
            draw.ring(panel, point.cpu(), "white", size=4.0)
    rings = " Rings: landmarks." if truth is not None else ""
    figure.set_label(
        f"{count} images of {side} pixels, and below each {parts} discovered parts in colours that are the same in "
        f"all images, as dense as the part is present.{rings}"
    )
    return figure


def strongest(presence: Float[Tensor, "n parts h w"]) -> Float[Tensor, " parts"]:
    """What counts as fully present: each part's 99th percentile where it is present at all."""
    flat = presence.float().cpu().transpose(0, 1).flatten(1)
    # By sorting: torch.quantile takes at most 16 million numbers.
    ordered = flat.sort(1).values
    first = (ordered <= 0).sum(1)
    last = ordered.shape[1] - 1
    place = (first + 0.99 * (last - first)).long().clamp(max=last)
    return ordered.gather(1, place[:, None])[:, 0]
