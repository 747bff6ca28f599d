"""Notices that a machine is about to go: a checkpoint, and in the end what a run ends in that nothing disturbed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import layouts
import pytest
import ray
import torch
from small_runs import alone, losses, node_ports, stage1
from test_faults import LONG, command, same, wait_for

from lead_ray import launch
from lead_ray.artefacts import RunFolder
from lead_ray.errors import GO_ON, Preempted, for_people
from lead_ray.machine import cores
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own; nothing of ours is tested by them here


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return layouts.prepared_pictures(tmp_path_factory.mktemp("data"))


def checkpoints(folder: RunFolder) -> list[int]:
    """The steps that they are of."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.path.glob("checkpoints/*.pt"))


class Noticed(Pretrain):
    """Stage 1 whose process gets SIGTERM in the midst of the fifth step, once."""

    def build(self):
        learner = super().build()
        after_step, told = learner.after_step, self.out / "told"

        def tell(progress: float) -> None:
            if round(progress * self.optim.steps) == 4 and not told.exists():
                told.touch()
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(progress)

        learner.after_step = tell
        return learner


class TestOneProcess:
    def test_sigterm_keeps_that_step_and_the_same_command_goes_on(self, data, tmp_path):
        handler = signal.getsignal(signal.SIGTERM)
        undisturbed = launch.run(stage1(Pretrain, data, tmp_path / "undisturbed"))
        run = stage1(Noticed, data, tmp_path, report_every=4, checkpoint_every=4)
        with pytest.raises(Preempted, match="stopped by SIGTERM after step 5, which is kept"):
            launch.run(run)
        assert checkpoints(run.open())[-1] == 5 and run.open().result is None
        assert signal.getsignal(signal.SIGTERM) is handler
        folder = launch.run(run)
        assert folder.metrics()[-1]["loss"] == losses(undisturbed)[-1]
        assert [metrics["step"] for metrics in folder.metrics()] == [4, 5, 8]

    def test_in_the_last_step_it_is_too_late(self, data, tmp_path):
        run = stage1(Noticed, data, tmp_path, optim=Optim(lr=0.05, batch_size=16, steps=5))
        assert launch.run(run).result["steps"] == 5 and (tmp_path / "told").exists()

    def test_a_launcher_can_tell_it_from_failure(self, capsys):
        with pytest.raises(SystemExit) as stopped, for_people("pretrain"):
            raise Preempted("stopped by SIGTERM after step 5, which is kept")
        assert stopped.value.code == GO_ON == 75
        assert capsys.readouterr().err.strip().endswith("which is kept; the same command goes on from there")


class Patient(Pretrain):
    """Stage 1 whose workers note how many they are. Two take their time until something is kept; one alone takes a step
    and waits until there are two again."""

    def build(self):
        import time

        torch.set_num_threads(1)
        learner = super().build()
        after_step, out = learner.after_step, self.out
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
        if world and torch.distributed.get_rank() == 0:
            with (out / "worlds").open("a") as file:
                file.write(f"{world}\n")
        taken = 0

        def wait(progress: float) -> None:
            nonlocal taken
            taken += 1
            if world == 2 and not any(out.glob("*/checkpoints/*.pt")):
                time.sleep(0.3)
            if world == 1 and taken > 1:
                time.sleep(600)  # Ray ends this process long before
            after_step(progress)

        learner.after_step = wait
        return learner


@pytest.mark.slow
def test_a_node_is_drained_goes_and_another_comes(quiet_ray, data, tmp_path, monkeypatch):
    """--workers 1:2. The drain is heard and that step kept; one worker goes on from it alone, in the steps of two; when
    there is room again, two do. The loss curve and the weights are those of two whom nothing disturbed."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")  # a minute otherwise
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    monkeypatch.setattr(launch, "GROWTH", 2.0)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False} | node_ports())
    node = cluster.add_node(num_cpus=1, **node_ports())
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        run = stage1(Patient, data, tmp_path, workers="1:2", optim=LONG, checkpoint_every=1000)
        folder = run.open()
        training = threading.Thread(target=launch.run, args=(run,))
        training.start()
        wait_for(lambda: len(folder.metrics()) >= 4, alive=training.is_alive)
        words = ["drain-node", "--address", cluster.address, "--node-id", node.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", "600"]
        subprocess.run([Path(sys.executable).with_name("ray"), *words], check=True, capture_output=True)
        wait_for(lambda: bool(checkpoints(folder)), alive=training.is_alive)
        (kept,) = checkpoints(folder)
        assert kept % launch.HEED == 0 and kept < LONG.steps, "kept for another reason"
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: (tmp_path / "worlds").read_text().split() == ["2", "1"], alive=training.is_alive)
        cluster.add_node(num_cpus=1, **node_ports())
        wait_for(lambda: not training.is_alive())
        assert (tmp_path / "worlds").read_text().split() == ["2", "1", "2"]
        same(folder, alone(stage1(Pretrain, data, tmp_path / "alone", optim=LONG), shares=2, threads=1))
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_sigterm_to_the_driver_of_ray_workers(quiet_ray, data, tmp_path):
    """What Slurm and Kubernetes send it: its workers keep the step that they are at, and end; exit code 75."""
    run = stage1(Pretrain, data, tmp_path / "runs", optim=LONG)
    folder = run.open()
    with (tmp_path / "log").open("w+") as log:
        driver = subprocess.Popen(command(data, tmp_path / "runs", LONG.steps), stdout=log, stderr=log)
        try:
            wait_for(lambda: len(folder.metrics()) >= 4, alive=lambda: driver.poll() is None)
            driver.send_signal(signal.SIGTERM)
            assert driver.wait(240) == GO_ON, (tmp_path / "log").read_text()
        finally:
            driver.kill()
            driver.wait()
    kept = checkpoints(folder)[-1]
    assert f"stopped by SIGTERM after step {kept}, which is kept" in (tmp_path / "log").read_text()
    assert folder.result is None and kept % launch.HEED == 0
    torch.set_num_threads(cores())  # as the worker did
    launch.run(run)
    same(folder, launch.run(stage1(Pretrain, data, tmp_path / "again", optim=LONG)))
