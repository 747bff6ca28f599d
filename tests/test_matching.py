"""The matching protocol: features that know the answer, each step by hand, what changes no result."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lead_ray import geometry
from lead_ray.augmentation import augment
from lead_ray.evaluation.matching import Matching, match_pairs

STILL = geometry.Warper(kernel_std=0.0, subset_std=0.0, translation_std=0.0, scale_std=0.0, rotation_std=0.0)


def ramps(n):
    """Images whose red and green say where a pixel lies."""
    position = torch.arange(136, dtype=torch.uint8) + 60
    red, green = position.expand(136, 136), position[:, None].expand(136, 136)
    return torch.stack([red, green, torch.zeros_like(red)]).repeat(n, 1, 1, 1)


def annotated(n, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean_face = torch.tensor([[50.0, 56.0], [86.0, 56.0], [68.0, 76.0], [52.0, 95.0], [84.0, 95.0]])
    return mean_face + torch.randn(n, 5, 2, generator=generator)


def place_of_ramps(crops):
    """One descriptor per pixel, most similar to that of the same place of the ramp."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (augment.FACE_MEAN, augment.FACE_STD))
    grey_levels = (crops * std + mean)[:, :2] * 255
    angle = (grey_levels - 128) / 100
    return [torch.cat([angle.sin(), angle.cos()], dim=1)]


def blurred_colours(crops):
    return [functional.avg_pool2d(crops, 9, stride, 4) for stride in (4, 8)]


class TestPairs:
    def test_features_that_know_the_place_reach_the_floor(self):
        n = 12
        landmarks = annotated(n // 2).repeat_interleave(2, dim=0)
        found = match_pairs(ramps(n), landmarks, place_of_ramps)
        # Grey levels are truncated after every warp: with A's two warps a match can be off by a pixel or so.
        assert found.cl_same.error.mean() < 1
        assert found.cl_diff.error.mean() < 1
        assert found.cl_same.floor.max() < 1
        assert found.cl_same.baseline.mean() > 2
        assert found.cl_diff.baseline.mean() > 2

    def test_without_warps_only_the_grid_is_in_the_way(self):
        n = 4
        landmarks = annotated(n).round()
        images = torch.randint(0, 256, (n, 3, 136, 136), generator=torch.Generator().manual_seed(0)).byte()
        found = match_pairs(images, landmarks, lambda crops: [crops], Matching(warper=STILL))
        crop = (landmarks - 20).double()
        assert torch.equal(found.source, crop[0::2])
        assert torch.equal(found.same, crop[0::2])
        assert torch.equal(found.diff, crop[1::2])
        assert torch.equal(found.cl_same.predicted, crop[0::2])
        assert found.cl_same.error.max() == 0
        assert found.cl_diff.floor.max() == 0
        expected = (crop[0::2] - crop[1::2]).norm(dim=-1) * 69 / 95
        torch.testing.assert_close(found.cl_diff.baseline, expected)
        torch.testing.assert_close(found.dve_diff.baseline, expected * 95 / 69 * 70 / 96)

    def test_multipliers_weaken_a_first_warp_only(self):
        landmarks = annotated(2)
        warper = geometry.Warper(first_multiplier=0.0, first_affine_multiplier=0.0)
        found = match_pairs(ramps(2), landmarks, blurred_colours, Matching(warper=warper))
        crop = landmarks.round().double() - 20
        assert torch.equal(found.same, crop[:1])
        assert torch.equal(found.diff, crop[1:])
        assert (found.source - found.same).abs().max() > 1

    def test_floor_under_diff_by_hand(self):
        """From pixel 33 to 43: pixel 32, of cell 8, belongs to 42, halfway to the even cell 10, pixel 40."""
        landmarks = torch.full((2, 2, 2), 53.0)
        landmarks[1], landmarks[:, 1] = 63, 100
        images = torch.zeros(2, 3, 136, 136, dtype=torch.uint8)
        found = match_pairs(images, landmarks, lambda crops: [crops[..., ::4, ::4]], Matching(warper=STILL))
        assert found.dve_diff.floor[0, 0].item() == pytest.approx(3 * 2**0.5 * 70 / 96)
        assert found.dve_same.floor[0, 0].item() == pytest.approx(1 * 2**0.5 * 70 / 96)

    def test_crops_are_whole_grey_levels_normalised(self):
        seen = []

        def features(crops):
            seen.append(crops)
            return blurred_colours(crops)

        images = torch.randint(0, 256, (2, 3, 136, 136), generator=torch.Generator().manual_seed(0)).byte()
        match_pairs(images, annotated(2), features)
        (crops,) = seen
        assert crops.shape == (3, 3, 96, 96)
        mean, std = (torch.tensor(value)[:, None, None] for value in (augment.FACE_MEAN, augment.FACE_STD))
        grey_levels = (crops * std + mean) * 255
        torch.testing.assert_close(grey_levels, grey_levels.round(), rtol=0, atol=1e-3)

    def test_images_and_points_follow_the_warps_of_the_seed(self):
        """The protocol for one pair, step by step."""
        seen = []

        def features(crops):
            seen.append(crops)
            return blurred_colours(crops)

        images = torch.randint(0, 256, (2, 3, 136, 136), generator=torch.Generator().manual_seed(0)).byte()
        landmarks = annotated(2)
        found = match_pairs(images, landmarks, features, Matching(seed=3))
        draws = geometry.draw_warps(3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        grids = geometry.warp_grids(geometry.warp_weights(draws, geometry.Warper()), height=136, width=136)
        first, second, other = (grid[None] for grid in grids)
        a, b = (image[None].double() for image in images)
        same = geometry.warp_images(a, first)
        source = geometry.warp_images(same, second)
        diff = geometry.warp_images(b, other)
        mean, std = (torch.tensor(value)[:, None, None] for value in (augment.FACE_MEAN, augment.FACE_STD))
        for crop, expected in zip(seen[0], (source, same, diff), strict=True):
            grey_levels = (crop * std + mean) * 255
            torch.testing.assert_close(grey_levels, expected[0, :, 20:-20, 20:-20].trunc().float(), rtol=0, atol=1.01)
        same_points = geometry.warp_keypoints(first, landmarks[:1].double())
        assert torch.equal(found.same, same_points - 20)
        assert torch.equal(found.source, geometry.warp_keypoints(second, same_points) - 20)
        assert torch.equal(found.diff, geometry.warp_keypoints(other, landmarks[1:].double()) - 20)

    def test_neither_batches_nor_later_pairs_change_a_result(self):
        n = 10
        images = functional.interpolate(
            torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(0)), size=(136, 136)
        )
        images, landmarks = (images * 255).byte(), annotated(n)
        settings = Matching(seed=1)
        found = match_pairs(images, landmarks, blurred_colours, settings)
        singly = match_pairs(images, landmarks, blurred_colours, replace(settings, pairs_per_batch=1))
        fewer = match_pairs(images[:4], landmarks[:4], blurred_colours, settings)
        for name in ("cl_same", "cl_diff", "dve_same", "dve_diff"):
            whole = getattr(found, name)
            assert whole.predicted.shape == (5, 5, 2)
            assert torch.equal(whole.predicted, getattr(singly, name).predicted)
            assert torch.equal(whole.predicted[:2], getattr(fewer, name).predicted)
        assert found.summary() == pytest.approx(singly.summary())
        other = match_pairs(images, landmarks, blurred_colours, replace(settings, seed=2))
        assert not torch.equal(found.source, other.source)

    def test_floors_are_those_of_the_published_protocol(self):
        """On other simulated faces "same" had 0.04 px on 96 cells, 0.89 on 48 and 1.58 on 24."""
        n = 60
        floors = {}
        for stride in (2, 4):
            found = match_pairs(
                torch.zeros(n, 3, 136, 136, dtype=torch.uint8),
                annotated(n),
                lambda crops, stride=stride: [crops[..., ::stride, ::stride]],
            )
            floors[stride] = found.dve_same.floor.mean().item()
            assert found.cl_same.floor.mean().item() == pytest.approx(0.04, abs=0.03)
        assert floors == pytest.approx({2: 0.89, 4: 1.58}, abs=0.12)

    def test_errors_are_measured_at_the_warped_target(self):
        found = match_pairs(ramps(4), annotated(4), blurred_colours, eyes=(2, 4))
        for column, scale, target in (
            (found.cl_same, 69 / 95, found.same),
            (found.cl_diff, 69 / 95, found.diff),
            (found.dve_same, 70 / 96, found.same),
            (found.dve_diff, 70 / 96, found.diff),
        ):
            distance = (column.predicted - target).norm(dim=-1)
            eyes = (target[:, 2] - target[:, 4]).norm(dim=-1, keepdim=True)
            torch.testing.assert_close(column.error, scale * distance)
            torch.testing.assert_close(column.iod_percent, 100 * distance / eyes)
            torch.testing.assert_close(column.baseline, scale * (found.source - target).norm(dim=-1))
        summary = found.summary()
        assert len(summary) == 16
        assert summary["dve_diff_iod_percent"] == pytest.approx(found.dve_diff.iod_percent.mean().item())

    def test_hidden_points_count_nowhere(self):
        """Two pairs: A and B of the first hide different points, wherever they are; A of the second hides all."""
        landmarks, visible = annotated(4).round(), torch.ones(4, 5, dtype=torch.bool)
        visible[0, 0], visible[1, 1], visible[2] = False, False, False
        landmarks[0, 0], landmarks[1, 1] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        images, settings = ramps(4), Matching(warper=STILL, pairs_per_batch=1)
        found = match_pairs(images, landmarks, lambda crops: [crops], settings, eyes=(3, 4), visible=visible)
        assert found.cl_same.counted.tolist() == [[False, True, True, True, True], [False] * 5]
        assert found.cl_diff.counted.tolist() == [[False, False, True, True, True], [False] * 5]
        moved = [(landmarks[0, point] - landmarks[1, point]).norm().item() for point in (2, 3, 4)]
        eyes = (landmarks[1, 3] - landmarks[1, 4]).norm().item()
        summary = found.summary()
        assert summary["cl_diff_baseline"] == pytest.approx(sum(moved) / 3 * 69 / 95)
        assert summary["cl_diff_iod_percent"] == pytest.approx(
            (found.cl_diff.predicted[0] - found.diff[0])[2:].norm(dim=-1).mean().item() / eyes * 100
        )
        assert summary["cl_same_error"] == pytest.approx(found.cl_same.error[0, 1:].mean().item())
        anywhere = landmarks.where(visible[..., None], torch.nan)
        poisoned = match_pairs(images, anywhere, lambda crops: [crops], settings, eyes=(3, 4), visible=visible)
        assert poisoned.summary() == summary
        without = match_pairs(images, landmarks, lambda crops: [crops], settings, visible=visible).summary()
        assert "cl_diff_iod_percent" not in without, "no target shows the usual two points"
        every = match_pairs(images, landmarks, lambda crops: [crops], settings)
        assert every.cl_diff.counted.all()
        assert every.summary()["cl_diff_error"] == pytest.approx(every.cl_diff.error.mean().item())


class TestErrors:
    def test_unknown_normalisation(self, unchecked):
        with pytest.raises(ValueError, match=r"matching.normalise must be one of per-layer, .* got 'layer'"):
            Matching(normalise="layer")

    def test_settings_out_of_range(self):
        with pytest.raises(ValueError, match=r"matching.grid must be >= 2, got 1"):
            Matching(grid=1)
        with pytest.raises(ValueError, match=r"matching.pairs_per_batch must be >= 1, got 0"):
            Matching(pairs_per_batch=0)

    @pytest.mark.parametrize("n", [0, 3])
    def test_images_must_form_pairs(self, n):
        with pytest.raises(ValueError, match=f"even number, at least 2, to form pairs, got {n}"):
            match_pairs(ramps(n), annotated(n), blurred_colours)

    def test_landmarks_of_other_images(self, unchecked):
        with pytest.raises(ValueError, match="landmarks must be those of the 4 images, got 3"):
            match_pairs(ramps(4), annotated(3), blurred_colours)

    def test_no_point_is_visible_twice(self):
        visible = torch.tensor([[True] * 5, [False] * 5])
        with pytest.raises(ValueError, match="no point is visible in both images of any pair"):
            match_pairs(ramps(2), annotated(2), blurred_colours, visible=visible)

    def test_eyes_that_coincide_name_the_image(self):
        landmarks = annotated(40)
        landmarks[37, 0] = landmarks[37, 1]
        with pytest.raises(ValueError, match="image 37 has inter-ocular distance 0"):
            match_pairs(ramps(40), landmarks, blurred_colours)

    def test_eyes_within_a_pixel_have_no_unit_and_end_nothing(self):
        """A face in profile: targets are whole pixels, so its eyes may become one."""
        landmarks = annotated(4)
        landmarks[3, 0] = landmarks[3, 1] + 0.01
        found = match_pairs(ramps(4), landmarks, blurred_colours)
        assert found.cl_diff.iod_percent[1].isnan().all() and found.cl_diff.iod_percent[0].isfinite().all()
        assert found.cl_diff.error.isfinite().all()
        assert found.summary()["cl_diff_iod_percent"] == pytest.approx(found.cl_diff.iod_percent[0].mean().item())
