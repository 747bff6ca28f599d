"""What a GPU needs of a step: no waiting for the device inside, and a network that can be compiled. Run on a CPU."""

import subprocess
import sys
from itertools import repeat
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lead_ray import train
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.train import Optim, Schedule

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.is_nonzero}
"""Operations whose result, or its shape, the host has to wait for."""

MASKED = {aten.index, aten.index_put, aten.index_put_}


class Waits(TorchDispatchMode):
    """Counts them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        indices = args[1] if function.overloadpacket in MASKED else ()
        masked = any(index is not None and index.dtype == torch.bool for index in indices)
        self.count += masked or function.overloadpacket in WAITING
        return function(*args, **kwargs or {})


def learner(kind: str) -> nn.Module:
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(depth=18, width=0.125))
    if kind == "byol":
        return Byol(trunk, ByolSettings(hidden=16, dim=8)).train()
    return Align(trunk, AlignSettings(fpn=FpnSettings(dim=8, lateral=32, branch=32), projector=16)).train()


def views(seed: int = 0) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return a, b


def test_the_watch_sees_what_the_host_waits_for():
    for wait in (lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: bool(x.all()), lambda x: x[x > 0]):
        with Waits() as watch:
            wait(torch.ones(3))
        assert watch.count, "one of those that the next test relies upon"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["byol", "align"])
def test_nothing_waits_inside_a_step(kind, precision):
    network = learner(kind)
    optimizer = train.make_optimizer(network, Optim())
    with Waits() as watch:
        train.train_step(network, optimizer, views(), precision)
        network.after_step(0.5)
    assert watch.count == 0, "the step looks at a number: keep it a tensor until it is reported"


def test_the_loop_waits_at_its_reports_only():
    counts = []
    for steps in (2, 6):
        network = learner("byol")
        optimizer = train.make_optimizer(network, Optim())
        schedule = Schedule(peak=0.01, steps=steps, warmup=0)
        with Waits() as watch:
            history = train.train(network, network, optimizer, repeat(views()), schedule, report_every=steps)
            assert [metrics["step"] for metrics in history] == [steps]
        counts.append(watch.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_compiled_it_follows_the_same_curve_and_shares_its_weights():
    """In a process of its own: the compiler cannot look through the tests' shape checks."""
    script = Path(__file__).parent / "compiled_step.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["byol", "align", "views"]
