"""Annotated photographs to measure landmark models on: drawn, out of a prepared data set, or a person's own."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lead_ray import formats, metrics
from lead_ray.data import synthetic
from lead_ray.images import shards
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette

EYES = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS}
"""The two landmarks that are 100 % of an error, where a prepared data set has so many; otherwise it is the side."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Files in one folder, with their truth."""

    folder: Path
    train: Labels
    """In an order drawn by chance: the first n are annotated."""
    test: Labels


def drawn(folder: Path, *, train: int, test: int, seed: int) -> Photographs:
    """Synthetic faces, one a person, as photographs of 178x218 pixels with five landmarks."""
    images = []
    for number in range(train + test):
        face = synthetic.render(seed=1000 + seed, identity=number, index=0)
        images.append(_written(folder, f"{number:05d}.png", face.pixels, face.landmarks_5, np.ones(5, bool)))
    schema = Schema(category="face", names=synthetic.POINTS_5, colours=palette(5), normaliser=metrics.EYE_CENTRES)
    return _parted(folder, schema, images[:train], images[train:])


def prepared(folder: Path, data: Path, *, margin: int, train: int, test: int, seed: int) -> Photographs:
    """Images of a prepared data set's splits train and test, without a margin that its protocol does not show.

    Raises: FileNotFoundError, ValueError as shards.load(); ValueError if it has no landmarks.
    """
    parts = []
    for split, most in (("train", train), ("test", test)):
        images = shards.load(data, split)
        if not images.landmarks.shape[1]:
            raise ValueError(f"data={str(data)!r} has no landmarks in its split {split!r}: name one that has")
        order = np.random.default_rng(seed).permutation(np.flatnonzero(images.visible.any(1)))[:most]
        shown = slice(margin, images.pixels.shape[-1] - margin)
        parts.append(
            [
                _written(
                    folder,
                    f"{split}-{place:06d}.png",
                    images.pixels[place, :, shown, shown].permute(1, 2, 0).numpy(),
                    images.landmarks[place] - margin,
                    images.visible[place],
                )
                for place in order.tolist()
            ]
        )
    count = images.landmarks.shape[1]
    names = tuple(str(number + 1) for number in range(count))
    schema = Schema(category=data.name, names=names, colours=palette(count), normaliser=EYES.get(count))
    return _parted(folder, schema, *parts)


def own(images: Path, labels: Path, *, train: int, test: int, seed: int) -> Photographs:
    """A folder that a person annotated, parted by chance: the test's images first, at most half of all.

    Raises: FileNotFoundError, ValueError as formats.read(); ValueError for fewer than six annotated images.
    """
    read = formats.read(formats.guess(labels), labels, images=images)
    known = [image for image in read.images if (image.marks != Mark.MISSING).any()]
    if len(known) < 6:
        raise ValueError(f"labels={str(labels)!r} has {len(known)} annotated images: to measure takes at least 6")
    order = [known[place] for place in np.random.default_rng(seed).permutation(len(known))]
    cut = min(test, len(order) // 2)
    return _parted(images, read.schema, order[cut : cut + train], order[:cut])


def _parted(folder: Path, schema: Schema, train: list[LabelledImage], test: list[LabelledImage]) -> Photographs:
    sets = (Labels(schema=schema, images=tuple(images)) for images in (train, test))
    return Photographs(folder=folder, **dict(zip(("train", "test"), sets, strict=True)))


def first(labels: Labels, count: int, seed: int) -> Labels:
    """So many of them, drawn by chance; nested for one seed."""
    order = np.random.default_rng(seed).permutation(len(labels.images))[:count]
    return replace(labels, images=tuple(labels.images[place] for place in order))


def _written(folder: Path, name: str, pixels: np.ndarray, points: np.ndarray, visible: np.ndarray) -> LabelledImage:
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
    marks = np.where(visible, Mark.VISIBLE, Mark.MISSING).astype(np.uint8)
    where = np.where(visible[:, None], points, np.nan).astype(np.float32)
    return LabelledImage(file=name, size=(pixels.shape[1], pixels.shape[0]), points=where, marks=marks)
