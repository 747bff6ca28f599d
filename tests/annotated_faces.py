"""A folder of synthetic faces with their landmarks, and the encoder that the package carries."""

from pathlib import Path

import numpy as np
from PIL import Image

import lead_ray
from lead_ray.data import synthetic
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema, palette

CARRIED = Path(lead_ray.__file__).parent / "models" / "synthetic-faces.safetensors"
NAMES = ("left eye", "right eye", "nose", "left mouth", "right mouth", "hat")
SCHEMA = Schema(category="face", names=NAMES, colours=palette(6), skeleton=((0, 2), (1, 2)), normaliser=(0, 1))


def draw(folder: Path, count: int) -> Labels:
    """So many people, one picture each; nobody has a hat."""
    images = []
    for place in range(count):
        face = synthetic.render(seed=5, identity=place, index=0)
        Image.fromarray(face.pixels).save(folder / f"{place:02d}.png")
        points = np.concatenate([face.landmarks_5, [[np.nan, np.nan]]]).astype(np.float32)
        marks = np.array([2] * 5 + [0], np.uint8)
        images.append(LabelledImage(file=f"{place:02d}.png", size=(178, 218), points=points, marks=marks))
    return Labels(schema=SCHEMA, images=tuple(images))


def errors(predicted, images) -> np.ndarray:
    """Distances over that of the eyes, of the five landmarks that are there."""
    return np.stack(
        [
            np.linalg.norm(found.points[:5] - one.points[:5], axis=1) / np.linalg.norm(one.points[0] - one.points[1])
            for found, one in zip(predicted, images, strict=True)
        ]
    )
