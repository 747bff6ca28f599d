"""What a reader of one data set hands over, and how a photograph becomes a stored row.

Points are (x, y) pixels: x runs right, y down, the centre of the first pixel is (0, 0). A reader yields
points in pixels of the upright photograph (EXIF rotation applied); a stored row has them in pixels of the
stored image.
"""

import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from lead_ray.data.crops import BadImage, Crop

MAX_PIXELS = 100_000_000  # a larger picture is a mistake or a decompression bomb
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What is looked for, whatever a file's name ends in: Pillow knows others as well, and runs Ghostscript for one."""


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
    box_factor: float | None = None
    """The crop's box_factor where it differs from image to image; None: the crop's own."""
    size: tuple[int, int] | None = None
    """Width and height that the annotations state for the photograph; None: they state nothing."""

    def to_json(self, raw: Path) -> str:
        """One line that from_json() reads back exactly; paths are relative to `raw`, so folders may move."""
        path, root = self.path.as_posix(), f"{raw.as_posix()}/"
        if path.startswith(root):
            path = path[len(root) :]  # what relative_to() says, in a tenth of its time
        elif self.path.is_relative_to(raw):
            path = self.path.relative_to(raw).as_posix()
        visible = None if self.visible is None else self.visible.tolist()
        where = [self.image_id, path, self.split, self.identity]
        rare = {"box_factor": self.box_factor, "size": self.size}
        stated = {key: value for key, value in rare.items() if value is not None}
        return json.dumps([*where, self.box, self.landmarks.tolist(), visible, *([stated] if stated else [])])

    @classmethod
    def from_json(cls, line: str, raw: Path) -> "Record":
        image_id, path, split, identity, box, points, visible, *rare = json.loads(line)
        stated = rare[0] if rare else {}
        return cls(
            image_id=image_id,
            path=raw / path,
            split=split,
            identity=identity,
            box=None if box is None else tuple(box),
            landmarks=np.asarray(points, np.float32).reshape(-1, 2),
            visible=None if visible is None else np.asarray(visible, bool),
            box_factor=stated.get("box_factor"),
            size=tuple(stated["size"]) if "size" in stated else None,
        )


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


def open_rgb(path: Path, content: bytes | None = None) -> Image.Image:
    """Any picture that Pillow reads, upright and 8-bit RGB; of these bytes, if they have been read already.

    Raises: BadImage with the reason.
    """
    source = path if content is None else io.BytesIO(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused more strictly by upright_rgb()
            if content is None and path.exists() and not path.is_file():
                raise BadImage("is no regular file")  # a pipe would be waited for, a device never ends
            image = Image.open(source, formats=FORMATS)
        with image:
            return upright_rgb(image)
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("is listed but the file is missing") from None
    except Exception as error:  # whatever a decoder raises at a broken file
        said = str(error).replace(str(path), path.name).replace(repr(source), repr(path.name))
        raise BadImage(f"cannot be read: {said}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as a viewer shows it, 8-bit RGB.

    Transparency lies over white, 16 bits keep the upper 8, of several frames the first counts.
    Raises: BadImage with the reason.
    """
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


def render(
    record: Record, crop: Crop, *, encoding: Literal["jpeg", "png"] = "jpeg", content: bytes | None = None
) -> dict:
    """The stored row of one record: crop, resize, encode; the only place where pixels are read.

    `content`: the file's bytes, where they come from elsewhere than record.path.

    A landmark outside the photograph is kept and marked not visible; one that merely falls outside the crop
    stays as annotated. JPEG is quality 95 with full colour resolution (4:4:4).
    Raises: BadImage if the file, the box or a landmark is unusable.
    """
    points = record.landmarks
    visible = np.ones(len(points), bool) if record.visible is None else record.visible
    broken = np.flatnonzero(~np.isfinite(points).all(1))
    if len(broken):
        raise BadImage(f"landmark {broken[0]} is {points[broken[0]].tolist()}")
    image = open_rgb(record.path, content)
    if record.size not in (None, image.size):
        raise BadImage(f"is {image.width}x{image.height} pixels, its annotation says {'x'.join(map(str, record.size))}")
    window = crop.place(image.width, image.height, record.box, record.box_factor)
    upright = points - crop.first_pixel  # pixel i covers i - 1/2 .. i + 1/2
    visible = visible & ((upright >= -0.5) & (upright < np.array(image.size) - 0.5)).all(1)
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if encoding == "jpeg" else {}
    crop.pixels(image, window).save(buffer, encoding, **options)
    box = None
    if record.box is not None:
        corner = crop.points(np.array([record.box[:2]]), window)[0].tolist()
        box = [*corner, record.box[2] * crop.inner / window[2], record.box[3] * crop.inner / window[3]]
    return {
        "image_id": record.image_id,
        "image": buffer.getvalue(),
        "split": record.split,
        "identity": record.identity,
        "box": box,
        "landmarks": crop.points(points, window).tolist(),
        "visible": visible.tolist(),
    }
