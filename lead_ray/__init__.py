"""Landmarks of an object category from unlabelled images and a handful of annotations."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lead_ray.landmarks.model import LandmarkModel


def load(path: Path | str) -> "LandmarkModel":
    """The landmark model in a folder that `lead-ray fit` wrote.

    Raises: FileNotFoundError if there is none; ValueError if it is damaged.
    """
    from lead_ray.landmarks import model  # only now: `import lead_ray` must not wait for torch

    return model.load(path)
