"""What is lost when something dies: each test compares with the run in which nothing did.

A worker's death, Ctrl-C, shards altered after preparing: test_ray.py. Full disks: test_prepare.py, test_artefacts.py.
Refused requests of a store: test_storage.py.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import layouts
import pytest
import ray
import small_runs
import torch
from safetensors.torch import load_file
from small_runs import alone, losses, node_ports, stage1

from lead_ray import ingest, launch, prepare, pretrain
from lead_ray.artefacts import RunFolder
from lead_ray.data.crops import Crop
from lead_ray.data.folder import Folder
from lead_ray.errors import for_people
from lead_ray.machine import cores
from lead_ray.pretrain import Pretrain
from lead_ray.train import Optim

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own; nothing of ours is tested by them here
LONG = Optim(lr=0.05, batch_size=16, steps=30)
"""Long enough to be struck in the midst of it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return layouts.prepared_pictures(tmp_path_factory.mktemp("data"))


def same(folder: RunFolder, other: RunFolder) -> None:
    """The loss curve and the weights, bit for bit."""
    assert losses(folder) == losses(other)
    first, second = (load_file(run.path / "encoder.safetensors") for run in (folder, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for(what: Callable[[], bool], *, alive: Callable[[], bool] = lambda: True) -> None:
    """Until it is so; fails when that which would bring it about is over, or after four minutes."""
    end = time.monotonic() + 240
    while not what():
        assert alive() and time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


class TestOneMachine:
    def test_a_read_only_store(self, data, tmp_path, monkeypatch, capsys):
        """One line that says which file, exit code 1, nothing begun."""

        def refuse(**options):
            raise OSError(errno.EROFS, "Read-only file system", str(options["dir"]))

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        for start in (
            lambda: pretrain.main(["--data", str(data), "--out", str(tmp_path), "--optim.batch-size", "16"]),
            lambda: prepare.main(
                ["folder", "--raw", str(data.parent / "raw"), "--out", str(tmp_path), "--workers", "0"]
            ),
        ):
            with pytest.raises(SystemExit) as stopped:
                start()
            assert "Read-only file system" in str(stopped.value.code) and "\n" not in str(stopped.value.code)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_two_jobs_in_one_folder(self, data, tmp_path):
        """The second refuses, for as long as the process of the first lives."""
        settings = stage1(Pretrain, data, tmp_path)
        folder = settings.open()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with folder.locked():
                os.write(write, b"x")
                signal.pause()
        assert os.read(read, 1) == b"x"
        with pytest.raises(ValueError, match=f"another process is training {folder.path}"):
            launch.run(settings)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert launch.run(settings).result["steps"] == small_runs.STEPS

    def test_a_machine_too_busy_for_ray(self, quiet_ray, monkeypatch):
        """Ray gives up after 15 seconds: so it is asked again, and then a line says what to do."""
        tried = []

        def start(**options):
            tried.append(options["address"])
            if len(tried) < refused:
                raise Exception("The current node timed out during startup.")

        monkeypatch.setattr(ray, "init", start)
        refused = ingest.STARTS
        ingest.connect()
        assert tried == ["local"] * ingest.STARTS
        tried, refused = [], ingest.STARTS + 1
        with pytest.raises(OSError, match=r"timed out during startup.*or with --workers 0"):
            ingest.connect()

    def test_no_room_in_the_cluster_is_a_line_for_people(self, tmp_path):
        def fit():
            raise ray.train.ControllerError(RuntimeError("no room for 4 workers\nfor half an hour"))

        with pytest.raises(SystemExit) as stopped, for_people("pretrain"):
            launch.follow_up(fit, tmp_path / "error.txt")
        assert "(no room for 4 workers). `ray status` says" in stopped.value.code
        assert "run the same command again" in stopped.value.code

    def test_ray_is_imported_when_its_switches_are_set(self, data, tmp_path):
        """It reads some of them only then: which addresses it listens at, whether it starts by itself."""
        lines = [
            "import sys",
            "from pathlib import Path",
            "from lead_ray import ingest, launch, pretrain, train",
            f"where = {{'data': Path({str(data)!r}), 'out': Path({str(tmp_path)!r})}}",
            "ingest.connect = lambda: sys.exit('ray' in sys.modules)",
            "optim = train.Optim(batch_size=16, steps=2)",
            "launch.run(pretrain.Pretrain(**where, optim=optim, workers=1))",
        ]
        assert subprocess.run([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.DEVNULL).returncode == 0

    @pytest.mark.slow
    def test_two_hundred_kills(self, data, tmp_path):
        """At steps, in the midst of checkpoints and of lines: the same weights as without any."""
        command = [sys.executable, str(Path(__file__).with_name("soak.py")), str(data), str(tmp_path), "200"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert sum(found["killed"].values()) == 200 and len(found["ends"]) > 2
        assert found["killed"].keys() == {"train_step", "save", "append", "remove", "fsync", "replace"}
        assert set(found["ends"]) == {found["undisturbed"]} and found["left"] == []


class Deadly(Crop):
    """A crop that kills the task that does it, once."""

    grave: ClassVar[Path]

    def place(self, *arguments):
        if not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().place(*arguments)


class DeadlyFolder(Folder):
    @property
    def crop(self) -> Crop:
        return Deadly(kind="centre")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestRay:
    def test_a_killed_task_of_ray_data_while_preparing(self, quiet_ray, data, tmp_path):
        """The files are those of an undisturbed run, byte for byte."""
        Deadly.grave = tmp_path / "grave"
        ingest.connect(num_cpus=2)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        options = {"size": 40, "encoding": "png", "progress": False}
        prepare.prepare(DeadlyFolder(raw=data.parent / "raw"), tmp_path / "shards", workers=2, **options)
        assert Deadly.grave.exists()
        assert files(tmp_path / "shards") == files(data)

    def test_what_is_left_of_an_iteration_does_not_start_ray_again(self, quiet_ray, monkeypatch):
        """By default a call after shutdown() starts another cluster, and that process ends with 1 after a minute."""
        monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT")
        lines = [
            "from lead_ray import ingest",
            "ingest.connect(num_cpus=1)",
            "import ray",
            "ray.shutdown()",
            "try:",
            "    ray.put(1)",
            "except ray.exceptions.RaySystemError as error:",
            "    print(ray.is_initialized(), error)",
        ]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("False ") and "Ray has not been started" in done.stdout

    def test_clusters_on_one_machine_are_told_apart(self, quiet_ray):
        """Ray Train's cleaner, which frees the place of a killed run, asks as this task does. It ended with an error
        where there were two clusters, and the place stayed taken."""
        starts = "from lead_ray import ingest; ingest.connect(num_cpus=1); print('up', flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", starts], **pipes) as other:
            try:
                assert other.stdout.readline() == "up\n"
                ingest.connect(num_cpus=1)
                assert not {"RAY_GCS_SERVER_PORT", "RAY_API_SERVER_ADDRESS"} & os.environ.keys()

                @ray.remote(num_cpus=0)
                def nodes() -> list[str]:
                    from ray.util.state import list_nodes

                    return [node.node_id for node in list_nodes(timeout=60)]

                assert ray.get(nodes.remote()) == [node["NodeID"] for node in ray.nodes()]
            finally:
                other.communicate("\n")

    def test_a_lost_node(self, quiet_ray, data, tmp_path):
        """As when a spot instance goes and another comes: training goes on from the last checkpoint."""
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False} | node_ports()
        )
        node = cluster.add_node(num_cpus=3, **node_ports())
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            run = stage1(Pretrain, data, tmp_path, workers=2, optim=LONG)
            folder = run.open()
            training = threading.Thread(target=launch.run, args=(run,))
            training.start()
            wait_for(lambda: len(folder.metrics()) >= 4, alive=training.is_alive)
            cluster.remove_node(node, allow_graceful=False)
            lost_at = folder.metrics()[-1]["step"]
            assert lost_at < LONG.steps, "the run was over before the node was"
            cluster.add_node(num_cpus=3, **node_ports())
            training.join()
            again = stage1(Pretrain, data, tmp_path / "again", optim=LONG)
            same(folder, alone(again, shares=2, threads=max(1, cores() // 2)))  # as each of the two had
        finally:
            ray.shutdown()
            cluster.shutdown()

    def test_nothing_listens_to_other_machines(self, quiet_ray, tmp_path):
        """Every socket of a local Ray's processes is bound to loopback. In a process that has not imported Ray yet."""
        mark = f"LEAD_RAY_TEST={tmp_path}"
        code = "from lead_ray import ingest; ingest.connect(num_cpus=1); print('up', flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | dict([mark.split("=", 1)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver:
            assert driver.stdout.readline() == "up\n"
            mine = {number: found for number, found in listening().items() if str(number) in processes(mark)}
            driver.communicate("\n")
        assert len(mine) > 3, "Ray's own processes were not found"
        assert set().union(*mine.values()) <= LOOPBACK, mine


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def listening() -> dict[int, set[str]]:
    """Process -> the addresses, as /proc/net writes them, of its sockets that wait for connections."""
    sockets = {}
    for family in ("tcp", "tcp6"):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                sockets[f"socket:[{words[9]}]"] = words[1].partition(":")[0]
    found: dict[int, set[str]] = {}
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(handle)
        except OSError:
            continue  # gone since, or another user's
        if target in sockets:
            found.setdefault(int(handle.parts[2]), set()).add(sockets[target])
    return found


SETTINGS = """--precision fp32 --report-every 1 --checkpoint-every 2 --device cpu --workers 1 --trunk.depth 18
--trunk.width 0.125 --views.size 32 --optim.lr 0.05 --optim.batch-size 16 --optim.steps {steps}
objective:byol --objective.hidden 32 --objective.dim 16"""


def command(data: Path, out: Path, steps: int) -> list[str]:
    """small_runs.stage1() with one worker, as one types it."""
    words = [sys.executable, "-m", "lead_ray.pretrain", "--data", str(data), "--out", str(out)]
    return words + SETTINGS.format(steps=steps).split()


@pytest.mark.slow
def test_a_killed_driver(quiet_ray, data, tmp_path):
    """Its cluster goes with it; the same settings go on, here without Ray."""
    run = stage1(Pretrain, data, tmp_path / "runs", optim=LONG)
    folder, mark = run.open(), f"LEAD_RAY_TEST={tmp_path}"
    environment = os.environ | dict([mark.split("=", 1)])
    with (tmp_path / "log").open("w") as log:
        words = command(data, tmp_path / "runs", LONG.steps)
        driver = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: len(folder.metrics()) >= 4, alive=lambda: driver.poll() is None)
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not processes(mark))
    assert folder.result is None and len(folder.metrics()) < LONG.steps, "the run was over before its driver was"
    torch.set_num_threads(cores())  # as the worker did
    launch.run(run)
    same(folder, launch.run(stage1(Pretrain, data, tmp_path / "again", optim=LONG)))


def processes(mark: str) -> list[str]:
    """Those that have inherited this variable."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in file.read_bytes().split(b"\0"):
                found.append(file.parent.name)
        except OSError:
            continue  # gone since, or another user's
    return found
