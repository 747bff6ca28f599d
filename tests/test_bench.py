"""The benchmarks' own instruments, and that what they compare is the same work. No time is asserted."""

import json
from itertools import count

import pytest
import torch

from lead_ray import train
from lead_ray.artefacts import write_json
from lead_ray.augmentation import augment
from lead_ray.augmentation.views import ViewSettings
from lead_ray.bench import main
from lead_ray.models import trunk
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.speed import measure, peers, steps
from lead_ray.speed.ingest import Ingest
from lead_ray.speed.kept import markdown
from lead_ray.speed.measure import Candidate
from lead_ray.speed.profile import Profile
from lead_ray.speed.readout import FEATURES, Readout, ReadoutWhole, costs
from lead_ray.speed.scale import Scale, all_reduce, exchanged
from lead_ray.speed.stage2 import NaiveAlign, Stage2
from lead_ray.speed.steps import Step, Views, pictures
from lead_ray.train import Optim

CPU = torch.device("cpu")
SMALL = ByolSettings(hidden=16, dim=8, momentum=0.9)


class TestInstruments:
    def test_flops_of_a_product(self):
        a, b = torch.randn(3, 5), torch.randn(5, 7)
        assert measure.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7

    def test_peak_counts_what_is_held_at_a_time(self):
        def call() -> None:
            first = torch.zeros(1000)
            del first
            second, third = torch.zeros(1000), torch.zeros(500)
            del second, third

        assert 6000 <= measure.peak_bytes(call, CPU) < 8000

    def test_candidates_take_turns_after_a_warm_up(self, monkeypatch):
        calls: list[str] = []
        clock = count(0.0, 1.0)
        monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
        candidates = [Candidate(name=name, call=lambda name=name: calls.append(name)) for name in ("slow", "fast")]
        found = measure.compare(candidates, images=10, rounds=2, device=CPU)
        assert calls[:6] == ["slow", "fast", "slow", "fast", "slow", "fast"]
        assert [one.times_faster for one in found] == [1.0, 1.0]
        assert [one.milliseconds for one in found] == [100.0, 100.0]
        assert [one.images_per_second for one in found] == [10.0, 10.0]

    def test_ratio_is_taken_round_by_round(self, monkeypatch):
        taken = iter([2.0, 1.0, 6.0, 2.0, 4.0, 2.0])
        monkeypatch.setattr(measure, "timed", lambda call, device, times: next(taken))
        candidates = [Candidate(name=name, call=lambda: None) for name in ("slow", "fast")]
        slow, fast = measure.compare(candidates, images=1, rounds=3, device=CPU)
        assert (slow.milliseconds, fast.milliseconds, fast.least) == (4000, 2000, 1000)
        assert fast.times_faster == 2.0


class TestScale:
    def test_bytes_of_a_resnet50(self):
        """Trunk 23,508,032 parameters without its classifier; projector 2048-4096-256, predictor 256-4096-256."""
        heads = sum(i * 4096 + 4096 + 2 * 4096 + 4096 * 256 + 256 for i in (2048, 256))
        gradients, statistics = exchanged(50)
        assert gradients == 4 * (23_508_032 + heads)
        online = 26_560 + 2 * 4096  # channels of a ResNet-50's BatchNorm layers, and of both heads'
        assert statistics == 4 * 2 * (4 * online + 2 * (26_560 + 4096))

    def test_ring_all_reduce(self):
        assert all_reduce(10**9, 2, 1.0) == 1.0
        assert all_reduce(10**9, 4, 3.0) == 0.5

    def test_table(self, capsys):
        rows = Scale(images_per_second=1000.0, gpus=(8,), images=1000, stored=100, links=(50.0,)).run()
        assert rows[0]["decoded GB/s"] == pytest.approx(8 * 1000 * 30_000 / 1e9)
        assert rows[0]["GB on a GPU"] == pytest.approx(1000 * 30_000 / 8 / 1e9)
        assert "MB of gradients" in capsys.readouterr().out


class TestReadout:
    """Table 10: operations on paper against those that torch counts."""

    @pytest.mark.parametrize("name", ["64-d", "3840-d"])
    def test_operations_are_those_that_run(self, name):
        bench = Readout(batch=2, steps=1, grid=12, points=3, marks=2)
        blocks, marks = bench.frozen(FEATURES[name], CPU)
        work = bench.work(FEATURES[name])
        # Of a grouped layer's weight gradient torch counts what it were without groups.
        beyond = (bench.marks - 1) * work.linear
        assert measure.count_flops(bench.built(blocks, marks)) == 2 * (work.step(work.built) + beyond)
        weights = [torch.randn(6, block.shape[1]) for block in blocks]
        rows = [block[:1].permute(0, 2, 3, 1).float().flatten(0, 2) for block in blocks]
        ours = measure.count_flops(lambda: [each @ weight.mT for each, weight in zip(rows, weights, strict=True)])
        assert ours == work.ours

    def test_the_papers_column(self):
        """Multiplications of the convolution on 48 x 48 cells, 5 landmarks, 10^9."""
        found = {name: Readout().work(kind).built / 2e9 for name, kind in FEATURES.items()}
        assert {name: round(value, 2) for name, value in found.items()} == {
            "64-d": 0.04,
            "128-d": 0.07,  # the paper prints 0.08 and 0.16: twice and four times its 0.04
            "256-d": 0.15,
            "3840-d": 2.21,
        }
        assert Readout().work(FEATURES["3840-d"]).ours / 2e9 == pytest.approx(0.0691, abs=1e-4)

    def test_costs(self, capsys):
        rows = costs(Readout(batch=2, steps=1, rounds=1, grid=12, points=3, device="cpu"))
        assert [row.channels for row in rows] == [64, 128, 256, 3840]
        assert all(row.flops < row.built_flops or row.channels < 300 for row in rows)
        assert all(min(row.built_seconds, row.seconds, row.bf16_seconds) > 0 for row in rows)
        assert "3840-d, lead_ray, bf16" in capsys.readouterr().out


def plain_and_ours(dtype: torch.dtype):
    """The plain learner, ours with the same weights, its optimiser, and the parts that correspond."""
    torch.manual_seed(0)
    plain = peers.PlainByol(18, SMALL, 0.01, CPU)
    learner = Byol(Trunk(TrunkSettings(depth=18)), SMALL)
    pairs = (
        (plain.online[0], learner.trunk),
        (plain.online[1], learner.projector),
        (plain.predictor, learner.predictor),
        (plain.target[0], learner.target[0]),
        (plain.target[1], learner.target[1]),
    )
    for theirs, mine in pairs:
        theirs.to(dtype)
        mine.load_state_dict(theirs.state_dict())
    learner = learner.to(dtype=dtype, memory_format=torch.channels_last).train()
    optimizer = train.make_optimizer(learner, Optim(lr=0.01))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    return plain, learner, optimizer, pairs


class TestSameWork:
    def test_naive_alignment_is_ours(self):
        settings = AlignSettings(teacher="centred", fpn=FpnSettings(lateral=32, branch=32), projector=0)
        torch.manual_seed(0)
        trunk = Trunk(TrunkSettings(depth=18, width=0.25)).eval()
        views = torch.randn(2, 2, 3, 64, 64)
        naive = NaiveAlign(trunk, settings)
        ours = Align(trunk, settings)
        ours.fpn.load_state_dict(naive.fpn.state_dict())
        losses = [learner.train()(*views)["loss"] for learner in (naive, ours)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)

    def test_our_step_is_the_plain_one(self):
        """Channels last, BatchNorm with ReLU, fused optimiser, one-call moving average: from the same weights the same
        loss and the same changes, but for rounding and the ReLUs that it opens or closes."""
        plain, learner, optimizer, pairs = plain_and_ours(torch.float32)
        for _ in range(2):
            for theirs, mine in pairs:
                mine.load_state_dict(theirs.state_dict())
            before = [[value.detach().clone() for value in theirs.parameters()] for theirs, _ in pairs]
            a, b = augment.normalise(pictures(32, CPU, side=48) / 255).chunk(2)
            expected = plain.step(a, b)
            got = train.train_step(learner, optimizer, (a, b), torch.float32)["loss"]
            learner.after_step(0.0)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            for (theirs, mine), old in zip(pairs, before, strict=True):
                for known, ours, value in zip(theirs.parameters(), mine.parameters(), old, strict=True):
                    assert (ours - known).norm() <= 0.05 * (known - value).norm() + 1e-6
                for known, ours in zip(theirs.buffers(), mine.buffers(), strict=True):
                    torch.testing.assert_close(ours, known, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_our_loss_curve_is_the_plain_one(self, monkeypatch):
        """And the same weights in the end. In double precision, so that rounding hides nothing: layout, optimiser,
        moving average, order of the step. Kernels of single precision are compared above and in test_norm_cpu."""
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # what leaves bf16 goes there, too
        monkeypatch.setattr(trunk, "pooled", lambda blocks: blocks[-1].mean(dim=(2, 3)))
        plain, learner, optimizer, pairs = plain_and_ours(torch.float64)
        losses = []
        for _ in range(3):
            a, b = augment.normalise(pictures(12, CPU, side=48).double() / 255).chunk(2)
            expected = plain.step(a, b)
            got = train.train_step(learner, optimizer, (a, b), torch.float32)["loss"]
            learner.after_step(0.0)
            losses.append(got.item())
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
        assert max(losses) - min(losses) > 0.1, "a curve, no line"
        for theirs, mine in pairs:
            known = theirs.state_dict()
            for name, ours in mine.state_dict().items():
                torch.testing.assert_close(ours, known[name], rtol=1e-8, atol=1e-10)

    def test_torchvision_views_are_normalised_views(self):
        a, b = peers.torchvision_views(pictures(2, CPU), ViewSettings(size=32))
        assert a.shape == b.shape == (2, 3, 32, 32)
        assert not torch.equal(a, b)

    @pytest.mark.filterwarnings("ignore")  # theirs
    @pytest.mark.parametrize("peer", steps.installed(), ids=lambda peer: peer.name)
    @pytest.mark.parametrize("way", peers.WAYS, ids=lambda way: way.name)
    def test_other_libraries_do_the_same_work(self, peer, way):
        torch.manual_seed(0)
        a, b = peer.views(ViewSettings(size=32))(peers.as_pil(pictures(4, CPU)))
        assert a.shape == b.shape == (4, 3, 32, 32)
        step = peer.step(18, SMALL, 0.05, CPU, way)
        losses = [step(a, b).item() for _ in range(6)]
        assert losses[-1] < losses[0] - 0.1, "it does not learn four pictures by heart"


@pytest.mark.filterwarnings("ignore")  # of the other libraries, where they are installed
@pytest.mark.parametrize(
    "command",
    [
        ["views", "--batch", "8", "--views.size", "32"],
        ["readout", "--batch", "4", "--steps", "2", "--grid", "12", "--points", "3"],
        ["readout-whole", "--annotated", "3", "--readout.grid", "12", "--trunk.depth", "18", "--trunk.width", "0.25"],
        ["stage2", "--batch", "2", "--loss-only", "--size", "64", "--trunk.depth", "18", "--trunk.width", "0.25"],
        ["stage2", "--batch", "2", "--size", "64", "--trunk.depth", "18", "--trunk.width", "0.25"],
        pytest.param(
            ["step", "--batch", "4", "--depth", "18", "--objective.hidden", "16", "--views.size", "32"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_commands_print_and_write(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "peak_flops", lambda precision, device: 1e9)
    out = tmp_path / "found.json"
    common = ["--rounds", "1", "--out", str(out), "--device", "cpu"]
    main([*command, *common])
    kept = json.loads(out.read_text())
    assert "lead_ray" in capsys.readouterr().out
    assert all(one["images_per_second"] > 0 for one in kept["found"])
    assert kept["hardware"]["versions"]["torch"]


@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_profile_says_where_the_time_goes(stage, tmp_path, capsys):
    out = tmp_path / "profile.json"
    small = ["--batch", "2", "--trunk.depth", "18", "--trunk.width", "0.25", "--device", "cpu", "--rows", "3"]
    main(["profile", "--stage", stage, *small, "--out", str(out)])
    kept = json.loads(out.read_text())
    shares = [one["share"] for one in kept["found"]]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert {"aten::convolution_backward", "aten::_fused_sgd_"} <= {one["name"] for one in kept["found"]}
    printed = capsys.readouterr().out
    assert f"a step of stage {stage}" in printed and printed.count("%") == 3


def test_all_goes_on_where_one_fails(tmp_path, monkeypatch, capsys):
    def fails(self):
        raise RuntimeError("no such luck")

    def measured(self):
        found = [{"name": "ours", "milliseconds": 1.0, "times_faster": 2.0, "peak_megabytes": None}]
        write_json(self.out, {"title": type(self).__name__, "settings": {"threads": self.threads}, "found": found})

    for kind in (Readout, ReadoutWhole, Views, Stage2, Ingest, Profile):
        monkeypatch.setattr(kind, "run", measured)
    monkeypatch.setattr(Step, "run", fails)
    command = ["all", "--out", str(tmp_path / "found"), "--device", "cpu", "--threads", "2"]
    with pytest.raises(SystemExit, match="failed: step; the reasons are above"):
        main(command)
    assert "no such luck" in capsys.readouterr().err
    written = (tmp_path / "found" / "bench.md").read_text()
    assert [name in written for name in ("Stage2", "Views", "Readout", "Ingest")] == [True] * 4
    assert "Profile" not in written and (tmp_path / "found" / "profile-1.json").exists()
    assert json.loads((tmp_path / "found" / "views.json").read_text())["settings"]["threads"] == 2
    monkeypatch.setattr(Step, "run", measured)
    main(command)
    told = capsys.readouterr().out
    assert "1/9 step\n" in told and told.count("measured before") == 8


@pytest.mark.parametrize("name", ["batch", "rounds", "threads"])
def test_impossible_numbers_are_refused_by_name(name, capsys):
    with pytest.raises(SystemExit):
        main(["views", f"--{name}", "0"])
    assert f"{name} must be >= 1, got 0" in capsys.readouterr().err


def test_kept_measurements_become_tables(tmp_path, capsys):
    timing = {
        "title": "work",
        "settings": {"batch": 2},
        "found": [
            {"name": "plain", "milliseconds": 1234.5, "times_faster": 1.0, "peak_megabytes": 2000.4},
            {"name": "ours", "milliseconds": 0.24649, "times_faster": 14.04, "peak_megabytes": None},
        ],
    }
    scaling = {
        "settings": {"workers": [0, 2]},
        "found": [{"workers": 0, "images_per_second": 600.0}, {"workers": 2, "images_per_second": 700.0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(timing))
    (tmp_path / "b.json").write_text(json.dumps(scaling))
    main(["table", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "all.md")])
    written = (tmp_path / "all.md").read_text()
    assert written == capsys.readouterr().out == markdown([timing, scaling]) + "\n"
    lines = written.splitlines()
    assert lines[2:4] == ["| work | plain | 1,234 | 1.00 | 2,000 |", "|  | ours | 0.246 | 14.0 |  |"]
    assert lines[7:] == ["| none: one process, no Ray | 600 | 600 |", "| 2 | 700 | 350 |"]
