"""Both stages on Ray: the numbers that they give without it, through kills and bad losses."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import layouts
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lead_ray import ingest, launch, resources
from lead_ray.artefacts import RunFolder
from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.errors import WorkerError
from lead_ray.images import feed, shards
from lead_ray.machine import cores
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim
from lead_ray.work import open_images, work
from lead_ray.worker import Crew, Worker

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own; nothing of ours is tested by them here
STEPS = 8


@pytest.fixture(scope="module")
def cluster():
    """A local Ray of this module's own, with CPUs that the machine may not have: Ray Data needs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ingest.connect(num_cpus=4)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file
        yield
        ray.shutdown()


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


class Mortal(Pretrain):
    """Stage 1 in which the second worker is killed as the fifth step ends, once."""

    def build(self):
        learner = super().build()
        grave, after_step = self.out / "killed", learner.after_step

        def die(progress: float) -> None:
            second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
            if second and progress == 4 / STEPS and not grave.exists():
                grave.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            after_step(progress)

        learner.after_step = die
        return learner


class Interrupting(Pretrain):
    """Stage 1 whose driver, its process id in a file, meets Ctrl-C as the fifth step ends, once."""

    def build(self):
        learner = super().build()
        driver, after_step = self.out / "driver", learner.after_step

        def interrupt(progress: float) -> None:
            if progress == 4 / STEPS and torch.distributed.get_rank() == 0 and driver.exists():
                process = int(driver.read_text())
                driver.unlink()
                os.kill(process, signal.SIGINT)
                threading.Event().wait()  # until Ray ends this process: the run must not be over before it is heard
            after_step(progress)

        learner.after_step = interrupt
        return learner


COMMON = {
    "optim": Optim(lr=0.05, batch_size=16, steps=STEPS),
    "precision": "fp32",
    "report_every": 1,
    "checkpoint_every": 2,
    "device": "cpu",
    "workers": 2,
}


def stage1(kind: type[Pretrain], data: Path, out: Path, **changes) -> Pretrain:
    settings = {
        "trunk": TrunkSettings(depth=18, width=0.125),
        "objective": ByolSettings(hidden=32, dim=16),
        "views": ViewSettings(size=32),
    }
    return kind(data=data, out=out, **COMMON | settings | changes)


@pytest.fixture(scope="module")
def done(cluster, data, tmp_path_factory) -> RunFolder:
    """Stage 1 on two workers, each with its own BatchNorm, finished without interruption."""
    return launch.run(stage1(Pretrain, data, tmp_path_factory.mktemp("stage1")))


def losses(folder: RunFolder) -> list[float]:
    assert [metrics["step"] for metrics in folder.metrics()] == list(range(1, STEPS + 1))
    return [metrics["loss"] for metrics in folder.metrics()]


@pytest.mark.slow
class TestTraining:
    def test_two_workers_have_the_loss_curve_of_none(self, done, fine, tmp_path):
        """Stage 2, streamed, BatchNorm over both workers' images: equal up to the order of float32 sums, 1e-4 nats.

        (Stage 1 would amplify that order within three steps: BatchNorm of 16 images with one pixel each.)
        """
        together = Dense(
            data=fine,
            ingest="stream",
            window=2,
            out=tmp_path,
            stage1=done.path,
            objective=AlignSettings(
                temperature=0.2,
                teacher_temperature=0.2,
                projector=32,
                fpn=FpnSettings(dim=8, lateral=16, branch=64),
            ),
            views=ViewSettings(size=64),
            sync_batchnorm=True,
            **COMMON,
        )
        two, alone = (launch.run(replace(together, out=tmp_path / str(workers), workers=workers)) for workers in (2, 0))
        assert two.path.name == alone.path.name
        assert losses(two) == pytest.approx(losses(alone), abs=1e-4)
        assert losses(two)[-1] < losses(two)[0] - 0.1
        assert two.result["images"] == alone.result["images"] == 40
        first, second = (load_file(run.path / "encoder.safetensors") for run in (two, alone))
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(
                value, second[name], rtol=0, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
            )

    def test_a_killed_worker_costs_time_and_nothing_else(self, done, data, tmp_path):
        folder = launch.run(stage1(Mortal, data, tmp_path))
        assert (tmp_path / "killed").exists()
        assert losses(folder) == losses(done)
        first, second = (load_file(run.path / "encoder.safetensors") for run in (folder, done))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_one_worker_in_place_of_two(self, done, data, tmp_path):
        """Its steps are theirs: the loss curve and the weights, bit for bit, each half with its own BatchNorm."""
        alone = stage1(Pretrain, data, tmp_path, workers="1:2")
        worker, folder = Worker(shares=2), alone.open()
        torch.set_num_threads(max(1, cores() // 2))  # as each of the two had
        assert len(list(work(alone, folder, open_images(alone, worker, feed.in_threads), worker))) == STEPS
        assert folder.path.name == done.path.name, "the number of workers is no setting that matters"
        assert losses(folder) == losses(done)
        first, second = (load_file(run.path / "encoder.safetensors") for run in (folder, done))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_ctrl_c_and_the_same_command_again(self, done, data, tmp_path):
        handler = signal.getsignal(signal.SIGINT)
        (tmp_path / "driver").write_text(str(os.getpid()))
        with pytest.raises(KeyboardInterrupt):
            launch.run(stage1(Interrupting, data, tmp_path))
        assert signal.getsignal(signal.SIGINT) is handler
        assert losses(launch.run(stage1(Interrupting, data, tmp_path))) == losses(done)

    def test_a_finished_run_does_not_start_workers(self, done, data, monkeypatch):
        monkeypatch.setattr(launch, "_on_ray", lambda *_: pytest.fail("trained again"))
        assert launch.run(stage1(Pretrain, data, done.path.parent)) == done

    def test_an_error_that_trying_again_cannot_mend_comes_back_as_its_message(self, cluster, data, tmp_path):
        explosive = Optim(lr=1e30, batch_size=16, steps=STEPS, warmup_epochs=0.0)
        with pytest.raises(RuntimeError, match=r"loss is not finite at step [1-3] .*lower optim.lr"):
            launch.run(stage1(Pretrain, data, tmp_path, optim=explosive, report_every=4, checkpoint_every=4))
        (path,) = tmp_path.iterdir()
        assert not (path / "encoder.safetensors").exists()

    @pytest.mark.parametrize("way", ["resident", "stream"])
    def test_a_shard_altered_after_preparing(self, cluster, fine, tmp_path, way):
        spoilt = Path(shutil.copytree(fine, tmp_path / "spoilt"))
        shard = spoilt / "train/part-00011.parquet"
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        message = rf"^{shard} is damaged \(its sha256 .*\)\. Mend it by: lead-ray prepare folder .* --out {spoilt}$"
        with pytest.raises(WorkerError, match=message):
            launch.run(stage1(Pretrain, spoilt, tmp_path / "runs", ingest=way, workers=1))

    def test_no_gpus_in_the_cluster(self, cluster, data, tmp_path):
        with pytest.raises(ValueError, match="workers=2 need a GPU each, the cluster has 0: use --device cpu"):
            launch.run(stage1(Pretrain, data, tmp_path, device="cuda"))


@pytest.mark.slow
class TestRayData:
    def test_shards_are_those_of_threads_in_the_same_order(self, cluster, fine, monkeypatch):
        """Through several data sets, each started while the one before is read."""
        monkeypatch.setattr(ingest, "SECTION", 4)
        source = feed.Source.open(fine, "train")
        wanted = [5, 3, 3, 17, *range(6)]
        found = list(ingest.by_ray_data(source, iter(wanted), 2, at_once=2))
        for pixels, expected in zip(found, feed.in_threads(source, wanted, 2), strict=True):
            assert pixels.flags.writeable and (pixels == expected).all()

    def test_endless_shards_are_read_as_they_are_needed(self, cluster, fine, monkeypatch):
        monkeypatch.setattr(ingest, "SECTION", 4)
        asked = []

        def wanted() -> Iterator[int]:
            for number in count():
                asked.append(number)
                yield number % 24

        found = ingest.by_ray_data(feed.Source.open(fine, "train"), wanted(), 2, at_once=2)
        assert len(list(islice(found, 6))) == 6
        found.close()
        assert len(asked) <= 3 * 4, "that data set, and the one after it"


class TestFailures:
    """No Ray here but for its exceptions."""

    @pytest.mark.parametrize("error", [OSError("no space"), ValueError("no space"), FloatingPointError("no space")])
    def test_what_trying_again_cannot_mend_is_written_down_and_not_tried_again(self, tmp_path, monkeypatch, error):
        tried = []

        def fail(**_):
            tried.append(True)
            raise error

        monkeypatch.setattr(launch, "_train", fail)
        config = {"stage": None, "folder": RunFolder(tmp_path), "end": None}
        with pytest.raises(type(error)):
            launch._worker(config)
        launch._worker(config)
        assert len(tried) == 1 and (tmp_path / launch.FAILURE).read_text() == "no space\n"

    @pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError, TimeoutError])
    def test_a_lost_neighbour_is_tried_again(self, tmp_path, monkeypatch, kind):
        def fail(**_):
            raise kind("connection closed by peer")

        monkeypatch.setattr(launch, "_train", fail)
        for _ in range(2):
            with pytest.raises(kind):
                launch._worker({"stage": None, "folder": RunFolder(tmp_path), "end": None})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("crashes", [False, True])
    @pytest.mark.parametrize(
        ("written", "said"),
        [
            ("lower the rate\n", "^lower the rate$"),
            ("Traceback:\n  File\nValueError: too large\n\n", "^ValueError: too large$"),
            ("", "could not write to .*error.txt why it failed: free space, run again"),
        ],
    )
    def test_what_a_worker_wrote_is_the_error(self, tmp_path, crashes, written, said):
        def fit():
            (tmp_path / "error.txt").write_text(written)
            if crashes:
                raise ray.train.TrainingFailedError("a page of traceback")

        with pytest.raises(WorkerError, match=said):
            launch.follow_up(fit, tmp_path / "error.txt")

    def test_a_crash_stays_what_it_is(self, tmp_path):
        import ray.train

        (tmp_path / "error.txt").write_text("of the run before")

        def fit():
            raise ray.train.TrainingFailedError("killed")

        with pytest.raises(ray.train.TrainingFailedError, match="killed"):
            launch.follow_up(fit, tmp_path / "error.txt")

    def test_ctrl_c_is_what_it_is_without_ray(self, tmp_path):
        """fit() leaves a handler behind, and exits with code 0."""
        handler = signal.getsignal(signal.SIGINT)

        def fit():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.exit(0)

        with pytest.raises(KeyboardInterrupt):
            launch.follow_up(fit, tmp_path / "error.txt")
        assert signal.getsignal(signal.SIGINT) is handler


class TestCrew:
    @given(st.integers(1, 16), st.integers(1, 40))
    def test_as_many_as_divide_a_step(self, most, room):
        used = Crew(1, most).fitting(room)
        assert used <= room and most % used == 0
        assert not [better for better in range(used + 1, min(room, most) + 1) if most % better == 0]
        assert Crew(1, most).fitting(0) == 0

    @given(st.sampled_from([(1, 8), (2, 8), (4, 8), (2, 4), (3, 6), (8, 8)]))
    def test_a_share_has_the_lanes_of_the_worker_that_it_stands_for(self, sizes):
        world, crew = sizes
        lanes = 8 if 8 % crew == 0 else crew
        for rank in range(world):
            worker = Worker(rank=rank, world=world, shares=crew // world)
            each = len(worker.lanes(lanes)) // worker.shares
            for share in range(worker.shares):
                mine = worker.lanes(lanes)[share * each : (share + 1) * each]
                assert mine == Worker(rank=rank + share * world, world=crew).lanes(lanes)


class TestResources:
    @given(cpus=st.integers(2, 300), workers=st.sampled_from([1, 2, 4, 8]))
    def test_a_core_is_left_to_ray_data(self, cpus, workers):
        (share,) = resources.worker_resources({"CPU": float(cpus)}, Crew.of(workers), use_gpu=False).values()
        assert share >= resources.LEAST_CPU
        assert cpus - workers * share >= 1 - 1e-9, "no task of Ray Data would ever run"
        assert share < 1 or share == int(share), "Ray wants whole CPUs from one up"

    @pytest.mark.parametrize(
        ("cpus", "workers", "share"),
        [(2, 1, 1), (2, 2, 0.5), (4, 2, 1), (4, 8, 0.37), (16, 4, 3), (64, 8, 7)],
    )
    def test_shares_by_hand(self, cpus, workers, share):
        assert resources.worker_resources({"CPU": float(cpus)}, Crew.of(workers), use_gpu=False) == {"CPU": share}

    def test_a_gpu_each(self):
        cluster = {"CPU": 8.0, "GPU": 4.0}
        assert resources.worker_resources(cluster, Crew.of(4), use_gpu=True) == {"CPU": 1, "GPU": 1}
        with pytest.raises(ValueError, match="workers=8 need a GPU each, the cluster has 4: use --workers 4"):
            resources.worker_resources(cluster, Crew.of(8), use_gpu=True)

    @pytest.mark.parametrize(
        ("device", "gpus", "workers", "expected"),
        [
            ("auto", 1, 2, False),
            ("auto", 2, 2, True),
            ("auto", 0, 1, False),
            ("cuda", 1, 2, True),
            ("cpu", 8, 2, False),
        ],
    )
    def test_gpus_are_for_all_workers_or_none(self, device, gpus, workers, expected):
        assert resources.wants_gpus(device, workers, {"CPU": 8.0, "GPU": float(gpus)}) == expected
        assert resources.wants_gpus("auto", 1, {"CPU": 8.0}) is False

    def test_too_few_cpus(self, monkeypatch):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        message = r"workers=2 need 1.25 CPUs, Ray Data's included, the cluster has 1: use --workers 0"
        with pytest.raises(ValueError, match=message):
            resources.worker_resources({"CPU": 1.0}, Crew.of(2), use_gpu=False)

    def test_a_cluster_that_may_grow_is_asked_all_the_same(self, monkeypatch, capsys):
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        assert resources.worker_resources({}, Crew.of(4), use_gpu=False) == {"CPU": resources.LEAST_CPU}
        found = resources.worker_resources({"CPU": 2.0}, Crew.of(4), use_gpu=True)
        assert found == {"CPU": resources.LEAST_CPU, "GPU": 1}
        assert capsys.readouterr().out.splitlines() == [
            "the cluster has 0 CPUs, the run needs 1.5; waiting for it to grow",
            "the cluster has 0 GPUs, the run needs 4; waiting for it to grow",
        ]
        resources.worker_resources({"CPU": 8.0, "GPU": 4.0}, Crew.of(4), use_gpu=True)
        assert capsys.readouterr().out == ""

    def test_workers_of_a_changing_number_leave_some_of_every_core(self, monkeypatch):
        """In eighths, of which Ray counts exactly how many a node has."""
        few = Crew.of("2:8")
        assert resources.worker_resources({"CPU": 2.0}, few, use_gpu=False) == {"CPU": 0.875}
        assert resources.worker_resources({"CPU": 64.0, "GPU": 2.0}, few, use_gpu=True) == {"CPU": 0.125, "GPU": 1}
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(ValueError, match=r"workers=2 need 1\.75 CPUs.* the cluster has 1: "):
            resources.worker_resources({"CPU": 1.0}, few, use_gpu=False)
