"""Other projects' ResNets: each in the shape that its project saves, all with random weights."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lead_ray.models import foreign, weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.models.weights import load_trunk

State = Mapping[str, torch.Tensor]


def state_of(seed: int, depth: int = 18, width: float = 0.125, statistics: bool = True) -> dict[str, torch.Tensor]:
    """A ResNet's state dict under torchvision's names; old checkpoints lack BatchNorm's counters."""
    torch.manual_seed(seed)
    state = Trunk(TrunkSettings(depth=depth, width=width)).state_dict()
    state = {name: value + torch.rand(()) if value.is_floating_point() else value for name, value in state.items()}
    return {name: value for name, value in state.items() if statistics or not name.endswith("num_batches_tracked")}


def under(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


TRAINED, AVERAGED = state_of(1), state_of(2)
HEAD = {"weight": torch.zeros(16, 64), "bias": torch.zeros(16)}

LAYOUTS: dict[str, Callable[[], object]] = {
    "torchvision": lambda: TRAINED | under("fc.", HEAD),
    "OpenSelfSup BYOL": lambda: {
        "meta": {"epoch": 200, "mmcv_version": "1.0.3"},
        "state_dict": under("online_net.0.", TRAINED)
        | under("online_net.1.fc0.", HEAD)
        | under("target_net.0.", AVERAGED)
        | under("backbone.", TRAINED)
        | under("head.predictor.fc0.", HEAD),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.2}]},
    },
    "OpenSelfSup MoCo": lambda: {
        "state_dict": under("encoder_q.0.", TRAINED)
        | under("encoder_k.0.", AVERAGED)
        | under("backbone.", TRAINED)
        | {"queue": torch.zeros(16, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64)},
    },
    "OpenSelfSup backbone": lambda: {"state_dict": state_of(1, statistics=False), "author": "OpenSelfSup"},
    "mmselfsup": lambda: {
        "state_dict": under("target_net.module.0.", AVERAGED) | under("backbone.", TRAINED) | under("neck.fc0.", HEAD)
    },
    "MoCo": lambda: {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": under("module.encoder_k.", AVERAGED)
        | under("module.encoder_q.", TRAINED | under("fc.", HEAD))
        | {"module.queue": torch.zeros(8, 16)},
    },
    "MoCo v3": lambda: {
        "state_dict": under("module.momentum_encoder.", AVERAGED) | under("module.base_encoder.", TRAINED)
    },
    "CL": lambda: {
        "opt": argparse.Namespace(model="resnet18", lr_decay_epochs=[120, 160], gpu=None),
        "model": under("encoder.module.", TRAINED | under("fc.", HEAD)),
        "model_ema": under("encoder.module.", AVERAGED | under("fc.", HEAD)),
        "contrast": {"memory": torch.zeros(16, 8)},
    },
    "VISSL": lambda: {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", TRAINED), "heads": HEAD}}}
    },
}


def saved(folder: Path, content: object, name: str = "model.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(trunk: Trunk, state: State) -> bool:
    mine = trunk.state_dict()
    return all(torch.equal(mine[name], value) for name, value in state.items())


class TestLayouts:
    @pytest.mark.parametrize("project", LAYOUTS)
    def test_the_trained_network_is_found(self, project, tmp_path):
        trunk, match = foreign.load(saved(tmp_path, LAYOUTS[project]()))
        assert trunk.settings == TrunkSettings(depth=18, width=0.125) and not trunk.training
        assert same(trunk, state_of(1, statistics=project != "OpenSelfSup backbone"))
        assert match.complete and len(match.matched) + len(match.missing) == len(trunk.state_dict())
        assert all(name.endswith("num_batches_tracked") for name in match.missing)
        assert (match.left == ()) == (project == "OpenSelfSup backbone")

    def test_another_by_its_prefix(self, tmp_path):
        path = saved(tmp_path, LAYOUTS["OpenSelfSup BYOL"]())
        trunk, match = foreign.load(path, prefix="state_dict.target_net.0.")
        assert same(trunk, AVERAGED) and match.prefix == "state_dict.target_net.0."
        with pytest.raises(ValueError, match=r"has ResNets under \['state_dict.backbone.', .*, got prefix='teacher.'"):
            foreign.load(path, prefix="teacher.")

    def test_an_average_alone(self, tmp_path):
        trunk, _ = foreign.load(saved(tmp_path, {"teacher": under("backbone.", AVERAGED)}))
        assert same(trunk, AVERAGED)

    def test_safetensors(self, tmp_path):
        save_file(under("backbone.", TRAINED), tmp_path / "model.safetensors")
        trunk, match = foreign.load(tmp_path / "model.safetensors")
        assert same(trunk, TRAINED) and match.prefix == "backbone."

    @pytest.mark.parametrize(("depth", "width"), [(18, 1.0), (34, 0.125), (50, 0.25)])
    def test_depth_and_width_are_read_off(self, tmp_path, depth, width):
        trunk, _ = foreign.load(saved(tmp_path, state_of(0, depth, width)))
        assert trunk.settings == TrunkSettings(depth=depth, width=width)

    @torch.no_grad()
    def test_torchvisions_own_network_gives_the_same_maps(self, tmp_path):
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18().eval()
        trunk, match = foreign.load(saved(tmp_path, theirs.state_dict()))
        assert match.left == ("fc.weight", "fc.bias")
        images = torch.randn(1, 3, 64, 64)
        last = nn.Sequential(*list(theirs.children())[:-2])(images)
        assert torch.equal(trunk(images)[-1], last)


class TestRefusals:
    def test_what_is_no_whole_resnet(self, tmp_path):
        cut = {name: value for name, value in TRAINED.items() if name != "layer2.0.bn1.weight"}
        with pytest.raises(ValueError, match=r"does not hold a whole ResNet-18: .*1 missing: layer2.0.bn1.weight"):
            foreign.load(saved(tmp_path, cut))
        bent = TRAINED | {"layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)}
        with pytest.raises(ValueError, match=r"1 of another shape: layer1.0.conv1.weight"):
            foreign.load(saved(tmp_path, bent))

    def test_other_networks(self, tmp_path):
        deep = TRAINED | under("layer3.2.", {"conv1.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match=r"has \(2, 2, 3, 2\) basic blocks in its layers: .* 18, 34, 50"):
            foreign.load(saved(tmp_path, deep))
        with pytest.raises(ValueError, match=r"has ResNets under \[\], got prefix=None"):
            foreign.load(saved(tmp_path, {"cls_token": torch.zeros(1)}))

    def test_files_that_are_no_weights_alone(self, tmp_path):
        for name, content in (("empty.pth", b""), ("text.pth", b"hello"), ("cut.safetensors", b"12345678")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} cannot be read as weights alone"):
                foreign.read(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=r"no weights at .*none.pth"):
            foreign.read(tmp_path / "none.pth")

    def test_nothing_in_a_pickle_is_run(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return Path.touch, (ran,)

        path = saved(tmp_path, {"model": TRAINED, "trap": Trap()})
        with pytest.raises(ValueError, match=r"cannot be read as weights alone \(UnpicklingError\): if you trust it"):
            foreign.load(path)
        assert not ran.exists()


class TestSelect:
    def test_says_what_matched(self):
        wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
        tensors = {"net.a": torch.ones(2), "net.b": torch.ones(4), "queue": torch.ones(5)}
        state, match = foreign.select(tensors, wanted)
        assert list(state) == ["a"] and not match.complete
        assert (match.prefix, match.missing, match.other_shape) == ("net.", ("c",), ("b",))
        assert match.left == ("net.b", "queue")
        assert str(match) == "1 tensors under 'net.', 2 left aside; 1 missing: c; 1 of another shape: b"

    def test_takes_the_network_that_fits_best(self):
        wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
        tensors = {"x.a": torch.ones(2), "other.a": 2 * torch.ones(2), "other.b": torch.ones(3)}
        assert foreign.select(tensors, wanted)[1].prefix == "other."
        averaged = tensors | {"teacher.a": torch.ones(2), "teacher.b": torch.ones(3)}
        assert foreign.select(averaged, wanted)[1].prefix == "other."

    def test_nothing_of_the_name(self):
        with pytest.raises(ValueError, match=r"prefix must be one of \[\] \(before 'a'\), got None"):
            foreign.select({"b": torch.ones(1)}, {"a": torch.ones(1)})


def test_converted_it_is_a_trunk_of_this_package(tmp_path):
    source = saved(tmp_path, LAYOUTS["CL"]())
    match = foreign.convert(source, tmp_path / "cl.safetensors")
    assert match.prefix == "model.encoder.module."
    assert same(load_trunk(tmp_path / "cl.safetensors"), TRAINED)
    card = weights.read_card(tmp_path / "cl.safetensors")
    assert card.trained["converted"] == "model.pth" and len(card.trained["sha256"]) == 64
    assert np.isclose(card.trunk.width, 0.125)
