"""The landmark model: a folder with all that it takes to find one category's landmarks in photographs.

    model = lead_ray.load("bird-model")
    for found in model.predict(["a.jpg", pil_image, array]):
        found.points, found.confidence

    bird-model/encoder.safetensors  readout.safetensors  card.json

Weights are kept in half precision. card.json, written last, says what the model is: category, schema, framing, what it
learned from, its error in images that it had not seen, how its confidences were calibrated, versions.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lead_ray import features
from lead_ray.artefacts import atomic, plain, read_json, write_json
from lead_ray.data.crops import BadImage
from lead_ray.data.rows import open_rgb, upright_rgb
from lead_ray.landmarks import readout
from lead_ray.landmarks.calibration import Calibration
from lead_ray.landmarks.framing import Box, Framing, cut
from lead_ray.landmarks.labels import Schema, schema_from_json, schema_to_json
from lead_ray.landmarks.prediction import Prediction, Scale, View, predictions, whole
from lead_ray.landmarks.readout import Readout
from lead_ray.models import weights

Picture = Image.Image | np.ndarray | Tensor | Path | str
FORMAT_VERSION = 2  # 1: no regressors of all images; those files are read all the same
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a landmark model is."""

    schema: Schema
    framing: Framing
    placed: tuple[bool, ...]
    """Of every landmark: whether it was annotated anywhere, and so is predicted."""
    calibration: Calibration | None
    """None: too few annotations; confidences are then what the heat map alone says."""
    trained: dict[str, Any]
    """Numbers of annotated images and points; the encoder and how it came about."""
    measured: dict[str, Any]
    """Cross-validated error and reliability; see fitting.py."""
    versions: dict[str, Any]

    @property
    def scale(self) -> Scale:
        return Scale(schema=self.schema, framing=self.framing)

    @property
    def confidence(self) -> str:
        """What the confidence of a point is, in words."""
        words = f"probability that the point lies within {100 * self.scale.share:g} % of {self.scale.words}"
        return words if self.calibration else f"{words}, not calibrated: too few annotated images"

    def to_json(self) -> dict[str, Any]:
        content = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        head = {"what": "lead_ray landmark model", "format_version": FORMAT_VERSION, "category": self.schema.category}
        return head | content | {"schema": schema_to_json(self.schema), "confidence": self.confidence}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelCard":
        """Raises: KeyError, TypeError, ValueError if it is no card."""
        given = content["calibration"]
        if given is not None:
            given = Calibration(slopes=tuple(given["slopes"]), offsets=tuple(given["offsets"]))
        return cls(
            schema=schema_from_json(content["schema"]),
            framing=Framing(**content["framing"]),
            placed=tuple(bool(one) for one in content["placed"]),
            calibration=given,
            **{name: content[name] for name in ("trained", "measured", "versions")},
        )


class LandmarkModel:
    """Landmarks of one category."""

    def __init__(self, encoder: nn.Module, found: Readout, card: ModelCard):
        """The encoder is in evaluation mode; everything is on the CPU."""
        self.encoder, self.readout, self.card = encoder, found, card

    def predict(
        self, images: Sequence[Picture], boxes: Sequence[Box | None] | None = None, *, batch_size: int = BATCH
    ) -> list[Prediction]:
        """Landmarks of every image, in pixels of the image as shown.

        Args:
            images: paths; PIL images; arrays [h, w], [h, w, 3] or [h, w, 4]; tensors [3, h, w] or [1, h, w]. Arrays
                and tensors are uint8, uint16 (its upper half is kept), bool, or floating-point in [0, 1].
            boxes: x, y, width, height of the object in pixels; None: the whole image.
        Raises: BadImage, a ValueError, naming the image that cannot be used.
        """
        batches = self._framed(images, boxes, batch_size)
        return [found for crops, views in batches for found in self.predict_framed(crops, views)]

    def predict_framed(self, crops: Sequence[np.ndarray], views: Sequence[View]) -> list[Prediction]:
        """predict() of what framed() cut out of images, in one batch."""
        points, hints = whole(self.readout.read(encode(self.encoder, crops)), np.array(self.card.placed))
        return predictions(points, hints, views, self.card.scale, self.card.calibration)

    def descriptors(self, images: Sequence[Picture], boxes: Sequence[Box | None] | None = None) -> list[Tensor]:
        """The encoder's maps of every image's frame, finest first: one or more of shape [n, C, h, w], float16.

        Similar descriptors in two images belong to the same part. Images and errors as predict().
        """
        parts = [encode(self.encoder, crops) for crops, _ in self._framed(images, boxes, BATCH)]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def save(self, path: Path | str) -> None:
        """Write the model's folder.

        Raises: OSError when it cannot be written.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.json").unlink(missing_ok=True)  # it says that the folder is complete
        with atomic(folder / "encoder.safetensors") as temporary:
            weights.save(temporary, self.encoder, self.card.trained["encoder"], dtype=torch.float16)
        with atomic(folder / "readout.safetensors") as temporary:
            kept = self.readout.tensors().items()
            save_file({name: _halved(value).contiguous() for name, value in kept}, temporary)
        write_json(folder / "card.json", self.card.to_json())

    def _framed(
        self, images: Sequence[Picture], boxes: Sequence[Box | None] | None, batch_size: int
    ) -> Iterator[tuple[list[np.ndarray], list[View]]]:
        """Batch by batch: of a large photograph no more is kept than the network sees."""
        if isinstance(images, str | Path | Image.Image):
            raise ValueError(f"images must be a list, got one {type(images).__name__}: write [image]")
        boxes = [None] * len(images) if boxes is None else boxes
        if len(boxes) != len(images):
            raise ValueError(f"boxes must be as many as the {len(images)} images, got {len(boxes)}")
        for first in range(0, len(images), batch_size):
            crops, views = [], []
            for place in range(first, min(first + batch_size, len(images))):
                try:
                    crop, view = framed(images[place], boxes[place], self.card.framing)
                except BadImage as error:
                    name = images[place] if isinstance(images[place], str | Path) else f"image {place}"
                    raise BadImage(f"{name}: {error}") from error
                crops.append(crop)
                views.append(view)
            yield crops, views


def load(path: Path | str) -> LandmarkModel:
    """A landmark model from its folder.

    Raises: FileNotFoundError if there is none; ValueError if it is damaged or of a newer version.
    """
    folder = Path(path)
    if not (folder / "card.json").exists():
        raise FileNotFoundError(
            f"no landmark model at {folder}: give the folder that `lead-ray fit RUN --images DIR --labels FILE "
            "--out MODEL` wrote"
        )
    content = read_json(folder / "card.json")
    if content.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(f"{folder} was written by a newer version of lead_ray: update it")
    try:
        card = ModelCard.from_json(content)
        found = readout.from_tensors(load_file(folder / "readout.safetensors"))
        encoder = weights.load(folder / "encoder.safetensors")
    except (KeyError, TypeError, OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a whole landmark model: {error}; run `lead-ray fit` again") from error
    return LandmarkModel(encoder, found, card)


def framed(image: Picture, box: Box | None, framing: Framing) -> tuple[np.ndarray, View]:
    """What the network sees of an image, uint8 [side, side, 3].

    Raises: BadImage.
    """
    picture = upright(image)
    view = View(framing.frame(picture.size, None if box is None else tuple(box)), box is not None)
    return cut(picture, view.frame), view


def upright(image: Picture) -> Image.Image:
    """Any of the kinds of images that predict() takes, as a viewer shows it, RGB.

    Raises: BadImage.
    """
    if isinstance(image, str | Path):
        return open_rgb(Path(image))  # whose errors name no file
    if isinstance(image, Image.Image):
        try:
            return upright_rgb(image)
        except BadImage:
            raise
        except Exception as error:  # a file that is opened, and broken further on
            raise BadImage(f"cannot be read: {error}") from error
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise BadImage(f"a tensor must be [3, h, w] or [1, h, w], got {list(image.shape)}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in pixels.shape:
        raise BadImage(f"an array must be [h, w], [h, w, 3] or [h, w, 4], got {list(image.shape)}")
    return upright_rgb(Image.fromarray(_eight_bits(pixels)))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if np.issubdtype(pixels.dtype, np.floating) and pixels.min() >= 0 and pixels.max() <= 1:
        return (pixels * 255).round().astype(np.uint8)
    raise BadImage(
        f"pixels must be uint8, uint16, bool, or floating-point in [0, 1], got {pixels.dtype} from {pixels.min()} to "
        f"{pixels.max()}"
    )


def encode(encoder: nn.Module, crops: Sequence[np.ndarray]) -> list[Tensor]:
    """Blocks of crops [side, side, 3], float16."""
    return features.extract(encoder, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), cropped=True)


def _halved(values: Tensor) -> Tensor:
    """In half precision, unless that cannot hold them."""
    half = values.to(torch.float16)
    return half if half.isfinite().all() else values


def input_side(encoder: Path | str) -> int:
    """Side in pixels of what a network is shown: what its protocol leaves of the stored image."""
    view = weights.read_card(encoder).view
    return 96 if view.side is None else view.side - 2 * view.margin
