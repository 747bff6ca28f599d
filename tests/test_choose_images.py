"""studies/choose_images.py at its smallest: every rule picks, is measured, and ends in a table."""

import importlib
import json
from pathlib import Path
from statistics import fmean

import pytest
from annotated_faces import CARRIED

from lead_ray.data.synthetic import Synthetic
from lead_ray.prepare import prepare

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("choose_images")


def test_counts_that_cannot_be_picked_are_refused(study, tmp_path):
    sets = {"sets": {"faces": tmp_path}, "models": {"faces": CARRIED}}
    with pytest.raises(ValueError, match="counts must rise from at least 2 to at most pool=300"):
        study.Study(**sets, counts=(5, 400))
    with pytest.raises(ValueError, match=r"models must be those of the sets \['faces'\]"):
        study.Study(sets=sets["sets"], models={})


@pytest.mark.slow
def test_every_rule_is_measured(study, tmp_path):
    reader = Synthetic(raw=tmp_path / "raw", images=24, identities=24, seed=4, test_share=1 / 3)
    prepare(reader, tmp_path / "shards", workers=0, progress=False)
    small = {"counts": (4, 6), "seeds": (0, 1), "pool": 12, "test": 6, "candidates": 5, "responses": 20}
    sets = {"sets": {"faces": tmp_path / "shards"}, "models": {"faces": CARRIED}}
    study.main(study.Study(**sets, **small, results=tmp_path / "found"))
    kept = json.loads((tmp_path / "found.json").read_text())
    errors = kept["errors"]["faces"]
    assert list(errors) == list(study.RULES)
    assert all(len(errors[rule][count]) == 2 and min(errors[rule][count]) > 0 for rule in errors for count in "46")
    assert errors["coverage"]["4"] == errors["disagreement"]["4"] == errors["both"]["4"]  # the first are coverage's
    assert errors["coverage"]["4"] != errors["chance"]["4"]
    gap = fmean(one - other for one, other in zip(errors["farthest"]["6"], errors["chance"]["6"], strict=True))
    assert kept["against_chance"]["faces"]["farthest"]["6"]["mean"] == pytest.approx(gap)
    table = (tmp_path / "found.md").read_text()
    assert all(f"| {rule} |" in table for rule in study.RULES) and "faces, 6 images" in table
