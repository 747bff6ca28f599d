"""The matching protocol: how well frozen features find landmarks of one warped face in another.

Points are pixels of the images that the encoder sees: the centre crops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lead_ray import augment, geometry, metrics
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


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the matching table on one grid, for p pairs of images with k points."""

    predicted: Float[Tensor, "p k 2"]
    """Pixels of the crop."""
    error: Float[Tensor, "p k"]
    """Published pixels: those of a 70 px image."""
    iod_percent: Float[Tensor, "p k"]
    """The same error in % of the target image's inter-ocular distance."""
    floor: Float[Tensor, "p k"]
    """Published pixels that this grid alone costs; see match_pairs()."""
    baseline: Float[Tensor, "p k"]
    """Published pixels of the guess that nothing moved: the source's coordinates."""
    counted: Bool[Tensor, "p k"]
    """Points that are visible in every image of this column."""

    def means(self) -> dict[str, float]:
        """Means over the points that count, of all pairs."""
        names = ("error", "iod_percent", "floor", "baseline")
        return {name: getattr(self, name)[self.counted].mean().item() for name in names}


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Predictions and errors of match_pairs()."""

    cl_same: Column
    cl_diff: Column
    dve_same: Column
    dve_diff: Column
    source: Float[Tensor, "p k 2"]
    """Points of A warped twice, where the search starts; like the next two in pixels of the crop."""
    same: Float[Tensor, "p k 2"]
    """Points of A warped once."""
    diff: Float[Tensor, "p k 2"]
    """Points of B warped once."""

    def summary(self) -> dict[str, float]:
        """Means by name, such as cl_same_error or dve_diff_floor."""
        columns = {name: getattr(self, name) for name in ("cl_same", "cl_diff", "dve_same", "dve_diff")}
        return {f"{name}_{key}": value for name, column in columns.items() for key, value in column.means().items()}


@torch.no_grad()
def match_pairs(
    images: UInt8[Tensor, "n 3 s s"],
    landmarks: Float[Tensor, "n k 2"],
    features: Callable[[Tensor], Blocks],
    settings: Matching | None = None,
    *,
    eyes: tuple[int, int] = metrics.EYE_CENTRES,
    visible: Bool[Tensor, "n k"] | None = None,
) -> Matches:
    """Match landmarks between warped images: pairs A, B are images 0 and 1, 2 and 3, and so on.

    The source is A warped twice; "same" is A after the first of the two warps, "diff" is B warped once.
    `features` maps normalised crops [b, 3, s - 2 margin, s - 2 margin] to blocks, finest first.
    `eyes` are the points whose distance in the target image is 100 %, visible or not.
    Points count where they are `visible`: under "same" in A, under "diff" in A and B; None: all count.

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
    metrics.inter_ocular_distance(landmarks, eyes=eyes)  # here an error can still name the image
    if visible is None:
        visible = torch.ones(landmarks.shape[:2], dtype=torch.bool, device=landmarks.device)
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
    return _concatenate([_match_batch(*batch, features, settings, eyes) for batch in batches])


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
    eyes: tuple[int, int],
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

    def undo_second(points: Tensor) -> Tensor:
        """Pixels of A warped twice -> pixels of A warped once, exactly."""
        full = geometry.normalise(points + margin, height=side, width=side)
        return geometry.pixels(geometry.warp_points(weights[:, 1], full), height=side, width=side) - margin

    def columns(grid: Grid, predict: Callable[[Blocks, Blocks, Tensor], Tensor]) -> list[Column]:
        start = grid.nearest(source)
        searches = (
            (same_blocks, same, undo_second(start), visible[0::2]),
            (diff_blocks, diff, diff + start - source, visible[0::2] & visible[1::2]),
        )
        return [
            _column(predict(source_blocks, searched, source), target, source, grid.nearest(exact), counted, grid, eyes)
            for searched, target, exact, counted in searches
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
    )


def _column(
    predicted: Tensor,
    target: Tensor,
    source: Tensor,
    oracle: Tensor,
    counted: Tensor,
    grid: Grid,
    eyes: tuple[int, int],
) -> Column:
    def published(points: Tensor) -> Tensor:
        return grid.published_scale * metrics.pixel_errors(points, target)

    return Column(
        predicted=predicted,
        error=published(predicted),
        iod_percent=metrics.inter_ocular_errors(predicted, target, eyes=eyes),
        floor=published(oracle),
        baseline=published(source),
        counted=counted,
    )


def _concatenate(parts: list) -> Matches | Column | Tensor:
    """Join the batches' results along the pairs."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    joined = {f.name: _concatenate([getattr(part, f.name) for part in parts]) for f in fields(parts[0])}
    return type(parts[0])(**joined)
