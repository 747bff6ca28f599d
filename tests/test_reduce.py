"""Reductions that learn nothing: scikit-learn's own on the built hypercolumns, which these never build."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lead_ray.models import reduce, weights
from lead_ray.models.hypercolumn import hypercolumn
from lead_ray.models.reduce import Reduction, ReductionSettings, fit, principal_components, sampled_hypercolumns
from lead_ray.models.trunk import Trunk, TrunkSettings

SIZES = ((12, 12), (6, 6), (3, 3))
CHANNELS = (3, 5, 9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks_of(n: int, seed: int = 0, sizes=SIZES, channels=CHANNELS) -> list[torch.Tensor]:
    source = generator(seed)
    return [
        torch.randn(n, c, *size, generator=source, dtype=torch.float64).relu() + 0.1 * c
        for c, size in zip(channels, sizes, strict=True)
    ]


def built(blocks: list[torch.Tensor]) -> np.ndarray:
    """Hypercolumns at the finest block's resolution, one a row."""
    size = blocks[0].shape[2:]
    resized = [functional.interpolate(b, size=size, mode="bilinear", align_corners=False) for b in blocks[::-1]]
    return torch.cat(resized, dim=1).flatten(2).mT.flatten(0, 1).numpy()


def rows(maps: torch.Tensor) -> np.ndarray:
    return maps.flatten(2).mT.flatten(0, 1).numpy()


def test_rows_are_hypercolumns():
    blocks = blocks_of(2)
    np.testing.assert_array_equal(built(blocks), rows(hypercolumn(blocks, 12)))


class TestPrincipalComponents:
    def test_are_scikit_learns(self):
        decomposition = pytest.importorskip("sklearn.decomposition")
        batches = [blocks_of(3, seed) for seed in range(2)]
        components, mean = principal_components(iter(batches), 4)
        columns = np.concatenate([built(batch) for batch in batches])
        theirs = decomposition.PCA(4, svd_solver="full").fit(columns)
        np.testing.assert_allclose(mean, theirs.mean_, atol=1e-10)
        np.testing.assert_allclose(components, theirs.components_, atol=1e-8)
        reduction = reduction_of("pca", components, -components @ mean)
        np.testing.assert_allclose(rows(reduction(batches[0])), theirs.transform(built(batches[0])), atol=1e-8)

    def test_by_hand(self):
        """Two blocks of one channel that move together, and one thing that does not move."""
        base = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[None, None]
        components, mean = principal_components([[3 * base + 1, 4 * base]], 1)
        torch.testing.assert_close(components, torch.tensor([[0.8, 0.6]], dtype=torch.float64))  # coarsest first
        torch.testing.assert_close(mean, torch.tensor([0.0, 1.0], dtype=torch.float64))

    @settings(max_examples=20)
    @given(
        sizes=st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=1, max_size=3),
        seed=st.integers(0, 2**31),
    )
    def test_are_orthonormal_and_keep_all_there_is(self, sizes, seed):
        sizes = sorted(sizes, key=lambda size: -size[0] * size[1])
        blocks = blocks_of(3, seed, sizes, [2] * len(sizes))
        count = min(2 * len(sizes), 3 * sizes[0][0] * sizes[0][1])
        components, mean = principal_components([blocks], count)
        torch.testing.assert_close(components @ components.mT, torch.eye(count, dtype=torch.float64))
        columns = built(blocks)
        projected = (columns - mean.numpy()) @ components.numpy().T
        assert np.square(projected).sum() == pytest.approx(np.square(columns - columns.mean(axis=0)).sum())
        spread = projected.var(axis=0)
        assert (spread[:-1] >= spread[1:] - 1e-9).all()

    def test_more_components_than_there_are(self):
        with pytest.raises(
            ValueError, match=r"reduction.dim must be <= the 432 hypercolumns and their channels, got 18"
        ):
            principal_components([blocks_of(3)], 18)


def reduction_of(method: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Reduction:
    reduction = Reduction(CHANNELS, ReductionSettings(method=method, dim=len(weight))).double()
    reduction.weight.copy_(weight)
    if bias is not None:
        reduction.bias.copy_(bias)
    return reduction


class TestRandomProjection:
    def test_is_a_product_with_the_hypercolumn(self):
        weight = torch.randn(4, 17, generator=generator(), dtype=torch.float64)
        blocks = blocks_of(2)
        found = reduction_of("random", weight)(blocks)
        np.testing.assert_allclose(rows(found), built(blocks) @ weight.numpy().T, atol=1e-10)

    def test_keeps_lengths_on_average(self):
        torch.manual_seed(0)
        reduction = Reduction((2000,), ReductionSettings(method="random", dim=500))
        vector = torch.randn(1, 2000, 1, 1, generator=generator(1))
        assert (reduction([vector]).norm() / vector.norm()).item() == pytest.approx(1, abs=0.1)


class TestNonNegativeFactors:
    def test_coefficients_are_scikit_learns(self):
        """Image by image; with tol=0, as nothing may depend on which images share a batch."""
        decomposition = pytest.importorskip("sklearn.decomposition")
        blocks = blocks_of(2)
        model = decomposition.MiniBatchNMF(4, random_state=0, tol=0, max_no_improvement=None).fit(built(blocks))
        found = reduction_of("nmf", torch.from_numpy(model.components_))(blocks)
        for i in range(2):
            columns = built([block[i : i + 1] for block in blocks])
            np.testing.assert_allclose(rows(found[i : i + 1]), model.transform(columns), rtol=1e-7, atol=1e-10)

    def test_exact_factors_are_found_again(self):
        """Features that are sums of two patterns: how much of each."""
        patterns = torch.rand(2, 17, generator=generator(), dtype=torch.float64)
        patterns[0, :8], patterns[1, 8:] = 0, 0
        amounts = torch.rand(1, 2, 1, 1, generator=generator(1), dtype=torch.float64) + 0.5
        column = torch.einsum("bkhw,kc->bchw", amounts, patterns)
        levels = [
            level.expand(-1, -1, *size) for level, size in zip(column.split((9, 5, 3), 1)[::-1], SIZES, strict=True)
        ]
        found = reduction_of("nmf", patterns)(levels)
        torch.testing.assert_close(found, amounts.expand(-1, -1, 12, 12), rtol=1e-6, atol=1e-8)

    def test_nothing_stays_nothing(self):
        found = reduction_of("nmf", torch.rand(3, 17))(
            [torch.zeros(1, c, *s).double() for c, s in zip(CHANNELS, SIZES, strict=True)]
        )
        assert not found.any()

    def test_negative_features_are_refused(self):
        pytest.importorskip("sklearn.decomposition")
        with pytest.raises(ValueError, match=r"reduction.method=nmf needs features >= 0"):
            reduce.non_negative_factors([-torch.ones(4, 3)], 2, seed=0)

    def test_without_scikit_learn(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "sklearn.decomposition", None)
        with pytest.raises(ValueError, match=r"reduction.method=nmf needs scikit-learn: uv pip install"):
            reduce.non_negative_factors([torch.ones(4, 3)], 2, seed=0)


class TestSampling:
    def test_rows_are_those_of_the_hypercolumn(self):
        blocks = blocks_of(2)
        found = sampled_hypercolumns(blocks, 10, generator()).numpy()
        everything = built(blocks)
        nearest = np.square(found[:, None] - everything[None]).sum(axis=2)
        assert found.shape == (20, 17) and np.allclose(nearest.min(axis=1), 0, atol=1e-12)
        places = nearest.argmin(axis=1)
        assert len(set(places)) == 20 and (places[:10] < 144).all() and (places[10:] >= 144).all()

    def test_never_more_than_there_are(self):
        assert sampled_hypercolumns(blocks_of(1), 1000, generator()).shape == (144, 17)


class TestFit:
    @pytest.mark.parametrize("method", ["pca", "random", "nmf"])
    @torch.no_grad()
    def test_round_trip(self, method, tmp_path):
        if method == "nmf":
            pytest.importorskip("sklearn.decomposition")
        torch.manual_seed(0)
        trunk = Trunk(TrunkSettings(depth=18, width=0.125))
        images = torch.randn(4, 3, 64, 64, generator=generator())
        encoder = fit(trunk, images.split(2), ReductionSettings(method=method, dim=6), seed=1, locations=32)
        again = fit(trunk, images.split(2), ReductionSettings(method=method, dim=6), seed=1, locations=32)
        (found,) = encoder(images)
        assert found.shape == (4, 6, 16, 16) and encoder.channels == (6,) and found.std() > 0
        torch.testing.assert_close(again(images)[0], found)
        weights.save(tmp_path / "encoder.safetensors", encoder, {"images": 4})
        card = weights.read_card(tmp_path / "encoder.safetensors")
        assert (card.kind, card.reduction) == ("reduced", ReductionSettings(method=method, dim=6))
        torch.testing.assert_close(weights.load(tmp_path / "encoder.safetensors")(images)[0], found)
        if method == "nmf":
            assert (found >= 0).all()
            assert found.flatten(2).sum(dim=2).gt(0).all(), "every factor is of use"

    def test_settings_out_of_range(self, unchecked):
        with pytest.raises(ValueError, match=r"reduction.method must be one of \('pca', 'random', 'nmf'\), got 'ica'"):
            ReductionSettings(method="ica")
        with pytest.raises(ValueError, match=r"reduction.dim must be >= 1, got 0"):
            ReductionSettings(dim=0)
