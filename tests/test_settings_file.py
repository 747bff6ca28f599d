"""Settings come back from the file that a run leaves, and flags go before them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lead_ray.artefacts import plain
from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.models.dve import DveNetworkSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.objectives.contrast import ContrastSettings
from lead_ray.objectives.equivariance import DveSettings, EquivarianceSettings
from lead_ray.objectives.moco import MocoSettings
from lead_ray.pretrain import Pretrain
from lead_ray.settings_file import command_line, read
from lead_ray.train import Optim

DATA = Path("s3:/faces/data")
RUNS = [
    Pretrain(data=DATA),
    Pretrain(data=DATA, seed=7, trunk=TrunkSettings(depth=18, width=0.25), optim=Optim(steps=20, decay_epochs=3.0)),
    *(Pretrain(data=DATA, objective=kind()) for kind in (ByolSettings, ContrastSettings, MocoSettings)),
    Pretrain(data=DATA, init=Path("runs/stage1"), views=ViewSettings(size=64)),
    Dense(data=DATA, stage1=Path("runs/stage1")),
    Dense(data=DATA, stage1=Path("runs/stage1"), objective=EquivarianceSettings()),
    Dense(data=DATA, objective=DveSettings(network=DveNetworkSettings())),
]


@pytest.mark.parametrize("settings", RUNS, ids=lambda settings: type(settings.objective).__name__)
def test_every_setting_comes_back(settings, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(plain(settings) | {"matters": {"data": "0123"}}))
    assert read(type(settings), file) == settings
    assert command_line(type(settings), ["--config", str(file)], None) == settings
    changed = command_line(type(settings), ["--seed", "9", "--config", str(file), "--optim.lr", "0.5"], None)
    assert changed == replace(settings, seed=9, optim=replace(settings.optim, lr=0.5))


def test_a_file_with_some_of_the_fields(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"data": "faces", "optim": {"steps": 5, "lr": 1}}')
    assert read(Pretrain, file) == Pretrain(data=Path("faces"), optim=Optim(steps=5, lr=1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it must hold an object"),
        ("{", "Expecting property name"),
        ('{"data": "x", "sede": 1}', r"it has no field \['sede'\]; there are .*seed"),
        ('{"data": "x", "optim": {"lrr": 1}}', r"optim has no field \['lrr'\]; there are .*lr"),
        ('{"data": "x", "optim": {"lr": "fast"}}', r"optim\.lr must be float, got 'fast'"),
        ('{"data": "x", "optim": {"lr": -1}}', r"optim\.lr must be > 0, got -1"),
        ('{"data": 5}', "data must be Path, got 5"),
        ('{"data": "x", "seed": true}', "seed must be int, got True"),
        ('{"data": "x", "device": "tpu"}', r"device must be one of \('auto', 'cpu', 'cuda'\), got 'tpu'"),
        ('{"data": "x", "optim": 5}', "optim has no field 5"),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mine.json': .*{message}"):
        read(Pretrain, file)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config='none\.json' does not exist"):
        command_line(Pretrain, ["--config", "none.json"], None)
    with pytest.raises(ValueError, match="--config needs a file"):
        command_line(Pretrain, ["--config"], None)
