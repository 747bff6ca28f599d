"""Landmark errors against the numbers of DVE's and CL's code, values by hand, numpy loops and properties."""

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lead_ray import metrics

EYES = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS}


def faces(seed, images=4, points=5):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(images, points, 2, generator=generator, dtype=torch.float64) * 90
    return target + torch.randn(target.shape, generator=generator, dtype=torch.float64), target


class TestGolden:
    @pytest.mark.parametrize("points", [5, 68])
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, {"rtol": 1e-8, "atol": 1e-9}), (torch.float32, {"rtol": 1e-4, "atol": 1e-5})],
    )
    def test_inter_ocular_error(self, golden, points, dtype, tolerance):
        arrays = golden("iod_metric")
        eyes = EYES[points]
        assert arrays[f"par_eyes_{points}"].tolist() == list(eyes)
        predicted, target = (arrays[f"in_{name}_{points}"].to(dtype) for name in ("pred", "gt"))

        def check(got, name):
            expected = arrays[f"out_iod_percent_{name}{points}"]
            torch.testing.assert_close(got.double(), expected, **tolerance)

        check(metrics.inter_ocular_error(predicted, target, eyes=eyes), "")
        check(metrics.inter_ocular_error_per_image(predicted, target, eyes=eyes), "per_image_")
        size = int(arrays["in_batch_size"])
        batches = list(zip(predicted.split(size), target.split(size), strict=True))
        values = torch.stack([metrics.inter_ocular_error(*batch, eyes=eyes) for batch in batches])
        check(values, "per_batch_")
        weights = torch.tensor([len(batch[0]) for batch in batches])
        check((values * weights).sum() / weights.sum(), "epoch_")

    def test_bird_pck(self, golden):
        arrays = golden("pck_bird")
        inputs = arrays["in_pred"], arrays["in_gt"], arrays["in_visible"].bool()
        options = {"box": int(arrays["par_box"]), "threshold": arrays["par_threshold"].item()}

        def percent(predicted, target, visible):
            return metrics.bird_pck(predicted, target, visible=visible, **options)

        size = int(arrays["in_batch_size"])
        batches = list(zip(*(array.split(size) for array in inputs), strict=True))
        values = torch.stack([percent(*batch) for batch in batches])
        weights = torch.tensor([len(batch[0]) for batch in batches])
        tolerance = {"rtol": 1e-5, "atol": 0}
        torch.testing.assert_close(percent(*inputs), arrays["out_pck_percent"], **tolerance)
        torch.testing.assert_close(values, arrays["out_pck_percent_per_batch"], **tolerance)
        epoch = (values * weights).sum() / weights.sum()
        torch.testing.assert_close(epoch, arrays["out_pck_percent_epoch"], **tolerance)
        scores = metrics.bird_scores(*inputs[:2], visible=inputs[2], batch_size=size)
        assert scores["pck_coded"] == pytest.approx(arrays["out_pck_percent_epoch"].item(), rel=1e-5)


class TestByHand:
    target = torch.tensor([[[10.0, 10.0], [20.0, 10.0], [15.0, 30.0]]])
    predicted = torch.tensor([[[10.0, 10.0], [23.0, 14.0], [15.0, 31.0]]])

    def test_distances_of_0_5_and_1_pixels(self):
        assert metrics.pixel_errors(self.predicted, self.target).tolist() == [[0, 5, 1]]
        assert metrics.pixel_error(self.predicted, self.target).item() == 2
        assert metrics.inter_ocular_errors(self.predicted, self.target).tolist() == [[0, 50, 10]]
        assert metrics.inter_ocular_error(self.predicted, self.target).item() == pytest.approx(20)

    def test_eyes_are_chosen(self):
        assert metrics.inter_ocular_distance(self.target, eyes=(0, 1)).tolist() == [10]
        assert metrics.inter_ocular_distance(self.target, eyes=(1, 2)).item() == pytest.approx(425**0.5)

    def test_hidden_points_do_not_count(self):
        visible = torch.tensor([[True, False, True]])
        got = [
            metrics.pixel_error(self.predicted, self.target, visible=visible),
            metrics.inter_ocular_error(self.predicted, self.target, visible=visible, eyes=(0, 2)),
            metrics.inter_ocular_error_per_image(self.predicted, self.target, visible=visible, eyes=(0, 2))[0],
            metrics.pck(self.predicted, self.target, radius=2.0, visible=visible),
        ]
        assert [value.item() for value in got] == pytest.approx([0.5, 50 / 425**0.5, 50 / 425**0.5, 100])

    @pytest.mark.parametrize("hidden", [0.0, 1e9, float("nan")])
    def test_an_image_that_hides_an_eye_has_no_unit(self, hidden):
        predicted, target = self.predicted.repeat(2, 1, 1), self.target.repeat(2, 1, 1)
        target[0, 1] = hidden
        visible = torch.tensor([[True, False, True], [True, True, True]])
        assert metrics.inter_ocular_distance(target, visible=visible)[0].isnan()
        assert metrics.inter_ocular_error(predicted, target, visible=visible).item() == pytest.approx(20)
        assert metrics.inter_ocular_error_per_image(predicted, target, visible=visible)[0].isnan()
        with pytest.raises(ValueError, match=r"no image shows both eyes \(0, 1\)"):
            metrics.inter_ocular_error(predicted[:1], target[:1], visible=visible[:1])

    def test_an_image_without_visible_points_has_no_error_of_its_own(self):
        predicted, target = self.predicted.repeat(2, 1, 1), self.target.repeat(2, 1, 1)
        visible = torch.tensor([[False] * 3, [True] * 3])
        per_image = metrics.inter_ocular_error_per_image(predicted, target, visible=visible)
        assert per_image[0].isnan()
        assert per_image[1].item() == pytest.approx(20)
        assert metrics.inter_ocular_error(predicted, target, visible=visible).item() == pytest.approx(20)

    def test_an_image_without_visible_points_needs_no_eyes(self):
        predicted, target = self.predicted.repeat(2, 1, 1), self.target.repeat(2, 1, 1)
        target[0] = 0
        visible = torch.tensor([[False] * 3, [True] * 3])
        assert metrics.inter_ocular_error(predicted, target, visible=visible).item() == pytest.approx(20)
        assert metrics.inter_ocular_error_per_image(predicted, target, visible=visible)[0].isnan()
        with pytest.raises(ValueError, match="image 0 has inter-ocular distance 0"):
            metrics.inter_ocular_error(predicted, target, visible=visible.logical_not())

    def test_pck_wants_points_nearer_than_the_radius(self):
        percent = [metrics.pck(self.predicted, self.target, radius=r).item() for r in (0.5, 1.0, 1.1, 6.0)]
        assert percent == pytest.approx([100 / 3, 100 / 3, 200 / 3, 100])

    @pytest.mark.parametrize(("pixels", "truncated", "plain"), [(2.3, 100, 100), (2.9, 100, 0), (3.0, 0, 0)])
    def test_bird_pck_accepts_up_to_three_pixels(self, pixels, truncated, plain):
        target = torch.zeros(1, 1, 2)
        predicted = torch.tensor([[[pixels / 47 * 2, 0.0]]])
        visible = torch.ones(1, 1, dtype=torch.bool)
        assert metrics.bird_pck(predicted, target, visible=visible).item() == truncated
        assert metrics.bird_pck(predicted, target, visible=visible, truncate=False).item() == plain

    def test_bird_pck_weighs_key_points_alike_and_skips_the_first_row_and_column(self):
        target = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [-1.0, 0.5]], [[0.0, 0.0], [0.5, -1.0]]])
        wrong = torch.tensor([[0, 1], [0, 0], [0, 0]]).unsqueeze(-1)
        visible = torch.ones(3, 2, dtype=torch.bool)
        # Point 0 is right in 3 of 3 images, point 1 in 0 of 1: 50 %, though 3 of 4 points are right.
        assert metrics.bird_pck(target + wrong, target, visible=visible).item() == 50

    @pytest.mark.parametrize(
        ("pixels", "stated", "coded"), [(4.7, 100, 100), (4.9, 0, 100), (5.9, 0, 100), (6.1, 0, 0)]
    )
    def test_bird_scores_stated_and_coded(self, pixels, stated, coded):
        """5 % of 96 pixels are 4.8; coded, everything below 3 of 48, which is 6.06 of 96."""
        target = torch.zeros(3, 2, 2)
        predicted = target + torch.tensor([pixels * 2 / 95, 0.0])
        visible = torch.tensor([[True, False], [False, False], [True, True]])
        predicted[0, 1] = torch.nan
        scores = metrics.bird_scores(predicted, target, visible=visible)
        assert scores == {"pck": stated, "pck_coded": coded, "skipped": 1}

    def test_bird_scores_weigh_batches_by_size_and_pass_over_empty_ones(self):
        target = torch.zeros(5, 1, 2)
        predicted = torch.tensor([0.0, 0, 1, 0, 1]).view(5, 1, 1).expand(5, 1, 2)
        visible = torch.tensor([True, True, False, False, True]).view(5, 1)
        scores = metrics.bird_scores(predicted, target, visible=visible, batch_size=2)
        # Batches of 2, 2 and 1 images: 100 %, nothing to see, 0 %.
        assert scores == {"pck": pytest.approx(200 / 3), "pck_coded": pytest.approx(200 / 3), "skipped": 2}
        with pytest.raises(ValueError, match="no point is visible"):
            metrics.bird_scores(predicted, target, visible=~(visible | True))


class TestSlowReference:
    def test_inter_ocular_error_matches_a_numpy_loop(self):
        predicted, target = (array.numpy() for array in faces(0, images=3, points=6))
        errors = []
        for image in range(3):
            eyes = numpy.hypot(*(target[image, 2] - target[image, 4]))
            errors.extend(100 * numpy.hypot(*(predicted[image, k] - target[image, k])) / eyes for k in range(6))
        got = metrics.inter_ocular_error(torch.tensor(predicted), torch.tensor(target), eyes=(2, 4))
        assert got.item() == pytest.approx(numpy.mean(errors), rel=1e-12)

    def test_bird_scores_match_a_numpy_loop(self):
        """CL's way, image by image: whole-number distances on 48 pixels, each point's share, batches by their size."""
        predicted, target = (array.numpy() / 45 - 1 for array in faces(1, images=11))
        visible = numpy.random.default_rng(0).random((11, 5)) < 0.6
        total = 0.0
        for start in range(0, 11, 4):
            shares = []
            for point in range(5):
                hits = []
                for image in range(start, min(start + 4, 11)):
                    truth, guess = (47 * (array[image, point] + 1) / 2 for array in (target, predicted))
                    if visible[image, point] and (truth > 0).all():
                        hits.append(int(numpy.hypot(*(truth - guess))) < 0.05 * 48)
                if hits:
                    shares.append(numpy.mean(hits))
            total += min(4, 11 - start) * numpy.mean(shares)
        tensors = torch.tensor(predicted), torch.tensor(target)
        scores = metrics.bird_scores(*tensors, visible=torch.tensor(visible), batch_size=4)
        assert scores["pck_coded"] == pytest.approx(100 * total / 11, rel=1e-9)


class TestProperties:
    @settings(max_examples=30)
    @given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), x=st.floats(-50, 50), y=st.floats(-50, 50))
    def test_inter_ocular_error_knows_no_unit_and_no_origin(self, seed, scale, x, y):
        predicted, target = faces(seed)
        shift = torch.tensor([x, y], dtype=torch.float64)
        moved = metrics.inter_ocular_error(scale * predicted + shift, scale * target + shift)
        torch.testing.assert_close(moved, metrics.inter_ocular_error(predicted, target), rtol=1e-8, atol=1e-9)

    @settings(max_examples=30)
    @given(seed=st.integers(0, 1000), radius=st.floats(0.1, 5), more=st.floats(0, 5))
    def test_pck_grows_with_the_radius(self, seed, radius, more):
        predicted, target = faces(seed)
        smaller, larger = (metrics.pck(predicted, target, radius=r).item() for r in (radius, radius + more))
        assert 0 <= smaller <= larger <= 100

    @settings(max_examples=30)
    @given(seed=st.integers(0, 1000))
    def test_truncation_never_lowers_bird_pck(self, seed):
        predicted, target = (array / 45 - 1 for array in faces(seed))
        visible = torch.ones(target.shape[:2], dtype=torch.bool)
        plain = metrics.bird_pck(predicted, target, visible=visible, truncate=False)
        assert plain <= metrics.bird_pck(predicted, target, visible=visible)

    @given(seed=st.integers(0, 1000))
    def test_a_perfect_prediction(self, seed):
        _, target = faces(seed)
        assert metrics.inter_ocular_error(target, target).item() == 0
        assert metrics.pck(target, target, radius=1e-3).item() == 100


class TestErrors:
    def test_eyes_that_coincide_name_the_image(self):
        _, target = faces(0)
        target[2, 1] = target[2, 0]
        with pytest.raises(ValueError, match=r"image 2 has inter-ocular distance 0\.0 between points 0 and 1"):
            metrics.inter_ocular_error(target, target)

    def test_an_eye_without_a_place_names_the_image(self):
        _, target = faces(0)
        target[1, 0] = torch.nan
        with pytest.raises(ValueError, match=r"image 1 has inter-ocular distance nan"):
            metrics.inter_ocular_error(target, target)

    @pytest.mark.parametrize("eyes", [(0, 0), (0, 5), (-1, 2)])
    def test_eyes_must_be_two_points(self, eyes):
        _, target = faces(0)
        with pytest.raises(ValueError, match=r"eyes must be two different points out of 0\.\.4"):
            metrics.inter_ocular_distance(target, eyes=eyes)

    def test_radius_must_be_positive(self):
        with pytest.raises(ValueError, match="radius must be > 0, got 0"):
            metrics.pck(*faces(0), radius=0.0)

    def test_nothing_visible(self):
        hidden = torch.zeros(4, 5, dtype=torch.bool)
        with pytest.raises(ValueError, match="no point is visible"):
            metrics.pixel_error(*faces(0), visible=hidden)

    def test_shapes(self, unchecked):
        predicted, target = faces(0)
        with pytest.raises(ValueError, match=r"got \[3, 5, 2\] and \[4, 5, 2\]"):
            metrics.inter_ocular_error(predicted[:3], target)
        with pytest.raises(ValueError, match=r"visible must have shape \[4, 5\], got \[5\]"):
            metrics.pixel_error(predicted, target, visible=torch.ones(5, dtype=torch.bool))
