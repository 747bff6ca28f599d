"""Parts: factors found again, a plain factorisation beside it, and the same parts in different faces."""

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import lead_ray
from lead_ray import features, geometry, parts
from lead_ray.data import synthetic
from lead_ray.data.celeba import Mafl
from lead_ray.images import shards
from lead_ray.models import weights
from lead_ray.prepare import prepare

CARRIED = Path(lead_ray.__file__).parent / "models" / "synthetic-faces.safetensors"


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def hypercolumns(blocks, scale):
    """[n h w, c], every block resized and divided by its scale: what factorise() never builds."""
    size = blocks[0].shape[2:]
    full = [functional.interpolate(block, size=size, mode="bilinear") for block in blocks]
    columns = torch.cat([block / one for block, one in zip(full, scale, strict=True)], dim=1)
    return columns.permute(0, 2, 3, 1).flatten(0, 2)


def rebuilt(found):
    presence = found.presence.permute(0, 2, 3, 1).flatten(0, 2)
    return presence @ torch.cat(found.factors, dim=1)


def test_two_parts_by_hand():
    """Left cells show (3, 0), right ones (0, 4): two parts, each alone where it is."""
    block = torch.zeros(1, 2, 1, 2)
    block[0, 0, 0, 0], block[0, 1, 0, 1] = 3.0, 4.0
    found = parts.factorise([block], 2, seed=1)
    assert found.factors[0].tolist() == [[0, 1], [1, 0]], "what explains most comes first"
    scale = (25 / 2) ** 0.5
    assert found.scale == [pytest.approx(scale)]
    expected = torch.tensor([[0, 4 / scale], [3 / scale, 0]])
    torch.testing.assert_close(found.presence[0, :, 0], expected)
    assert found.residuals[-1] == pytest.approx(0, abs=1e-3)


@given(st.integers(1, 6), st.integers(0, 5))
def test_factors_are_non_negative_and_the_residual_is_that_of_the_hypercolumns(count, seed):
    blocks = [draw(3, 5, 6, 6, seed=seed), draw(3, 4, 3, 3, seed=seed + 1), draw(3, 7, 2, 2, seed=seed + 2)]
    found = parts.factorise(blocks, count, seed=seed, rounds=8, tolerance=0.0)
    assert found.presence.shape == (3, count, 6, 6)
    assert found.presence.min() >= 0 and all(factor.min() >= 0 for factor in found.factors)
    columns = hypercolumns(blocks, found.scale)
    residual = (columns - rebuilt(found)).norm() / columns.norm()
    assert found.residuals[-1] == pytest.approx(residual.item(), abs=1e-4)
    assert all(later <= earlier + 1e-6 for earlier, later in zip(found.residuals, found.residuals[1:], strict=False))


def test_what_has_few_parts_is_rebuilt():
    presence, look = draw(4, 3, 6, 6), draw(3, 10, seed=1)
    block = torch.einsum("nphw,pc->nchw", presence, look)
    found = parts.factorise([block], 3, rounds=500, tolerance=0.0)
    assert found.residuals[-1] < 0.01


def test_a_round_is_a_loop_over_the_definition():
    """One round of the updates in float64 on the hypercolumns themselves."""
    blocks, count = [draw(2, 3, 4, 4), draw(2, 5, 2, 2, seed=1)], 3
    found = parts.factorise(blocks, count, starts=1, rounds=1)
    a = hypercolumns(blocks, found.scale).double().numpy()
    chosen = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))[:count]
    h, w = a[chosen].copy(), numpy.zeros((len(a), count))
    for p in range(count):
        rest = a - w @ h + numpy.outer(w[:, p], h[p])
        w[:, p] = numpy.maximum(rest @ h[p] / (h[p] @ h[p]), 0)
    for p in range(count):
        rest = a - w @ h + numpy.outer(w[:, p], h[p])
        h[p] = numpy.maximum(w[:, p] @ rest / (w[:, p] @ w[:, p]), 0)
    assert numpy.abs(rebuilt(found).numpy() - w @ h).max() < 1e-5


def test_the_same_seed_gives_the_same_parts():
    blocks = [draw(2, 6, 4, 4)]
    first, again = (parts.factorise(blocks, 3, seed=5) for _ in range(2))
    assert (first.presence == again.presence).all()


def test_of_several_starts_the_best_goes_on():
    blocks = [draw(2, 6, 4, 4)]
    one, many = (parts.factorise(blocks, 4, starts=starts, rounds=parts.TRIAL) for starts in (1, 8))
    assert many.residuals[-1] <= one.residuals[-1]
    assert len(one.residuals) == len(many.residuals) == parts.TRIAL


def test_signed_features_become_two_non_negative_ones():
    block = torch.tensor([1.0, -2.0])[None, :, None, None]
    assert parts.non_negative([block])[0].flatten().tolist() == [1, 0, 0, 2]
    plain = block.abs()
    assert parts.non_negative([plain])[0] is plain


@pytest.mark.parametrize(
    ("block", "count", "said"),
    [
        (torch.ones(1, 2, 2, 2), 5, r"count must be in 1\.\.4, the locations of all images, got 5"),
        (-torch.ones(1, 2, 2, 2), 2, "features must be finite and >= 0"),
        (torch.full((1, 2, 2, 2), float("nan")), 2, "features must be finite and >= 0"),
    ],
)
def test_refused(block, count, said):
    with pytest.raises(ValueError, match=said):
        parts.factorise([block], count)


def test_agreement_by_hand():
    """The first landmark stays with part 1 wherever it goes; the second lies in part 0 in two images of four."""
    presence = torch.zeros(4, 2, 1, 4)
    presence[:, 0] = 0.5
    for image, column in enumerate((0, 1, 2, 3)):
        presence[image, 1, 0, column] = 1.0
    points = torch.zeros(4, 2, 2)
    points[:, 0, 0] = torch.tensor([0.0, 3.0, 5.4, 7.0])  # cells of two pixels each, from -0.5 on
    points[:, 1, 0] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    visible = torch.ones(4, 2, dtype=torch.bool)
    found = parts.agreement(presence, points, side=8, visible=visible)
    assert found.part.tolist() == [1, 0]
    assert found.share.tolist() == [100, 50]
    assert found.floor.tolist() == [100, 75], "in the parts of another image no landmark is on its own part"
    visible[1, 1] = False
    seen = parts.agreement(presence, points, side=8, visible=visible)
    assert seen.share[1].item() == pytest.approx(100 * 2 / 3)


def test_agreement_needs_images_and_visible_points():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        parts.agreement(torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 2), side=6)
    hidden = torch.tensor([[True, False], [True, False]])
    with pytest.raises(ValueError, match=r"landmarks \[1\] are visible in no image"):
        parts.agreement(torch.ones(2, 2, 3, 3), torch.zeros(2, 2, 2), side=6, visible=hidden)


def test_parts_of_synthetic_faces_agree_between_images(tmp_path):
    """The carried stage-1 encoder: landmarks keep to a part more than position alone explains."""
    sizes = {"images": 36, "identities": 18, "test_share": 0.8, "val_share": 0.0, "mafl_train": 4, "mafl_test": 24}
    synthetic.write(tmp_path / "raw", seed=7, **sizes)
    prepare(Mafl(raw=tmp_path / "raw"), tmp_path / "out", workers=0, progress=False)
    images = shards.load(tmp_path / "out", "test")
    blocks = [block.float() for block in features.extract(weights.load(CARRIED), images.pixels)]
    points = geometry.crop_points(torch.from_numpy(images.landmarks), margin=features.MARGIN)
    found = parts.factorise(parts.non_negative(blocks), 5, rounds=40)
    agreed = parts.agreement(found.presence, points, side=96, visible=torch.from_numpy(images.visible))
    assert agreed.share.mean() > agreed.floor.mean() + 5
