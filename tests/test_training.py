"""Run folders, the loop and both stages: what a kill, a full disk, wrong settings or a bad loss leave behind."""

import errno
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lead_ray import artefacts, launch, stage, train
from lead_ray.artefacts import RunFolder, atomic, plain, write_json
from lead_ray.data.folder import Folder
from lead_ray.dense import Dense
from lead_ray.models import weights
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.prepare import prepare
from lead_ray.pretrain import Pretrain
from lead_ray.stage import Worker, load_resident, view_pairs
from lead_ray.train import Optim, Schedule
from lead_ray.views import ViewSettings


class Killed(BaseException):
    """Not an error that anything handles."""


# Run folders


@dataclass(frozen=True)
class Settings:
    seed: int
    data: Path
    sides: tuple[int, int] = (3, 4)


def opened(out: Path, **changes) -> RunFolder:
    settings = plain(Settings(**{"seed": 0, "data": Path("faces")} | changes))
    return RunFolder.open(out, "stage1-lead", settings, settings)


CPU = torch.device("cpu")


class TestAtomic:
    def test_takes_the_place_of_the_old_file(self, tmp_path):
        path = tmp_path / "new/folder/file.json"
        write_json(path, {"a": 1})
        write_json(path, {"a": (Path("x"), None)})
        assert json.loads(path.read_text()) == {"a": ["x", None]}
        assert [p.name for p in path.parent.iterdir()] == ["file.json"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(self, tmp_path, monkeypatch):
        path = tmp_path / "file.json"
        write_json(path, "old")

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_json(path, "new")
        (note,) = caught.value.__notes__
        assert str(path) in note and "free space, run again" in note
        assert json.loads(path.read_text()) == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file.json"]

    @pytest.mark.parametrize("writer", [torch.save, save_file])
    def test_as_torch_and_safetensors_meet_it(self, tmp_path, writer):
        """They write by themselves and raise errors of their own: a limit on file sizes stands in for the disk."""
        path, limit = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
        path.write_bytes(b"old")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
            with pytest.raises(Exception) as caught, atomic(path) as temporary:  # noqa: PT011
                writer({"a": torch.zeros(10_000)}, temporary)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert any("free space, run again" in note for note in caught.value.__notes__)
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

    def test_a_kill_leaves_no_temporary_file_either(self, tmp_path):
        with pytest.raises(Killed), atomic(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise Killed
        assert not list(tmp_path.iterdir())


class TestRunFolder:
    def test_holds_settings_and_environment(self, tmp_path):
        folder = opened(tmp_path)
        config = json.loads((folder.path / "config.json").read_text())
        assert config["matters"] == {"seed": 0, "data": "faces", "sides": [3, 4]}
        environment = json.loads((folder.path / "env.json").read_text())
        assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
        assert environment["cores"] >= 1 and environment["processor"]

    def test_settings_make_the_name(self, tmp_path):
        names = [opened(tmp_path, **changes).path.name for changes in ({}, {"seed": 1}, {"sides": (4, 3)}, {})]
        assert len(set(names)) == 3 and names[0] == names[3]
        assert all(name.startswith("stage1-lead-") for name in names)

    def test_other_settings_in_the_same_folder_are_refused_by_name(self, tmp_path):
        """As when two settings share a digest, or someone edited the file."""
        folder = opened(tmp_path)
        config = json.loads((folder.path / "config.json").read_text())
        config["matters"] |= {"seed": 7, "colour": "red"}
        write_json(folder.path / "config.json", config)
        with pytest.raises(ValueError, match=r"made with other settings \(colour, seed\): use another --name"):
            opened(tmp_path)

    def test_metrics_survive_a_line_cut_short(self, tmp_path):
        folder = opened(tmp_path)
        assert folder.metrics() == []
        for step in (2, 4, 6):
            folder.append_metrics({"step": step, "loss": 1.0})
        file = folder.path / "metrics.jsonl"
        file.write_bytes(file.read_bytes()[:-9])  # killed within step 6
        assert [line["step"] for line in folder.metrics()] == [2, 4]
        for step in (4, 6):  # resumed after step 2
            folder.append_metrics({"step": step, "loss": 2.0})
        assert [(line["step"], line["loss"]) for line in folder.metrics()] == [(2, 1.0), (4, 2.0), (6, 2.0)]

    def test_two_checkpoints_are_kept_and_the_newest_is_read(self, tmp_path):
        folder = opened(tmp_path)
        assert folder.latest_checkpoint(CPU) is None
        for step in (9, 10, 11):
            folder.save_checkpoint(step, {"value": torch.tensor(float(step))})
        assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == [
            "step-00000010.pt",
            "step-00000011.pt",
        ]
        assert folder.latest_checkpoint(CPU) == {"step": 11, "value": torch.tensor(11.0)}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-10],
            lambda data: data[: len(data) // 2],
            lambda data: b"",
            lambda data: bytes(len(data)),
            lambda data: b"A note of someone's.\n" * 9,
            lambda data: data.replace(b"collections", b"collectiona"),
            lambda data: b"\x80" + data,
        ],
    )
    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self, tmp_path, damage):
        folder = opened(tmp_path)
        state = nn.Linear(2, 2).state_dict()
        older, newer = (folder.save_checkpoint(step, {"learner": state}) for step in (1, 2))
        newer.write_bytes(damage(newer.read_bytes()))
        assert folder.latest_checkpoint(CPU)["step"] == 1
        older.write_bytes(damage(older.read_bytes()))
        with pytest.raises(ValueError, match=r"step-00000002.pt .*step-00000001.pt .*Delete them to start"):
            folder.latest_checkpoint(CPU)

    def test_nothing_but_tensors_and_numbers_is_unpickled(self, tmp_path):
        folder = opened(tmp_path)
        folder.save_checkpoint(1, {"learner": Path("code")})
        with pytest.raises(ValueError, match="no checkpoint .* can be read"):
            folder.latest_checkpoint(CPU)

    def test_finished_is_what_has_a_result(self, tmp_path):
        folder = opened(tmp_path)
        folder.save_checkpoint(1, {})
        (folder.path / "checkpoints/.step-00000002.pt.x1y2").write_bytes(b"left by a kill")
        assert folder.result is None
        folder.finish({"loss": 0.5})
        assert opened(tmp_path).result == {"loss": 0.5}
        assert not (folder.path / "checkpoints").exists()


# The loop


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
        return {"loss": loss * float("nan") if len(self.progress) in self.broken else loss, "bias": self.layer.bias[0]}

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
        """From 0: the gradient of mean (y - b)^2 by b is -2 mean y = -2; lr(0) of a warm-up is 1e-4 of the peak."""
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
            (metrics,) = trained(line, steps=1, precision=precision)
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


# Stages


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Forty prepared images of 40 x 40 pixels: five in each lane."""
    root = tmp_path_factory.mktemp("data")
    for seed in range(40):
        layouts.picture(root / f"raw/{seed:02}.png", 44, 40, seed=seed)
    prepare(Folder(raw=root / "raw"), root / "shards", workers=0, size=40, encoding="png", progress=False)
    return root / "shards"


OPTIM = Optim(lr=0.05, batch_size=16, steps=8)
COMMON = {
    "views": ViewSettings(size=32),
    "optim": OPTIM,
    "precision": "fp32",
    "report_every": 2,
    "checkpoint_every": 4,
    "device": "cpu",
}
TRUNK = TrunkSettings(depth=18, width=0.125)
Make = Callable[..., stage.Stage]


@pytest.fixture(scope="module")
def stage1(data) -> Make:
    def make(out: Path, **changes) -> Pretrain:
        heads = {"trunk": TRUNK, "objective": ByolSettings(hidden=32, dim=16)}
        return Pretrain(**{"data": data, "out": out} | COMMON | heads | changes)

    return make


@pytest.fixture(scope="module")
def done1(stage1, tmp_path_factory) -> RunFolder:
    """A finished run of stage 1 that nothing interrupted."""
    return launch.run(stage1(tmp_path_factory.mktemp("stage1")))


@pytest.fixture(scope="module")
def stage2(data, done1) -> Make:
    def make(out: Path, **changes) -> Dense:
        objective = AlignSettings(projector=32, fpn=FpnSettings(dim=8, lateral=16, branch=32))
        return Dense(**{"data": data, "out": out, "stage1": done1.path, "objective": objective} | COMMON | changes)

    return make


@pytest.fixture(scope="module")
def done2(stage2, tmp_path_factory) -> RunFolder:
    return launch.run(stage2(tmp_path_factory.mktemp("stage2")))


@pytest.fixture(params=["stage1", "stage2"])
def either(request) -> tuple[Make, RunFolder]:
    """What makes a stage, and its finished run."""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"done{request.param[-1]}")


def losses(folder: RunFolder) -> list[tuple[int, float]]:
    return [(metrics["step"], metrics["loss"]) for metrics in folder.metrics()]


def same_weights(a: RunFolder, b: RunFolder) -> bool:
    first, second = (load_file(folder.path / "encoder.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


class TestStages:
    def test_a_finished_run_has_all_artefacts(self, either):
        _, folder = either
        expected = {"config.json", "env.json", "metrics.jsonl", "encoder.safetensors", "result.json"}
        assert {p.name for p in folder.path.iterdir()} == expected
        assert [step for step, _ in losses(folder)] == [2, 4, 6, 8]
        assert folder.result["steps"] == 8 and folder.result["images"] == 40
        assert folder.result["loss"] == losses(folder)[-1][1]
        card = weights.read_card(folder.path / "encoder.safetensors")
        assert card.trained["run"] == folder.path.name and card.trained["settings"]["optim"]["batch_size"] == 16

    def test_weights_of_each_stage_load_as_what_they_are(self, done1, done2):
        image = torch.zeros(1, 3, 64, 64)
        assert [block.shape[1] for block in weights.load(done1.path)(image)] == [8, 16, 32, 64]
        assert [block.shape for block in weights.load(done2.path)(image)] == [(1, 8, 16, 16)]

    def test_stage_2_leaves_the_trunk_as_stage_1_made_it(self, done1, done2):
        first, second = (load_file(folder.path / "encoder.safetensors") for folder in (done1, done2))
        assert all(torch.equal(value, second[f"trunk.{name}"]) for name, value in first.items())

    @pytest.mark.parametrize("reports", [1, 3, 4])
    def test_killed_and_resumed_equals_uninterrupted(self, either, tmp_path, monkeypatch, reports):
        """Before the first checkpoint, between two, and after the last one but before the weights are written."""
        make, whole = either

        def cut(*arguments):
            yield from islice(stage.work(*arguments), reports)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(launch, "work", cut)
            with pytest.raises(Killed):
                launch.run(make(tmp_path))
        (path,) = tmp_path.iterdir()
        assert RunFolder(path).result is None
        assert len(list(path.glob("checkpoints/*"))) == reports // 2
        folder = launch.run(make(tmp_path))
        assert folder.path == path
        assert same_weights(folder, whole)
        assert losses(folder) == losses(whole)

    def test_a_damaged_last_checkpoint_costs_time_and_nothing_else(self, stage1, done1, tmp_path, monkeypatch):
        saved = []

        def save(self, step, state):
            saved.append(step)
            path = original(self, step, state)
            if step == 8:
                path.write_bytes(path.read_bytes()[:1000])
                raise Killed
            return path

        original = RunFolder.save_checkpoint
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "save_checkpoint", save)
            with pytest.raises(Killed):
                launch.run(stage1(tmp_path))
        folder = launch.run(stage1(tmp_path))
        assert saved == [4, 8] and same_weights(folder, done1)

    def test_a_finished_run_is_not_trained_twice(self, either, monkeypatch, capsys):
        make, folder = either
        monkeypatch.setattr(launch, "work", lambda *_: pytest.fail("trained again"))
        assert launch.run(make(folder.path.parent)) == folder
        assert "finished before" in capsys.readouterr().out

    def test_where_a_run_goes_does_not_change_its_name_and_what_it_computes_does(self, either, tmp_path):
        make, folder = either
        elsewhere = {"workers": 2, "report_every": 1, "checkpoint_every": 1, "device": "auto"}
        assert make(tmp_path, **elsewhere).open().path.name == folder.path.name
        for change in ({"seed": 1}, {"optim": replace(OPTIM, lr=0.1)}, {"sync_batchnorm": True}):
            assert make(tmp_path, **change).open().path.name != folder.path.name

    def test_moved_data_and_weights_are_still_the_same(self, stage2, data, done1, done2, tmp_path):
        shutil.copytree(data, tmp_path / "data")
        shutil.copy(done1.path / "encoder.safetensors", tmp_path / "trunk.safetensors")
        moved = stage2(tmp_path / "runs", data=tmp_path / "data", stage1=tmp_path / "trunk.safetensors")
        assert moved.open().path.name == done2.path.name

    def test_going_on_from_weights(self, stage1, done1, tmp_path):
        goes_on = stage1(tmp_path, init=done1.path)
        assert goes_on.open().path.name != done1.path.name
        built, expected = goes_on.build().encoder(), weights.load(done1.path)
        for (name, value), other in zip(built.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(value, other), name

    @pytest.mark.parametrize("pairing", ["images", "views"])
    def test_workers_together_see_the_batches_that_one_sees(self, stage2, tmp_path, pairing):
        run = stage2(tmp_path, pairing=pairing)

        def views(rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
            worker = Worker(rank=rank, world=world)
            return next(view_pairs(run, load_resident(run, worker), worker, first_step=3))

        alone = views(0, 1)
        for world in (2, 8):
            parts = [views(rank, world) for rank in range(world)]
            places = [
                next(run.sampling().batches(3, Worker(rank=rank, world=world).lanes(8)))[2]
                for rank in range(world)
            ]
            for side in (0, 1):
                together = torch.empty_like(alone[side])
                for where, part in zip(places, parts, strict=True):
                    together[where] = part[side]
                torch.testing.assert_close(together, alone[side], rtol=0, atol=1e-5)

    def test_pairs_are_of_different_images_or_of_one(self, stage2, tmp_path):
        plain_views = ViewSettings(
            size=32, scale=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarise=(0.0, 0.0)
        )
        for pairing, same in (("images", False), ("views", True)):
            run = stage2(tmp_path, pairing=pairing, views=plain_views)
            a, b = next(view_pairs(run, load_resident(run, Worker()), Worker(), 0))
            nearest = torch.cdist(b.flatten(1), a.flatten(1)).argmin(dim=1)
            assert torch.equal(nearest, torch.arange(16)) == same
            # Partners come from the same lane's share, each image once.
            assert torch.equal(nearest // 2, torch.arange(16) // 2)
            assert len(nearest.unique()) == 16


class TestStageErrors:
    def test_settings(self, stage1, tmp_path):
        cases = {
            "workers must divide the 8 lanes: 0, 1, 2, 4 or 8, got 3": {"workers": 3},
            "workers must be >= 0, got -1": {"workers": -1},
            "checkpoint_every must be a multiple of report_every >= 1, got 4 and 3": {"report_every": 3},
            "checkpoint_every must be .* got 4 and 0": {"report_every": 0},
        }
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                stage1(tmp_path, **change)

    def test_what_does_not_fit_the_data_leaves_no_run_folder(self, stage1, tmp_path):
        cases = {
            "optim.batch_size must be a multiple of the 8 lanes, got 12": {"optim": replace(OPTIM, batch_size=12)},
            "optim.batch_size=48 .* lower it to at most 40": {"optim": replace(OPTIM, batch_size=48)},
            r"split must be one of \['train'\], got 'test'": {"split": "test"},
        }
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                launch.run(stage1(tmp_path, **change))
        with pytest.raises(FileNotFoundError, match="no manifest.json: not prepared.* Run: lead-ray prepare"):
            launch.run(stage1(tmp_path, data=tmp_path / "none"))
        assert not list(tmp_path.iterdir())

    def test_pairs_of_images_need_two_of_each_lane(self, stage2, tmp_path):
        with pytest.raises(ValueError, match="optim.batch_size must be >= 16 to pair images, got 8"):
            launch.run(stage2(tmp_path, optim=replace(OPTIM, batch_size=8)))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
    def test_no_gpu(self, stage1, tmp_path):
        with pytest.raises(ValueError, match="device=cuda, but torch sees no GPU here: use --device cpu"):
            launch.run(stage1(tmp_path, device="cuda"))

    def test_wrong_weights_for_stage_2(self, stage2, done2, tmp_path):
        with pytest.raises(ValueError, match="holds stage-2 weights: give a stage-1 run"):
            launch.run(stage2(tmp_path, stage1=done2.path))
        with pytest.raises(FileNotFoundError, match="no weights at .* give a finished run's folder"):
            launch.run(stage2(tmp_path, stage1=tmp_path / "none"))

    def test_wrong_weights_to_go_on_from(self, stage1, done1, tmp_path):
        with pytest.raises(ValueError, match=r"holds a trunk of .*width=0.125\), wanted .*: set --trunk.\* alike"):
            launch.run(stage1(tmp_path, init=done1.path, trunk=TrunkSettings(depth=18, width=0.25)))

    def test_a_checkpoint_of_other_settings(self, stage1, tmp_path):
        folder = stage1(tmp_path).open()
        other = stage1(tmp_path, trunk=TrunkSettings(depth=18, width=0.25)).build()
        optimizer = train.make_optimizer(other, OPTIM)
        folder.save_checkpoint(4, {"learner": other.state_dict(), "optimizer": optimizer.state_dict()})
        with pytest.raises(ValueError, match=r"checkpoint in .* is of another network or objective: delete it"):
            launch.run(stage1(tmp_path))

    def test_a_loss_that_explodes_leaves_no_weights(self, stage1, tmp_path):
        run = stage1(tmp_path, optim=Optim(lr=1e30, batch_size=16, steps=30, warmup_epochs=0.0), report_every=4)
        with pytest.raises(FloatingPointError, match="loss is not finite at step [0-3] "):
            launch.run(run)
        (path,) = tmp_path.iterdir()
        assert not (path / "checkpoints").exists() and not (path / "encoder.safetensors").exists()
        assert RunFolder(path).metrics() == []

    def test_environment_needs_no_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert artefacts.environment()["commit"] is None
