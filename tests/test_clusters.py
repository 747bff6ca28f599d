"""Clusters of locations, their plane and their exemplars."""

import pytest
import torch

from lead_ray import clusters


def separate(images=6, noise=0.05):
    """Blocks [images, 3, 2, 2]: the upper row of cells near one direction, the lower left and right near two more."""
    generator = torch.Generator().manual_seed(0)
    block = noise * torch.rand(images, 3, 2, 2, generator=generator)
    block[:, 2, 0] += 1
    block[:, 0, 1, 0] += 1
    block[:, 1, 1, 1] += 1
    return 5 * block


def test_clusters_are_found_and_numbered_from_the_top():
    found = clusters.find(separate(), 3)
    assert (found.labels[:, 0] == 0).all()
    lower = found.labels[0, 1].tolist()
    assert sorted(lower) == [1, 2] and (found.labels[:, 1] == torch.tensor(lower)).all()
    assert found.by_position == 100
    assert found.centres[0].argmax() == 2, "the centres follow the numbers"


def test_length_plays_no_role():
    block = separate()
    lengths = torch.arange(1.0, 7.0)[:, None, None, None]
    assert (clusters.find(block, 3).labels == clusters.find(lengths * block, 3).labels).all()


def test_what_moves_is_not_set_by_position():
    block = separate()
    block[::2] = block[::2].flip(2)
    assert clusters.find(block, 3).by_position == pytest.approx(50)


def test_exemplars_are_the_nearest_of_different_images():
    block = separate(noise=0.0)
    block[3, 0, 0] += 4.0  # far from the other upper cells
    found = clusters.find(block, 3)
    upper, *others = clusters.exemplars(block, found, 10)
    assert len(upper) <= 6 and len(set(upper[:, 0].tolist())) == len(upper)
    assert 3 not in upper[:, 0].tolist() or upper[-1, 0] == 3
    for number, places in enumerate(others, start=1):
        assert all(found.labels[tuple(place)] == number for place in places)
    assert all(len(places) == 2 for places in clusters.exemplars(block, found, 2))


def test_the_plane_keeps_neighbours_together_and_is_the_same_again():
    rows = clusters.descriptors(separate(images=12))
    plane = clusters.plane(rows, perplexity=8.0)
    labels = clusters.find(separate(images=12), 3).labels.flatten()
    nearest = (torch.cdist(plane, plane) + 1e9 * torch.eye(len(plane))).argmin(1)
    assert (labels[nearest] == labels).float().mean() > 0.95
    assert (plane == clusters.plane(rows, perplexity=8.0)).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clusters.find(separate(), 25), r"count must be in 1\.\.24, the locations of all images, got 25"),
        (lambda: clusters.plane(torch.rand(5, 3), perplexity=5.0), "below the 5 descriptors"),
        (lambda: clusters.exemplars(separate(), clusters.find(separate(), 3), 0), "count must be >= 1"),
    ],
)
def test_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_without_scikit_learn_the_user_is_told_what_to_install(monkeypatch):
    import sys

    for name in ("sklearn.cluster", "sklearn.manifold"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: clusters.find(separate(), 2), lambda: clusters.plane(torch.rand(9, 3), perplexity=2.0)):
        with pytest.raises(ValueError, match="uv pip install scikit-learn"):
            call()
