"""Both stages in one process: their artefacts, kills and resumption, who sees what, and what is refused."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import load_file

from lead_ray import launch, stage, train, work
from lead_ray.artefacts import RunFolder
from lead_ray.augmentation.noise import Noise
from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.images import feed, shards
from lead_ray.models import weights
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.objectives.contrast import ContrastSettings
from lead_ray.objectives.moco import MocoSettings
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim
from lead_ray.work import Worker, open_images, view_pairs


class Killed(BaseException):
    """Not an error that anything handles."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Forty prepared images of 40 x 40 pixels: five in each lane."""
    return layouts.prepared_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def fine(tmp_path_factory) -> Path:
    """The same images in 24 shards of one or two: three in each lane."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 2)
        return layouts.prepared_pictures(tmp_path_factory.mktemp("fine"))


@pytest.fixture
def spoilt(fine, tmp_path) -> Path:
    """A copy of which one shard was altered after preparing."""
    folder = Path(shutil.copytree(fine, tmp_path / "spoilt"))
    shard = folder / "train/part-00011.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    return folder


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
INGESTS = {
    "resident": {"ingest": "resident"},
    "dealt anew": {"ingest": "resident", "reshuffle_epochs": 2},
    "stream": {"ingest": "stream", "window": 2},
}
each_ingest = pytest.mark.parametrize("ingest", INGESTS.values(), ids=INGESTS)
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
        expected = {".lock", "config.json", "env.json", "metrics.jsonl", "encoder.safetensors", "result.json"}
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

    @pytest.mark.parametrize("reports", [0, 1, 2])
    def test_encoders_are_kept_on_the_way(self, stage1, done1, tmp_path, monkeypatch, reports):
        """Of every so many steps, the last included, also when the run was cut; each loads as the run's own does."""

        def cut(*arguments):
            yield from islice(work.work(*arguments), reports)
            raise KeyboardInterrupt

        settings = stage1(tmp_path, encoder_every=4)
        with monkeypatch.context() as patch:
            patch.setattr(launch, "work", cut)
            with pytest.raises(KeyboardInterrupt):
                launch.run(settings)
        folder = launch.run(settings)
        kept = sorted((folder.path / "encoders").iterdir())
        assert [path.name for path in kept] == ["step-00000004.safetensors", "step-00000008.safetensors"]
        assert [weights.read_card(path).trained["steps"] for path in kept] == [4, 8]
        early, last, own = (load_file(path) for path in (*kept, done1.path / "encoder.safetensors"))
        assert folder.path.name == done1.path.name and all(torch.equal(last[name], own[name]) for name in own)
        assert not torch.equal(early["conv1.weight"], own["conv1.weight"])
        assert weights.load(kept[0])(torch.zeros(1, 3, 32, 32))[0].shape[1] == 8

    def test_a_finished_run_says_that_it_kept_other_encoders(self, stage1, tmp_path, capsys):
        launch.run(stage1(tmp_path, encoder_every=4))
        for every, said in ((0, False), (4, False), (8, False), (2, True)):
            capsys.readouterr()
            launch.run(stage1(tmp_path, encoder_every=every))
            told = capsys.readouterr().out
            assert "finished before" in told
            assert ("it kept other encoders on its way, or none; another --name trains it again" in told) == said

    @pytest.mark.parametrize("reports", [1, 3, 4])
    def test_killed_and_resumed_equals_uninterrupted(self, either, tmp_path, monkeypatch, capsys, reports):
        """Before the first checkpoint, between two, and between the last one and the weights."""
        make, whole = either

        def cut(*arguments):
            yield from islice(work.work(*arguments), reports)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(launch, "work", cut)
            with pytest.raises(Killed):
                launch.run(make(tmp_path))
        (path,) = tmp_path.iterdir()
        assert RunFolder(path).result is None
        assert len(list(path.glob("checkpoints/*"))) == reports // 2
        capsys.readouterr()
        folder = launch.run(make(tmp_path))
        assert (f"goes on from step {4 * (reports // 2)}\n" in capsys.readouterr().out) == (reports > 1)
        assert folder.path == path
        assert same_weights(folder, whole)
        assert losses(folder) == losses(whole)
        seconds = [metrics["seconds"] for metrics in folder.metrics()]
        assert seconds == sorted(seconds), "the clock of a resumed run goes on"

    @each_ingest
    def test_killed_and_resumed_within_an_epoch(self, stage1, fine, tmp_path, monkeypatch, ingest):
        """Epochs of three steps: killed after the fifth, resumed from the fourth, through two more epochs."""
        few = {"data": fine, "optim": replace(OPTIM, batch_size=8, steps=10), "report_every": 1, "checkpoint_every": 4}
        whole = launch.run(stage1(tmp_path / "whole", **few | ingest))
        assert stage1(tmp_path, **few | ingest).sampling().steps_per_epoch == (
            5 if ingest == INGESTS["resident"] else 3
        )

        def cut(*arguments):
            yield from islice(work.work(*arguments), 5)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(launch, "work", cut)
            with pytest.raises(Killed):
                launch.run(stage1(tmp_path / "cut", **few | ingest))
        folder = launch.run(stage1(tmp_path / "cut", **few | ingest))
        assert losses(folder) == losses(whole) and len(losses(whole)) == 10
        assert same_weights(folder, whole)
        assert all(0 <= metrics["stall"] <= 1 for metrics in folder.metrics())

    @each_ingest
    def test_killed_when_all_steps_were_done(self, stage1, fine, tmp_path, monkeypatch, ingest):
        """Nothing is left to train, nor to record for a GPU."""
        given = {"data": fine, "optim": replace(OPTIM, batch_size=8)}
        whole = launch.run(stage1(tmp_path / "whole", **given | ingest))

        def killed(*arguments):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(work, "_finish", killed)
            with pytest.raises(Killed):
                launch.run(stage1(tmp_path / "cut", **given | ingest))
        monkeypatch.setattr(Pretrain, "records", lambda *_: True)
        monkeypatch.setattr(work, "recorded", lambda learner, batches, precision: chain([next(batches)], batches))
        assert same_weights(launch.run(stage1(tmp_path / "cut", **given | ingest)), whole)

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

    def test_a_run_that_another_process_trains_or_has_just_finished(self, stage1, done1, tmp_path, monkeypatch):
        monkeypatch.setattr(launch, "work", lambda *_: pytest.fail("trained again"))
        folder = stage1(tmp_path).open()
        with folder.locked(), pytest.raises(ValueError, match=f"another process is training {folder.path}"):
            launch.run(stage1(tmp_path))
        results = iter([None, {"loss": 0.5}])
        monkeypatch.setattr(RunFolder, "result", property(lambda _: next(results)))
        monkeypatch.setattr(stage.Stage, "open", lambda _: folder)
        assert launch.run(stage1(tmp_path)) == folder

    def test_where_a_run_goes_does_not_change_its_name_and_what_it_computes_does(self, either, tmp_path):
        make, folder = either
        elsewhere = {"workers": 2, "report_every": 1, "checkpoint_every": 1, "device": "auto"}
        assert make(tmp_path, **elsewhere).open().path.name == folder.path.name
        assert make(tmp_path, noise=Noise()).open().path.name == folder.path.name
        orders = (INGESTS["dealt anew"], INGESTS["stream"], INGESTS["stream"] | {"window": 3})
        noisy = {"noise": Noise(pca=0.1)}
        changes = ({"seed": 1}, {"optim": replace(OPTIM, lr=0.1)}, {"sync_batchnorm": True}, noisy, *orders)
        names = {make(tmp_path, **change).open().path.name for change in changes}
        assert len(names | {folder.path.name}) == 1 + len(changes)

    def test_auto_looks_at_the_data_alone(self, stage1, tmp_path, capsys):
        """40 images of 40 x 40 pixels are 192 kB; what does not change the order does not change the run."""
        resident, stream = stage1(tmp_path, memory=0.000192), stage1(tmp_path, memory=0.000191)
        assert (resident.streams, stream.streams) == (False, True)
        given = {ingest: stage1(tmp_path, ingest=ingest) for ingest in ("resident", "stream")}
        assert resident.matters() == given["resident"].matters() == stage1(tmp_path, window=3).matters()
        assert stream.matters() == given["stream"].matters() != resident.matters()
        launch.run(replace(stream, optim=replace(OPTIM, steps=1)))
        assert "stage1 lead: ingest stream, images take 0.000192 GB (memory=0.000191)" in capsys.readouterr().out

    def test_moved_data_and_weights_are_still_the_same(self, stage2, data, done1, done2, tmp_path):
        shutil.copytree(data, tmp_path / "data")
        shutil.copy(done1.path / "encoder.safetensors", tmp_path / "trunk.safetensors")
        moved = stage2(tmp_path / "runs", data=tmp_path / "data", stage1=tmp_path / "trunk.safetensors")
        assert moved.open().path.name == done2.path.name

    def test_workers_need_not_stand_in_this_folder(self, stage2, data, done1, tmp_path, monkeypatch):
        """Ray's stand elsewhere: every path goes to them whole."""
        given = []
        monkeypatch.setattr(launch, "_on_ray", lambda run, _: given.append(run))
        monkeypatch.chdir(data.parent)
        stage1 = Path(os.path.relpath(done1.path))
        launch.run(stage2(Path("runs"), data=Path("shards"), stage1=stage1, workers=2))
        paths = {name: value for name, value in vars(given[0]).items() if isinstance(value, Path)}
        assert paths.keys() == {"data", "out", "stage1"}
        assert all(path.is_absolute() for path in paths.values())

    def test_going_on_from_weights(self, stage1, done1, tmp_path):
        goes_on = stage1(tmp_path, init=done1.path)
        assert goes_on.open().path.name != done1.path.name
        built, expected = goes_on.build().encoder(), weights.load(done1.path)
        for (name, value), other in zip(built.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(value, other), name

    @each_ingest
    @pytest.mark.parametrize("pairing", ["images", "views"])
    def test_workers_together_see_the_batches_that_one_sees(self, stage2, fine, tmp_path, pairing, ingest):
        run = stage2(tmp_path, data=fine, pairing=pairing, **ingest)

        def views(rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
            worker = Worker(rank=rank, world=world)
            return next(view_pairs(run, open_images(run, worker, feed.in_threads)(3)))

        alone = views(0, 1)
        for world in (2, 8):
            parts = [views(rank, world) for rank in range(world)]
            places = [
                next(run.sampling().batches(3, Worker(rank=rank, world=world).lanes(8)))[2] for rank in range(world)
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
            a, b = next(view_pairs(run, open_images(run, Worker(), feed.in_threads)(0)))
            nearest = torch.cdist(b.flatten(1), a.flatten(1)).argmin(dim=1)
            assert torch.equal(nearest, torch.arange(16)) == same
            # Partners come from the same lane's share, each image once.
            assert torch.equal(nearest // 2, torch.arange(16) // 2)
            assert len(nearest.unique()) == 16

    def test_both_stages_have_noise(self, either, tmp_path):
        """The same crops and colours, and noise on top; its crop is what the learner sees."""
        make, _ = either

        def first(noise: Noise) -> torch.Tensor:
            run = make(tmp_path, noise=noise)
            return next(view_pairs(run, open_images(run, Worker(), feed.in_threads)(0)))[0]

        clean, noisy = first(Noise()), first(Noise(pca=0.1, margin=4))
        shift = noisy - clean[..., 4:-4, 4:-4]
        assert 0.001 < shift.abs().mean() < 0.1
        torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-5)

    def test_a_run_ends_in_the_precision_that_it_began_in(self, stage1, tmp_path, monkeypatch):
        """Begun where auto is bf16, it goes on in bf16 where auto would be fp32; the card says so."""
        asked: list[torch.dtype] = []
        step = train.train_step

        def killed(*given, **more):
            if len(asked) == 5:
                raise Killed
            asked.append(given[3])
            return step(*given, **more)

        settings = stage1(tmp_path, precision="auto")
        monkeypatch.setattr(train, "resolve_precision", lambda precision, device: torch.bfloat16)
        monkeypatch.setattr(train, "train_step", killed)
        with pytest.raises(Killed):
            launch.run(settings)
        asked.append(torch.float32)  # no kill from now on
        monkeypatch.setattr(train, "resolve_precision", lambda precision, device: torch.float32)
        finished = launch.run(settings)
        assert set(asked[6:]) == {torch.bfloat16}
        assert weights.read_card(finished.path).trained["precision"] == "bfloat16"

    def test_in_batch_negatives_are_each_workers_own(self, stage1, tmp_path):
        names = {
            stage1(tmp_path, objective=ContrastSettings(), workers=workers).open().path.name for workers in (0, 1, 2, 8)
        }
        assert len(names) == 3


class TestStageErrors:
    def test_settings(self, stage1, tmp_path):
        cases = {
            "workers must be >= 0, or FEWEST:MOST such as 2:8, got -1": {"workers": -1},
            "got '8:2'": {"workers": "8:2"},
            "got '4'": {"workers": "4"},
            "got '0:2'": {"workers": "0:2"},
            "compile is not for a number of workers that changes": {"workers": "1:2", "compile": True},
            "objective:moco gathers the keys of all workers": {"workers": "1:2", "objective": MocoSettings(queue=32)},
            "checkpoint_every must be a multiple of report_every >= 1, got 4 and 3": {"report_every": 3},
            "checkpoint_every must be .* got 4 and 0": {"report_every": 0},
            "encoder_every must be 0 or a multiple of report_every=2, got 3": {"encoder_every": 3},
            "encoder_every must be 0 or a multiple of report_every=2, got -2": {"encoder_every": -2},
            "window must be >= 1, got 0": {"window": 0},
            "reshuffle_epochs must be >= 0, got -1": {"reshuffle_epochs": -1},
            "memory must be >= 0, got -1": {"memory": -1.0},
        }
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                stage1(tmp_path, **change)

    def test_what_does_not_fit_the_data_leaves_no_run_folder(self, stage1, tmp_path):
        cases = {
            "workers must be at most 8, one shard each, got 9": {"workers": 9},
            "optim.batch_size must be a multiple of the 3 lanes, got 16": {"workers": 3},
            "optim.batch_size must be a multiple of the 8 lanes, got 12": {"optim": replace(OPTIM, batch_size=12)},
            "optim.batch_size=48 .* lower it to at most 40": {"optim": replace(OPTIM, batch_size=48)},
            "reshuffle_epochs=2 is of ingest=resident: stream deals": {"ingest": "stream", "reshuffle_epochs": 2},
            r"split must be one of \['train'\], got 'test'": {"split": "test"},
        }
        for message, change in cases.items():
            with pytest.raises(ValueError, match=message):
                launch.run(stage1(tmp_path, **change))
        with pytest.raises(FileNotFoundError, match=r"does not exist. Run: lead-ray prepare"):
            launch.run(stage1(tmp_path, data=tmp_path / "none"))
        assert not list(tmp_path.iterdir())

    def test_any_number_of_workers_has_lanes(self, stage1, tmp_path):
        """Numbers that divide eight share eight lanes, and so their runs; others are runs of their own."""
        runs = {workers: stage1(tmp_path, workers=workers) for workers in (0, 1, 2, 3, 4, 5, 8)}
        assert {workers: run.lanes for workers, run in runs.items()} == {0: 8, 1: 8, 2: 8, 3: 3, 4: 8, 5: 5, 8: 8}
        assert runs[0].matters() == runs[8].matters() != runs[3].matters()
        held = [lane for rank in range(3) for lane in Worker(rank=rank, world=3).lanes(3)]
        assert held == [0, 1, 2]

    def test_pairs_of_images_need_two_of_each_lane(self, stage2, tmp_path):
        with pytest.raises(ValueError, match=r"optim.batch_size must be >= 16 to pair images, got 8"):
            launch.run(stage2(tmp_path, optim=replace(OPTIM, batch_size=8)))

    @each_ingest
    def test_a_shard_altered_after_preparing(self, stage1, spoilt, tmp_path, ingest):
        message = (
            rf"{spoilt}/train/part-00011.parquet is damaged \(its sha256 .*\)\. Mend it by: lead-ray prepare folder"
        )
        with pytest.raises(ValueError, match=message):
            launch.run(stage1(tmp_path / "runs", data=spoilt, **ingest))

    def test_images_that_do_not_fit(self, stage1, tmp_path, monkeypatch):
        monkeypatch.setattr(feed, "free_memory", lambda device: 0.0002e9)
        message = (
            "keeps 0.00019 GB of images in the cpu memory of a worker, which has 0.0002 GB free .* --ingest stream"
        )
        with pytest.raises(ValueError, match=message):
            launch.run(stage1(tmp_path))
        launch.run(stage1(tmp_path, ingest="stream"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="says what to do without a GPU")
    def test_no_gpu(self, stage1, tmp_path):
        with pytest.raises(ValueError, match="device=cuda, but torch sees no GPU here: use --device cpu"):
            launch.run(stage1(tmp_path, device="cuda"))

    def test_wrong_weights_for_stage_2(self, stage2, done2, tmp_path):
        with pytest.raises(ValueError, match="holds stage-2 weights: give a stage-1 run"):
            launch.run(stage2(tmp_path, stage1=done2.path))
        with pytest.raises(FileNotFoundError, match=r"no weights at .* give a finished run's folder"):
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
        with pytest.raises(FloatingPointError, match=r"loss is not finite at step [0-3] "):
            launch.run(run)
        (path,) = tmp_path.iterdir()
        assert not (path / "checkpoints").exists() and not (path / "encoder.safetensors").exists()
        assert RunFolder(path).metrics() == []


class TestRecords:
    """When a network's kernels are recorded as CUDA graphs."""

    GPU = torch.device("cuda")

    def test_on_gpus(self, stage1, tmp_path):
        run = stage1(tmp_path)
        assert run.records(self.GPU, 1) and run.records(self.GPU, 8)
        assert not run.records(torch.device("cpu"), 1)

    @pytest.mark.parametrize("changes", [{"cuda_graphs": False}, {"compile": True}, {"workers": "2:4"}], ids=str)
    def test_unless_something_forbids_it(self, stage1, tmp_path, changes):
        assert not stage1(tmp_path, **changes).records(self.GPU, 1)

    @pytest.mark.parametrize(
        "changes", [{"sync_batchnorm": True}, {"objective": MocoSettings(dim=16, queue=64)}], ids=["norms", "keys"]
    )
    def test_of_one_worker_where_several_would_meet(self, stage1, tmp_path, changes):
        assert stage1(tmp_path, **changes).records(self.GPU, 1)
        assert not stage1(tmp_path, **changes).records(self.GPU, 2)

    def test_it_is_no_setting_that_results_depend_on(self, stage1, done1, tmp_path):
        assert stage1(done1.path.parent, cuda_graphs=False).open().path == done1.path
