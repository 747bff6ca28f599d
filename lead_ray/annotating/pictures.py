"""What the page shows of a picture: upright, in a format that every browser has, no larger than it can use."""

import io
from pathlib import Path

from PIL import Image

from lead_ray.data.rows import BadImage, open_rgb

LONGEST = 3072  # pixels of the longer side that the page gets; more would slow zooming and show nothing new
THUMBNAIL = 192
AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
ORIENTATION = 0x0112  # EXIF's tag


def shown(path: Path) -> tuple[bytes, str]:
    """A picture for the page, and its media type: the file's own bytes where a browser shows the same as open_rgb().

    Raises: BadImage with the reason.
    """
    try:
        with Image.open(path) as image:
            kind = AS_THEY_ARE.get(image.format or "")
            plain = image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1
            still = getattr(image, "n_frames", 1) == 1
            if kind and plain and still and max(image.size) <= LONGEST:
                image.load()  # a file that is cut short must be named, not half shown
                return path.read_bytes(), kind
    except Exception:  # whatever it is, open_rgb() says it in words
        pass
    image = open_rgb(path)
    image.thumbnail((LONGEST, LONGEST), reducing_gap=3.0)
    return _jpeg(image, quality=95), "image/jpeg"


def thumbnail(path: Path) -> bytes:
    """A small JPEG. Raises: BadImage with the reason."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # JPEG only: decodes an eighth of the pixels
            if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1:
                image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
                return _jpeg(image, quality=82)
    except Exception:  # as above
        pass
    image = open_rgb(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    return _jpeg(image, quality=82)


def size(path: Path) -> tuple[int, int]:
    """Width and height as shown, from the header alone.

    Raises: BadImage with the reason.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except Exception:
        return open_rgb(path).size


def _jpeg(image: Image.Image, *, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


__all__ = ["BadImage", "open_rgb", "shown", "size", "thumbnail"]
