"""Matches against the numbers of CL's and DVE's code, the plain form with hypercolumns, and properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lead_ray.similarity import NORMALISATIONS, cl_grid, dve_grid, match, match_dve, similarity


def hypercolumn(blocks, cells):
    """The plain form: every block resized, coarsest first."""
    return [
        functional.interpolate(block, size=(cells, cells), mode="bilinear", align_corners=False)
        for block in reversed(blocks)
    ]


def plain_similarity(source, target, index, *, cells, normalise):
    """What similarity() computes, from hypercolumns."""
    source, target = hypercolumn(source, cells), hypercolumn(target, cells)
    if normalise == "per-layer":
        source, target = ([functional.normalize(block, dim=1) for block in blocks] for blocks in (source, target))
    source, target = torch.cat(source, dim=1), torch.cat(target, dim=1)
    if normalise == "global":
        source, target = functional.normalize(source, dim=1), functional.normalize(target, dim=1)
    query = torch.stack([source[b, :, index[b, :, 1], index[b, :, 0]].T for b in range(len(source))])
    return torch.einsum("bkc,bchw->bkhw", query, target)


def random_blocks(shapes, *, seed, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in shapes]


TRUNK = ((4, 24, 24), (5, 12, 12), (6, 6, 6), (7, 3, 3))


class TestGolden:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("column", ["same", "diff"])
    @pytest.mark.parametrize("batch", [0, 1])
    def test_cl(self, golden, batch, column, dtype):
        arrays = golden("matching_cl")
        first, second = (
            [arrays[f"in_batch{batch}_layer{layer}_image{image}"].to(dtype) for layer in (1, 2, 3, 4)]
            for image in (1, 2)
        )
        a, b = slice(0, 1), slice(1, 2)
        points = arrays[f"in_batch{batch}_keypoints_px"].to(dtype)
        searched, target = (a, points[2]) if column == "same" else (b, points[3])
        got = match([block[a] for block in first], [block[searched] for block in second], points[:1])[0]
        expected = arrays[f"out_pred_{column}_px"][batch]
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-9)
        error = cl_grid(image_size=96, cells=96).published_scale * (got - target).norm(dim=-1)
        torch.testing.assert_close(error.double(), arrays[f"out_err_{column}"][batch], rtol=1e-6, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize(("column", "image", "row"), [("same", 0, 2), ("diff", 1, 3)])
    def test_cl_with_a_compact_map(self, golden, column, image, row, dtype):
        arrays = golden("matching_cl")
        points = arrays["in_batch0_keypoints_px"].to(dtype)
        source = arrays["in_compact_image1"][:1].to(dtype)
        target = arrays["in_compact_image2"][image : image + 1].to(dtype)
        got = match([source], [target], points[:1])[0]
        expected = arrays[f"out_compact_pred_{column}_px"]
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-9)
        error = cl_grid(image_size=96, cells=96).published_scale * (got - points[row]).norm(dim=-1)
        torch.testing.assert_close(error.double(), arrays[f"out_compact_err_{column}"], rtol=1e-6, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("column", ["same", "diff"])
    def test_dve(self, golden, column, dtype):
        arrays = golden("matching_dve")
        source, target = ([arrays[f"in_{name}"][None].to(dtype)] for name in ("source", column))
        points = arrays["in_kp_source"][None].to(dtype)
        grid = dve_grid(image_size=96, cells=48)
        assert grid.spacing == arrays["par_stride"].item()
        assert torch.equal(grid.index(points)[0].double(), arrays["out_query_index"])
        scores = similarity(source, target, grid.index(points), cells=48, normalise="none")
        tolerance = {"rtol": 1e-8, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        best = scores.flatten(2).amax(-1)[0].double()
        torch.testing.assert_close(best, arrays[f"out_top_score_{column}"], **tolerance)
        got = match_dve(source, target, points)[0].double()
        assert torch.equal(got, arrays[f"out_pred_{column}"])
        error = grid.published_scale * (got - arrays[f"in_kp_{column}"]).norm(dim=-1)
        torch.testing.assert_close(error, arrays[f"out_err_{column}"], rtol=1e-8, atol=1e-9)
        assert error.mean().item() == pytest.approx(arrays[f"out_mean_err_{column}"].item())

    @pytest.mark.parametrize("name", ["24", "48", "24_layers_4_3_2"])
    def test_the_plain_form_is_the_references_hypercolumn(self, golden, name):
        arrays = golden("hypercolumn")
        layers = (2, 3, 4) if name.endswith("4_3_2") else (1, 2, 3, 4)
        got = torch.cat(hypercolumn([arrays[f"in_layer{layer}"] for layer in layers], int(name[:2])), dim=1)
        torch.testing.assert_close(got, arrays[f"out_hypercolumn_{name}"], rtol=1e-8, atol=1e-9)


class TestPlainForm:
    @pytest.mark.parametrize("normalise", NORMALISATIONS)
    @pytest.mark.parametrize(
        ("shapes", "cells"),
        [
            (TRUNK, 96),
            (TRUNK, 24),
            (((8, 24, 24),), 96),
            (((3, 5, 7), (2, 1, 1)), 11),  # not square, and a single cell
            (((3, 20, 18),), 9),  # smaller than the block
        ],
    )
    def test_equals_similarity(self, shapes, cells, normalise):
        source, target = random_blocks(shapes, seed=0), random_blocks(shapes, seed=1)
        index = torch.randint(0, cells, (2, 6, 2), generator=torch.Generator().manual_seed(2))
        got = similarity(source, target, index, cells=cells, normalise=normalise)
        expected = plain_similarity(source, target, index, cells=cells, normalise=normalise)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        single = similarity(
            [block.float() for block in source],
            [block.float() for block in target],
            index,
            cells=cells,
            normalise=normalise,
        )
        torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("normalise", NORMALISATIONS)
    def test_descriptors_of_zero_are_similar_to_nothing(self, normalise):
        zero, other = (
            [torch.zeros(1, 3, 4, 4)],
            random_blocks(((3, 4, 4),), seed=0, batch=1, dtype=torch.float32),
        )
        index = torch.tensor([[[1, 2]]])
        assert (similarity(zero, other, index, cells=8, normalise=normalise) == 0).all()
        assert (similarity(other, zero, index, cells=8, normalise=normalise) == 0).all()


class TestByHand:
    def test_two_orthogonal_layers(self):
        # Layer 1 matches at cell (1, 0), layer 2 at (1, 0) and (0, 1): the first has both.
        source = [torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)] * 2
        fine, coarse = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
        fine[0, 1], coarse[0, 1] = 1, 1
        fine[0, :, 0, 1] = torch.tensor([7.0, 0.0])
        coarse[0, :, 0, 1] = coarse[0, :, 1, 0] = torch.tensor([0.1, 0.0])
        index = torch.zeros(1, 1, 2, dtype=torch.long)
        got = similarity(source, [fine, coarse], index, cells=2)
        torch.testing.assert_close(got[0, 0], torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
        points = torch.tensor([[[0.0, 0.0]]])
        assert match(source, [fine, coarse], points, image_size=96, grid=2).tolist() == [[[95, 0]]]
        assert match_dve(source, [fine, coarse], points).tolist() == [[[48, 0]]]

    def test_cells_of_both_grids(self):
        points = torch.tensor([[[-3.0, 1.0], [3.0, 5.0], [95.0, 99.0]]])
        assert dve_grid(image_size=96, cells=48).index(points).tolist() == [[[0, 0], [2, 2], [47, 47]]]
        assert dve_grid(image_size=96, cells=48).nearest(points).tolist() == [[[0, 0], [4, 4], [94, 94]]]
        assert cl_grid(image_size=96, cells=96).nearest(points).tolist() == [[[0, 1], [3, 5], [95, 95]]]
        assert cl_grid(image_size=96, cells=2).nearest(points).tolist() == [[[0, 0], [0, 0], [95, 95]]]

    def test_scales_of_both_grids(self):
        assert cl_grid(image_size=96, cells=48).published_scale == 69 / 95
        assert dve_grid(image_size=96, cells=48).published_scale == 70 / 96


class TestProperties:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), x=st.floats(2, 93), y=st.floats(2, 93))
    def test_an_image_matches_itself(self, seed, x, y):
        """Within 2 pixels of the border the resized map repeats itself, so the first of equals wins there."""
        blocks = random_blocks(TRUNK, seed=seed, batch=1)
        points = torch.tensor([[[x, y]]], dtype=torch.float64)
        assert torch.equal(match(blocks, blocks, points), points.round())
        assert torch.equal(match(blocks, blocks, points, normalise="global"), points.round())

    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), x=st.integers(0, 11), y=st.integers(0, 11))
    def test_a_shifted_target_shifts_the_match(self, seed, x, y):
        (source,) = random_blocks(((16, 12, 12),), seed=seed)
        (target,) = random_blocks(((16, 12, 12),), seed=seed + 1)
        points = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 95
        before = match([source], [target], points, grid=12) / (95 / 11)
        after = match([source], [target.roll((y, x), (2, 3))], points, grid=12) / (95 / 11)
        expected = (before.round() + torch.tensor([x, y])) % 12
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-9)

    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
    def test_only_per_layer_cosines_ignore_the_scale_of_a_layer(self, seed, factor):
        source, target = random_blocks(TRUNK, seed=seed), random_blocks(TRUNK, seed=seed + 1)
        index = torch.randint(0, 24, (2, 4, 2), generator=torch.Generator().manual_seed(seed))
        scaled = [target[0] * factor, *target[1:]]
        before, after = (similarity(source, blocks, index, cells=24) for blocks in (target, scaled))
        torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-9)
        assert before.abs().max() <= len(TRUNK) + 1e-9


class TestErrors:
    def test_unknown_normalisation(self, unchecked):
        blocks = random_blocks(TRUNK, seed=0)
        with pytest.raises(ValueError, match="normalise must be one of per-layer, global, none, got 'layer'"):
            match(blocks, blocks, torch.zeros(2, 1, 2).double(), normalise="layer")

    def test_blocks_that_do_not_pair_up(self):
        blocks = random_blocks(TRUNK, seed=0)
        points = torch.zeros(2, 1, 2).double()
        for source, target in (([], []), (blocks, blocks[:3]), (blocks[:1], blocks[1:2])):
            with pytest.raises(ValueError, match="source and target need the same blocks, at least one"):
                match(source, target, points)

    def test_grid_of_one_cell(self):
        with pytest.raises(ValueError, match="grid must have at least 2 cells per side, got 1"):
            cl_grid(image_size=96, cells=1)
