"""Studies at their smallest: the same scripts, a few steps."""

import importlib
import sys
from pathlib import Path

import pytest

from lead_ray.models import weights
from lead_ray.models.trunk import TrunkSettings
from lead_ray.quickstart import Quickstart

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture
def study(monkeypatch):
    """Import a script as it finds its neighbours when it is run."""
    monkeypatch.syspath_prepend(str(STUDIES))
    yield importlib.import_module
    for name in [path.stem for path in STUDIES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_encoder_says_how_it_came_about_and_names_no_path(study, tmp_path):
    encoder = study("encoder")
    settings = encoder.Study(
        work=tmp_path / "work", images=160, identities=40, small_steps=2, steps=3, out=tmp_path / "small.safetensors"
    )
    encoder.main(settings)
    card = weights.read_card(settings.out)
    assert card.trunk == TrunkSettings(depth=18, width=0.25)
    assert card.trained["steps"] == 5
    assert [stage["views"]["size"] for stage in card.trained["stages"]] == [64, 96]
    assert [stage["steps"] for stage in card.trained["stages"]] == [2, 3]
    assert card.trained["command"] == "python studies/encoder.py --small-steps 2 --steps 3"
    assert str(tmp_path) not in str(card.trained)
    before = settings.out.read_bytes()
    encoder.main(settings)  # nothing is trained twice
    assert settings.out.read_bytes() == before


def test_the_carried_encoder_is_this_scripts(study):
    encoder = study("encoder")
    trained = weights.read_card(encoder.CARRIED).trained
    assert trained["command"].startswith("python studies/encoder.py")
    assert trained["steps"] == encoder.Study().small_steps + encoder.Study().steps
    drawn = Quickstart().synthetic()
    assert drawn.seed != encoder.Study().seed, "the quickstart must not draw people whom the encoder has seen"
