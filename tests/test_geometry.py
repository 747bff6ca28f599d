"""Warps and crops against values by hand, numpy loops and properties."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lead_ray import geometry
from lead_ray.geometry import Warper

EXACT = {"rtol": 1e-8, "atol": 1e-9}
sizes = st.integers(4, 40)


def translation(x, y, *, dtype=torch.float64):
    """Weights of the warp that only moves by normalised (x, y)."""
    weights = torch.zeros(1, 103, 2, dtype=dtype)
    weights[0, 100:] = torch.tensor([[x, y], [1, 0], [0, 1]], dtype=dtype)
    return weights


def random_weights(seed, count=2, warper=None, dtype=torch.float64):
    draws = geometry.draw_warps(count, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return geometry.warp_weights(draws, warper or Warper())


class TestByHand:
    def test_ends_of_an_image(self):
        corners = torch.tensor([[0.0, 0.0], [4.0, 2.0], [2.0, 1.0]])
        got = geometry.normalise(corners, height=3, width=5)
        assert got.tolist() == [[-1, -1], [1, 1], [0, 0]]

    def test_kernel_at_distance_zero_and_one(self):
        got = geometry.kernel(torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double(), torch.zeros(1, 2).double())
        assert got.flatten().tolist() == pytest.approx([0, math.log(1 + 1e-5)])

    def test_translation_by_three_pixels_right_and_one_up(self):
        # The grid looks 3 px further right and 1 px higher: everything appears further left and lower.
        grids = geometry.warp_grids(translation(2 * 3 / 10, -2 * 1 / 8), height=9, width=11)
        image = torch.zeros(1, 1, 9, 11).double()
        image[0, 0, 4, 6] = 1
        warped = geometry.warp_images(image, grids)
        expected = torch.zeros_like(image)
        expected[0, 0, 5, 3] = 1
        torch.testing.assert_close(warped, expected, **EXACT)
        moved = geometry.warp_keypoints(grids, torch.tensor([[[6.0, 4.0]]]).double())
        assert moved.tolist() == [[[3.0, 5.0]]]
        torch.testing.assert_close(
            geometry.flow(grids), torch.tensor([3.0, -1.0]).double().expand(1, 9, 11, 2), **EXACT
        )

    def test_quarter_turn_with_doubled_scale(self):
        draws = geometry.WarpDraws(
            kernel=torch.zeros(1, 100, 2),
            choice=torch.zeros(1, 100, 2),
            subset=torch.zeros(1, 100, 2),
            rotation=torch.tensor([1.0]),
            scale=torch.tensor([1.0]),
            translation=torch.tensor([[0.5, 0.25]]),
        )
        weights = geometry.warp_weights(draws, Warper(rotation_std=90.0, scale_std=1.0, translation_std=1.0))
        got = geometry.warp_points(weights, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        expected = torch.tensor([[[0.5, 0.25 - 2], [0.5 + 2, 0.25]]])
        torch.testing.assert_close(got, expected)

    def test_points_that_left_end_on_the_border(self):
        grids = geometry.warp_grids(translation(0, 0), height=5, width=7)
        far = torch.tensor([[[-100.0, 2.0], [100.0, 100.0]]]).double()
        assert geometry.warp_keypoints(grids, far).tolist() == [[[0, 2], [6, 4]]]

    def test_first_of_two_warps_uses_the_multipliers(self):
        draws = geometry.draw_warps(1, generator=torch.Generator().manual_seed(0))
        halved = Warper(first_multiplier=0.5, first_affine_multiplier=0.0)
        full = geometry.warp_weights(draws, halved)
        first = geometry.warp_weights(draws, halved, first=True)
        torch.testing.assert_close(first[:, :100], full[:, :100] / 2)
        assert first[0, 100:].tolist() == [[0, 0], [1, 0], [0, 1]]


class TestSlowReference:
    def test_warp_matches_a_numpy_loop(self):
        weights = random_weights(1, count=1)
        grid = geometry.warp_grids(weights, height=4, width=6)[0].numpy()
        side = numpy.linspace(-1, 1, 10)
        rows = weights[0].numpy()
        for row, y in enumerate(numpy.linspace(-1, 1, 4)):
            for column, x in enumerate(numpy.linspace(-1, 1, 6)):
                value = rows[100] + x * rows[101] + y * rows[102]
                for centre in range(100):
                    squared = (x - side[centre % 10]) ** 2 + (y - side[centre // 10]) ** 2
                    value = value + squared * numpy.log(squared + 1e-5) * rows[centre]
                numpy.testing.assert_allclose(grid[row, column], value, rtol=1e-10, atol=1e-12)

    def test_key_points_match_a_numpy_search(self):
        height, width = 20, 30
        grids = geometry.warp_grids(random_weights(2), height=height, width=width)
        points = torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(3)).double() * 25
        got = geometry.warp_keypoints(grids, points)
        for image in range(2):
            sampled = (grids[image].numpy() + 1) / 2 * [width - 1, height - 1]
            for point in range(6):
                distance = numpy.linalg.norm(sampled - points[image, point].numpy(), axis=-1)
                row, column = numpy.unravel_index(distance.argmin(), distance.shape)
                assert got[image, point].tolist() == [column, row]


class TestProperties:
    @given(height=st.integers(2, 300), width=st.integers(2, 300), x=st.floats(-500, 500), y=st.floats(-500, 500))
    def test_pixels_inverts_normalise(self, height, width, x, y):
        point = torch.tensor([x, y], dtype=torch.float64)
        back = geometry.pixels(geometry.normalise(point, height=height, width=width), height=height, width=width)
        torch.testing.assert_close(back, point, rtol=1e-9, atol=1e-9)

    @settings(max_examples=20)
    @given(height=sizes, width=sizes, seed=st.integers(0, 100))
    def test_a_warper_without_strength_changes_nothing(self, height, width, seed):
        still = Warper(kernel_std=0.0, subset_std=0.0, translation_std=0.0, scale_std=0.0, rotation_std=0.0)
        grids = geometry.warp_grids(random_weights(seed, 1, still), height=height, width=width)
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 2, height, width, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(geometry.warp_images(image, grids), image, **EXACT)
        span = torch.tensor([width - 1, height - 1])
        points = torch.rand(1, 3, 2, generator=generator, dtype=torch.float64) * span
        assert torch.equal(geometry.warp_keypoints(grids, points), points.round())
        torch.testing.assert_close(geometry.flow(grids), torch.zeros_like(grids), **EXACT)

    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), height=sizes, width=sizes)
    def test_points_and_grids_agree(self, seed, height, width):
        weights = random_weights(seed)
        identity = geometry.identity_grid(height=height, width=width, dtype=torch.float64)
        points = geometry.warp_points(weights, identity.flatten(0, 1).expand(2, -1, -1))
        grids = geometry.warp_grids(weights, height=height, width=width)
        torch.testing.assert_close(grids.flatten(1, 2), points, **EXACT)

    @settings(max_examples=20)
    @given(seed=st.integers(0, 1000), margin=st.integers(0, 5))
    def test_cropping_commutes_with_warping(self, seed, margin):
        """Where all outside the crop is 0, which is what a warp of the crop sees there."""
        image = torch.zeros(1, 1, 14, 17, dtype=torch.float64)
        inside = geometry.crop_images(image, margin=margin)
        inside.copy_(torch.rand(inside.shape, generator=torch.Generator().manual_seed(seed)))
        grids = geometry.warp_grids(random_weights(seed, 1), height=14, width=17)
        late = geometry.crop_images(geometry.warp_images(image, grids), margin=margin)
        early = geometry.warp_images(inside, geometry.crop_grids(grids, margin=margin))
        torch.testing.assert_close(early, late, **EXACT)

    def test_batches_are_independent(self):
        weights = random_weights(5, count=3)
        together = geometry.warp_grids(weights, height=12, width=10)
        for index in range(3):
            alone = geometry.warp_grids(weights[index : index + 1], height=12, width=10)
            torch.testing.assert_close(together[index : index + 1], alone, **EXACT)

    def test_one_seed_one_warp(self):
        assert torch.equal(random_weights(7), random_weights(7))
        assert not torch.equal(random_weights(7), random_weights(8))

    def test_strength_of_random_warps(self):
        weights = random_weights(0, count=4000)
        variance = (0.0005**2 + 0.005**2) / 2
        assert weights[:, :100].std().item() == pytest.approx(math.sqrt(variance), rel=0.02)
        assert weights[:, 100].std().item() == pytest.approx(0.05, rel=0.03)
        scale = weights[:, 101].norm(dim=-1)
        assert (scale.mean().item(), scale.std().item()) == pytest.approx((1, 0.05), rel=0.03)
        angle = torch.rad2deg(torch.atan2(-weights[:, 101, 1], weights[:, 101, 0]))
        assert angle.std().item() == pytest.approx(2.5, rel=0.03)


class TestErrors:
    @pytest.mark.parametrize("margin", [-1, 5])
    def test_margin_must_leave_something(self, margin):
        with pytest.raises(ValueError, match=rf"margin must be >= 0 .* 10 x 12, got {margin}"):
            geometry.crop_images(torch.zeros(3, 10, 12), margin=margin)
        with pytest.raises(ValueError, match="margin"):
            geometry.crop_grids(torch.zeros(1, 10, 12, 2), margin=margin)

    def test_negative_strength(self):
        with pytest.raises(ValueError, match=r"warper.rotation_std must be >= 0, got -1"):
            Warper(rotation_std=-1.0)
