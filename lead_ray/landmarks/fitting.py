"""Annotated images and an encoder -> a landmark model that knows its own error.

The read-out is fitted to all annotated images. How far off it will be in others is measured by leaving out a fifth of
them at a time and fitting anew, in the same way; the same errors calibrate the confidences.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lead_ray.data.crops import BadImage
from lead_ray.landmarks import readout
from lead_ray.landmarks.framing import Framing
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, plausible
from lead_ray.landmarks.model import BATCH, LandmarkModel, ModelCard, encode, framed, input_side, upright
from lead_ray.landmarks.prediction import HeldOut, Judged, Scale, View, judge, truths, whole
from lead_ray.machine import environment
from lead_ray.models import weights
from lead_ray.readouts.ensemble import fit_ensemble

FOLDS = 5
LEAST = 3  # annotated images; with fewer there is nothing to fit to once one is left out


def fit(
    encoder: Path | str,
    labels: Labels,
    images: Path | str,
    *,
    side: int | None = None,
    box_factor: float = 1.1,
    seed: int = 0,
) -> LandmarkModel:
    """Learn landmarks from annotated images.

    Args:
        encoder: a finished run's folder, or a file of weights.
        labels: images with no point placed count as not annotated.
        images: the folder that the labels' files lie in.
        side, box_factor: as Framing; side None: what the encoder was trained for.
        seed: of which images each member of the ensemble, and each fold, leaves out.
    Raises: FileNotFoundError, ValueError as weights.load(); BadImage if an annotated image cannot be read, or is not of
        the annotated size; ValueError if none is annotated, and as plausible().
    """
    framing = Framing(side=input_side(encoder) if side is None else side, box_factor=box_factor)
    annotated = [image for image in labels.images if (image.marks != Mark.MISSING).any()]
    if not annotated:
        raise ValueError("no image has a landmark: annotate some with `lead-ray annotate --images DIR --model RUN`")
    plausible(labels.schema, annotated)
    network, scale = weights.load(encoder), Scale(schema=labels.schema, framing=framing)
    blocks, views = _encoded(network, annotated, Path(images), framing)
    truth = truths(annotated, views)
    placed = truth.visible.any(0)
    if labels.schema.normaliser is not None and not placed[list(labels.schema.normaliser)].all():
        raise ValueError(f"errors are measured in % of {scale.words}, and one of the two is annotated nowhere")
    points, visible = torch.from_numpy(truth.points[:, placed]), torch.from_numpy(truth.visible[:, placed])
    if len(annotated) == 1:
        found: readout.Readout = readout.fit_matcher(blocks, points, visible)
    else:
        found, _ = fit_ensemble(blocks, points, visible, seed=seed)
    judged = None
    if len(annotated) >= LEAST:
        unseen, hints = cross_validated(blocks, points, visible, placed, seed=seed)
        judged = judge(unseen, hints, truth, views, scale)
    card = weights.read_card(encoder)
    trained = {
        "images": len(annotated),
        "points": {name: int(count) for name, count in zip(labels.schema.names, truth.visible.sum(0), strict=True)},
        "boxed": all(view.boxed for view in views),
        "seed": seed,
        "encoder": {"fingerprint": weights.fingerprint(encoder), "kind": card.kind, "trained": card.trained},
    }
    return LandmarkModel(
        network,
        found,
        ModelCard(
            schema=labels.schema,
            framing=framing,
            placed=tuple(placed.tolist()),
            calibration=judged.calibrated if judged else None,
            trained=trained,
            measured=measured(judged, scale, annotated),
            versions=environment()["versions"],
        ),
    )


def cross_validated(
    blocks: Sequence[Tensor], points: Tensor, visible: Tensor, placed: np.ndarray, *, folds: int = FOLDS, seed: int = 0
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Points and hints of every image from a read-out that has not seen it; NaN for a landmark that the others lack.

    Shapes: points [n, k, 2] and visible [n, k] of the k landmarks that are placed anywhere; as whole() for all.
    """
    count = len(points)
    folds = min(folds, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    parts: list[tuple[Tensor, np.ndarray, tuple[np.ndarray, np.ndarray]]] = []
    for fold in range(folds):
        out = order[fold::folds]
        rest = torch.ones(count, dtype=torch.bool)
        rest[out] = False
        there = visible[rest].any(0)
        own = [block[rest] for block in blocks]
        ensemble, _ = fit_ensemble(own, points[rest][:, there], visible[rest][:, there], seed=seed)
        known = np.zeros_like(placed)
        known[np.flatnonzero(placed)[there.numpy()]] = True
        parts.append((out, *whole(ensemble.read([block[out] for block in blocks]), known)))
    place = torch.cat([out for out, _, _ in parts]).argsort().numpy()
    unseen = np.concatenate([found for _, found, _ in parts])[place]
    spread, width = (np.concatenate([hints[kind] for _, _, hints in parts])[place] for kind in (0, 1))
    return unseen, (spread, width)


def measured(judged: Judged | None, scale: Scale, annotated: Sequence[LabelledImage]) -> dict[str, Any]:
    """What the card says of the error."""
    if judged is None or judged.error is None:
        return {"error": None, "why": f"an error is measured from {LEAST} annotated images on"}
    named = zip(scale.schema.names, judged.by_landmark, strict=True)
    errors = {place: error for place, error in enumerate(judged.by_image) if error is not None}
    worst = max(errors, key=errors.__getitem__)
    return {
        "how": f"cross-validated on the annotated images, {FOLDS} folds",
        "unit": f"% of {scale.words}",
        **_finite(judged.error),
        "by_landmark": dict(named),
        "worst_image": [annotated[worst].file, errors[worst]],
        "reliability": judged.reliable.to_json() if judged.reliable else None,
    }


def _finite(error: HeldOut) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in error.to_json().items()}  # fmt: skip


def _encoded(
    network: torch.nn.Module, annotated: Sequence[LabelledImage], folder: Path, framing: Framing
) -> tuple[list[Tensor], list[View]]:
    crops, views = [], []
    for image in annotated:
        try:
            picture = upright(folder / image.file)
            if picture.size != image.size:
                (width, height), (stated_width, stated_height) = picture.size, image.size
                raise BadImage(
                    f"is {width}x{height} pixels as shown, its labels say {stated_width}x{stated_height}; were they "
                    "made with another copy, or before it was turned?"
                )
            crop, view = framed(picture, image.box, framing)
        except BadImage as error:
            raise BadImage(f"{image.file}: {error}") from error
        crops.append(crop)
        views.append(view)
    parts = [encode(network, crops[first : first + BATCH]) for first in range(0, len(crops), BATCH)]
    return [torch.cat(level).contiguous(memory_format=torch.channels_last) for level in zip(*parts, strict=True)], views
