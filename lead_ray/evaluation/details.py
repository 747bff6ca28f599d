"""What lies beside a result: where every point was found, and where it is. Figures and error curves are made of it.

RUN/eval/<name>.npz is written before RUN/eval/<name>.json. It holds all repeats; details() gives one of them, with the
errors that follow from the points. Points are (x, y) pixels of the stored images, pixel centres at integers.
"""

import io
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lead_ray import storage
from lead_ray.artefacts import atomic

Arrays = dict[str, np.ndarray]
SHARED = {"task", "ids", "points", "truth", "visible", "normaliser", "factor", "train_factor", "annotations"}
"""What all repeats have in common; the other arrays have the repeats as their first axis."""


def path_of(result: Path) -> Path:
    """The file of arrays beside a result."""
    return Path(result).with_suffix(".npz")


def save(result: Path, arrays: Arrays) -> None:
    """Write the arrays that belong to a result, atomically."""
    with atomic(path_of(result)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def details(result: Path, *, repeat: int = 0) -> dict[str, Any]:
    """What one repeat of a result found.

    Args:
        result: a result's JSON file.
        repeat: which of its seeds.
    Returns: for regression, n test images with K points,
        ids [n]; predicted, truth [n, K, 2]; visible [n, K];
        pixels [n, K]: distances; errors [n, K]: in % of normaliser [n], NaN where a point does not count;
        error [n]: their mean over an image's points, NaN for an image that is skipped;
        mean_shape [K, 2] of the annotated images, mean_face [n] its errors; annotations, seed;
        annotated [m]: ids of the annotated images, if they are not all;
        factor [n]: how many times the longer side of its box an image shows, train_factor [2] the range of the
        training images, both only where images are cropped by a box.
      For matching, p pairs of images A and B, on CL's grid, different images if nothing else is said,
        ids [p, 2]; points [p, K, 2] of A; found, truth [p, K, 2] in B, its warp undone; visible [p, K] in both;
        point_errors, same_point_errors, baseline, floor [p, K]: published pixels as the protocol has them, between
        warped images, NaN where a point does not count; errors, same_errors [p]: means over a pair's points; seed.
    Raises: FileNotFoundError if there is no such result; ValueError if it is of a version that kept no arrays, or has
      no such repeat.
    """
    result = Path(result)
    if not storage.exists(result):
        raise FileNotFoundError(f"no result at {result}: measure it with lead-ray evaluate")
    if not storage.exists(path_of(result)):
        raise ValueError(f"{result} was measured by a version that kept no points: delete it and evaluate again")
    try:
        with np.load(io.BytesIO(storage.read_bytes(path_of(result))), allow_pickle=False) as file:
            arrays = dict(file)
    except (BadZipFile, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path_of(result)} is damaged ({error}): delete {result} and evaluate again") from error
    seeds = arrays.pop("seeds")
    if not 0 <= repeat < len(seeds):
        raise ValueError(f"repeat must be in 0..{len(seeds) - 1}, the result's seeds, got {repeat}")
    one = {name: value if name in SHARED else value[repeat] for name, value in arrays.items()}
    one |= {"task": str(one["task"]), "seed": int(seeds[repeat])}
    return one | (_regression(one) if one["task"] == "regression" else _matching(one))


def _regression(one: dict[str, Any]) -> dict[str, Any]:
    unit = one["normaliser"][:, None]
    counts = one["visible"] & np.isfinite(unit)

    def distances(points: np.ndarray) -> np.ndarray:
        return np.where(counts, np.linalg.norm(points - one["truth"], axis=-1), np.nan)

    pixels, floor = distances(one["predicted"]), distances(one["mean_shape"])
    errors = 100 * pixels / unit
    means = {"error": mean(errors), "mean_face": mean(100 * floor / unit)}
    return {"annotations": int(one["annotations"]), "pixels": pixels, "errors": errors, **means}


def _matching(one: dict[str, Any]) -> dict[str, Any]:
    return {"errors": mean(one["point_errors"]), "same_errors": mean(one["same_point_errors"])}


def mean(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is no NaN; NaN where nothing is left."""
    there = np.isfinite(values)
    count = there.sum(-1)
    return np.where(count > 0, np.where(there, values, 0).sum(-1) / np.maximum(count, 1), np.nan)
