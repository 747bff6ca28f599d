"""Photograph -> the square that the network sees, and points back.

A frame is a square of the photograph, shrunk to the network's input. Around the whole photograph it is the smallest
that cuts nothing off; around a box, a little larger than the box. What of a frame lies past the photograph's edge
repeats the edge, as in prepared shards. Unlike there (data/crops.py), a frame need not begin on a whole pixel and its
border is made after shrinking, so that a panorama takes no more memory than itself.

Points are (x, y) pixels, pixel centres at integers. Boxes are x, y, width, height from the photograph's corner.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lead_ray.data.crops import BadImage

LARGEST = 1024  # pixels: of that, fitting 20 images takes 4 GB
Box = tuple[float, float, float, float]
REDUCING_GAP = (
    3.0  # a large photograph is first shrunk by averaging whole blocks of pixels, to this many times the size
)


class Frame(NamedTuple):
    """A square of a photograph."""

    left: float
    """Pixels from the photograph's left edge."""
    top: float
    extent: float
    """Side in pixels of the photograph."""
    side: int
    """Side in pixels of the network's input."""

    def to_input(self, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Pixels of the photograph -> pixels of the network's input."""
        return (points - (self.left, self.top) + 0.5) * (self.side / self.extent) - 0.5

    def to_photograph(self, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Pixels of the network's input -> pixels of the photograph; the inverse of to_input()."""
        return (points + 0.5) * (self.extent / self.side) - 0.5 + (self.left, self.top)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Where frames lie."""

    side: int = 96
    """Side of the network's input in pixels: what it was trained on, or larger for finer detail."""
    box_factor: float = 1.1
    """Side of the frame over the longer side of the box. Around a whole photograph it is 1."""

    def __post_init__(self):
        if not 32 <= self.side <= LARGEST:
            raise ValueError(f"side must be 32 to {LARGEST} pixels, got {self.side}")
        if not 0.5 <= self.box_factor <= 4:
            raise ValueError(f"box_factor must be in [0.5, 4], got {self.box_factor}")

    def frame(self, size: tuple[int, int], box: Box | None = None) -> Frame:
        """The frame of a photograph of `size` = (width, height).

        Raises: BadImage if the box has no area, or no part of the photograph in it.
        """
        width, height = size
        if box is None:
            box, factor = (0.0, 0.0, float(width), float(height)), 1.0
        else:
            factor = self.box_factor
            if len(box) != 4 or not all(math.isfinite(value) for value in box) or min(box[2:]) <= 0:
                raise BadImage(f"box {list(box)} has no area: x, y, width, height in pixels are wanted")
            if box[0] >= width or box[1] >= height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
                raise BadImage(f"box {list(box)} lies outside its {width}x{height} pixels")
        extent = factor * max(box[2:])
        if extent > 8 * max(width, height):
            raise BadImage(f"box {list(box)} is far larger than its {width}x{height} pixels")
        return Frame(box[0] + (box[2] - extent) / 2, box[1] + (box[3] - extent) / 2, extent, self.side)


def cut(image: Image.Image, frame: Frame) -> UInt8[np.ndarray, "side side 3"]:
    """What an upright RGB photograph shows in a frame, averaged as it shrinks (bilinear beyond)."""
    columns, left, right = _inside(frame.left, frame.extent, frame.side, image.width)
    rows, top, bottom = _inside(frame.top, frame.extent, frame.side, image.height)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    resample = Image.Resampling.BILINEAR
    seen = np.asarray(image.resize(size, resample, box=(left, top, right, bottom), reducing_gap=REDUCING_GAP))
    around = (rows.start, frame.side - rows.stop), (columns.start, frame.side - columns.stop), (0, 0)
    return np.pad(seen, around, mode="edge")


def _inside(start: float, extent: float, side: int, length: int) -> tuple[slice, float, float]:
    """Along one axis: the input's pixels that lie wholly within the photograph, at least one, and what they show."""
    scale = extent / side
    first = min(max(math.ceil(-start / scale - 1e-6), 0), side - 1)
    last = max(min(math.floor((length - start) / scale + 1e-6), side), first + 1)
    low, high = max(start + first * scale, 0.0), min(start + last * scale, float(length))
    if high <= low:  # less than half a pixel of the input: the photograph's nearest pixel stands for it
        low = min(max(low, 0.0), length - 1.0)
        high = low + 1.0
    return slice(first, last), low, high
