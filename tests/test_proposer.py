"""Proposals while somebody annotates, and the ensemble behind them."""

from dataclasses import replace

import numpy as np
import pytest
from annotated_faces import CARRIED, SCHEMA, draw, errors
from PIL import Image

from lead_ray.landmarks.labels import Labels
from lead_ray.landmarks.proposer import Proposer

COUNT = 16


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The last four are not to learn from."""
    folder = tmp_path_factory.mktemp("faces")
    return folder, draw(folder, COUNT + 4)


def test_proposals_from_one_image_on(faces):
    folder, labels = faces
    proposer = Proposer(CARRIED)
    with pytest.raises(ValueError, match="annotate an image"):
        proposer.propose([])
    for one in labels.images:
        with Image.open(folder / one.file) as picture:
            proposer.add(one.file, picture.convert("RGB"))
    others = labels.images[COUNT:]
    names = [one.file for one in others]
    means = []
    for count in (1, 3, COUNT):
        proposer.fit(replace(labels, images=labels.images[:count]))
        found = proposer.propose(names)
        means.append(errors(found, others).mean())
        assert all(np.isnan(each.points[5]).all() for each in found)
        held_out = proposer.held_out_error()
        assert (held_out is None) == (count == 1)
    assert means[2] < means[0]
    assert held_out.images == COUNT and 0 < held_out.error < 60
    vectors = proposer.embeddings(names)
    assert vectors.shape == (4, 240)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    proposer.forget(names[0])
    assert names[0] not in proposer and names[1] in proposer
    proposer.fit(Labels(schema=SCHEMA))
    with pytest.raises(ValueError, match="annotate an image"):
        proposer.propose(names[1:])


def test_a_proposal_of_the_annotated_image_is_its_annotation(faces):
    """One image, matched with itself: what is most like a landmark's descriptor is there."""
    folder, labels = faces
    proposer = Proposer(CARRIED)
    with Image.open(folder / labels.images[0].file) as picture:
        proposer.add("a", picture.convert("RGB"))
        proposer.add("a", picture.rotate(180).convert("RGB"))  # it is there already
    proposer.fit(Labels(schema=SCHEMA, images=(replace(labels.images[0], file="a"),)))
    assert errors(proposer.propose(["a"]), labels.images[:1]).max() < 0.4
