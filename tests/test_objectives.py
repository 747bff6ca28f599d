"""The objectives: the reference codes' numbers, values by hand, bounds, and that they learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lead_ray.models.fpn import FpnSettings
from lead_ray.models.heads import mlp
from lead_ray.models.hypercolumn import similarity
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings, similarity_alignment, teacher_entropy
from lead_ray.objectives.byol import Byol, ByolSettings, byol_loss, target_momentum
from lead_ray.objectives.contrast import Contrast, ContrastSettings, info_nce

TINY = TrunkSettings(depth=18, width=0.125)
ALIGN = AlignSettings(projector=32, fpn=FpnSettings(dim=8, lateral=16, branch=32))


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, rtol=1e-8, atol=1e-9)


def random_views(n: int, *, size: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, and the same seen slightly differently."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 6, 6, generator=generator)
    pictures = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return pictures, pictures.roll(4, dims=3) + 0.1 * torch.randn(pictures.shape, generator=generator)


def tiny_byol(seed: int = 0) -> Byol:
    torch.manual_seed(seed)
    return Byol(Trunk(TINY), ByolSettings(hidden=32, dim=16))


def tiny_align(settings: AlignSettings = ALIGN, seed: int = 0) -> Align:
    torch.manual_seed(seed)
    return Align(Trunk(TINY), settings)


class TestByolLoss:
    def test_golden_loss_and_gradients(self, golden):
        numbers = golden("byol_loss")
        p1, p2 = (numbers[f"in_p{i}"].requires_grad_() for i in (1, 2))
        z1, z2 = (numbers[f"in_z{i}"].requires_grad_() for i in (1, 2))
        loss = byol_loss(p1, p2, z1, z2)
        loss.backward()
        close(loss, numbers["out_loss_total"])
        close(loss + 4, numbers["out_solo_total"])
        close(loss / 4, numbers["out_lightly_total"])
        close(p1.grad, numbers["out_grad_p1"])
        close(p2.grad, numbers["out_grad_p2"])
        assert z1.grad is None and z2.grad is None, "no gradient reaches the targets"

    def test_golden_predictor(self, golden):
        numbers = golden("byol_loss")
        predictor = mlp(6, 10, 6).double()
        names = {"0.": "fc1", "1.": "bn", "3.": "fc2"}
        parameters = {
            f"{place}{kind}": numbers[f"par_{name}_{kind}"]
            for place, name in names.items()
            for kind in ("weight", "bias")
        }
        predictor.load_state_dict(parameters, strict=False)
        inputs = [numbers[f"in_proj{i}"].requires_grad_() for i in (1, 2)]
        first, second = (predictor(view) for view in inputs)  # separately: BatchNorm sees one view at a time
        close(first, numbers["out_pred_of_proj1"])
        loss = byol_loss(first, second, numbers["in_z1"], numbers["in_z2"])
        loss.backward()
        close(loss, numbers["out_pred_loss_total"])
        for i, view in enumerate(inputs, start=1):
            close(view.grad, numbers[f"out_pred_grad_proj{i}"])
        for name in ("0.weight", "1.weight", "3.weight"):
            expected = numbers[f"out_pred_grad_{names[name[:2]]}_weight"]
            close(predictor.get_parameter(name).grad, expected)
        close(predictor[1].running_mean, numbers["out_bn_running_mean"])
        close(predictor[1].running_var, numbers["out_bn_running_var"])

    def test_by_hand(self):
        east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
        assert byol_loss(east, north, north, east).item() == pytest.approx(-4)  # each predicts the other's target
        assert byol_loss(east, north, east, north).item() == pytest.approx(0)
        assert byol_loss(east, north, -north, -east).item() == pytest.approx(4)


class TestByol:
    def test_golden_momentum(self, golden):
        numbers = golden("schedules")
        steps = numbers["in_epochs"] * numbers["in_iters_per_epoch"]
        found = [target_momentum(float(step / steps), 0.996) for step in numbers["in_steps"]]
        close(torch.tensor(found, dtype=torch.float64), numbers["out_momentum"])

    def test_golden_moving_average_leaves_buffers_alone(self, golden):
        numbers = golden("schedules")
        learner = tiny_byol().double()
        target_trunk, _ = learner.target
        for norm, rows in ((learner.trunk.bn1, "in_ema_online"), (target_trunk.bn1, "in_ema_target")):
            weight, bias, running_mean = numbers[rows]
            norm.weight.data[:3], norm.bias.data[:3], norm.running_mean[:3] = weight, bias, running_mean
        learner.after_step(0.0)
        norm = target_trunk.bn1
        found = torch.stack([norm.weight[:3], norm.bias[:3], norm.running_mean[:3]])
        close(found, numbers["out_ema_target"])

    def test_target_starts_equal_and_only_the_average_moves_it(self):
        learner = tiny_byol()
        online = [*learner.trunk.parameters(), *learner.projector.parameters()]
        target = list(learner.target.parameters())
        assert all(torch.equal(a, b) for a, b in zip(online, target, strict=True))
        learner(*random_views(4))["loss"].backward()
        assert all(p.grad is None for p in target) and all(p.grad is not None for p in online)
        with torch.no_grad():
            for parameter in online:
                parameter.add_(1)
        learner.after_step(1.0)
        assert not any(torch.equal(a, b) for a, b in zip(online, target, strict=True)), "at the end it stands"
        learner.settings = ByolSettings(hidden=32, dim=16, momentum=0.25)
        before = [p.clone() for p in target]
        learner.after_step(0.0)
        for now, old, new in zip(target, before, online, strict=True):
            torch.testing.assert_close(now, 0.25 * old + 0.75 * new.detach())

    def test_views_pass_separately_through_both_networks(self):
        learner = tiny_byol()
        learner(*random_views(4))
        passes = {name: int(b) for name, b in learner.named_buffers() if name.endswith("num_batches_tracked")}
        assert set(passes.values()) == {2} and any(name.startswith("target") for name in passes)

    def test_spread_tells_collapse(self):
        learner = tiny_byol()
        fresh = learner(*random_views(8))["target_spread"].item()
        last = learner.target[1][-1]
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
        assert learner(*random_views(8))["target_spread"].item() == pytest.approx(0, abs=1e-5)
        assert 0.01 < fresh < 1.5

    def test_hands_on_the_online_trunk(self):
        learner = tiny_byol()
        assert learner.encoder() is learner.trunk

    def test_momentum_out_of_range(self):
        with pytest.raises(ValueError, match=r"objective.momentum must lie in \[0, 1\], got 1.1"):
            ByolSettings(momentum=1.1)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(a, dim=1).mT @ nn.functional.normalize(b, dim=1)


def aligned(teacher, student_a, student_b, tau: float, teacher_tau: float | None = None) -> torch.Tensor:
    taus = {"temperature": tau, "teacher_temperature": tau if teacher_tau is None else teacher_tau}
    return similarity_alignment(teacher, student_a, student_b, **taus)


@pytest.mark.parametrize("tau", [0.05, 0.2])
class TestGoldenAlignment:
    @pytest.fixture
    def numbers(self, golden, tau):
        """Inputs with flattened locations; results of this temperature by their bare names."""
        stored, prefix = golden("lead_stage2"), f"out_tau{100 * tau:03.0f}_"
        inputs = {name: array.flatten(2) for name, array in stored.items() if name.startswith("in_")}
        results = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
        return inputs | results | {"layer_dims": stored["par_layer_dims"].int().tolist()}

    def test_loss_and_gradients(self, numbers, tau):
        teacher = cosines(numbers["in_teacher_i"], numbers["in_teacher_j"])
        close((teacher / tau).softmax(dim=-1), numbers["teacher_p"])
        i, j = (numbers[f"in_student_{side}"].requires_grad_() for side in "ij")
        teacher.requires_grad_()
        loss = aligned(teacher, i, j, tau)
        loss.backward()
        close(loss, numbers["mean"])
        close(loss * 2 * 20, numbers["sum_per_pair"].sum())  # eq. 3 as printed sums over locations
        close(i.grad, numbers["grad_student_i"].flatten(2))
        close(j.grad, numbers["grad_student_j"].flatten(2))
        assert teacher.grad is None, "no gradient reaches the teacher"
        close(aligned(teacher.detach().mT, j, i, tau), numbers["reverse_mean"])
        close(teacher_entropy(teacher, tau), numbers["teacher_entropy_mean"])

    def test_layerwise_teacher(self, numbers, tau):
        """similarity() wants square maps: the 20 locations and 5 empty ones make one of 5 x 5."""

        def square(side: str) -> list[torch.Tensor]:
            padded = nn.functional.pad(numbers[f"in_teacher_{side}"], (0, 5)).unflatten(2, (5, 5))
            return list(padded.split(numbers["layer_dims"], dim=1))

        teacher = similarity(square("i"), square("j"), size=5, normalisation="per-layer")[:, :20, :20]
        i, j = (numbers[f"in_student_{side}"].requires_grad_() for side in "ij")
        loss = aligned(teacher, i, j, tau)
        loss.backward()
        close(loss, numbers["layerwise_mean"])
        close(i.grad, numbers["layerwise_grad_student_i"].flatten(2))


class TestAlignmentByHand:
    def test_two_orthogonal_points(self):
        eye, p = torch.eye(2)[None], math.e / (math.e + 1)  # softmax of (1, 0) against itself
        entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
        assert aligned(eye, eye, eye, 1.0).item() == pytest.approx(entropy, abs=1e-6)  # 0.582203 nats
        assert teacher_entropy(eye, 1.0).item() == pytest.approx(entropy, abs=1e-6)

    def test_a_student_that_knows_nothing_pays_log_m(self):
        generator = torch.Generator().manual_seed(0)
        teacher, same = torch.rand(2, 5, 7, generator=generator), torch.ones(2, 3, 7)
        assert aligned(teacher, same[:, :, :5], same, 0.05).item() == pytest.approx(math.log(7), abs=1e-5)

    def test_random_batch_matches_a_float64_loop(self):
        generator = torch.Generator().manual_seed(0)
        teacher = 2 * torch.rand(2, 5, 6, generator=generator) - 1
        a, b = torch.randn(2, 4, 5, generator=generator), torch.randn(2, 4, 6, generator=generator)
        total = 0.0
        for target, x, y in zip(*(array.double().numpy() for array in (teacher, a, b)), strict=True):
            x, y = x / np.linalg.norm(x, axis=0), y / np.linalg.norm(y, axis=0)
            for u in range(5):
                p, q = np.exp(target[u] / 0.3), np.exp(x[:, u] @ y / 0.1)
                total -= (p / p.sum() * np.log(q / q.sum())).sum()
        found = aligned(teacher, a, b, 0.1, teacher_tau=0.3)
        assert found.item() == pytest.approx(total / 10, abs=1e-5)  # nats

    @given(
        n=st.integers(1, 9),
        m=st.integers(1, 9),
        tau=st.floats(0.02, 2),
        teacher_tau=st.floats(0.02, 2),
        seed=st.integers(0, 2**31),
    )
    def test_bounds_and_invariances(self, n, m, tau, teacher_tau, seed):
        generator = torch.Generator().manual_seed(seed)
        a, b, c, d = (torch.randn(2, 3, count, generator=generator, dtype=torch.float64) for count in (n, m, n, m))
        teacher = cosines(a, b)
        loss = aligned(teacher, c, d, tau, teacher_tau)
        entropy = teacher_entropy(teacher, teacher_tau)
        assert entropy - 1e-9 <= loss <= math.log(m) + 2 / tau + 1e-9
        close(aligned(teacher, 3 * c, 0.2 * d, tau, teacher_tau), loss)  # lengths play no part
        close(aligned(teacher, a, b, teacher_tau), entropy)  # a student equal to the teacher meets the bound
        order = torch.randperm(m, generator=generator)
        close(aligned(teacher[:, :, order], c, d[:, :, order], tau, teacher_tau), loss)

    def test_a_sharp_temperature_stays_finite(self):
        """log(q + eps) would lose the gradient where the student is far off; a log-softmax does not."""
        teacher = torch.tensor([[[1.0, -1.0]]])
        a, b = torch.tensor([[[1.0], [0.01]]]).requires_grad_(), torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]])
        loss = aligned(teacher, a, b, 0.01)
        loss.backward()
        assert loss.item() == pytest.approx(200, rel=1e-3) and a.grad.norm() > 0.1


class TestAlign:
    def test_only_decoder_and_head_learn(self):
        learner = tiny_align().train()
        before = {name: value.clone() for name, value in learner.trunk.state_dict().items()}
        learner(*random_views(4))["loss"].backward()
        trained = {name.split(".")[0] for name, p in learner.named_parameters() if p.grad is not None}
        assert trained == {"fpn", "head"}
        assert not learner.trunk.training and learner.head.training
        assert all(torch.equal(before[name], value) for name, value in learner.trunk.state_dict().items())

    def test_head_sees_one_view_at_a_time(self):
        """Else its BatchNorm would take the statistics of both views together."""
        learner = tiny_align().train()
        learner(*random_views(4))
        assert learner.head.layers[1].num_batches_tracked == 2

    @pytest.mark.parametrize("teacher", ["per-layer", "global", "centred"])
    def test_forward_puts_the_parts_together(self, teacher):
        settings_ = AlignSettings(
            temperature=0.1, teacher_temperature=0.2, teacher=teacher, projector=32, fpn=ALIGN.fpn
        )
        learner = tiny_align(settings_).eval()
        views = random_views(3)
        blocks = [learner.trunk(view) for view in views]
        target = similarity(*blocks, size=16, normalisation=teacher)
        students = [learner.head(learner.fpn(view)).flatten(2) for view in blocks]
        found = learner(*views)
        torch.testing.assert_close(found["loss"], aligned(target, *students, 0.1, 0.2))
        torch.testing.assert_close(found["teacher_entropy"], teacher_entropy(target, 0.2))

    def test_without_a_projector_the_map_itself_is_aligned(self):
        learner = tiny_align(AlignSettings(projector=0, fpn=ALIGN.fpn))
        assert isinstance(learner.head, nn.Identity)
        (compact,) = learner.encoder()(random_views(2)[0])
        assert compact.shape == (2, 8, 16, 16)

    def test_half_precision_leaves_the_loss_in_single(self):
        learner = tiny_align().eval()
        exact = learner(*random_views(2))["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            half = learner(*random_views(2))["loss"]
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=0.05)

    def test_temperatures_out_of_range(self):
        for name in ("temperature", "teacher_temperature"):
            with pytest.raises(ValueError, match=rf"objective.{name} must be > 0, got 0.0"):
                AlignSettings(**{name: 0.0})


class TestContrast:
    def test_by_hand(self):
        """Two orthogonal pairs: softmax of (1, 0) / tau at its first entry; nothing told apart: log b."""
        pairs = torch.tensor([[3.0, 0.0], [0.0, 0.2]])
        found = info_nce(pairs, 5 * pairs, temperature=0.5)
        assert found.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
        same = torch.ones(7, 3)
        assert info_nce(same, same, temperature=0.1).item() == pytest.approx(math.log(7), abs=1e-6)

    def test_matches_a_float64_loop_both_ways(self):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(5, 4, generator=generator) for _ in range(2))
        x, y = (v.double().numpy() / np.linalg.norm(v.double().numpy(), axis=1, keepdims=True) for v in (a, b))
        scores, total = np.exp(x @ y.T / 0.1), 0.0
        for i in range(5):
            total -= np.log(scores[i, i] / scores[i].sum()) + np.log(scores[i, i] / scores[:, i].sum())
        assert info_nce(a, b, temperature=0.1).item() == pytest.approx(total / 10, abs=1e-5)

    def test_temperature_out_of_range(self):
        with pytest.raises(ValueError, match=r"objective.temperature must be > 0, got 0.0"):
            ContrastSettings(temperature=0.0)


class TestLearning:
    """One batch, 60 steps: a loss that does not fall here falls nowhere."""

    def overfit(self, learner: nn.Module, lr: float) -> list[dict[str, float]]:
        views, history = random_views(8), []
        learner.train()
        trained = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
        for step in range(60):
            metrics = learner(*views)
            optimizer.zero_grad()
            metrics["loss"].backward()
            optimizer.step()
            learner.after_step(step / 60)
            history.append({name: value.item() for name, value in metrics.items()})
        return history

    def test_byol(self):
        history = self.overfit(tiny_byol(), lr=0.05)
        assert history[-1]["loss"] < -3.4 < -1 < history[0]["loss"]
        assert history[-1]["target_spread"] > 0.5, "not by collapsing"

    def test_contrast(self):
        torch.manual_seed(0)
        learner = Contrast(Trunk(TINY), ContrastSettings(hidden=32, dim=16))
        history = self.overfit(learner, lr=0.05)
        assert history[-1]["loss"] < 0.1 < 1 < history[0]["loss"]
        assert learner.encoder() is learner.trunk

    def test_align_comes_near_the_teachers_entropy(self):
        history = self.overfit(tiny_align(), lr=0.05)
        excess = [step["loss"] - step["teacher_entropy"] for step in history]
        assert min(excess) >= 0
        assert excess[-1] < 0.15 * excess[0]
