"""Errors of predicted landmarks: inter-ocular, in pixels, and the percentage of correct key points.

Predictions and targets are [n, k, 2] arrays of n images with k points, (x, y), in the same unit.
Points that `visible` excludes count nowhere; without it every point counts.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EYE_CENTRES = (0, 1)
"""The eyes of 5-point annotations."""
OUTER_EYE_CORNERS = (36, 45)
"""The eyes of 68-point annotations."""


def pixel_errors(predicted: Float[Tensor, "n k 2"], target: Float[Tensor, "n k 2"]) -> Float[Tensor, "n k"]:
    """Distance of every point from its target, in the unit of the points."""
    return torch.linalg.vector_norm(predicted - target, dim=-1)


def pixel_error(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, ""]:
    """Mean distance over all visible points, in the unit of the points.

    Raises: ValueError if the shapes differ or no point is visible.
    """
    used = _used(predicted, target, visible)
    return pixel_errors(predicted, target)[used].mean()


def inter_ocular_distance(
    target: Float[Tensor, "n k 2"],
    *,
    eyes: tuple[int, int] = EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, " n"]:
    """Distance between the annotated eyes of every image, in the unit of the points; NaN where one is not visible.

    Raises: ValueError if `eyes` are not two different points, or if the distance is not above 0 in an image that
      shows both.
    """
    first, second = eyes
    points = target.shape[1]
    if first == second or not (0 <= first < points and 0 <= second < points):
        raise ValueError(f"eyes must be two different points out of 0..{points - 1}, got {eyes}")
    distance = torch.linalg.vector_norm(target[:, first] - target[:, second], dim=-1)
    if visible is not None:
        distance = distance.where(visible[:, first] & visible[:, second], torch.nan)
    unusable = ~((distance > 0) & distance.isfinite())
    if visible is not None:
        unusable &= visible[:, first] & visible[:, second]  # without its eyes an image has no error to be measured
    if unusable.any():
        index = int(unusable.nonzero()[0])
        raise ValueError(
            f"image {index} has inter-ocular distance {distance[index].item()} between points {first} and "
            f"{second}; it must be finite and > 0. Correct or remove the annotation of that image"
        )
    return distance


def inter_ocular_errors(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    eyes: tuple[int, int] = EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, "n k"]:
    """Distance of every point from its target in % of the image's inter-ocular distance; NaN without visible eyes.

    Raises: ValueError if the shapes differ, no point is visible, or as inter_ocular_distance().
    """
    _used(predicted, target, visible)
    distance = inter_ocular_distance(target, eyes=eyes, visible=visible)
    return 100 * pixel_errors(predicted, target) / distance.unsqueeze(1)


def inter_ocular_error_per_image(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    eyes: tuple[int, int] = EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, " n"]:
    """Mean % of the inter-ocular distance over the visible points of each image; NaN without a point, or the eyes.

    Raises: ValueError as inter_ocular_error().
    """
    errors = inter_ocular_errors(predicted, target, eyes=eyes, visible=visible)
    used = with_eyes(_used(predicted, target, visible), eyes)
    return errors.where(used, 0).sum(1) / used.sum(1)


def inter_ocular_error(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    eyes: tuple[int, int] = EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, ""]:
    """Mean % of the inter-ocular distance over all visible points of all images that show both eyes.

    Raises: ValueError if the shapes differ, no such point is visible or an inter-ocular distance is not above 0.
    Source: DVE and CL, metric.py.
    """
    errors = inter_ocular_errors(predicted, target, eyes=eyes, visible=visible)
    used = with_eyes(_used(predicted, target, visible), eyes)
    if not used.any():
        raise ValueError(f"no image shows both eyes {eyes}: there is nothing to measure")
    return errors[used].mean()


def with_eyes(visible: Bool[Tensor, "n k"], eyes: tuple[int, int]) -> Bool[Tensor, "n k"]:
    """Visible points of the images that show both eyes, whose distance is their unit."""
    return visible & visible[:, list(eyes)].all(1, keepdim=True)


def pck(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    radius: float,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, ""]:
    """Percentage of the visible points that lie nearer to their target than `radius`.

    Radius: in the unit of the points. Every visible point weighs the same.
    Raises: ValueError if the radius is not above 0, the shapes differ or no point is visible.
    """
    if radius <= 0:
        raise ValueError(f"radius must be > 0, got {radius}")
    used = _used(predicted, target, visible)
    near = pixel_errors(predicted, target) < radius
    return 100 * near[used].to(predicted.dtype).mean()


def bird_pck(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    visible: Bool[Tensor, "n k"],
    box: int = 48,
    threshold: float = 0.05,
    truncate: bool = True,
) -> Float[Tensor, ""]:
    """Percentage of correct key points as CL reports it for birds, on one batch.

    CL stores distances as whole numbers, so its "5 %" of 48 pixels (2.4) accepts all below 3 pixels,
    which is 6.25 %; truncate=False takes the threshold at its word and keeps the rest of the protocol.

    Points: normalised to [-1, 1]; measured on a square of `box` pixels. Points at or left of x = 0,
      or at or above y = 0, count as not annotated.
    Returns: mean over key points of the share of images that get each right. CL weighs the values of
      its batches by their size, which differs from one value over all images.
    Raises: ValueError if the shapes differ or no point is used.
    Source: CL, models/metric.py.
    """
    predicted_pixels, target_pixels = ((points + 1) / 2 * (box - 1) for points in (predicted, target))
    used = _used(predicted, target, visible & (target_pixels > 0).all(-1))
    distances = pixel_errors(predicted_pixels, target_pixels)
    correct = used & ((distances.trunc() if truncate else distances) < threshold * box)
    images = used.sum(0)
    present = images > 0
    return 100 * (correct.sum(0)[present].to(predicted.dtype) / images[present]).mean()


def bird_scores(
    predicted: Float[Tensor, "n k 2"],
    target: Float[Tensor, "n k 2"],
    *,
    visible: Bool[Tensor, "n k"],
    side: int = 96,
    batch_size: int = 32,
) -> dict[str, float]:
    """Percentages of correct key points of birds, as LEAD states them and as CL codes them.

    Points: normalised to [-1, 1], the centres of the first and last pixel of images `side` pixels wide.
    Returns: "pck": the visible points nearer than 5 % of the side, each of the same weight; "pck_coded":
      bird_pck() of batches in the images' order, weighed by their size; "skipped": how many images have no
      visible point and so count nowhere.
    Raises: ValueError if the shapes differ or no point is visible.
    Source: LEAD, supplement B; CL, eval_animal.py and models/metric.py.
    """
    used = _used(predicted, target, visible)
    counted = used & (target > -1).all(-1)
    coded = [
        (len(shown), float(bird_pck(points, truth, visible=shown)))
        for points, truth, shown in zip(
            *(values.split(batch_size) for values in (predicted, target, counted)), strict=True
        )
        if shown.any()
    ]
    return {
        "pck": float(pck(predicted, target, radius=0.05 * 2 * side / (side - 1), visible=used)),
        "pck_coded": sum(size * value for size, value in coded) / sum(size for size, _ in coded),
        "skipped": int((~used.any(1)).sum()),
    }


def _used(predicted: Tensor, target: Tensor, visible: Tensor | None) -> Tensor:
    """Mask [n, k] of the points that count, after checking the shapes."""
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must have one shape [images, points, 2], "
            f"got {list(predicted.shape)} and {list(target.shape)}"
        )
    if visible is None:
        visible = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
    if visible.shape != target.shape[:2]:
        raise ValueError(f"visible must have shape {list(target.shape[:2])}, got {list(visible.shape)}")
    if not visible.any():
        raise ValueError("no point is visible: there is nothing to measure")
    return visible
