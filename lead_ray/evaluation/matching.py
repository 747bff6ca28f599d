"""The matching protocol: how well frozen features find landmarks of one warped face in another.

Points are pixels of the images that the encoder sees: the centre crops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lead_ray import geometry, metrics
from lead_ray.augmentation import augment
from lead_ray.evaluation.matches import Column, Matches, concatenate
from lead_ray.similarity import NORMALISATIONS, Blocks, Grid, cl_grid, dve_grid, match, match_dve


@dataclass(frozen=True, kw_only=True)
class Matching:
    """The matching protocol of DVE and CL on MAFL; the defaults are theirs.

    Raises: ValueError if a field is out of range.
    """

    warper: geometry.Warper = field(default_factory=geometry.Warper)
    margin: int = 20
    """Pixels cropped from every side after warping."""
    grid: int = 96
    """Cells per side of CL's grid; DVE's grid is that of the finest block."""
    normalise: Literal["per-layer", "global", "none"] = "per-layer"
    """What makes similarities of raw features on CL's grid; DVE's are always plain dot products."""
    seed: int = 0
    """Of the warps. The first pairs get the same warps however many pairs follow."""
    pairs_per_batch: int = 16
    """Speed and memory only: features see three images per pair at once."""

    def __post_init__(self):
        if self.normalise not in NORMALISATIONS:
            legal = ", ".join(NORMALISATIONS)
            raise ValueError(f"matching.normalise must be one of {legal}, got {self.normalise!r}")
        for name, least in (("grid", 2), ("pairs_per_batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"matching.{name} must be >= {least}, got {getattr(self, name)}")


@torch.no_grad()
def match_pairs(
    images: UInt8[Tensor, "n 3 s s"],
    landmarks: Float[Tensor, "n k 2"],
    features: Callable[[Tensor], Blocks],
    settings: Matching | None = None,
    *,
    eyes: tuple[int, int] | None = metrics.EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Matches:
    """Match landmarks between warped images: pairs A, B are images 0 and 1, 2 and 3, and so on.

    The source is A warped twice; "same" is A after the first of the two warps, "diff" is B warped once.
    `features` maps normalised crops [b, 3, s - 2 margin, s - 2 margin] to blocks, finest first.
    `eyes` are the points whose distance in the target image is 100 %, if both are visible; None: there are none.
    Points count where they are `visible`: under "same" in A, under "diff" in A and B; None: all count. What is not
    visible may be anything, NaN included.

    The floor is what a perfect matcher would score. It starts from the cell nearest to the source point and
    ends on the cell nearest to where that start belongs: under "same" as the second warp has it; under
    "diff", where only landmarks truly correspond, as far from the landmark as it started.

    Raises: ValueError if the images are not an even number or not as many as the landmarks, if an image has
      no inter-ocular distance, or if no point is visible in both images of a pair.
    Source: DVE, test_matching.py; CL, train_feature_projector.py (validate); LEAD, table 1.
    """
    settings = settings or Matching()
    count = len(images)
    if count % 2 or not count:
        raise ValueError(f"images must be an even number, at least 2, to form pairs, got {count}")
    if len(landmarks) != count:
        raise ValueError(f"landmarks must be those of the {count} images, got {len(landmarks)}")
    if visible is None:
        visible = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=landmarks.device)
    if eyes is not None:
        metrics.inter_ocular_distance(landmarks, eyes=eyes, visible=visible)  # here an error can still name the image
    landmarks = landmarks.where(visible.unsqueeze(-1), 0)
    if not (visible[0::2] & visible[1::2]).any():
        raise ValueError("no point is visible in both images of any pair: there is nothing to measure")
    generator = torch.Generator().manual_seed(settings.seed)
    # One draw per pair, in float64: neither the batch size nor the number of pairs changes a warp.
    draws = [geometry.draw_warps(3, generator=generator, dtype=torch.float64) for _ in range(count // 2)]
    weights = torch.stack([_pair_weights(draw, settings.warper) for draw in draws]).to(images.device)
    batches = zip(
        images.split(2 * settings.pairs_per_batch),
        landmarks.split(2 * settings.pairs_per_batch),
        visible.split(2 * settings.pairs_per_batch),
        weights.split(settings.pairs_per_batch),
        strict=True,
    )
    return concatenate([_match_batch(*batch, features, settings, eyes) for batch in batches])


def _pair_weights(draws: geometry.WarpDraws, warper: geometry.Warper) -> Tensor:
    """Weights [3, 103, 2]: first and second warp of A, warp of B."""
    first = geometry.warp_weights(draws, warper, first=True)
    return torch.cat([first[:1], geometry.warp_weights(draws, warper)[1:2], first[2:]])


def _match_batch(
    images: Tensor,
    landmarks: Tensor,
    visible: Tensor,
    weights: Tensor,
    features: Callable[[Tensor], Blocks],
    settings: Matching,
    eyes: tuple[int, int] | None,
) -> Matches:
    side, margin = images.shape[3], settings.margin
    grids = geometry.warp_grids(weights.flatten(0, 1), height=side, width=side)
    first, second, other = grids[0::3], grids[1::3], grids[2::3]

    once = geometry.warp_images(images[0::2].float(), first.float())
    twice = geometry.warp_images(once, second.float())
    b_once = geometry.warp_images(images[1::2].float(), other.float())
    # The original loaders truncate the warped images to whole grey levels.
    crops = geometry.crop_images(torch.cat([twice, once, b_once]), margin=margin).to(torch.uint8)
    blocks = [block.float().chunk(3) for block in features(augment.normalise(crops / 255))]
    source_blocks, same_blocks, diff_blocks = (list(part) for part in zip(*blocks, strict=True))

    same = geometry.warp_keypoints(first, landmarks[0::2].double())
    source = geometry.crop_points(geometry.warp_keypoints(second, same), margin=margin)
    same = geometry.crop_points(same, margin=margin)
    diff = geometry.crop_points(geometry.warp_keypoints(other, landmarks[1::2].double()), margin=margin)

    def undo(points: Tensor, warp: int) -> Tensor:
        """Pixels of the crop of what was warped -> pixels of what it was made of, exactly."""
        full = geometry.normalise(points + margin, height=side, width=side)
        return geometry.pixels(geometry.warp_points(weights[:, warp], full), height=side, width=side)

    def columns(grid: Grid, predict: Callable[[Blocks, Blocks, Tensor], Tensor]) -> list[Column]:
        start = grid.nearest(source)
        searches = (
            (same_blocks, same, undo(start, 1) - margin, visible[0::2], visible[0::2]),
            (diff_blocks, diff, diff + start - source, visible[0::2] & visible[1::2], visible[1::2]),
        )
        return [
            _column(
                predict(source_blocks, searched, source), target, source, grid.nearest(exact), counted, seen, grid, eyes
            )
            for searched, target, exact, counted, seen in searches
        ]

    crop = side - 2 * margin
    fine, native = settings.grid, source_blocks[0].shape[3]
    cl_same, cl_diff = columns(
        cl_grid(image_size=crop, cells=fine),
        partial(match, image_size=crop, grid=fine, normalise=settings.normalise),
    )
    dve_same, dve_diff = columns(dve_grid(image_size=crop, cells=native), partial(match_dve, image_size=crop))
    return Matches(
        cl_same=cl_same,
        cl_diff=cl_diff,
        dve_same=dve_same,
        dve_diff=dve_diff,
        source=source,
        same=same,
        diff=diff,
        found=undo(cl_diff.predicted, 2),
    )


def _column(
    predicted: Tensor,
    target: Tensor,
    source: Tensor,
    oracle: Tensor,
    counted: Tensor,
    seen: Tensor,
    grid: Grid,
    eyes: tuple[int, int] | None,
) -> Column:
    def published(points: Tensor) -> Tensor:
        return grid.published_scale * metrics.pixel_errors(points, target)

    unit = torch.full_like(target[:, 0, 0], torch.nan)
    if eyes is not None:
        # Whole pixels may put the eyes of a profile onto each other: then its errors have no unit.
        apart = metrics.pixel_errors(target[:, eyes[:1]], target[:, eyes[1:]])[:, 0]
        unit = apart.where((apart > 0) & seen[:, eyes[0]] & seen[:, eyes[1]], torch.nan)
    return Column(
        predicted=predicted,
        error=published(predicted),
        iod_percent=100 * metrics.pixel_errors(predicted, target) / unit.unsqueeze(1),
        floor=published(oracle),
        baseline=published(source),
        counted=counted,
    )
