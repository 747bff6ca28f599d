"""`lead-ray plot`: every picture from files, and what it says when a file is not what it needs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lead_ray import features, plot
from lead_ray.artefacts import write_json
from lead_ray.data import synthetic
from lead_ray.data.celeba import Mafl
from lead_ray.evaluate import Evaluate, evaluate_each, paths
from lead_ray.evaluation.details import save
from lead_ray.evaluation.matching import Matching
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.plotting.charts import Cost
from lead_ray.plotting.sources import Result, named
from lead_ray.prepare import prepare
from lead_ray.readouts.settings import RegressionSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    sizes = {"images": 30, "identities": 10, "test_share": 0.3, "mafl_train": 8, "mafl_test": 8}
    synthetic.write(root / "raw", seed=0, **sizes)
    prepare(Mafl(raw=root / "raw"), root / "mafl", workers=0, progress=False)
    return root / "mafl"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two networks, as far as pictures look: weights, settings, metrics."""
    folders = []
    for number in range(2):
        folder = tmp_path_factory.mktemp(f"run{number}")
        torch.manual_seed(number)
        weights.save(folder / "encoder.safetensors", Trunk(TrunkSettings(depth=18, width=0.125)), {})
        write_json(folder / "config.json", {"objective": {"temperature": 0.05 * (number + 1)}})
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def regressions(runs, data) -> list[Path]:
    found = []
    for run in runs:
        how = {"annotations": (2, 5), "seeds": (0, 1), "regression": RegressionSettings(grid=24, points=8)}
        settings = Evaluate(run=run, task="regression", data=data, device="cpu", **how)
        evaluate_each(settings)
        found += paths(settings)
    return found


@pytest.fixture(scope="module")
def matchings(runs, data) -> list[Path]:
    found = []
    for run in runs:
        settings = Evaluate(run=run, task="matching", data=data, device="cpu", matching=Matching(grid=24))
        evaluate_each(settings)
        found += paths(settings)
    return found


@pytest.fixture(scope="module")
def unaligned(tmp_path_factory, runs) -> list[Path]:
    """Results as evaluation leaves them for images that were cropped by a box."""
    folder, count = tmp_path_factory.mktemp("zoom"), 40
    truth = np.tile(np.array([[40.0, 60.0], [80.0, 60.0]], np.float32), (count, 1, 1))
    factor = np.linspace(1, 2, count).astype(np.float32)
    found = []
    for number, run in enumerate(runs):
        predicted = truth + (number + 1) * factor[:, None, None]
        shared = {
            "task": np.array("regression"), "ids": np.array([str(i) for i in range(count)]), "truth": truth,
            "visible": np.ones((count, 2), bool), "normaliser": np.full(count, 40.0, np.float32),
            "factor": factor, "train_factor": np.array([1.0, 1.5], np.float32), "annotations": np.array(20),
        }  # fmt: skip
        own = {"predicted": predicted[None], "mean_shape": truth[:1], "seeds": np.array([0])}
        path = folder / f"{number}.json"
        save(path, shared | own)
        settings = {"run": str(run), "margin": None}
        head = {
            "task": "regression",
            "features": "learned",
            "data": "mafl-unaligned",
            "annotations": 20,
            "images": count,
        }
        write_json(path, {**head, "error": 3.0, "errors": [3.0], "settings": settings})
        found.append(path)
    return found


def drawn(out: Path, *words: object) -> Image.Image:
    plot.main([*map(str, words), "--out", str(out)])
    with Image.open(out) as picture:
        picture.load()
    assert picture.width > 300 and np.asarray(picture.convert("L")).std() > 5
    return picture


def test_pictures_of_networks(runs, data, tmp_path, capsys):
    few = ("--data", data, "--images", "6")
    drawn(tmp_path / "heat.png", "heat-maps", *runs, *few, "--names", "a", "b", "--landmarks", "0", "3")
    assert "by a, b: heat maps" in capsys.readouterr().out
    drawn(tmp_path / "parts.png", "parts", runs[0], *few, "--parts", "3", "--shown", "4")
    said = capsys.readouterr().out.splitlines()
    assert len([line for line in said if line.split()[0].isdigit()]) == 5, "a line for every landmark"
    drawn(tmp_path / "clusters.png", "clusters", runs[0], *few, "--clusters", "4", "--patches", "3")
    drawn(tmp_path / "loss.jpg", "losses", *runs)


def test_pictures_of_results(regressions, matchings, tmp_path, capsys):
    names = ("--names", "first", "second")
    drawn(tmp_path / "matching.png", "matching", *matchings, "--pairs", "3", *names)
    drawn(tmp_path / "faces.png", "landmarks", *regressions[:2], "--columns", "4", "--names", "two", "five")
    drawn(tmp_path / "few.png", "few-annotations", *regressions[:2], "--rows", "2")
    drawn(tmp_path / "counts.png", "counts", *regressions, *names)
    said = capsys.readouterr().out
    first, second = (json.loads(path.read_text())["error"] for path in regressions[:2])
    assert f"first {first:.3g} at 2, {second:.3g} at 5" in said
    drawn(tmp_path / "ced.png", "distribution", regressions[0], regressions[2], "--limit", "200", *names)
    drawn(tmp_path / "sweep.png", "sweep", *matchings)
    assert "at 0.05" in capsys.readouterr().out


def test_zoom(unaligned, tmp_path, capsys):
    drawn(tmp_path / "zoom.png", "zoom", *unaligned, "--names", "small", "large")
    assert "small from 3.7 at 1.05 to 6.9 at 1.95" in capsys.readouterr().out  # 100 sqrt(2) factor / 40


def test_birds_have_another_unit(unaligned, tmp_path, capsys):
    bird = json.loads(unaligned[0].read_text())
    bird |= {"pck": 60.0, "pcks": [58.0, 62.0]}
    del bird["error"], bird["errors"]
    path = tmp_path / "bird.json"
    write_json(path, bird)
    path.with_suffix(".npz").write_bytes(unaligned[0].with_suffix(".npz").read_bytes())
    drawn(tmp_path / "counts.png", "counts", path)
    assert (
        "points found within 5 % of the crop's side, % by annotated images: stage 1 60 at 20" in capsys.readouterr().out
    )
    assert Result.read(path).unit == "% of the crop's side"
    drawn(tmp_path / "ced.png", "distribution", path)


def test_trials_and_cost(tmp_path, capsys):
    rows = {"trials": [{"px": 2.0, "iod": 9.0, "how": "byol"}, {"px": 3.0, "iod": 8.0, "how": "moco"}, {"px": None}]}
    write_json(tmp_path / "trials.json", rows)
    drawn(tmp_path / "trials.png", "trials", tmp_path / "trials.json", "--x", "px", "--y", "iod", "--kind", "how")
    assert "2 trials" in capsys.readouterr().out
    found = [{"name": f"{dim}-d, {how}", "milliseconds": 1.0 * dim} for dim in (64, 3840) for how in ("built", "ours")]
    settings = {"grid": 48, "marks": 5, "points": 50}
    write_json(tmp_path / "readout.json", {"title": "read-out", "settings": settings, "found": found})
    drawn(tmp_path / "cost.png", "cost", tmp_path / "readout.json")
    rows = Cost(file=tmp_path / "readout.json", out=tmp_path / "x.png").rows()
    operations = {(row.system, row.dim): row.gflops for row in rows}
    # Two operations for each channel, cell and response.
    assert operations["built", 64] == pytest.approx(2 * 64 * 48**2 * 250 / 1e9)
    native = 256 * 24**2 + 512 * 12**2 + 1024 * 6**2 + 2048 * 3**2
    assert operations["ours", 3840] == pytest.approx(2 * native * 250 / 1e9)


def test_points_are_those_of_the_crop(regressions, data):
    result = Result.read(regressions[0])
    ids = result.arrays["ids"][:2].tolist()
    assert result.crops(ids).shape == (2, 3, 96, 96)
    assert (result.points("truth").numpy() == result.arrays["truth"] - features.MARGIN).all()
    with pytest.raises(ValueError, match="holds no image 'nobody'"):
        result.crops(["nobody"])


def test_names_tell_systems_apart():
    assert named((), ["stage 1", "stage 2"], ["a", "b"]) == ["stage 1", "stage 2"]
    assert named((), ["stage 2", "stage 2", "colour"], ["a", "b", "a"]) == ["stage 2 (a)", "stage 2 (b)", "colour"]
    with pytest.raises(ValueError, match="name each with --names"):
        named((), ["stage 2", "stage 2"], ["a", "a"])
    with pytest.raises(ValueError, match="names must be 2 different ones"):
        named(("x",), ["a", "b"], ["", ""])


def refused(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        plot.main([*map(str, words)])
    shown = capsys.readouterr()
    return f"{stop.value}{shown.out}{shown.err}"


def test_refused(runs, data, regressions, matchings, unaligned, tmp_path, capsys):
    out = ("--out", tmp_path / "x.png")
    assert "out must end in" in " ".join(refused(capsys, "losses", runs[0], "--out", tmp_path / "x.bmp").split())
    assert "made of matching results" in refused(capsys, "matching", regressions[0], *out)
    assert "not a result of lead-ray evaluate" in refused(capsys, "counts", runs[0] / "config.json", *out)
    assert "of other images" in refused(capsys, "few-annotations", regressions[0], unaligned[0], *out)
    assert "give those of one data set" in refused(capsys, "counts", regressions[0], unaligned[0], *out)
    assert "not cropped by a box" in refused(capsys, "zoom", regressions[0], *out)
    assert "use --by error" in refused(capsys, "landmarks", regressions[0], "--by", "factor", *out)
    assert "is not in" in refused(capsys, "sweep", matchings[0], "--setting", "objective.nothing", *out)
    assert "value=nothing is not in" in refused(capsys, "sweep", matchings[0], "--value", "nothing", *out)
    few = ("--data", data, "--images", "4", *out)
    assert "landmarks must be in 0..4" in refused(capsys, "heat-maps", runs[0], "--landmarks", "7", *few)
    assert "block must be in -4..3" in refused(capsys, "clusters", runs[0], "--block", "9", *few)
    assert "images must be in 1..8" in refused(capsys, "parts", runs[0], "--data", data, "--images", "9", *out)
    assert not (tmp_path / "x.png").exists()
