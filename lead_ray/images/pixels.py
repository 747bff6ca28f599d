"""Encoded images -> pixels. No torch: processes that do nothing else import this."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def decode(images: Sequence[bytes], size: int) -> np.ndarray:
    """Encoded images to pixels: uint8 [n, size, size, 3], RGB. One thread; Pillow lets several run at once.

    Raises: ValueError naming the position of an image that does not decode to this size.
    """
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for position, image in enumerate(images):
        try:
            with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
                if (opened.mode, opened.size) != ("RGB", (size, size)):  # before its pixels take memory
                    raise ValueError(f"it is {opened.width}x{opened.height}, {opened.mode}")
                pixels[position] = np.asarray(opened)
        except Exception as error:  # whatever a decoder raises at a broken file
            raise ValueError(f"image {position} is not a {size}x{size} RGB image: {error}") from error
    return pixels
