"""Contrastive Landmarks' second stage: the reference code's numbers, values by hand, hypercolumns never built."""

import pytest
import torch
import tyro
from descriptors import FPN, close, generator, pixels_of, smooth, stage2, step, trunk, unit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lead_ray import launch
from lead_ray.dense import Dense
from lead_ray.models import weights
from lead_ray.models.fpn import DenseEncoder, FpnSettings
from lead_ray.models.hypercolumn import hypercolumn
from lead_ray.models.projection import CompactEncoder, Projection, ProjectionSettings, pointwise
from lead_ray.objectives.equivariance import (
    Equivariance,
    EquivarianceSettings,
    cells,
    distances,
    expected_distance,
)


class TestExpectedDistance:
    def test_by_hand(self):
        """Two cells a pixel apart: certain and right, certain and wrong, undecided."""
        apart = distances(torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), power=0.5)
        assert apart.tolist() == [[[0.0, 1.0], [1.0, 0.0]]]
        certain = 100 * torch.eye(2)[None]
        assert expected_distance(certain, apart).item() == pytest.approx(0)
        assert expected_distance(certain.flip(1), apart).item() == pytest.approx(1)
        assert expected_distance(torch.zeros(3, 2, 2), apart).item() == pytest.approx(0.5)

    def test_power_is_of_the_distance(self):
        start, end = torch.zeros(1, 1, 2), torch.tensor([[[3.0, 4.0]]])
        assert distances(start, end, power=1.0).item() == pytest.approx(5)
        assert distances(start, end, power=0.5).item() == pytest.approx(5**0.5)

    @given(b=st.integers(1, 3), n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 2**31))
    def test_bounds(self, b, n, m, seed):
        source = generator(seed)
        logits = 5 * torch.randn(b, n, m, generator=source)
        distance = distances(*(10 * torch.randn(b, k, 2, generator=source) for k in (n, m)), power=0.5)
        found = expected_distance(logits, distance)
        low, high = (extreme(dim=2).mean() for extreme in (distance.amin, distance.amax))
        assert low - 1e-5 <= found <= high + 1e-5
        torch.testing.assert_close(expected_distance(logits + 3, distance), found)

    def test_no_gradient_reaches_distances(self):
        distance = torch.ones(1, 2, 2, requires_grad=True)
        logits = torch.zeros(1, 2, 2, requires_grad=True)
        expected_distance(logits, distance).backward()
        assert distance.grad is None and logits.grad is not None

    def test_cells_are_every_stride_th_pixel_from_0(self):
        rows, columns = cells((20, 24), (5, 6))
        assert list(range(20))[rows] == [0, 4, 8, 12, 16] and list(range(24))[columns] == [0, 4, 8, 12, 16, 20]
        with pytest.raises(ValueError, match=r"views.size must be a multiple of the map's side, got \(97, 97\)"):
            cells((97, 97), (25, 25))


class TestGoldenCl:
    def test_projector(self, golden):
        numbers = golden("cl_stage2")
        projection = golden_projection(numbers)
        found = projection([numbers["in_hypercolumn"]])
        close(found, numbers["out_projected"])
        loss = cl_loss(found, numbers)
        loss.backward()
        close(loss, numbers["out_projector_loss"])
        close(projection.convolution.weight.grad, numbers["out_projector_grad_weight"])
        assert projection.convolution.bias.grad.abs().max() < 1e-6, "the bias cannot change the output"

    def test_gradient_of_the_projected_map(self, golden):
        numbers = golden("cl_stage2")
        projected = numbers["out_projected"].requires_grad_()
        cl_loss(projected, numbers).backward()
        close(projected.grad, numbers["out_projector_grad_projected"])

    def test_loss_on_features(self, golden):
        numbers = golden("cl_stage2")
        features = numbers["in_features"].requires_grad_()
        loss = cl_loss(features, numbers)
        loss.backward()
        close(loss, numbers["out_loss"])
        close(features.grad, numbers["out_grad_features"])

    def test_layers_normalised_by_themselves_add_their_cosines(self, golden):
        numbers = golden("cl_stage2")
        groups = numbers["in_features"].split([2, 3], dim=1)
        close(
            cl_loss(torch.cat([unit(group) for group in groups], dim=1), numbers, normalise=False),
            numbers["out_loss_two_layer_groups"],
        )


def golden_projection(numbers: dict[str, torch.Tensor]) -> Projection:
    settings_ = ProjectionSettings(dim=5, sharpness=float(numbers["par_softargmax_mul"]))
    projection = Projection((11,), settings_).double()
    projection.convolution.load_state_dict({"weight": numbers["par_weight"], "bias": numbers["par_bias"]})
    return projection


def cl_loss(features: torch.Tensor, numbers: dict[str, torch.Tensor], *, normalise: bool = True) -> torch.Tensor:
    flat = unit(features) if normalise else features
    points = pixels_of(24, 4).double()[None]
    distance = distances(points, points, power=float(numbers["par_pow"]))
    return expected_distance(float(numbers["par_temperature"]) * flat.mT @ flat, distance)


class TestProjection:
    @pytest.mark.parametrize("size", [None, (48, 48), (24, 30)])
    def test_is_cls_on_the_hypercolumn_itself(self, size):
        blocks = [
            torch.randn(2, 3 + level, side, side, generator=generator(level), dtype=torch.float64)
            for level, side in enumerate((24, 12, 6, 3))
        ]
        torch.manual_seed(0)
        projection = Projection((3, 4, 5, 6), ProjectionSettings(dim=7, sharpness=2.0)).double()
        found = projection(blocks, size)
        resized = [
            functional.interpolate(block, size=size or (24, 24), mode="bilinear", align_corners=False)
            for block in blocks[::-1]
        ]
        if size in (None, (48, 48)):
            torch.testing.assert_close(torch.cat(resized, dim=1), hypercolumn(blocks, (size or (24,))[0]))
        responses = 2.0 * projection.convolution(torch.cat(resized, dim=1))
        expected = responses.flatten(2).softmax(dim=2).view_as(responses)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(2, 7, dtype=torch.float64))

    @settings(max_examples=30)
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
        size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        seed=st.integers(0, 2**31),
    )
    def test_pointwise_commutes_with_any_upsampling(self, sizes, size, seed):
        source = generator(seed)
        blocks = [torch.randn(2, 3, *native, generator=source, dtype=torch.float64) for native in sizes]
        by_level = [torch.randn(4, 3, generator=source, dtype=torch.float64) for _ in sizes]
        built = [functional.interpolate(block, size=size, mode="bilinear", align_corners=False) for block in blocks]
        expected = torch.einsum("dc,bchw->bdhw", torch.cat(by_level, dim=1), torch.cat(built, dim=1))
        torch.testing.assert_close(pointwise(blocks, by_level, size), expected, rtol=0, atol=1e-10)

    def test_fresh_weights_are_those_of_one_convolution(self):
        """Not of one for each block, whose bounds would differ."""
        projection = Projection((256, 512, 1024, 2048), ProjectionSettings())
        assert projection.convolution.weight.abs().max().item() == pytest.approx(3840**-0.5, rel=1e-3)

    def test_cls_factors(self):
        assert [ProjectionSettings(dim=dim).factor for dim in (64, 128, 256)] == [6.5, 7.0, 7.0]
        assert ProjectionSettings(sharpness=3.0).factor == 3.0
        for dim, factor in ((64, 8.0), (128, 7.0), (256, 7.0)):
            assert EquivarianceSettings(decoder=ProjectionSettings(dim=dim)).factor == factor
            assert EquivarianceSettings(decoder=FpnSettings(dim=dim)).factor == factor

    @torch.no_grad()
    def test_round_trip_and_a_finer_map(self, tmp_path):
        encoder = CompactEncoder(
            trunk(), Projection((8, 16, 32, 64), ProjectionSettings(dim=8, finer=4)), finer=4
        ).eval()
        weights.save(tmp_path / "encoder.safetensors", encoder, {"data": "faces"})
        card = weights.read_card(tmp_path / "encoder.safetensors")
        assert (card.kind, card.projection.finer, card.fpn, card.trained) == ("projected", 4, None, {"data": "faces"})
        loaded = weights.load(tmp_path / "encoder.safetensors")
        images = smooth(2, 64)
        (found,), (expected,) = loaded(images), encoder(images)
        assert found.shape == (2, 8, 64, 64) and loaded.channels == (8,)
        torch.testing.assert_close(found, expected)

    def test_settings_out_of_range(self):
        for change, message in (
            ({"dim": 0}, "projection.dim must be >= 1, got 0"),
            ({"finer": 0}, "projection.finer must be >= 1, got 0"),
            ({"sharpness": 0.0}, "projection.sharpness must be > 0, got 0.0"),
        ):
            with pytest.raises(ValueError, match=message):
                ProjectionSettings(**change)


class TestEquivariance:
    def learner(self, decoder=ProjectionSettings(dim=8), **changes) -> Equivariance:  # noqa: B008 (frozen)
        return Equivariance(trunk(), EquivarianceSettings(decoder=decoder, **changes)).train()

    @pytest.mark.parametrize("decoder", [ProjectionSettings(dim=8), FPN])
    def test_forward_puts_the_parts_together(self, decoder):
        learner = self.learner(decoder, sharpness=3.0, power=1.0)
        views = smooth(3, 64), smooth(3, 64, seed=1)
        points = pixels_of(64, 4)
        apart = (points[:, None] - points).square().sum(dim=2).sqrt()
        total = 0.0
        for view in views:
            flat = unit(learner.decoder(learner.trunk(view)))
            total += ((3.0 * flat.mT @ flat).softmax(dim=2) * apart).sum(dim=2).mean() / 2
        torch.testing.assert_close(learner(*views)["loss"], total)

    def test_only_the_decoder_learns(self):
        learner = self.learner()
        before = {name: value.clone() for name, value in learner.trunk.state_dict().items()}
        learner(smooth(2, 64), smooth(2, 64))["loss"].backward()
        assert {name.split(".")[0] for name, p in learner.named_parameters() if p.grad is not None} == {"decoder"}
        assert not learner.trunk.training and learner.decoder.training
        assert all(torch.equal(before[name], value) for name, value in learner.trunk.state_dict().items())

    def test_encoders(self):
        assert isinstance(self.learner().encoder(), CompactEncoder)
        assert isinstance(self.learner(FPN).encoder(), DenseEncoder)
        assert self.learner(ProjectionSettings(dim=8, finer=2)).encoder()(smooth(1, 64))[0].shape == (1, 8, 32, 32)

    def test_learns(self):
        learner, views = self.learner(), (smooth(4, 64), smooth(4, 64, seed=1))
        optimizer = torch.optim.Adam(learner.decoder.parameters(), lr=1e-2, betas=(0.5, 0.999))
        losses = [step(learner, optimizer, views) for _ in range(40)]
        assert losses[-1] < 0.9 * losses[0]

    def test_half_precision_leaves_the_loss_in_single(self):
        learner = self.learner()
        exact = learner(smooth(2, 64), smooth(2, 64))["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            half = learner(smooth(2, 64), smooth(2, 64))["loss"]
        assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.02)

    def test_settings_out_of_range(self):
        for name in ("sharpness", "power"):
            with pytest.raises(ValueError, match=f"objective.{name} must be > 0, got 0.0"):
                EquivarianceSettings(**{name: 0.0})


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return stage2(tmp_path_factory.mktemp("dense"))


class TestDense:
    small = EquivarianceSettings(decoder=ProjectionSettings(dim=8))

    def test_leaves_an_encoder(self, dense, tmp_path):
        folder = launch.run(dense(tmp_path, objective=self.small))
        assert weights.read_card(folder.path).kind == "projected"
        assert weights.load(folder.path)(smooth(1, 64))[0].shape == (1, 8, 16, 16)

    def test_command_line(self, dense, tmp_path):
        given = ["--data", str(dense(tmp_path).data), "--stage1", str(dense(tmp_path).stage1)]
        chosen = tyro.cli(Dense, args=[*given, "objective:equivariance", "objective.decoder:fpn-settings"])
        assert chosen.objective == EquivarianceSettings(decoder=FpnSettings())
        assert chosen.matters()["stage1"] and chosen.pairs == "images"

    def test_needs_a_trunk(self, dense, tmp_path):
        with pytest.raises(ValueError, match=r"stage1 is missing: give a finished stage-1 run"):
            dense(tmp_path, stage1=None, objective=self.small)
