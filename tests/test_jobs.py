"""`ray job submit` and the autoscaler, on a head of this file's own, on loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import layouts
import pytest
import torch
import yaml
from small_runs import STEPS, free_ports, losses, stage1
from test_faults import command, same, wait_for

from lead_ray import launch
from lead_ray.machine import cores
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own
LONG = Optim(lr=0.05, batch_size=16, steps=60)  # as many more as it takes `ray job stop` to start
ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
HEAD = "ray.head.default"  # what the made-up provider calls the head; of another type it would start one more


class Head(NamedTuple):
    address: str
    dashboard: str
    environment: dict[str, str]

    def jobs(self, *words: str) -> subprocess.CompletedProcess:
        """`ray job ...`, its output together."""
        called = [RAY, "job", words[0], "--address", self.dashboard, *words[1:]]
        return subprocess.run(
            called,
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return layouts.prepared_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with four CPUs, and an autoscaler that may start two nodes with a seat each, which stands
    for a GPU: processes of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="lead-", dir="/tmp"))  # short: paths of sockets are
    port, dashboard, agent, client = free_ports(4)
    fake = {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    # What `ray up` fills in, and an autoscaler that is given its file expects.
    mappings, lists = ("auth", "file_mounts", "head_node", "worker_nodes"), ("cluster_synced_files", "rsync_exclude")
    lists += ("rsync_filter", "initialization_commands", "setup_commands", "head_setup_commands")
    lists += ("head_start_ray_commands", "worker_setup_commands", "worker_start_ray_commands")
    filled = {name: {} for name in mappings} | {name: [] for name in lists}
    filled |= {"file_mounts_sync_continuously": False, "upscaling_speed": 1.0}
    config = filled | {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}"} | fake,
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            "seat": {"resources": {"CPU": 1, "seat": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # Ray's own switch for one machine: all of its parts, and nodes of the autoscaler, agree on 127.0.0.1.
    quiet["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    quiet["PATH"] = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # a job's `python` is this one
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | quiet
    words = [RAY, "start", "--head", "--block", "--num-cpus=4", f"--port={port}", f"--temp-dir={folder}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--autoscaling-config={folder}/cluster.yaml"]
    scaling = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(words, env=environment | scaling, stdout=log, stderr=log, start_new_session=True)
    mine = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    try:
        # Not before its job agent is up, which is some time after all else.
        wait_for(
            lambda: mine.jobs("submit", "--no-wait", "--", "true").returncode == 0, alive=lambda: started.poll() is None
        )
        yield mine
    finally:
        started.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            started.wait(10)
        with suppress(ProcessLookupError):  # what did not heed it, and what made-up nodes leave behind
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_jobs_end_as_their_commands_do_and_go_on_when_submitted_again(head, data, tmp_path):
    def submit(words: list[str], *options: str) -> subprocess.CompletedProcess:
        return head.jobs("submit", "--working-dir", ".", *options, "--", "python", *words[1:])

    failed = submit(command(tmp_path / "nothing", tmp_path, 2))
    assert failed.returncode == 1 and "does not exist. Run: lead-ray prepare" in failed.stdout
    assert "Traceback" not in failed.stdout.split("lead-ray pretrain:")[0]

    run = stage1(Pretrain, data, tmp_path / "runs", optim=LONG)
    folder, words = run.open(), command(data, tmp_path / "runs", LONG.steps)
    assert submit(words, "--no-wait", "--submission-id", "first").returncode == 0
    wait_for(lambda: len(folder.metrics()) >= 4)
    assert head.jobs("stop", "first").returncode == 0
    assert folder.result is None and len(folder.metrics()) < LONG.steps, "the run was over before it was stopped"
    again = submit(words)
    assert again.returncode == 0, again.stdout
    assert f"stage1 lead: {folder.path}" in again.stdout, "does not say where results are"
    before = torch.get_num_threads()
    torch.set_num_threads(cores())  # as the worker did
    try:
        same(folder, launch.run(stage1(Pretrain, data, tmp_path / "undisturbed", optim=LONG)))
    finally:
        torch.set_num_threads(before)


def test_nodes_come_for_a_run_and_go_after_it(head, data, tmp_path):
    script = [sys.executable, str(Path(__file__).with_name("on_grown_nodes.py")), str(data), str(tmp_path)]
    environment = head.environment | {"RAY_ADDRESS": head.address}
    ran = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found["before"], found["most"]) == (0, 2)
    assert len(found["losses"]) == STEPS
    alone = launch.run(stage1(Pretrain, data, tmp_path / "alone"))
    assert found["losses"][0] == pytest.approx(losses(alone)[0], abs=0.2), "BatchNorm apart, the same first step"
