"""Which image to annotate next: the one from which the read-out would learn most.

Two things are known of an unlabelled image: its embedding, and how much the members of the ensemble disagree about its
points. An image that is like many others, none of them labelled, teaches most; disagreement says where "like" is not
enough. Both go into one sum, so there is no moment at which one rule replaces the other.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int64

Order = Literal["teaches", "worst", "random", "folder"]
ORDERS: tuple[Order, ...] = get_args(Order)
MOST = 3000  # images compared with each other: 36 MB of distances


def distances(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """1 - cosine of unit vectors: from 0 to 2."""
    return (1 - first @ second.T).clip(0, 2)


def covering(
    embeddings: Float[np.ndarray, "n d"],
    labelled: Float[np.ndarray, "m d"],
    count: int,
    *,
    weights: Float[np.ndarray, " n"] | None = None,
) -> Int64[np.ndarray, " _"]:
    """The next `count` images, each the one that brings all images together nearest to a labelled one.

    Greedy k-medoids: image i earns sum_j w_j max(0, d_j - d_ij), with d_j the distance of image j to what is labelled
    or chosen so far. The greedy choice reaches at least 1 - 1/e of the best sum that so many images can reach, as
    the sum is submodular.

    Args:
        embeddings: unit vectors of unlabelled images.
        labelled: unit vectors of labelled images; m may be 0.
        weights: how much an image counts, such as the disagreement about it; None: all alike.
    Returns: places among the embeddings, the best first; no more than there are.
    """
    between = distances(embeddings, embeddings)
    nearest = distances(embeddings, labelled).min(1) if len(labelled) else np.full(len(embeddings), 2.0, np.float32)
    worth = np.ones(len(embeddings), np.float32) if weights is None else weights.astype(np.float32)
    chosen: list[int] = []
    for _ in range(min(count, len(embeddings))):
        earned = worth @ (nearest[:, None] - between).clip(min=0)
        earned[chosen] = -1.0
        chosen.append(int(earned.argmax()))
        nearest = np.minimum(nearest, between[:, chosen[-1]])
    return np.array(chosen, np.int64)


def farthest(
    embeddings: Float[np.ndarray, "n d"], labelled: Float[np.ndarray, "m d"], count: int
) -> Int64[np.ndarray, " _"]:
    """The next `count` images, each the one farthest from everything labelled or chosen so far.

    Finds what is rare; also finds what is broken. Without anything labelled it begins with the image nearest to the
    mean.
    """
    nearest = distances(embeddings, labelled).min(1) if len(labelled) else None
    chosen: list[int] = []
    for _ in range(min(count, len(embeddings))):
        best = int((embeddings @ embeddings.mean(0)).argmax() if nearest is None else nearest.argmax())
        chosen.append(best)
        own = distances(embeddings, embeddings[best : best + 1])[:, 0]
        nearest = own if nearest is None else np.minimum(nearest, own)
        nearest[chosen] = -1.0
    return np.array(chosen, np.int64)
