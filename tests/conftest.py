"""What every test file may use."""

import importlib
import os
import subprocess
import sys
import warnings

# Threads that wait sleep, here and in every process that tests start: spinning, two on a busy core take many times as
# long as one. Read as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # as ingest.connect(): tests may import Ray before

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jaxtyping
import numpy
import pytest
import torch
from torch import Tensor

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: pytest -n 2
    torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
STUDIES = Path(__file__).parents[1] / "studies"

CLUSTERS = ("faults", "jobs", "preemption", "ray")
"""Test files that start one cluster of Ray after another, about half of all work. Two at a time on two cores wait for
each other until some of Ray's own deadlines have passed: together they take longer than one after the other."""


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's: absent without it
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Each file of tests is one process's, and CLUSTERS are all the same one's."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class OneClusterAtATime(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "clusters" if Path(file).stem.removeprefix("test_") in CLUSTERS else file

    return OneClusterAtATime(config, log)


# The same examples in every run, and no deadline: tests say nothing about time.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """golden(name) -> the arrays of tests/golden/<name>.npz as float64 tensors."""

    def load(name: str) -> dict[str, Tensor]:
        with numpy.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(value).double() for key, value in arrays.items()}

    return load


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without type and shape checks, as users run the code: they get to see the ValueError."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def interpreted() -> Callable[[str], list[str]]:
    """interpreted(name) -> words that tests/interpreted_<name>.py prints, under Triton's interpreter on a CPU.

    In a process of its own: Triton decides at its import whether it interprets.
    """
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux")

    def run(name: str) -> list[str]:
        script = Path(__file__).parent / f"interpreted_{name}.py"
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


@pytest.fixture
def quiet_ray(monkeypatch):
    """No cluster of someone else's, no token file; what was started ends with the test."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Data, which deprecates its own settings when it first looks at them
        import ray.data

        ray.data.DataContext.get_current()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def sweep() -> Iterator[SimpleNamespace]:
    """The modules of studies/sweep/ as a study finds them, and script(name) for those beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        names = ("agenda", "conduct", "fill", "pace", "plan", "search", "study", "trial", "watch", "whole")
        modules = {name: importlib.import_module(f"sweep.{name}") for name in names}
        yield SimpleNamespace(**modules, script=importlib.import_module)
        own = [path.stem for path in STUDIES.glob("*.py")]
        for name in [name for name in sys.modules if name in own or name.partition(".")[0] == "sweep"]:
            del sys.modules[name]
