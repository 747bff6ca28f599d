"""DVE: the exchange and the networks by the reference code's numbers, views that a known warp relates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro
from descriptors import FPN, close, generator, pixels_of, smooth, stage2, step, trunk, unit
from torch import nn
from torch.nn import functional

from lead_ray import geometry, launch
from lead_ray.augmentation.warped import dve_views, dve_warper, warped_views
from lead_ray.dense import Dense
from lead_ray.models import weights
from lead_ray.models.dve import DveNetworkSettings, dve_network
from lead_ray.objectives.equivariance import Dve, DveSettings, cells, distances, exchange, expected_distance
from lead_ray.train import Optim

SMALLNET = DveNetworkSettings(network="smallnet", dim=8)


class TestGoldenDve:
    def losses(self, numbers: dict[str, torch.Tensor], how: str) -> tuple[torch.Tensor, torch.Tensor]:
        features = numbers["in_features"].requires_grad_()
        flat = features.flatten(2)
        if how != "_unnormalised":
            flat = float(numbers["par_scale"]) * functional.normalize(flat, dim=1)
        first, second = flat[0::2], flat[1::2]
        if how != "_no_exchange":
            first = exchange(first, first.roll(-1, dims=0))
        rows, columns = cells((20, 24), (5, 6))
        went = geometry.pixels(numbers["in_grid"], height=20, width=24)[:, rows, columns].flatten(1, 2)
        points = torch.tensor([[x, y] for y in range(0, 20, 4) for x in range(0, 24, 4)], dtype=torch.float64)[None]
        loss = expected_distance(first.mT @ second, distances(went, points, power=float(numbers["par_pow"])))
        loss.backward()
        return loss, features.grad

    @pytest.mark.parametrize("how", ["", "_unnormalised", "_no_exchange"])
    def test_loss_and_gradient(self, golden, how):
        numbers = golden("dve_loss")
        loss, gradient = self.losses(numbers, how)
        close(loss, numbers[f"out_loss{how}"])
        close(gradient, numbers[f"out_grad_features{how}"])
        if not how:
            assert loss.item() == pytest.approx(numbers["out_loss_native_float32"].item(), rel=1e-5)

    @pytest.mark.parametrize(("how", "scale"), [("", 20.0), ("_unnormalised", 0.0)])
    def test_learner(self, golden, how, scale):
        """The learner itself, around a network that gives the stored features whatever it sees."""
        numbers = {name: array.float() for name, array in golden("dve_loss").items()}
        features = numbers["in_features"]
        learner = Dve(None, DveSettings(network=SMALLNET, scale=scale), group=3)
        learner.network = Answer(torch.cat([features[0::2], features[1::2]]))
        views = torch.zeros(3, 3, 20, 24)
        found = learner(views, views, numbers["in_grid"])["loss"]
        assert found.item() == pytest.approx(numbers[f"out_loss{how}"].item(), rel=1e-5)


class Answer(nn.Module):
    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer = answer

    def forward(self, _images: torch.Tensor) -> list[torch.Tensor]:
        return [self.answer]


class TestExchange:
    def test_by_hand(self):
        """Long descriptors pick their match, short ones the mean."""
        features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        swapped = features.flip(2)
        torch.testing.assert_close(exchange(100 * features, 100 * swapped), 100 * features)
        torch.testing.assert_close(exchange(torch.zeros(1, 2, 3), swapped), torch.full((1, 2, 3), 0.5))

    def test_matches_a_loop(self):
        features, other = (torch.randn(2, 3, k, generator=generator(k)) for k in (4, 5))
        found = exchange(features, other)
        for b in range(2):
            for u in range(4):
                scores = np.exp((features[b, :, u] @ other[b]).double().numpy())
                expected = (other[b].double().numpy() * scores / scores.sum()).sum(axis=1)
                np.testing.assert_allclose(found[b, :, u].numpy(), expected, rtol=1e-4, atol=1e-6)


class TestDve:
    def learner(self, network=SMALLNET, *, group: int = 2, **changes) -> Dve:
        torch.manual_seed(0)
        own = isinstance(network, DveNetworkSettings)
        return Dve(None if own else trunk(), DveSettings(network=network, **changes), group=group).train()

    def pair(self, n: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """View a is view b moved by four pixels: what a shows at x, b shows at x + 4."""
        wide = smooth(n, size + 4)[..., :size, :]
        grid = geometry.identity_grid(height=size, width=size).repeat(n, 1, 1, 1)
        grid[..., 0] += 8 / (size - 1)
        return wide[..., 4:], wide[..., :size], grid

    def test_descriptors_are_exchanged_within_the_group(self):
        learner = self.learner(group=2).eval()
        view_a, view_b, grid = self.pair(4)
        (features,) = learner.network(torch.cat([view_a, view_b]))
        flat = 20 * unit(features)
        other = flat[:4][[1, 0, 3, 2]]
        went = geometry.pixels(grid, height=32, width=32)[:, ::2, ::2].flatten(1, 2)
        apart = distances(went, pixels_of(32, 2)[None], power=0.5)
        expected = expected_distance(exchange(flat[:4], other).mT @ flat[4:], apart)
        torch.testing.assert_close(learner(view_a, view_b, grid)["loss"], expected, rtol=1e-4, atol=1e-4)

    def test_two_workers_see_what_one_sees(self):
        """Each image exchanges within its lane's share, here two images, wherever the batch is cut."""
        learner, whole = self.learner(group=2).eval(), self.pair(4)
        parts = [learner(*(part[start : start + 2] for part in whole))["loss"] for start in (0, 2)]
        torch.testing.assert_close(sum(parts) / 2, learner(*whole)["loss"], rtol=1e-4, atol=1e-4)

    def test_the_frozen_trunk_stays_as_it_is(self):
        learner = self.learner(FPN)
        before = {name: value.clone() for name, value in learner.network.trunk.state_dict().items()}
        learner(*self.pair(2, 64))["loss"].backward()
        trained = {name.split(".")[1] for name, p in learner.named_parameters() if p.grad is not None}
        assert trained == {"fpn"} and not learner.network.trunk.training and learner.network.fpn.training
        assert all(torch.equal(before[name], value) for name, value in learner.network.trunk.state_dict().items())
        assert learner.encoder() is learner.network

    def test_learns(self):
        learner, views = self.learner(), self.pair(4)
        optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, amsgrad=True)
        losses = [step(learner, optimizer, views) for _ in range(30)]
        assert losses[-1] < 0.75 * losses[0]

    def test_settings_out_of_range(self):
        with pytest.raises(ValueError, match=r"objective.scale must be >= 0, got -1.0"):
            DveSettings(scale=-1.0)
        with pytest.raises(ValueError, match=r"objective.power must be > 0, got 0.0"):
            DveSettings(power=0.0)
        with pytest.raises(ValueError, match=r"network.dim must be >= 1, got 0"):
            DveNetworkSettings(dim=0)


def filled(name: str, shape: torch.Size, index: int) -> torch.Tensor:
    """The weights that the golden outputs were made with."""
    wave = torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * (1 + 0.01 * index) + index).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * wave
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.2 * wave
    return wave * (2 / math.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1 * wave


class TestDveNetworks:
    @pytest.mark.parametrize(("network", "side"), [("hourglass", 32), ("smallnet", 20)])
    @torch.no_grad()
    def test_golden(self, golden, network, side):
        numbers = golden("dve_networks")
        ours = dve_network(DveNetworkSettings(network=network, dim=4)).double().eval()
        state = ours.state_dict()
        names = sorted(name for name in state if not name.endswith("num_batches_tracked"))
        assert len(names) == numbers[f"out_{network}_names"]
        assert sum(p.numel() for p in ours.parameters()) == numbers[f"out_{network}_parameters"]
        ours.load_state_dict({name: filled(name, state[name].shape, i) for i, name in enumerate(names)}, strict=False)
        image = torch.sin(torch.arange(2 * 3 * side * side, dtype=torch.float64) * 0.7).reshape(2, 3, side, side)
        (found,) = ours(image)
        close(found, numbers[f"out_{network}"])

    @pytest.mark.parametrize(("network", "side"), [("hourglass", 96), ("hourglass", 70), ("smallnet", 70)])
    @torch.no_grad()
    def test_maps_are_at_half_the_image(self, network, side):
        ours = dve_network(DveNetworkSettings(network=network)).eval()
        (found,) = ours(smooth(1, side))
        assert found.shape == (1, 64, side // 2, side // 2) and ours.channels == (64,)

    @torch.no_grad()
    def test_round_trip(self, tmp_path):
        ours = dve_network(SMALLNET).eval()
        weights.save(tmp_path / "encoder.safetensors", ours, {})
        card = weights.read_card(tmp_path / "encoder.safetensors")
        assert (card.kind, card.network, card.trunk) == ("dve", SMALLNET, None)
        loaded = weights.load(tmp_path / "encoder.safetensors")
        torch.testing.assert_close(loaded(smooth(1, 32))[0], ours(smooth(1, 32))[0])


def draw(images: torch.Tensor, rows: torch.Tensor | None = None, total: int = 6, **changes):
    arguments = {"settings": dve_views(32), "warper": dve_warper(), "margin": 4} | changes
    rows = torch.arange(total) if rows is None else rows
    return warped_views(images[rows], total=total, rows=rows, generator=generator(3), **arguments)


class TestWarpedViews:
    @pytest.fixture
    def images(self):
        shades = functional.interpolate(torch.rand(6, 3, 5, 5, generator=generator()), size=40, mode="bicubic")
        return (255 * shades.clamp(0, 1)).to(torch.uint8)

    plain = replace(dve_views(32), jitter=0.0)

    def test_the_grid_leads_from_view_a_to_view_b(self, images):
        """View b looked up at the grid is view a: two interpolations and one cut to bytes apart."""
        view_a, view_b, grid = draw(images, settings=self.plain)
        inside = (grid.abs() < 1).all(dim=-1)
        away = (geometry.warp_images(view_b, grid) - view_a).abs().amax(dim=1)
        moved = (view_b - view_a).abs().amax(dim=1)
        assert inside.float().mean() > 0.5
        assert away[inside].max() < 0.1 < moved[inside].mean()

    def test_against_each_image_by_itself(self, images):
        """Draw by draw, as DVE does it: warp, warp again, crop, cut to bytes, normalise."""
        view_a, view_b, grid = draw(images, settings=self.plain)
        source = generator(3)
        drawn = [geometry.draw_warps(6, generator=source) for _ in range(2)]
        first = geometry.warp_weights(drawn[0], dve_warper(), first=True)
        second = geometry.warp_weights(drawn[1], dve_warper())
        mean, std = torch.tensor([[0.5084, 0.4224, 0.3769], [0.2599, 0.2371, 0.2323]])[:, :, None, None]
        for i in range(6):
            grids = [geometry.warp_grids(w[i : i + 1], height=40, width=40) for w in (first, second)]
            once = geometry.warp_images(images[i : i + 1].float(), grids[0])
            twice = geometry.warp_images(once, grids[1])
            for found, warped in ((view_a[i], twice), (view_b[i], once)):
                expected = (warped[0, :, 4:36, 4:36].to(torch.uint8) / 255 - mean) / std
                # An unlucky rounding before the cut to bytes may cost one grey level.
                off = (found - expected).abs()
                assert off.max() < 1.1 / 255 / std.min() and (off > 1e-4).float().mean() < 0.01
            torch.testing.assert_close(grid[i], geometry.crop_grids(grids[1], margin=4)[0], rtol=1e-4, atol=1e-5)

    def test_the_first_warp_is_half_as_strong_and_its_affine_part_as_strong(self):
        warper, drawn = dve_warper(), geometry.draw_warps(500, generator=generator())
        first, second = (geometry.warp_weights(drawn, warper, first=first) for first in (True, False))
        torch.testing.assert_close(first[:, :100], 0.5 * second[:, :100])
        torch.testing.assert_close(first[:, 100:], second[:, 100:])
        assert second[:, :100].std().item() == pytest.approx(((0.001**2 + 0.01**2) / 2) ** 0.5, rel=0.05)
        assert second[:, 100].std().item() == pytest.approx(0.1, rel=0.1)

    def test_workers_together_see_what_one_sees(self, images):
        whole = draw(images)
        for rows in (torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3])):
            *views, grid = draw(images, rows)
            for found, expected in zip(views, whole, strict=False):
                # As above: how a product rounds may depend on how many there are, and cost a grey level.
                off = (found - expected[rows]).abs()
                assert off.max() < 1.1 / 255 / 0.2323 and (off > 1e-5).float().mean() < 0.001
            torch.testing.assert_close(grid, whole[2][rows], rtol=0, atol=1e-5)

    def test_colours_differ_between_the_views(self, images):
        still = geometry.still()
        plain = draw(images, settings=self.plain, warper=still)
        jittered = draw(images, warper=still)
        grey_level = 1.1 / 255 / 0.2323  # what the cut to bytes may cost
        assert (plain[0] - plain[1]).abs().max() < grey_level
        assert min((jittered[0] - other).abs().max() for other in (jittered[1], plain[0])) > 10 * grey_level

    @pytest.mark.parametrize("change", [{"scale": (0.5, 1.0)}, {"flip": 0.5}, {"size": 40}])
    def test_views_that_would_move_points_are_refused(self, images, change):
        with pytest.raises(ValueError, match=r"use --views.scale 1 1 --views.flip 0 --views.size 32, got scale"):
            draw(images, settings=replace(dve_views(32), **change))


OWN = {"stage1": None, "views": dve_views(32), "objective": DveSettings(network=SMALLNET, margin=4)}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return stage2(tmp_path_factory.mktemp("dense"))


class TestDense:
    @pytest.mark.parametrize("network", [SMALLNET, FPN])
    def test_leaves_an_encoder(self, dense, tmp_path, network):
        changes = OWN | {"objective": DveSettings(network=network, margin=4)}
        if network is FPN:
            del changes["stage1"]
        folder = launch.run(dense(tmp_path, **changes))
        assert weights.read_card(folder.path).kind == ("dense" if network is FPN else "dve")
        assert folder.result["steps"] == 4

    def test_pairs_an_image_with_itself(self, dense, tmp_path):
        run = dense(tmp_path, **OWN)
        assert (run.pairs, run.group) == ("views", 2)
        images = torch.zeros(16, 3, 40, 40, dtype=torch.uint8)
        views = run.pair_views(images, images, rows=torch.arange(16), generator=generator())
        assert [view.shape[1:] for view in views] == [(3, 32, 32), (3, 32, 32), (32, 32, 2)]
        assert run.build()(*views)["loss"].isfinite()

    def test_command_line(self, dense, tmp_path):
        given = ["--data", str(dense(tmp_path).data), "objective:dve", "--objective.margin", "4"]
        chosen = tyro.cli(Dense, args=given)
        assert chosen.objective == DveSettings(margin=4) and chosen.matters()["stage1"] is None
        assert isinstance(replace(chosen, objective=OWN["objective"]).build(), Dve)

    def test_its_own_networks_take_no_trunk(self, dense, tmp_path):
        with pytest.raises(ValueError, match=r"stage1 is not for DVE's own networks, got .*trunk.safetensors"):
            dense(tmp_path, **{**OWN, "stage1": dense(tmp_path).stage1})
        with pytest.raises(ValueError, match=r"stage1 is missing: give a finished stage-1 run"):
            dense(tmp_path, **OWN | {"objective": DveSettings(network=FPN)})

    def test_exchange_needs_two_of_each_lane(self, dense, tmp_path):
        with pytest.raises(ValueError, match=r"optim.batch_size must be >= 16 to exchange, got 8"):
            dense(tmp_path, **OWN, optim=Optim(batch_size=8))
