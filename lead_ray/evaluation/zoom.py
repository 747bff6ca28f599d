"""Errors by zoom-out factor: how many times its box's longer side an image shows (LEAD, figures 9, 10, 17)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lead_ray.images import shards

STEP = 10
"""Bins for each unit of the factor. Crops are whole pixels, so factors are taken to a hundredth."""


def factors(folder: Path, split: str) -> dict[str, float] | None:
    """Side of every stored image over the longer side of its box, by image_id; None where no box was cropped to.

    Raises: FileNotFoundError, ValueError as shards.load().
    """
    manifest = shards.read_manifest(folder)
    if manifest.protocol.get("kind") != "box":
        return None
    parts, columns = shards.select(manifest, split), ["image_id", "box"]
    rows = pa.concat_tables(
        [shards.read_shard(folder, part, command=manifest.command, columns=columns) for part in parts]
    )
    if rows["box"].null_count:
        return None
    longer = np.array(rows["box"].to_pylist(), np.float64).reshape(-1, 4)[:, 2:].max(axis=1)
    cut = manifest.size - 2 * (manifest.protocol.get("margin") or 0)
    return dict(zip(rows["image_id"].to_pylist(), (cut / longer).tolist(), strict=True))


def spread(trained: np.ndarray) -> np.ndarray:
    """Least and largest factor of training images, to whole bins outwards."""
    return np.array([_floor(trained.min()) / STEP, _ceil(trained.max()) / STEP], np.float32)


def by_factor(errors: np.ndarray, factor: np.ndarray, trained: np.ndarray) -> dict[str, Any]:
    """Mean errors of images by bins of their factor, and over those whose factor was and was not seen in training.

    Shapes: errors [n], of one image each, NaN where it is skipped; factor [n]; trained [2], as spread() has it.
    Returns: "by_factor": bins in rising order, with "from", "to", "images", "error" and "seen"; "seen_error" and
      "unseen_error", None if there is no such image.
    """
    counted = np.isfinite(errors)
    errors, factor = errors[counted], factor[counted]
    low, high = (round(float(bound) * STEP) for bound in trained)
    scaled = np.round(factor.astype(np.float64) * STEP, 1)
    place = np.where(scaled == high, high - 1, np.floor(scaled)).astype(int)  # the largest of training is inside
    bins = [
        {
            "from": number / STEP,
            "to": (number + 1) / STEP,
            "images": int((place == number).sum()),
            "error": float(errors[place == number].mean()),
            "seen": low <= number < high,
        }
        for number in np.unique(place).tolist()
    ]
    seen = (place >= low) & (place < high)
    sides = {"seen_error": errors[seen], "unseen_error": errors[~seen]}
    return {"by_factor": bins, **{name: float(side.mean()) if len(side) else None for name, side in sides.items()}}


def _floor(value: float) -> int:
    return math.floor(round(float(value) * STEP, 1))


def _ceil(value: float) -> int:
    return math.ceil(round(float(value) * STEP, 1))
