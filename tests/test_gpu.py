"""What runs on a GPU alone, beside a CPU's: kernels, views, recordings, whole runs. Skipped where there is none."""

import copy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lead_ray import launch, train
from lead_ray.augmentation import augment, views
from lead_ray.augmentation.views import ViewSettings
from lead_ray.data import synthetic
from lead_ray.data.celeba import Mafl
from lead_ray.dense import Dense
from lead_ray.evaluate import Evaluate, evaluate
from lead_ray.machine import quick_products
from lead_ray.models import norm_triton, pool_triton
from lead_ray.models.dve import DveNetworkSettings
from lead_ray.models.fold import Frozen
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.projection import ProjectionSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives import alignment_triton
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.blocked import blocked_alignment
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.objectives.contrast import Contrast, ContrastSettings
from lead_ray.objectives.equivariance import Dve, DveSettings, Equivariance, EquivarianceSettings
from lead_ray.objectives.moco import Moco, MocoSettings
from lead_ray.prepare import prepare
from lead_ray.pretrain import Pretrain
from lead_ray.quickstart import CARRIED
from lead_ray.readouts.settings import RegressionSettings
from lead_ray.recording import recorded
from lead_ray.speed.steps import pictures
from lead_ray.train import Optim

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # of torch's compiler
]
GPU = torch.device("cuda")
BOTH = ("cpu", "cuda")
SMALL = TrunkSettings(depth=18, width=0.25)


@pytest.fixture(autouse=True)
def unhindered(unchecked, monkeypatch) -> Iterator[None]:
    """Without type checks, which torch's compiler stumbles over; convolutions in single precision, always the same."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    yield
    convolutions.fp32_precision = before


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread_map(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Channels last, with means that are large beside their deviations."""
    values = draw(*shape, seed=seed) + 3 * draw(1, shape[1], 1, 1, seed=seed + 50)
    return values.to(GPU, dtype, memory_format=torch.channels_last)


class TestNorm:
    """BatchNorm, shortcut and ReLU in one against torch's operators in float64."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(64, 64, 24, 24), (6, 24, 5, 7), (32, 2048, 3, 3)], ids=str)
    @pytest.mark.parametrize(("relu", "added", "batches"), [(1, 0, 2), (1, 1, 2), (0, 0, 1)])
    def test_results_gradients_and_statistics(self, dtype, shape, relu, added, batches):
        features, sent, shortcut = (spread_map(*shape, seed=seed, dtype=dtype) for seed in range(3))
        shortcut = shortcut if added else None
        norm = nn.BatchNorm2d(shape[1]).to(GPU)
        with torch.no_grad():
            for seed, values in enumerate((norm.weight, norm.bias, norm.running_mean)):
                values.copy_(draw(shape[1], seed=seed))
        exact = copy.deepcopy(norm).double()

        def run(how, norm: nn.Module, *given: Tensor | None) -> list[Tensor]:
            leaves = [each.clone().requires_grad_() for each in given if each is not None]
            result = how(norm, leaves[0], leaves[1] if added else None)
            gradients = torch.autograd.grad(result, [*leaves, norm.weight, norm.bias], sent.to(result.dtype))
            return [result.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]

        def plainly(norm: nn.Module, features: Tensor, shortcut: Tensor | None, open: bool = bool(relu)) -> Tensor:
            result = torch.cat([norm(batch) for batch in features.chunk(batches)])
            result = result if shortcut is None else result + shortcut
            return result.relu() if open else result

        wide = [None if each is None else each.double() for each in (features, shortcut)]
        # Where a sum rounds to nothing ReLU may close or not, and both are right: no gradient is sent there.
        sent = sent * (plainly(copy.deepcopy(exact), *wide, False).detach().abs() > 0.05)
        assert norm_triton.usable(norm, features, shortcut, batches)
        found = run(lambda *each: norm_triton.fused(*each, bool(relu), batches), norm, features, shortcut)
        expected = run(plainly, exact, *wide)
        for mine, theirs in zip(found, expected, strict=True):
            near = 2e-5 if dtype == torch.float32 or mine.dtype != dtype else 2**-7
            scale = theirs.double().abs().mean().item() + 1
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=near, atol=10 * near * scale)

    @pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
    def test_a_frozen_trunk_is_the_trunk_in_evaluation(self, precision):
        torch.manual_seed(0)
        trunk = Trunk(TrunkSettings(depth=50, width=0.25)).to(GPU, memory_format=torch.channels_last)
        images = draw(8, 3, 96, 96, seed=0).to(GPU, memory_format=torch.channels_last)
        trunk.train()(images)  # statistics of its own
        exact = copy.deepcopy(trunk).eval().double()(images.double())
        with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
            found = Frozen(trunk.eval())(images)
        for mine, theirs in zip(found, exact, strict=True):
            assert mine.dtype == (precision or torch.float32)
            assert ((mine - theirs).norm() / theirs.norm()).item() < (5e-2 if precision else 1e-4)

    def test_what_is_no_number_stays_none(self):
        features = spread_map(4, 8, 3, 3, seed=0, dtype=torch.bfloat16)
        features[1, 3, 0, 0] = torch.nan
        result = norm_triton.fused(nn.BatchNorm2d(8).to(GPU), features, None, True)
        assert result[:, 3].isnan().all() and result[:, :3].isfinite().all() and result[:, 4:].isfinite().all()

    def test_a_trunk_sees_both_views_at_once_as_one_after_another(self):
        torch.manual_seed(0)
        together = Trunk(TrunkSettings(depth=50, width=0.25)).to(GPU, memory_format=torch.channels_last).train()
        apart = copy.deepcopy(together)
        images = draw(16, 3, 96, 96, seed=0).to(GPU, memory_format=torch.channels_last)
        found = together(images, batches=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LEAD_RAY_TRITON", "0")
            expected = [torch.cat(parts) for parts in zip(*(apart(half) for half in images.chunk(2)), strict=True)]
        for mine, theirs in zip(found, expected, strict=True):
            assert ((mine - theirs).norm() / theirs.norm()).item() < 1e-4
        for mine, theirs in zip(together.buffers(), apart.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 64, 48, 48), (3, 21, 7, 10)], ids=str)
def test_pooling(dtype, shape):
    features = spread_map(*shape, seed=0, dtype=dtype).relu_().requires_grad_()  # many are equal: zeros
    expected = nn.functional.max_pool2d(features, 3, stride=2, padding=1)
    assert pool_triton.usable(nn.MaxPool2d(3, stride=2, padding=1), features)
    found = pool_triton.pooled(features)
    assert torch.equal(found, expected)
    sent = spread_map(*expected.shape, seed=1, dtype=dtype)
    mine, theirs = (torch.autograd.grad(each, features, sent)[0] for each in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-2)


class TestAlignment:
    """LEAD's alignment by Triton against the block-by-block form in float64 on a CPU."""

    @pytest.mark.parametrize("channels", [64, 256, 21])
    @pytest.mark.parametrize("quick", [False, True], ids=["fp32", "bf16"])
    def test_loss_and_gradients(self, channels, quick):
        sizes = ((48, 24), (96, 12), (200, 6))
        blocks = [[draw(3, count, side, side, seed=10 * place + side) for count, side in sizes] for place in (0, 1)]
        students = [draw(3, channels, 24, 24, seed=seed) for seed in (1, 2)]
        settings = {"temperature": 0.05, "teacher_temperature": 0.05, "normalisation": "per-layer"}

        def run(blocks, students) -> list[Tensor]:
            leaves = [student.requires_grad_() for student in students]
            loss, entropy = blocked_alignment(*blocks, *leaves, **settings)
            return [loss.detach(), entropy, *torch.autograd.grad(2 * loss, leaves)]

        expected = run([[block.double() for block in each] for each in blocks], [each.double() for each in students])
        assert alignment_triton.usable(GPU, torch.float32, channels)
        with torch.autocast("cuda", torch.bfloat16, enabled=quick):
            found = run([[block.to(GPU) for block in each] for each in blocks], [each.to(GPU) for each in students])
        near = 2e-2 if quick else 1e-4
        for mine, theirs in zip(found, expected, strict=True):
            assert ((mine.cpu().double() - theirs).norm() / theirs.norm()).item() < near


class TestViews:
    def test_a_gpus_are_a_cpus(self):
        settings, images = ViewSettings(), pictures(24, torch.device("cpu"))
        for view in (0, 1):
            drawn = views.draw(settings, 24, (136, 136), view, torch.Generator().manual_seed(view))
            expected = views.render(images, drawn, settings.size)
            found = views.render(images.to(GPU), drawn, settings.size)
            assert found.is_contiguous(memory_format=torch.channels_last)
            apart = (found.cpu() - expected).abs() * torch.tensor(augment.FACE_STD)[:, None, None]
            # Solarising inverts from 128/255 up: a value at the edge may fall on either side.
            assert apart.quantile(0.999).item() < 2e-3 and (apart > 0.02).float().mean().item() < 1e-3


def fpn(dim: int = 16) -> FpnSettings:
    return FpnSettings(dim=dim, lateral=32, branch=32)


LEARNERS = {
    "byol": lambda: Byol(Trunk(SMALL), ByolSettings(hidden=64, dim=32)),
    "contrast": lambda: Contrast(Trunk(SMALL), ContrastSettings(hidden=64, dim=32)),
    "moco": lambda: Moco(Trunk(SMALL), MocoSettings(dim=32, queue=64)),
    "align": lambda: Align(Trunk(SMALL), AlignSettings(projector=32, fpn=fpn())),
    "align centred": lambda: Align(Trunk(SMALL), AlignSettings(projector=0, fpn=fpn(), teacher="centred")),
    "cl": lambda: Equivariance(Trunk(SMALL), EquivarianceSettings(decoder=ProjectionSettings(dim=16))),
    "cl-fpn": lambda: Equivariance(Trunk(SMALL), EquivarianceSettings(decoder=fpn())),
    "dve-fpn": lambda: Dve(Trunk(SMALL), DveSettings(network=fpn()), group=2),
    "dve": lambda: Dve(None, DveSettings(network=DveNetworkSettings()), group=2),
}


class TestRecording:
    @pytest.mark.parametrize("name", LEARNERS)
    @pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
    def test_recorded_passes_are_plain_passes(self, name, precision):
        """Losses, gradients and what a pass leaves in buffers, each time from the same weights."""
        torch.manual_seed(0)
        plain = LEARNERS[name]().to(GPU, memory_format=torch.channels_last).train()
        replayed = copy.deepcopy(plain)
        before = copy.deepcopy(plain.state_dict())

        def batch(seed: int) -> tuple[Tensor, ...]:
            coarse = [draw(8, 3, 12, 12, seed=seed + 100 * view) for view in (0, 1)]
            pair = [nn.functional.interpolate(each, size=96, mode="bicubic").to(GPU) for each in coarse]
            if name.startswith("dve"):
                grid = nn.functional.affine_grid(torch.eye(2, 3).expand(8, 2, 3), [8, 3, 96, 96], align_corners=True)
                pair.append(0.9 * grid.to(GPU))
            return tuple(pair)

        batches = list(recorded(replayed, [batch(seed) for seed in range(3)], precision))
        assert len(batches) == 3 and all(map(torch.equal, batches[0], batch(0)))
        for key, value in replayed.state_dict().items():
            assert torch.equal(value, before[key]), f"recording has changed {key}"
        optimizer = train.make_optimizer(plain, Optim())
        optimizer.param_groups[0]["lr"] = 1e-2
        for given in batches:
            replayed.load_state_dict(plain.state_dict())
            replayed.zero_grad()
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                metrics = replayed(*given)
            (3 * metrics["loss"]).backward()
            known = train.train_step(plain, optimizer, given, precision)
            plain.after_step(0.5)
            assert metrics.keys() == known.keys()
            for key, value in known.items():
                torch.testing.assert_close(metrics[key].detach(), value, rtol=1e-3, atol=1e-3)
            pairs = list(zip(plain.named_parameters(), replayed.parameters(), strict=True))
            pairs = [(key, mine.grad / 3, theirs.grad) for (key, theirs), mine in pairs if mine.requires_grad]
            largest = max(theirs.norm() for _, _, theirs in pairs)
            near = 0.1 if precision == torch.bfloat16 else 1e-2
            for key, mine, theirs in pairs:  # a bias before a norm has no gradient but rounding
                assert (mine - theirs).norm() < near * theirs.norm() + 0.1 * near * largest, key
            for (key, theirs), mine in zip(plain.named_buffers(), replayed.buffers(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3, msg=key)

    def test_under_distributed_training(self, tmp_path):
        dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        try:
            torch.manual_seed(0)
            plain = LEARNERS["byol"]().to(GPU, memory_format=torch.channels_last).train()
            replayed = copy.deepcopy(plain)
            batches = [(draw(8, 3, 64, 64, seed=s).to(GPU), draw(8, 3, 64, 64, seed=9 + s).to(GPU)) for s in range(3)]
            batches = list(recorded(replayed, batches, torch.float32))
            options = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
            wrapped = DistributedDataParallel(replayed, device_ids=[0], **options)
            optimizers = [train.make_optimizer(each, Optim()) for each in (plain, replayed)]
            for pair in batches:
                replayed.load_state_dict(plain.state_dict())
                for network, optimizer in zip((plain, wrapped), optimizers, strict=True):
                    optimizer.param_groups[0]["lr"] = 1e-2
                    train.train_step(network, optimizer, pair, torch.float32)
                for mine, theirs in zip(replayed.parameters(), plain.parameters(), strict=True):
                    if mine.requires_grad:
                        assert ((mine.grad - theirs.grad).norm() / (theirs.grad.norm() + 1e-6)).item() < 1e-2
        finally:
            dist.destroy_process_group()

    def test_what_waits_for_the_gpu_is_left_as_it_is(self, capsys):
        class Waits(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 1)

            def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
                found = self.layer(a).square().mean()
                return {"loss": found * (1 if found.item() > 0 else 2)}

        learner, pair = Waits().to(GPU), (torch.ones(2, 4, device=GPU),) * 2
        assert len(list(recorded(learner, [pair, pair], torch.float32))) == 2
        assert "Waits: kernels are started one by one" in capsys.readouterr().out
        assert "forward" not in vars(learner)
        learner(*pair)["loss"].backward()
        assert learner.layer.weight.grad.isfinite().all(), "the GPU is of use again"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return layouts.prepared_pictures(tmp_path_factory.mktemp("data"))


COMMON = {
    "views": ViewSettings(size=96),  # of smaller ones, the decoder's norms would blow up rounding
    "optim": Optim(lr=0.05, batch_size=16, steps=8),
    "precision": "fp32",
    "report_every": 2,
    "checkpoint_every": 4,
}


class TestRuns:
    """Whole runs in this process."""

    @pytest.mark.parametrize("ingest", [{"ingest": "resident"}, {"ingest": "stream", "window": 2}], ids=str)
    @pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
    def test_both_stages_are_a_cpus(self, data, tmp_path, ingest, graphs):
        heads = {"trunk": TrunkSettings(depth=18, width=0.125), "objective": ByolSettings(hidden=32, dim=16)}
        objective = AlignSettings(projector=32, fpn=FpnSettings(dim=8, lateral=16, branch=128))
        found = {}
        for device in BOTH:
            common = {"data": data, "out": tmp_path / device, "device": device, "cuda_graphs": graphs}
            first = launch.run(Pretrain(**common, **COMMON, **heads, **ingest))
            given = found["cpu"][0].path if found else first.path  # stage 2 from the same weights
            second = launch.run(Dense(**common, **COMMON, **ingest, stage1=given, objective=objective))
            found[device] = first, second
        firsts, seconds = zip(*found.values(), strict=True)
        curves = [[line["loss"] for line in run.metrics()] for run in firsts]
        # BYOL's rounding grows a hundredfold a step: only the beginning can be compared.
        assert curves[1][0] == pytest.approx(curves[0][0], abs=0.02) and len(curves[1]) == len(curves[0])
        for name in ("loss", "teacher_entropy"):
            curves = [[line[name] for line in run.metrics()] for run in seconds]
            assert curves[1] == pytest.approx(curves[0], abs=5e-3), name
        known, mine = (load_file(run.path / "encoder.safetensors") for run in seconds)
        for name, value in known.items():
            if value.is_floating_point():
                assert ((mine[name] - value).norm() / (value.norm() + 1e-3)).item() < 0.1, name

    def test_an_interrupted_run_goes_on(self, data, tmp_path):
        """In-batch InfoNCE, whose curve rounding does not change: a start with new weights is another one."""
        heads = {"trunk": TrunkSettings(depth=18, width=0.125), "objective": ContrastSettings(hidden=32, dim=16)}
        optim = Optim(lr=0.2, batch_size=16, steps=8, warmup_epochs=0)
        stage = Pretrain(data=data, out=tmp_path / "whole", device="cuda", **COMMON | {"optim": optim}, **heads)
        whole = launch.run(stage)
        again = replace(stage, out=tmp_path / "again")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def stopped(shown, metrics):
                if metrics["step"] == 6:
                    raise KeyboardInterrupt

            patch.setattr(launch, "show", stopped)
            launch.run(again)
        resumed = launch.run(again)
        lines = [[(line["step"], line["loss"]) for line in run.metrics()] for run in (whole, resumed)]
        assert [step for step, _ in lines[1]] == [2, 4, 6, 8]
        for (_, mine), (_, theirs) in zip(*lines, strict=True):
            assert mine == pytest.approx(theirs, abs=0.1)

    def test_evaluations_are_a_cpus(self, tmp_path):
        sizes = {"images": 60, "identities": 20, "test_share": 0.3, "mafl_train": 24, "mafl_test": 12}
        synthetic.write(tmp_path / "raw", seed=0, **sizes)
        prepare(Mafl(raw=tmp_path / "raw"), tmp_path / "mafl", workers=0, progress=False)
        run = Path(shutil.copy(CARRIED, tmp_path))  # results go beside it
        for settings in ({"task": "matching"}, {"task": "regression", "regression": RegressionSettings(grid=24)}):
            numbers = [
                evaluate(Evaluate(run=run, data=tmp_path / "mafl", device=device, **settings)) for device in BOTH
            ]
            for name in ("cl_diff_error", "cl_same_error", "error"):
                if name in numbers[0]:
                    assert numbers[1][name] == pytest.approx(numbers[0][name], rel=0.05), name


def test_products_are_as_precise_as_asked():
    a, b = draw(256, 512, seed=0), draw(512, 256, seed=1)
    exact = a.double() @ b.double()
    for quick, near in ((False, 1e-6), (True, 1e-3)):
        with quick_products("cuda", quick):
            found = (a.to(GPU) @ b.to(GPU)).cpu().double()
        assert ((found - exact).norm() / exact.norm()).item() < near
