"""MoCo: the reference code's numbers, values by hand, a queue that is what it says, workers that agree."""

import math
from collections import deque
from dataclasses import replace
from itertools import islice
from pathlib import Path

import layouts
import moco_workers
import numpy as np
import pytest
import torch
import tyro
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from lead_ray import launch, work
from lead_ray.augmentation.views import ViewSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.moco import Moco, MocoSettings, enqueue, queue_logits
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

TINY = TrunkSettings(depth=18, width=0.125)
SMALL = MocoSettings(dim=16, queue=16, momentum=0.9, groups=2)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, rtol=1e-8, atol=1e-9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=generator(seed), dtype=torch.float64), dim=-1)


def loss_of(logits: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def tiny(settings: MocoSettings = SMALL) -> Moco:
    torch.manual_seed(0)
    return Moco(Trunk(TINY), settings)


def random_views(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, and the same seen slightly differently."""
    source = generator(seed)
    pictures = functional.interpolate(torch.randn(n, 3, 6, 6, generator=source), size=64, mode="bilinear")
    return pictures, pictures.roll(4, dims=3) + 0.1 * torch.randn(pictures.shape, generator=source)


class TestLoss:
    def test_golden_logits_loss_and_gradients(self, golden):
        numbers = golden("infonce")
        keys, queue, temperature = numbers["in_k"], numbers["in_queue"], float(numbers["par_temperature"])
        queries = numbers["in_q"].requires_grad_()
        logits = queue_logits(queries, keys.requires_grad_(), queue.requires_grad_(), temperature=temperature)
        close(logits, numbers["out_logits"])
        loss = loss_of(logits)
        loss.backward()
        close(loss, numbers["out_loss"])
        close(queries.grad, numbers["out_grad_q"])
        assert keys.grad is None and queue.grad is None, "no gradient reaches keys and queue"
        close(logits[:, 0].mean(), numbers["out_prob_positive_mean_as_logged"])

    def test_golden_gradient_through_the_normalisation(self, golden):
        numbers = golden("infonce")
        raw = numbers["in_q_raw"].requires_grad_()
        keys = functional.normalize(numbers["in_k_raw"], dim=1)
        temperature = float(numbers["par_temperature"])
        loss = loss_of(queue_logits(functional.normalize(raw), keys, numbers["in_queue"], temperature=temperature))
        loss.backward()
        close(loss, numbers["out_loss"])
        close(raw.grad, numbers["out_grad_q_raw"])

    def test_by_hand(self):
        """A key found among one that is orthogonal; nothing told apart among k + 1."""
        east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        logits = queue_logits(east, east, north, temperature=0.5)
        assert logits.tolist() == [[2.0, 0.0]]
        assert loss_of(logits).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
        assert loss_of(queue_logits(north, east, east.expand(6, 2), temperature=0.07)).item() == pytest.approx(
            math.log(7), abs=1e-6
        )

    def test_matches_a_float64_loop(self):
        queries, keys, queue = unit(5, 4), unit(5, 4, seed=1), unit(9, 4, seed=2)
        total = 0.0
        for query, key in zip(queries.numpy(), keys.numpy(), strict=True):
            scores = np.exp(np.array([query @ key, *(query @ other for other in queue.numpy())]) / 0.07)
            total -= np.log(scores[0] / scores.sum())
        found = loss_of(queue_logits(queries.float(), keys.float(), queue.float(), temperature=0.07))
        assert found.item() == pytest.approx(total / 5, abs=1e-5)  # nats

    @given(b=st.integers(1, 6), k=st.integers(1, 9), temperature=st.floats(0.02, 2), seed=st.integers(0, 2**31))
    def test_bounds_and_invariances(self, b, k, temperature, seed):
        queries, keys, queue = unit(b, 3, seed=seed), unit(b, 3, seed=seed + 1), unit(k, 3, seed=seed + 2)
        logits = queue_logits(queries, keys, queue, temperature=temperature)
        assert logits.shape == (b, 1 + k) and logits.abs().max() <= 1 / temperature + 1e-9
        assert 0 < loss_of(logits) <= math.log(1 + k * math.exp(2 / temperature))
        shuffled = queue[torch.randperm(k, generator=generator(seed))]
        close(loss_of(queue_logits(queries, keys, shuffled, temperature=temperature)), loss_of(logits))


class TestQueue:
    def test_golden_goes_round(self, golden):
        numbers = golden("infonce")
        queue, pointer = numbers["in_queue"].clone(), numbers["in_queue_pointer"].long()
        enqueue(queue, pointer, numbers["in_k"])
        close(queue, numbers["out_queue_after"])
        assert pointer == numbers["out_queue_pointer_after"]

    @given(size=st.integers(3, 9), batches=st.lists(st.integers(1, 3), max_size=12))
    def test_it_holds_the_last_keys(self, size, batches):
        queue, pointer = torch.full((size, 1), -1.0), torch.zeros((), dtype=torch.int64)
        expected, number = deque([-1.0] * size, maxlen=size), 0
        for count in batches:
            keys = torch.arange(number, number + count, dtype=torch.float32)[:, None]
            enqueue(queue, pointer, keys)
            expected.extend(keys[:, 0].tolist())
            number += count
        assert sorted(queue[:, 0].tolist()) == sorted(expected)
        assert int(pointer) == number % size


class TestMoco:
    def test_the_queue_starts_random_at_unit_length_on_average(self):
        queue = tiny(MocoSettings()).queue
        assert queue.shape == (4096, 128)
        assert queue.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.01)
        assert queue.abs().max().item() == pytest.approx((3 / 128) ** 0.5, rel=1e-3)

    def test_head_is_linear_or_has_one_hidden_layer(self):
        assert [p.shape for p in tiny().head.parameters()] == [(16, 64), (16,)]
        hidden = tiny(replace(SMALL, hidden=32))
        assert [tuple(p.shape) for p in hidden.head.parameters()] == [(32, 64), (32,), (16, 32), (16,)]
        assert hidden(*random_views(4))["loss"].isfinite()

    def test_forward_puts_the_parts_together(self):
        moco = tiny().eval()
        before, views = moco.queue.clone(), random_views(4)
        found = moco(*views)
        queries, keys = (functional.normalize(moco.head(moco.trunk(v)[-1].mean(dim=(2, 3))), dim=1) for v in views)
        logits = queue_logits(queries, keys, before, temperature=0.07)
        torch.testing.assert_close(found["loss"], loss_of(logits))
        assert found["own_key_nearest"] == (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().mean()
        torch.testing.assert_close(moco.queue[:4], keys.detach())
        assert torch.equal(moco.queue[4:], before[4:]) and moco.pointer == 4

    def test_keys_come_from_the_average_alone(self):
        moco = tiny().train()
        trained = [*moco.trunk.parameters(), *moco.head.parameters()]
        average = list(moco.key.parameters())
        assert all(torch.equal(a, b) for a, b in zip(trained, average, strict=True))
        moco(*random_views(4))["loss"].backward()
        assert all(p.grad is None for p in average) and all(p.grad is not None for p in trained)
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(1)
        before = [p.clone() for p in average]
        moco.after_step(0.5)
        for now, old, new in zip(average, before, trained, strict=True):
            torch.testing.assert_close(now, 0.9 * old + 0.1 * new.detach())
        queue, pointer = moco.queue.clone(), moco.pointer.clone()
        view_a, view_b = random_views(4)
        moco(view_a + 1, view_b)  # another query, the same keys
        other = moco.queue.clone()
        moco.queue.copy_(queue)
        moco.pointer.copy_(pointer)
        moco(view_a, view_b)
        assert torch.equal(other, moco.queue)

    def test_queue_and_pointer_are_part_of_the_state(self):
        whole, views = tiny().eval(), [random_views(4, seed) for seed in range(6)]
        losses = [whole(*pair)["loss"] for pair in views[:5]]
        resumed = tiny().eval()
        for pair in views[:3]:
            resumed(*pair)
        state = resumed.state_dict()
        fresh = Moco(Trunk(TINY), SMALL).eval()
        fresh.load_state_dict(state)
        assert [fresh(*pair)["loss"] for pair in views[3:5]] == losses[3:]
        assert whole.pointer == 5 * 4 % 16

    def test_half_precision_leaves_loss_and_queue_in_single(self):
        exact = tiny().eval()(*random_views(4))["loss"]
        moco = tiny().eval()
        with torch.autocast("cpu", torch.bfloat16):
            half = moco(*random_views(4))["loss"]
        assert half.dtype == moco.queue.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=0.05)

    def test_learns_four_batches(self):
        """The queue holds the other three; from the fifth step on it holds nothing but true keys."""
        moco = tiny(replace(SMALL, queue=24)).train()
        optimizer = torch.optim.SGD([p for p in moco.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        losses = []
        for step in range(100):
            metrics = moco(*random_views(8, seed=step % 4))
            optimizer.zero_grad()
            metrics["loss"].backward()
            optimizer.step()
            moco.after_step(step / 100)
            losses.append(metrics["loss"].item())
        assert np.mean(losses[-16:]) < np.mean(losses[16:32]) - 1
        assert moco.encoder() is moco.trunk

    def test_settings_out_of_range(self):
        cases = {
            "objective.dim must be >= 1, got 0": {"dim": 0},
            "objective.queue must be >= 1, got 0": {"queue": 0},
            "objective.groups must be >= 1, got 0": {"groups": 0},
            "objective.temperature must be > 0, got 0.0": {"temperature": 0.0},
            r"objective.momentum must lie in \[0, 1\], got 1.5": {"momentum": 1.5},
        }
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                MocoSettings(**change)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each of two workers found; this process is the first."""
    folder = tmp_path_factory.mktemp("workers")
    second = torch.multiprocessing.get_context("spawn").Process(target=moco_workers.work, args=(1, folder))
    second.start()
    moco_workers.work(0, folder)
    second.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("groups", moco_workers.GROUPS)
class TestWorkers:
    def test_two_learn_what_one_learns(self, workers, groups):
        """In training, with BatchNorm's batches of one size: the same losses, gradients and keys."""
        alone = moco_workers.steps(moco_workers.learner(groups), moco_workers.batch())
        found = {name: torch.stack([worker[groups][name] for worker in workers]) for name in alone}
        for name in ("losses", "gradient"):
            torch.testing.assert_close(found[name].mean(dim=0), alone[name], rtol=1e-3, atol=1e-4)
        for queue in found["queue"]:
            torch.testing.assert_close(queue, alone["queue"], rtol=1e-4, atol=1e-5)
        assert torch.equal(*found["queue"]) and found["pointer"].tolist() == [32, 32] and alone["pointer"] == 32

    def test_keys_are_normalised_with_other_images_than_queries(self, workers, groups):
        """Dealt like cards: of two groups the first makes the keys of images 0, 2, 4, ..., its queries are of the
        first half."""
        _, view = moco_workers.batch()
        own = groups // moco_workers.WORLD
        for rank, worker in enumerate(workers):
            mean, first = torch.zeros(8).double(), moco_workers.learner(groups).key[0].conv1
            for _ in range(2):  # steps
                for hand in range(rank * own, (rank + 1) * own):
                    mean = 0.9 * mean + 0.1 * first(view[hand::groups]).mean(dim=(0, 2, 3))
            torch.testing.assert_close(worker[groups]["key mean"], mean.detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    data = layouts.prepared_pictures(tmp_path_factory.mktemp("data"))

    def make(out: Path, **changes) -> Pretrain:
        common = {
            "views": ViewSettings(size=32),
            "optim": Optim(lr=0.05, batch_size=16, steps=6),
            "precision": "fp32",
            "report_every": 1,
            "checkpoint_every": 2,
            "device": "cpu",
            "trunk": TINY,
            "objective": MocoSettings(dim=8, queue=48),
        }
        return Pretrain(**{"data": data, "out": out} | common | changes)

    return make


class TestPretrain:
    def test_killed_and_resumed_equals_uninterrupted(self, pretrain, tmp_path, monkeypatch):
        """The queue has just gone round when it is cut."""

        class Killed(BaseException):
            pass

        def cut(*arguments):
            yield from islice(work.work(*arguments), 5)
            raise Killed

        whole = launch.run(pretrain(tmp_path / "whole"))
        with monkeypatch.context() as patch:
            patch.setattr(launch, "work", cut)
            with pytest.raises(Killed):
                launch.run(pretrain(tmp_path / "cut"))
        resumed = launch.run(pretrain(tmp_path / "cut"))
        first, second = (load_file(folder.path / "encoder.safetensors") for folder in (whole, resumed))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert [m["loss"] for m in whole.metrics()] == [m["loss"] for m in resumed.metrics()]

    def test_command_line(self, pretrain, tmp_path):
        data = str(pretrain(tmp_path).data)
        chosen = tyro.cli(Pretrain, args=["--data", data, "objective:moco", "--objective.hidden", "2048"])
        assert chosen.objective == MocoSettings(hidden=2048)
        small = replace(chosen, trunk=TINY, objective=SMALL, optim=Optim(batch_size=16))
        assert isinstance(small.build(), Moco)

    def test_whole_batches_leave_the_queue(self, pretrain, tmp_path):
        with pytest.raises(ValueError, match=r"objective.queue must be a multiple of optim.batch_size=16, got 40"):
            pretrain(tmp_path, objective=MocoSettings(queue=40))

    def test_one_group_is_what_earlier_runs_had(self, pretrain, tmp_path):
        one, four = (pretrain(tmp_path, objective=MocoSettings(dim=8, queue=48, groups=groups)) for groups in (1, 4))
        earlier, now = one.matters()["objective"], four.matters()["objective"]
        assert "groups" not in earlier and now == earlier | {"groups": 4}

    def test_groups_are_of_one_size(self, pretrain, tmp_path):
        def of(groups, **changes):
            return pretrain(tmp_path, objective=MocoSettings(queue=48, groups=groups), **changes)

        of(8), of(4, workers=8), of(4, workers=2), of(1, workers=3, optim=Optim(batch_size=48))
        for groups in (3, 16):  # sixteen of one image each would shuffle nothing
            with pytest.raises(ValueError, match=rf"batch_size=16 must be two .*\.groups={groups} and workers=1"):
                of(groups)
        with pytest.raises(ValueError, match=r"objective.groups must be a multiple of workers=3, got 4"):
            of(4, workers=3)
        with pytest.raises(ValueError, match=r"sync_batchnorm makes one batch of all workers', .* MoCo's keys away"):
            of(4, sync_batchnorm=True)


def test_the_key_network_is_frozen_from_the_start():
    moco = tiny()
    assert not any(p.requires_grad for p in moco.key.parameters())
    assert isinstance(moco.key, nn.ModuleList)
