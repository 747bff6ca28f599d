"""A photograph with its landmarks drawn in: dots in the schema's colours, the skeleton; hollow where it is doubtful."""

import numpy as np
from PIL import Image, ImageDraw

from lead_ray.landmarks.labels import LabelledImage, Mark, Schema

DOUBTFUL = 0.5  # confidence below which a dot is hollow
FINER = 4  # times, that the marks are drawn larger and then shrunk, so that edges are smooth
LONGEST = 1024  # pixels, of an overlay's longer side


def draw(photograph: Image.Image, schema: Schema, found: LabelledImage) -> Image.Image:
    """At most LONGEST pixels wide or high. A dot is filled as its point is trusted, hollow below DOUBTFUL.

    The photograph is as shown, RGB.
    """
    scale = min(1.0, LONGEST / max(photograph.size))
    size = tuple(max(1, round(side * scale)) for side in photograph.size)
    base = photograph.resize(size, Image.Resampling.LANCZOS) if scale < 1 else photograph.copy()
    marks = Image.new("RGBA", tuple(FINER * side for side in size))
    pen = ImageDraw.Draw(marks)
    extent = max(found.box[2:]) * scale if found.box else max(size)
    radius = FINER * max(1.5, min(5.0, 0.012 * extent))
    places = (found.points + 0.5) * scale * FINER
    for first, second in schema.skeleton:
        if Mark.MISSING not in (found.marks[first], found.marks[second]):
            ends = [*places[first].tolist(), *places[second].tolist()]
            pen.line(ends, fill=(0, 0, 0, 160), width=round(0.9 * radius))
            pen.line(ends, fill="#ffffffd0", width=max(1, round(0.45 * radius)))
    confidence = np.ones(len(places)) if found.confidence is None else found.confidence
    for (x, y), colour, mark, sure in zip(places.tolist(), schema.colours, found.marks, confidence, strict=True):
        if mark == Mark.MISSING:
            continue
        _disc(pen, x, y, 1.45 * radius, "#000000a0")
        _disc(pen, x, y, 1.2 * radius, "#ffffff" if sure >= DOUBTFUL else colour)
        _disc(pen, x, y, 0.85 * radius, colour if sure >= DOUBTFUL else "#000000c0")
    base.paste(marks := marks.resize(size, Image.Resampling.BOX), mask=marks.getchannel("A"))
    return base


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: str) -> None:
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
