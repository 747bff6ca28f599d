"""Which part of a photograph is stored, and where its landmarks come to lie.

Points are (x, y) pixels: x runs right, y down, the centre of the first pixel is (0, 0).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Window = tuple[int, int, int, int] | tuple[float, float, float, float]
FRAME = 100  # pixels per side of what frame() shows


class BadImage(ValueError):
    """One image that cannot be used: it is set aside with this reason, and the run goes on."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The protocol that brings a photograph and its landmarks to the stored square image."""

    kind: Literal["window", "centre", "box", "whole", "framed"]
    """window: always the same pixels; centre: the largest centred square; box: a square around the box;
    whole: everything, squashed to a square; framed: the box in a frame of fixed size, see frame()."""
    window: Window | None = None
    """Left, top, width, height in pixels for kind="window"."""
    source_size: tuple[int, int] | None = None
    """Width and height that every photograph must have; None: any."""
    box_factor: float = 1.0
    """Side of the square over the longer side of the box."""
    first_pixel: float = 0.0
    """Coordinate that the annotations give to the centre of the first pixel (1 in MATLAB's convention)."""
    exact_centres: bool = True
    """True: x -> (x + 1/2) s - 1/2, which follows the resize exactly. False: x -> x s, as DVE and CL do."""
    margin: int | None = None
    """Pixels on each side of the stored image that repeat the edge of what was cut: evaluation's centre crop
    then shows all of it. None: no such border."""
    size: int = 136
    """Side of the stored image in pixels."""

    def __post_init__(self):
        if self.inner < 8:
            around = f" inside a margin of {self.margin}" if self.margin else ""
            raise ValueError(f"size must be >= 8 pixels{around}, got {self.size}")
        if not 0 < self.box_factor <= 8:
            raise ValueError(f"box_factor must be in (0, 8], got {self.box_factor}")
        if (self.kind == "window") != (self.window is not None):
            raise ValueError(f"kind='window' and only that needs a window, got {self.kind!r}, {self.window}")

    @property
    def inner(self) -> int:
        """Side in pixels of what was cut, within the margin."""
        return self.size - 2 * (self.margin or 0)

    def place(self, width: int, height: int, box: tuple[float, ...] | None, factor: float | None = None) -> Window:
        """Left, top, width, height of what is cut from a photograph; it may reach past the edge.

        `factor` goes before box_factor.
        """
        if self.source_size not in (None, (width, height)):
            expected = "x".join(map(str, self.source_size))
            raise BadImage(f"is {width}x{height} pixels, this set's images are {expected}")
        if self.kind == "window":
            return self.window
        if self.kind == "whole":
            return 0, 0, width, height
        if self.kind == "centre":
            side = min(width, height)
            return (width - side) // 2, (height - side) // 2, side, side
        if box is None:
            raise BadImage("has no box to crop")
        if not all(math.isfinite(value) for value in box) or min(box[2:]) <= 0:
            raise BadImage(f"box {list(box)} has no area")
        left, top = box[0] - self.first_pixel, box[1] - self.first_pixel
        if left >= width or top >= height or left + box[2] <= 0 or top + box[3] <= 0:
            raise BadImage(f"box {list(box)} lies outside its {width}x{height} pixels")
        if self.kind == "framed":
            window = frame(box)
        else:
            side = max(1, round((factor or self.box_factor) * max(box[2:])))
            window = round(left + (box[2] - side) / 2), round(top + (box[3] - side) / 2), side, side
        if window[2] > 4 * max(width, height):
            raise BadImage(f"box {list(box)} is far larger than its {width}x{height} pixels")
        return window

    def points(self, points: np.ndarray, window: Window) -> np.ndarray:
        """Points of the photograph -> points of the stored image; [n, 2] to [n, 2] float32."""
        scale = self.inner / np.array(window[2:], np.float64)
        half = 0.5 if self.exact_centres else 0.0
        placed = np.asarray(points, np.float64).reshape(-1, 2) - self.first_pixel - window[:2]
        return ((placed + half) * scale - half + (self.margin or 0)).astype(np.float32)

    def pixels(self, image: Image.Image, window: Window) -> Image.Image:
        """Cut and resize (bilinear, antialiased: DVE's Resize); past the edge, edge pixels repeat.

        Under kind="framed" the photograph is first shrunk and framed in black.

        Raises: BadImage if there is nothing of the photograph in the window.
        """
        cut = _shrunk(image, window) if self.kind == "framed" else _cut(image, window)
        cut = cut.resize((self.inner, self.inner), Image.Resampling.BILINEAR)
        if not self.margin:
            return cut
        around = (self.margin, self.margin), (self.margin, self.margin), (0, 0)
        return Image.fromarray(np.pad(np.asarray(cut), around, mode="edge"))


def frame(box: tuple[float, ...]) -> Window:
    """DVE's window for 300-W, in pixels of the photograph: FRAME pixels of a size at which the box is 52 wide.

    Box: MATLAB's pixels, both ends counted in width and height. Its centre comes to lie 2 pixels below the
    frame's, on whole pixels.
    Source: DVE, data_loaders.py at 2085144, 802-932.
    """
    scale = 52 / box[2]
    half = FRAME // 2
    left = math.floor(scale * (box[0] + (box[2] + 1) / 2)) - half
    top = math.floor(scale * (box[1] + (box[3] + 1) / 2)) - half - 2
    # So that points() yields DVE's (point * scale - corner - 1), times 136 / 100.
    return (left + 1) / scale - 1, (top + 1) / scale - 1, FRAME / scale, FRAME / scale


def _shrunk(image: Image.Image, window: Window) -> Image.Image:
    """What frame() shows, FRAME pixels wide, black past the edge; as if the whole photograph had been shrunk."""
    scale = FRAME / window[2]
    left, top = (round((start + 1) * scale) - 1 for start in window[:2])
    shrunk = [int(extent * scale + 1e-9) for extent in image.size]
    right, bottom = min(left + FRAME, shrunk[0]), min(top + FRAME, shrunk[1])
    begin, end = (max(left, 0), max(top, 0)), (right, bottom)
    if right <= begin[0] or bottom <= begin[1]:
        raise BadImage("has nothing inside the frame around its box")
    steps = [extent / small for extent, small in zip(image.size, shrunk, strict=True)]
    region = (begin[0] * steps[0], begin[1] * steps[1], end[0] * steps[0], end[1] * steps[1])
    seen = image.resize((right - begin[0], bottom - begin[1]), Image.Resampling.BILINEAR, box=region)
    framed = Image.new("RGB", (FRAME, FRAME))
    framed.paste(seen, (begin[0] - left, begin[1] - top))
    return framed


def _cut(image: Image.Image, window: Window) -> Image.Image:
    left, top, width, height = window
    right, bottom = left + width, top + height
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    cut = image.crop(inside)
    if inside != (left, top, right, bottom):
        around = (inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0)
        cut = Image.fromarray(np.pad(np.asarray(cut), around, mode="edge"))
    return cut
