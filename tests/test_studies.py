"""Studies at their smallest: the same scripts, a few steps; through kills of the driver and of a trial."""

import csv
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lead_ray.data.synthetic import Synthetic
from lead_ray.models import weights
from lead_ray.models.trunk import TrunkSettings
from lead_ray.prepare import prepare
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


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """A folder of prepared data, as quick has it."""
    folder = tmp_path_factory.mktemp("faces")
    reader = Synthetic(raw=folder / "faces", images=144, identities=48, seed=4, test_share=1 / 3)
    prepare(reader, folder / "synthetic", workers=0)
    return folder


def small(*arguments: object) -> subprocess.CompletedProcess:
    """Run two small studies to their end, whatever that is."""
    command = [sys.executable, Path(__file__).with_name("small_studies.py"), *arguments]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)


BOTH = {"table-5": "ablate_annotations", "table-3": "ablate_dims", "table-4": "ablate_dims"}


def tables(out: Path, study: str = "ablate_*") -> dict[str, list[list[str]]]:
    """Every table's cells by its name, without the last column: the runs, named by what lies where."""
    paths = sorted((out / "studies").glob(f"{study}/table-*.csv"))
    assert [path.stem for path in paths] == [name for name, of in BOTH.items() if fnmatch(of, study)]
    return {path.stem: [row[:-1] for row in csv.reader(io.StringIO(path.read_text()))] for path in paths}


@pytest.fixture(scope="module")
def undisturbed(faces, tmp_path_factory) -> Path:
    """Both studies in one process, without interruption."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = small(faces, out, 0)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.slow
def test_a_killed_driver_goes_on_and_the_tables_come_out_the_same(faces, undisturbed, tmp_path):
    killed = small(faces, tmp_path, 0, "driver")
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "killed-driver").exists()
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/result.json")}
    assert len(finished) >= 2 and not (tmp_path / "studies/ablate_dims/table-3.csv").exists()
    again = small(faces, tmp_path, 0, "driver")
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished run was trained again"
    assert tables(tmp_path) == tables(undisturbed)
    head, *rows = tables(tmp_path)["table-4"]
    (dve,) = (dict(zip(head, row, strict=True)) for row in rows if row[1] == "DVE, 64")
    assert float(dve["MAFL (% IOD)"]) > 0 and dve["300W (% IOD)"] == "failed"
    assert "missing' does not exist" in (tmp_path / "studies/ablate_dims/table-4.md").read_text()
    for kind in ("stage1", "stage2"):
        assert len([*tmp_path.glob(f"{kind}-*/result.json")]) == 2, "the studies share what they train"


@pytest.mark.slow
def test_on_ray_a_killed_trial_and_a_killed_driver(faces, undisturbed, tmp_path):
    """The trial is tried again by the study, the study by the same command; the tables are those of one process."""
    killed = small(faces, tmp_path, 1, "trial", "driver", "one")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    again = small(faces, tmp_path, 1, "trial", "driver", "one")
    assert again.returncode == 0, again.stderr[-2000:]
    assert (tmp_path / "killed-trial").exists() and (tmp_path / "killed-driver").exists()
    assert tables(tmp_path, "ablate_dims") == tables(undisturbed, "ablate_dims")


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_finds_the_same(faces, tmp_path):
    """Among its trials; the same command goes on with the one that it was at."""

    def found(out: Path) -> tuple[list[list[str]], list[float]]:
        folder = out / "studies"
        table = csv.reader(io.StringIO((folder / "ablate_temperature/table-temperature.csv").read_text()))
        journal = [json.loads(line) for line in (folder / "ablate_temperature.journal").read_text().splitlines()]
        asked = [line["param_value_internal"] for line in journal if "param_name" in line]
        return [row[:-1] for row in table], asked

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed = small(faces, cut, 0, "driver", "search")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert "param_name" in (cut / "studies/ablate_temperature.journal").read_text(), "the first trial had begun"
    assert not (cut / "studies/ablate_temperature").exists()
    for out, ends in ((cut, ["driver", "search"]), (whole, ["search"])):
        done = small(faces, out, 0, *ends)
        assert done.returncode == 0, done.stderr[-2000:]
    assert found(cut) == found(whole)
    (row,) = (row for row in found(cut)[0] if row[1].startswith("found: student"))
    assert all(row[place] for place in (2, 5, 8)), "on validation images, and on the test images"
    assert len(found(cut)[1]) == 2 * 2, "two temperatures of two trials"
