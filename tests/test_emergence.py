"""studies/emergence.py at its smallest: encoders kept on the way are matched, stage 2 begins from one of them."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lead_ray.data.synthetic import Synthetic
from lead_ray.prepare import prepare

STUDIES = Path(__file__).parents[1] / "studies"


@pytest.mark.slow
def test_errors_by_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(STUDIES))
    study = importlib.import_module("emergence")
    prepare(
        Synthetic(raw=tmp_path / "raw", images=160, identities=80, seed=4), tmp_path / "data", workers=0, progress=False
    )
    monkeypatch.setattr(study, "SPLIT", "test")
    small = {"steps": 2, "every": 1, "dense_steps": 1, "dense_at": (2,), "out": tmp_path / "runs"}
    settings = study.Study(celeba=tmp_path / "data", mtfl=tmp_path / "data", **small, results=tmp_path / "found")
    study.main(settings)
    kept = json.loads((tmp_path / "found.json").read_text())
    errors = {name: {steps: each["cl_diff_error"] for steps, each in by.items()} for name, by in kept["found"].items()}
    assert [list(by) for by in errors.values()] == [["1", "2"], ["2"]]
    first, second = errors["stage 1, hypercolumn"].values()
    assert first != second and kept["untrained"]["cl_diff_error"] not in (first, second)
    assert (kept["images"], kept["batch_size"]) == (128, 128)
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"LEAD stage 2, 2 steps: {errors['LEAD stage 2']['2']:.2f} px" in said
    with pytest.raises(ValueError, match="kept no encoders on its way: train it under another --name"):
        study.encoders(tmp_path)
    for wrong in ({"every": 3}, {"every": 2, "dense_at": (1,)}, {"dense_at": (2, 5)}):
        with pytest.raises(
            ValueError, match=r"every must be in 1\.\.2|dense_at=\[[15]\]: stage 1 keeps its encoder after"
        ):
            replace(settings, **wrong)
    with pytest.raises(ValueError, match=r"dense_at=\[3\]: .* after 1, 2 steps"):
        study.main(replace(settings, stage1=next((tmp_path / "runs").glob("stage1-*")), dense_at=(3,)))
