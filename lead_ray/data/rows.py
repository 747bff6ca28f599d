"""What a reader of one data set hands over, and how a photograph becomes a stored row.

Points are (x, y) pixels: x runs right, y down, the centre of the first pixel is (0, 0). A reader yields
points in pixels of the upright photograph (EXIF rotation applied); a stored row has them in pixels of the
stored image.
"""

import io
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

Window = tuple[int, int, int, int]
MAX_PIXELS = 100_000_000  # a larger picture is a mistake or a decompression bomb


class BadImage(ValueError):
    """One image that cannot be used: it is set aside with this reason, and the run goes on."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One image as its data set lists it; no pixels have been read.

    Shapes: landmarks [K, 2] and visible [K]; K is the same for all records of a split and may be 0.
    Units: landmarks and box (x, y, width, height) in pixels of the upright photograph.
    """

    image_id: str
    path: Path
    split: str
    identity: str | None = None
    box: tuple[float, float, float, float] | None = None
    landmarks: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    visible: np.ndarray | None = None
    """None: every landmark is visible."""

    def to_json(self, raw: Path) -> str:
        """One line that from_json() reads back exactly; paths are relative to `raw`, so folders may move."""
        path = self.path.relative_to(raw) if self.path.is_relative_to(raw) else self.path
        visible = None if self.visible is None else self.visible.tolist()
        where = [self.image_id, path.as_posix(), self.split, self.identity]
        return json.dumps([*where, self.box, self.landmarks.tolist(), visible])

    @classmethod
    def from_json(cls, line: str, raw: Path) -> "Record":
        image_id, path, split, identity, box, points, visible = json.loads(line)
        return cls(
            image_id=image_id,
            path=raw / path,
            split=split,
            identity=identity,
            box=None if box is None else tuple(box),
            landmarks=np.asarray(points, np.float32).reshape(-1, 2),
            visible=None if visible is None else np.asarray(visible, bool),
        )


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The protocol that brings a photograph and its landmarks to the stored square image."""

    kind: Literal["window", "centre", "box"]
    """window: always the same pixels; centre: the largest centred square; box: a square around the box."""
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
    size: int = 136
    """Side of the stored image in pixels."""

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"size must be >= 8 pixels, got {self.size}")
        if not 0 < self.box_factor <= 8:
            raise ValueError(f"box_factor must be in (0, 8], got {self.box_factor}")
        if (self.kind == "window") != (self.window is not None):
            raise ValueError(f"kind='window' and only that needs a window, got {self.kind!r}, {self.window}")

    def place(self, width: int, height: int, box: tuple[float, ...] | None) -> Window:
        """Left, top, width, height of what is cut from a photograph; it may reach past the edge."""
        if self.source_size not in (None, (width, height)):
            expected = "x".join(map(str, self.source_size))
            raise BadImage(f"is {width}x{height} pixels, this set's images are {expected}")
        if self.kind == "window":
            return self.window
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
        side = max(1, round(self.box_factor * max(box[2:])))
        if side > 4 * max(width, height):
            raise BadImage(f"box {list(box)} is far larger than its {width}x{height} pixels")
        return round(left + (box[2] - side) / 2), round(top + (box[3] - side) / 2), side, side

    def points(self, points: np.ndarray, window: Window) -> np.ndarray:
        """Points of the photograph -> points of the stored image; [n, 2] to [n, 2] float32."""
        scale = self.size / np.array(window[2:], np.float64)
        half = 0.5 if self.exact_centres else 0.0
        placed = np.asarray(points, np.float64).reshape(-1, 2) - self.first_pixel - window[:2]
        return ((placed + half) * scale - half).astype(np.float32)

    def pixels(self, image: Image.Image, window: Window) -> Image.Image:
        """Cut and resize (bilinear, antialiased: DVE's Resize); past the edge, edge pixels repeat."""
        left, top, width, height = window
        right, bottom = left + width, top + height
        inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        cut = image.crop(inside)
        if inside != (left, top, right, bottom):
            around = (inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0)
            cut = Image.fromarray(np.pad(np.asarray(cut), around, mode="edge"))
        return cut.resize((self.size, self.size), Image.Resampling.BILINEAR)


@runtime_checkable
class Reader(Protocol):
    """One data set. A frozen keyword-only dataclass: its fields are the command line's flags."""

    name: ClassVar[str]
    raw: Path

    @property
    def crop(self) -> Crop: ...

    def records(self) -> Iterator[Record]:
        """Annotations and paths, in a fixed order.

        Raises: ValueError or FileNotFoundError naming the file, and the line, that is wrong.
        """
        ...


def open_rgb(path: Path) -> Image.Image:
    """Any picture that Pillow reads, upright and 8-bit RGB.

    Transparency lies over white, 16 bits keep the upper 8, of several frames the first counts.
    Raises: BadImage with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused more strictly below
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
                return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode == "F":
                raise BadImage("has floating-point pixels, whose range nothing states")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("is listed but the file is missing") from None
    except Exception as error:  # whatever a decoder raises at a broken file
        raise BadImage(f"cannot be read: {str(error).replace(str(path), path.name)}") from error


def render(record: Record, crop: Crop, *, encoding: Literal["jpeg", "png"] = "jpeg") -> dict:
    """The stored row of one record: crop, resize, encode; the only place where pixels are read.

    A landmark outside the photograph is kept and marked not visible; one that merely falls outside the crop
    stays as annotated. JPEG is quality 95 with full colour resolution (4:4:4).
    Raises: BadImage if the file, the box or a landmark is unusable.
    """
    points = record.landmarks
    visible = np.ones(len(points), bool) if record.visible is None else record.visible
    broken = np.flatnonzero(~np.isfinite(points).all(1))
    if len(broken):
        raise BadImage(f"landmark {broken[0]} is {points[broken[0]].tolist()}")
    image = open_rgb(record.path)
    window = crop.place(image.width, image.height, record.box)
    upright = points - crop.first_pixel  # pixel i covers i - 1/2 .. i + 1/2
    visible = visible & ((upright >= -0.5) & (upright < np.array(image.size) - 0.5)).all(1)
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if encoding == "jpeg" else {}
    crop.pixels(image, window).save(buffer, encoding, **options)
    box = None
    if record.box is not None:
        corner = crop.points(np.array([record.box[:2]]), window)[0].tolist()
        box = [*corner, record.box[2] * crop.size / window[2], record.box[3] * crop.size / window[3]]
    return {
        "image_id": record.image_id,
        "image": buffer.getvalue(),
        "split": record.split,
        "identity": record.identity,
        "box": box,
        "landmarks": crop.points(points, window).tolist(),
        "visible": visible.tolist(),
    }
