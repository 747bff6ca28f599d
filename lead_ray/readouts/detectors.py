"""A start for the landmark regressor in closed form: linear discriminants, then ridge regression.

Virtual point i of a landmark looks for the spot at a fixed offset from it. Under one Gaussian per place with
a common covariance S, the log-odds of "this cell is that spot" are linear in the features, with weights
S^-1 (mean at the spot - mean of the image): what a 1x1 convolution and a softmax over cells express. All
spots share S, so one factorisation serves 250 detectors, and needs no annotation. The linear layer is a ridge
regression on virtual points of images that the detectors have not seen; without evidence it is the mean face.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from lead_ray.readouts.correlations import compact, correlations, deviations
from lead_ray.readouts.regressor import CHUNK, Blocks, Regressor

SHRINKAGES = (0.3, 1.0, 3.0)  # added to the diagonal of the correlation matrix; the best one is kept
PENALTIES = tuple(10 ** (power / 2) for power in range(-8, 9))  # of the ridge, times the mean eigenvalue
SAMPLE = 256  # images that estimate the correlation matrix and choose the shrinkage


class Start(NamedTuple):
    """A regressor in closed form."""

    regressor: Regressor
    deviations: list[Float[Tensor, " _"]]
    """Per block, the standard deviation of every channel within an image."""
    shrinkage: float
    """The one that was chosen."""


class Ridge(NamedTuple):
    """A linear layer and its leave-one-out error."""

    linear: Float[Tensor, "k m 2"]
    bias: Float[Tensor, "k 2"]
    error: float
    """Mean distance, in the unit of the landmarks."""


def fit_detectors(
    blocks: Blocks,
    images: Int64[Tensor, " n"],
    landmarks: Float[Tensor, "n k 2"],
    visible: Bool[Tensor, "n k"],
    *,
    grid: int,
    points: int,
    spread: float,
    temperature: float,
    folds: int,
    generator: torch.Generator,
    shrinkages: Sequence[float] = SHRINKAGES,
    copies: int = 1,
) -> Start:
    """The regressor before any gradient step.

    Images: which of the blocks' are annotated; so many in a row are copies of one image, and never judge each other.
      Folds are runs of consecutive ones. Shrinkages: the best of several is searched for.

    Raises: ValueError if a feature is not finite.
    """
    count, marks = visible.shape
    device = landmarks.device
    offsets = spread * torch.randn(marks, points, 2, generator=generator, device=generator.device).to(device)
    sample = torch.randperm(count, generator=generator, device=generator.device)[:SAMPLE]
    sample = sample.sort().values.to(device)
    sampled = [block[images[sample]] for block in blocks]
    spreads = units = deviations(sampled, grid=grid)
    if not torch.cat(spreads).isfinite().all():
        raise ValueError("blocks hold values that are not finite; check the encoder, or store float32")
    bases = [None] * len(blocks)
    if count <= SAMPLE:  # all of them
        blocks, units, bases = compact(sampled, spreads)
        sampled, images = blocks, sample
    correlation, deviation = correlations(sampled, units, grid=grid), torch.cat(units)
    source = torch.arange(count, device=device) // copies
    sources = int(source[-1]) + 1
    fold = source * min(folds, sources) // sources
    means = _means_without_fold(blocks, images, landmarks, visible, offsets, fold)
    whitened = (means / deviation).flatten(0, 1).mT
    identity = torch.eye(len(correlation), device=device)
    best = None
    for shrinkage in shrinkages:
        factor = torch.linalg.cholesky(correlation + shrinkage * identity)
        weights = torch.cholesky_solve(whitened, factor).mT.reshape(means.shape) / deviation
        candidate = [part.contiguous() for part in weights.split([len(part) for part in units], dim=-1)]
        judged = None
        if len(shrinkages) > 1:
            unseen = _unseen_points(blocks, images, candidate, fold, sample, marks, grid, temperature)
            judged = ridge(unseen, landmarks[sample], visible[sample], source[sample])
        if best is None or judged.error < best[0].error:
            best = judged, candidate, shrinkage
    layer, weights, shrinkage = best
    if layer is None or count > SAMPLE:  # else all images judged it, and it is the layer of all
        every = torch.arange(count, device=device)
        unseen = _unseen_points(blocks, images, weights, fold, every, marks, grid, temperature)
        layer = ridge(unseen, landmarks, visible, source)
    whole = (
        weight[-1] if basis is None else weight[-1] @ basis.mT for weight, basis in zip(weights, bases, strict=True)
    )
    return Start(Regressor(tuple(whole), layer.linear, layer.bias, temperature, grid), spreads, shrinkage)


def ridge(
    inputs: Float[Tensor, "k n m"],
    landmarks: Float[Tensor, "n k 2"],
    visible: Bool[Tensor, "n k"],
    source: Int64[Tensor, " n"] | None = None,
) -> Ridge:
    """Affine ridge regression per landmark, with one penalty for all of least leave-one-out error.

    Source: the image that each is a copy of; all copies of one are left out together, if there are several images.
    The residuals of what is left out are (1 - H)^-1 times its residuals, H its part of the hat matrix: no refitting.
    """
    used = visible.mT.unsqueeze(-1).double()
    count = used.sum(1, keepdim=True)
    x, y = inputs.double(), landmarks.transpose(0, 1).double()
    x_mean, y_mean = ((used * value).sum(1, keepdim=True) / count for value in (x, y))
    x, y = used * (x - x_mean), used * (y - y_mean)
    eigenvalues, basis = torch.linalg.eigh(x.mT @ x)
    rotated, target = x @ basis, (x @ basis).mT @ y
    scale = eigenvalues.mean().clamp(min=1e-12)
    together = [] if source is None else [(source == image).nonzero().flatten() for image in source.unique()]
    best = None
    for penalty in PENALTIES:
        inverse = 1 / (eigenvalues.clamp(min=0) + penalty * scale).unsqueeze(1)
        residual = y - rotated @ (inverse.mT * target)
        if 1 < len(together) < len(y[0]):
            for rows in together:
                part, own = rotated[:, rows], used[:, rows]
                hat = own * own.mT / count + (part * inverse) @ part.mT
                # Singular, but for this, where only these copies show a landmark.
                rest = (1 + 1e-9) * torch.eye(len(rows)).to(hat) - hat
                residual[:, rows] = torch.linalg.solve(rest, residual[:, rows])
        else:
            leverage = 1 / count + (rotated.square() * inverse).sum(-1, keepdim=True)
            residual = residual / (1 - leverage).clamp(min=1e-6)
        error = float((residual.norm(dim=-1, keepdim=True) * used).sum() / used.sum())
        if best is None or error < best[0]:
            best = error, basis @ (inverse.mT * target)
    error, linear = best
    bias = (y_mean - x_mean @ linear).squeeze(1)
    return Ridge(linear.to(landmarks.dtype), bias.to(landmarks.dtype), error)


def _means_without_fold(
    blocks: Blocks, images: Tensor, landmarks: Tensor, visible: Tensor, offsets: Tensor, fold: Tensor
) -> Float[Tensor, "f m c"]:
    """Mean feature at every landmark + offset over the images outside each fold, and last over all images.

    Each image's mean is removed first. Sums per fold are enough: what is kept does not grow with the images. A place of
    all of a fold's images is a bag of cells, four an image: as torch sums embeddings.
    """
    folds = int(fold.max()) + 1
    member = functional.one_hot(fold, folds).float()
    used = visible.repeat_interleave(offsets.shape[1], dim=1).float()
    total = torch.zeros(folds, used.shape[1], sum(block.shape[1] for block in blocks), device=used.device)
    sums = total.split([block.shape[1] for block in blocks], dim=-1)
    for number in range(folds):
        for part in (fold == number).nonzero().flatten().split(CHUNK):
            places = (landmarks[part].unsqueeze(2) + offsets).clamp(-1, 1).flatten(1, 2)
            for block, own in zip(blocks, sums, strict=True):
                cells = block[images[part]].float().permute(0, 2, 3, 1).flatten(1, 2)
                near, share = _neighbours(places, *block.shape[2:])
                near = near + cells.shape[1] * torch.arange(len(part), device=near.device)[:, None, None]
                share = share * used[part].unsqueeze(-1)
                bags, shares = (each.transpose(0, 1).flatten(1) for each in (near, share))
                read = functional.embedding_bag(bags, cells.flatten(0, 1), per_sample_weights=shares, mode="sum")
                own[number] += read - used[part].mT @ cells.mean(1)
    count = member.mT @ used
    # A single fold has no other images to be judged by: it keeps its own.
    without, counts = (
        torch.cat([each.sum(0) - each if folds > 1 else each, each.sum(0, keepdim=True)]) for each in (total, count)
    )
    return without / counts.clamp(min=1).unsqueeze(-1)


def _neighbours(
    places: Float[Tensor, "n m 2"], height: int, width: int
) -> tuple[Int64[Tensor, "n m 4"], Float[Tensor, "n m 4"]]:
    """The cells that are read at these places, bilinearly, and their shares; beyond the outermost centres as there."""
    near, share = [], []
    for side, size in ((1, height), (0, width)):
        at = ((places[..., side] + 1) * size / 2 - 0.5).clamp(0, size - 1)
        first = at.floor()
        near.append(torch.stack([first, (first + 1).clamp(max=size - 1)], dim=-1).long())
        share.append(torch.stack([1 - (at - first), at - first], dim=-1))
    cells = near[0].unsqueeze(-1) * width + near[1].unsqueeze(-2)
    return cells.flatten(2), (share[0].unsqueeze(-1) * share[1].unsqueeze(-2)).flatten(2)


def _unseen_points(
    blocks: Blocks,
    images: Tensor,
    weights: list[Tensor],
    fold: Tensor,
    places: Tensor,
    marks: int,
    grid: int,
    temperature: float,
) -> Float[Tensor, "k n points_2"]:
    """Virtual points of the images at some places, each from the detectors that were made without its fold."""
    found = []
    for number in fold[places].unique().tolist():
        idle = torch.zeros(marks, 1, 2, device=images.device)
        own = tuple(weight[number] for weight in weights)
        regressor = Regressor(own, idle, idle[:, 0], temperature, grid)
        for part in places[fold[places] == number].split(CHUNK):
            found.append(regressor.virtual_points([block[images[part]] for block in blocks]))
    return torch.cat(found, dim=1)
