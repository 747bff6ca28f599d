"""The loop: its schedule, its reports, and what it does with a loss that is not finite."""

import copy
from collections.abc import Iterator
from itertools import islice, repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lead_ray import train
from lead_ray.machine import denormals_flushed
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.objectives.contrast import Contrast, ContrastSettings
from lead_ray.train import Optim, Schedule

CPU = torch.device("cpu")


class TestSchedule:
    def test_golden_learning_rate(self, golden):
        numbers = golden("schedules")
        per_epoch = int(numbers["in_iters_per_epoch"])
        schedule = Optim().schedule(per_epoch)
        assert schedule == Schedule(peak=0.03, steps=200 * per_epoch, warmup=2 * per_epoch)
        found = [schedule.learning_rate(int(step)) for step in numbers["in_steps"]]
        expected = numbers["out_formula_lr_by_iteration"].tolist()
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)

    def test_steps_override_epochs_and_shorten_the_warm_up(self):
        assert Optim(steps=50).schedule(100) == Schedule(peak=0.03, steps=50, warmup=5)
        assert Optim(epochs=0.1).schedule(5).steps == 1, "rounds to at least one step"
        assert Optim(epochs=10.0, warmup_epochs=0.0).schedule(7) == Schedule(peak=0.03, steps=70, warmup=0)

    def test_cosine_to_a_share_and_steps_in_its_place(self):
        """CL's stage 2 ends at 8e-4 of its rate; DVE takes a tenth from epoch 50 of 100."""
        cosine = Optim(lr=1e-3, epochs=10.0, warmup_epochs=0.0, final_lr=8e-4).schedule(10)
        assert cosine.learning_rate(0) == pytest.approx(1e-3)
        assert cosine.learning_rate(50) == pytest.approx(1e-3 * (8e-4 + 1) / 2)
        assert cosine.learning_rate(100) == pytest.approx(8e-7)
        stairs = Optim(lr=1e-3, epochs=100.0, warmup_epochs=0.0, decay_epochs=50.0).schedule(4)
        assert [stairs.learning_rate(step) for step in (0, 199, 200, 399)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])

    @settings(max_examples=50)
    @given(st.integers(1, 3000), st.data())
    def test_rate_is_positive_and_never_above_the_peak(self, steps, data):
        schedule = Schedule(0.5, steps, data.draw(st.integers(0, steps // 10)))
        rates = [schedule.learning_rate(step) for step in range(steps)]
        assert min(rates) > 0 and max(rates) <= 0.5
        assert rates[schedule.warmup :] == sorted(rates[schedule.warmup :], reverse=True)

    @pytest.mark.parametrize(
        ("field", "value"), [("lr", 0.0), ("batch_size", 0), ("epochs", -1.0), ("steps", 0), ("decay_epochs", 0.0)]
    )
    def test_settings_out_of_range(self, field, value):
        with pytest.raises(ValueError, match=rf"optim.{field} must be >.* got {value}"):
            Optim(**{field: value})


class TestOptimizer:
    def test_adam_as_cl_and_dve_set_it(self):
        """A hand value: Adam's first step is lr in the direction of the gradient's sign."""
        for algorithm, beta in (("adam", 0.5), ("amsgrad", 0.9)):
            line = Line()
            optimizer = train.make_optimizer(line, Optim(algorithm=algorithm, momentum=beta, weight_decay=0.0))
            (group,) = optimizer.param_groups
            assert group["betas"] == (beta, 0.999) and group["amsgrad"] == (algorithm == "amsgrad")
            group["lr"] = 0.1
            line(torch.ones(2, 1), 3 * torch.ones(2, 1))["loss"].backward()
            optimizer.step()
            assert line.layer.weight.item() == pytest.approx(0.1, rel=1e-5)

    def test_frozen_parameters_are_left_out(self):
        line = Line()
        line.layer.bias.requires_grad_(False)
        (group,) = train.make_optimizer(line, Optim()).param_groups
        assert group["params"] == [line.layer.weight]


class Line(nn.Module):
    """Learns y = 2 x + 1 from pairs of x and y; the loss of chosen steps is not finite."""

    def __init__(self, broken: tuple[int, ...] = ()):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.broken, self.progress, self.dtypes = broken, [], []

    def forward(self, x, y):
        predicted = self.layer(x)
        self.dtypes.append(predicted.dtype)
        loss = (predicted - y).square().mean()
        return {
            "loss": loss * float("nan") if len(self.progress) in self.broken else loss,
            "bias": self.layer.bias[0],
        }

    def after_step(self, progress):
        self.progress.append(progress)


def trained(line: Line, *, steps: int = 60, optim: Optim | None = None, **options) -> Iterator[dict]:
    x = torch.linspace(-1, 1, 8)[:, None]
    optimizer = train.make_optimizer(line, optim or Optim(lr=0.1, weight_decay=0.0))
    schedule = Schedule(peak=0.1, steps=steps, warmup=6)
    return train.train(line, line, optimizer, repeat((x, 2 * x + 1)), schedule, **{"report_every": 10} | options)


class TestTrain:
    def test_overfits_one_batch_in_60_steps(self):
        history = list(trained(Line()))
        assert [metrics["step"] for metrics in history] == [10, 20, 30, 40, 50, 60]
        losses = [metrics["loss"] for metrics in history]
        assert losses[0] > 0.1 and losses[-1] < 0.02
        assert history[-1]["bias"] == pytest.approx(1, abs=0.1)
        assert all(metrics["images_per_second"] > 0 for metrics in history)

    def test_two_runs_agree_bitwise(self):
        first, second = ([metrics["loss"] for metrics in trained(Line())] for _ in range(2))
        assert first == second

    def test_every_step_has_its_rate_and_its_progress(self):
        line = Line()
        rates = [metrics["lr"] for metrics in trained(line, steps=7, report_every=1)]
        assert rates == [Schedule(0.1, 7, 6).learning_rate(step) for step in range(7)]
        assert line.progress == [step / 7 for step in range(7)]

    def test_one_step_by_hand(self):
        """At 0 the gradient of mean (y - b)^2 by b is -2 mean y = -2; warm-up begins at 1e-4 of the peak."""
        line = Line()
        (metrics,) = islice(trained(line, report_every=1), 1)
        assert metrics["loss"] == pytest.approx((4 * torch.linspace(-1, 1, 8).square().mean() + 1).item())
        assert line.layer.bias.item() == pytest.approx(2 * 0.1 * 1e-4)

    def test_the_last_step_is_reported_whatever_the_interval(self):
        assert [metrics["step"] for metrics in trained(Line(), steps=7, report_every=3)] == [3, 6, 7]

    def test_goes_on_from_a_step(self):
        line = Line()
        assert [m["step"] for m in trained(line, steps=7, first_step=4, report_every=2)] == [6, 7]
        assert line.progress == [4 / 7, 5 / 7, 6 / 7]
        assert list(trained(Line(), steps=7, first_step=7)) == []

    def test_precision_is_that_of_multiplications(self):
        for precision in (torch.float32, torch.bfloat16):
            line = Line()
            assert len(list(trained(line, steps=1, precision=precision))) == 1
            assert line.dtypes == [precision] and line.layer.weight.dtype == torch.float32

    def test_a_loss_that_is_not_finite_stops_before_it_is_reported(self):
        run = trained(Line(broken=(17, 19)))
        assert next(run)["step"] == 10
        with pytest.raises(FloatingPointError, match=r"not finite at step 17 \(learning rate .*lower optim.lr"):
            next(run)

    def test_frozen_parameters_get_no_weight_decay(self):
        line = Line()
        line.layer.bias.requires_grad_(False)
        optimizer = train.make_optimizer(line, Optim())
        assert [len(group["params"]) for group in optimizer.param_groups] == [1]

    def test_precision_by_name(self):
        assert train.resolve_precision("fp32", CPU) == torch.float32
        assert train.resolve_precision("bf16", CPU) == torch.bfloat16
        assert train.resolve_precision("auto", CPU) in (torch.float32, torch.bfloat16)


def test_denormals_are_flushed_for_a_while():
    tiny = torch.full((16,), 1e-39)
    with pytest.raises(KeyError), denormals_flushed():
        assert (tiny * 0.5 == 0).all()
        raise KeyError
    assert (tiny * 0.5 > 0).all()


@pytest.mark.parametrize("kind", ["byol", "contrast", "align"])
def test_shares_one_after_the_other_are_workers_beside_each_other(kind):
    """Gradients, metrics and running statistics, BatchNorm's batches and in-batch negatives included: two workers of
    a half each, whose means are taken; rank 0's statistics are kept."""
    views = tuple(torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    halves = list(zip(*(view.chunk(2) for view in views), strict=True))
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(depth=18, width=0.125))
    learner: nn.Module = {
        "byol": lambda: Byol(trunk, ByolSettings(hidden=16, dim=8)),
        "contrast": lambda: Contrast(trunk, ContrastSettings(hidden=16, dim=8)),
        "align": lambda: Align(trunk, AlignSettings(fpn=FpnSettings(dim=8, lateral=32, branch=32), projector=16)),
    }[kind]().train()
    workers = [copy.deepcopy(learner) for _ in halves]
    metrics = [worker(*half) for worker, half in zip(workers, halves, strict=True)]
    for found in metrics:
        found["loss"].backward()
    optimizer = train.make_optimizer(learner, Optim(lr=0.1))  # its rate is 0 until one is set
    said = train.train_step(learner, optimizer, views, torch.float32, shares=2)
    for name, value in said.items():
        torch.testing.assert_close(value, (metrics[0][name] + metrics[1][name]) / 2)
    for mine, *theirs in zip(*(module.parameters() for module in (learner, *workers)), strict=True):
        if mine.requires_grad and mine.grad is not None:
            torch.testing.assert_close(mine.grad, (theirs[0].grad + theirs[1].grad) / 2, rtol=1e-4, atol=1e-6)
    kept, first, second = (dict(module.named_buffers()) for module in (learner, *workers))
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert any(not torch.equal(kept[name], second[name]) for name in kept)
