"""Run by test_step in a process of its own: compiled networks and views beside plain ones. Prints what was equal."""

import copy
from itertools import repeat

import torch
from torch import Tensor, nn

from lead_ray import train
from lead_ray.augmentation import views
from lead_ray.models import trunk as trunks
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.train import Optim, Schedule

trunks.LAYERS[18] = (1, 1, 1, 1)  # less to compile
WITHIN = 5e-4
"""Of losses, after a few steps in single precision: rounding grows with them."""


def learner(kind: str) -> nn.Module:
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(depth=18, width=0.125))
    if kind == "byol":
        return Byol(trunk, ByolSettings(hidden=16, dim=8)).train()
    # Two channels in a group: GroupNorm of one, at one place, is nothing but rounding.
    return Align(trunk, AlignSettings(fpn=FpnSettings(dim=8, lateral=32, branch=64), projector=16)).train()


def pair() -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return a, b


def trained(network: nn.Module, learner: nn.Module) -> Tensor:
    optimizer = train.make_optimizer(learner, Optim())
    history = train.train(network, learner, optimizer, repeat(pair()), Schedule(0.01, 4, 0), report_every=1)
    return torch.tensor([metrics["loss"] for metrics in history])


def compare(kind: str) -> None:
    plain = learner(kind)
    shared = copy.deepcopy(plain)
    compiled = train.compiled(shared, torch.device("cpu"))
    expected, found = trained(plain, plain), trained(compiled, shared)
    assert expected[0] != expected[-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=WITHIN)
    names = shared.state_dict().keys()
    assert names == plain.state_dict().keys() and not any("_orig_mod" in name for name in names)
    # A compiled learner's checkpoint goes on plainly, and the other way round.
    again = learner(kind)
    again.load_state_dict(shared.state_dict())
    after = again(*pair())["loss"]
    torch.testing.assert_close(compiled(*pair())["loss"], after, rtol=0, atol=WITHIN)
    shared.load_state_dict(learner(kind).state_dict())
    torch.testing.assert_close(compiled(*pair())["loss"], learner(kind)(*pair())["loss"], rtol=0, atol=WITHIN)


def compare_views() -> None:
    generator = torch.Generator().manual_seed(0)
    settings = views.ViewSettings(size=32, solarise=(0.0, 0.0))  # which hangs on a rounding error
    images = torch.randint(0, 256, (6, 3, 50, 60), generator=generator, dtype=torch.uint8)
    compiled = torch.compile(views.whole_view, dynamic=False)
    for _ in range(2):
        drawn = views.draw(settings, 6, (50, 60), 1, generator)
        found, expected = compiled(images, drawn.packed(), 32), views.whole_view(images, drawn.packed(), 32)
        torch.testing.assert_close(found, expected, rtol=0, atol=WITHIN)


for kind in ("byol", "align"):
    compare(kind)
    print(kind, flush=True)
compare_views()
print("views")
