"""Clusters of an encoder's locations, and a plane that shows them: k-means and t-SNE by scikit-learn.

A location's descriptor is one cell of one block, of length 1 where it is compared: neighbours are those of the
cosine, as in matching. Source: LEAD, figures 5, 6, 15 and 16.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

MISSING = "clusters need scikit-learn: uv pip install scikit-learn"


class Clusters(NamedTuple):
    """Which cluster every location belongs to; cluster 0 lies highest in the images on average."""

    labels: Int64[Tensor, "n h w"]
    centres: Float[Tensor, "clusters c"]
    by_position: float
    """Locations that belong to the cluster most frequent at their cell, in %: 100 if position alone decides."""


def find(block: Float[Tensor, "n c h w"], count: int, *, seed: int = 0) -> Clusters:
    """k-means of all locations of all images.

    Raises: ValueError if scikit-learn is missing, or there are fewer locations than clusters.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ValueError(MISSING) from error
    rows = descriptors(block)
    if not 1 <= count <= len(rows):
        raise ValueError(f"count must be in 1..{len(rows)}, the locations of all images, got {count}")
    fitted = KMeans(count, n_init=4, random_state=seed).fit(rows.numpy())
    labels = torch.from_numpy(fitted.labels_).long().view(len(block), *block.shape[2:])
    height = torch.arange(block.shape[2]).view(1, -1, 1).expand_as(labels)
    mean = torch.stack([height[labels == each].float().mean() for each in range(count)])
    order = mean.nan_to_num(nan=torch.inf).argsort()
    labels = order.argsort()[labels]
    votes = torch.nn.functional.one_hot(labels, count).sum(0).amax(-1)
    return Clusters(labels, torch.from_numpy(fitted.cluster_centers_)[order], 100 * votes.sum().item() / labels.numel())


def plane(rows: Float[Tensor, "m c"], *, seed: int = 0, perplexity: float = 30.0) -> Float[Tensor, "m 2"]:
    """Descriptors laid out in a plane by t-SNE, neighbours beside neighbours; its axes mean nothing.

    Raises: ValueError if scikit-learn is missing, or the perplexity is not below the number of descriptors.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError(MISSING) from error
    if not 0 < perplexity < len(rows):
        raise ValueError(f"perplexity must be above 0 and below the {len(rows)} descriptors, got {perplexity}")
    layout = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return torch.from_numpy(layout.fit_transform(rows.numpy())).float()


def descriptors(block: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c"]:
    """Descriptors of all locations, image by image and row by row, of length 1, on the CPU."""
    return normalize(block.float().cpu(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)


def exemplars(block: Float[Tensor, "n c h w"], found: Clusters, count: int) -> list[Int64[Tensor, "_ 3"]]:
    """For each cluster the locations (image, row, column) nearest to its centre, of different images, at most `count`.

    Raises: ValueError if count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    images, height, width = found.labels.shape
    distances = torch.cdist(descriptors(block), found.centres).view(images, height * width, -1)
    chosen = []
    for number in range(len(found.centres)):
        apart = distances[..., number].where(found.labels.flatten(1) == number, torch.inf)
        nearest, cell = apart.min(1)
        order = nearest.argsort()[: min(count, int(nearest.isfinite().sum()))]
        chosen.append(torch.stack([order, cell[order] // width, cell[order] % width], dim=1))
    return chosen
