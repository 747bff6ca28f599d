"""Errors of a tiny encoder on a few synthetic faces: what is measured, kept, read again, and refused."""

import json
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lead_ray.evaluate as evaluation
from lead_ray import features
from lead_ray.artefacts import digest, plain
from lead_ray.data import synthetic
from lead_ray.data.celeba import Mafl
from lead_ray.data.folder import Folder
from lead_ray.evaluate import Evaluate, evaluate, evaluate_each
from lead_ray.evaluation.matching import Matching
from lead_ray.images import shards
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.prepare import prepare
from lead_ray.readouts.regression import annotations
from lead_ray.readouts.settings import RegressionSettings, paper, paper_limited

TRAIN, TEST = 16, 8
REGRESSION = RegressionSettings(grid=24, points=8)
FIRST_READOUT = {
    *("start", "grid", "points", "temperature", "spread", "folds"),
    *("epochs", "schedule_epochs", "epoch_steps", "batch_size", "lr", "final_lr", "weight_decay"),
}
"""What a read-out's settings were when there were the first results."""


def save_trunk(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, Trunk(TrunkSettings(depth=18, width=0.125)), {})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    sizes = {"images": 40, "identities": 10, "test_share": 0.2, "mafl_train": TRAIN, "mafl_test": TEST}
    synthetic.write(root / "raw", seed=0, **sizes)
    prepare(Mafl(raw=root / "raw"), root / "mafl", workers=0, progress=False)
    return root / "mafl"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder as far as evaluation looks."""
    folder = tmp_path_factory.mktemp("run")
    save_trunk(folder / "encoder.safetensors", seed=10)
    return folder


@pytest.fixture(scope="module")
def two_points(tmp_path_factory) -> Path:
    """Photographs with two landmarks, the second of the last photograph hidden."""
    root = tmp_path_factory.mktemp("two")
    names = [f"{seed}.png" for seed in range(8)]
    for seed, name in enumerate(names):
        layouts.picture(root / "raw" / name, 60, 80, seed=seed)
    marks = layouts.coco(root / "marks.json", names, keypoints=[20.0, 30.0, 2, 0.0, 0.0, 0])
    prepare(Folder(raw=root / "raw", landmarks=marks), root / "out", workers=0, progress=False)
    return root / "out"


@pytest.fixture
def matching(run, data):
    def settings(**changes) -> Evaluate:
        few = {"limit": 4, "matching": Matching(grid=24)}
        return Evaluate(**{"run": run, "task": "matching", "data": data, "device": "cpu"} | few | changes)

    return settings


@pytest.fixture
def regression(run, data):
    def settings(**changes) -> Evaluate:
        fixed = {"task": "regression", "device": "cpu", "regression": REGRESSION}
        return Evaluate(**{"run": run, "data": data} | fixed | changes)

    return settings


def results(run: Path) -> set[Path]:
    return set(run.glob("eval/*.json"))


def forbid(monkeypatch, module, name: str) -> None:
    monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail(f"{name} ran again"))


class TestMatching:
    def test_result_is_kept_and_read_again(self, matching, run, monkeypatch):
        before = results(run)
        found = evaluate(matching(seeds=(3,)))
        (path,) = results(run) - before
        assert path.name.startswith("matching-mafl-learned-")
        assert json.loads(path.read_text()) == found
        assert (found["task"], found["features"], found["data"], found["pairs"]) == (
            "matching",
            "learned",
            "mafl",
            2,
        )
        assert 0 < found["cl_same_error"] < 96 and 0 < found["cl_same_floor"] < found["cl_same_error"]
        assert found["settings"]["limit"] == 4 and found["environment"]["versions"]["torch"]
        forbid(monkeypatch, evaluation.measure, "match_pairs")
        assert evaluate(matching(seeds=(3,))) == found

    def test_seeds_are_repeats(self, matching):
        found = evaluate(matching(seeds=(0, 1)))
        errors = [evaluate(matching(seeds=(seed,)))["cl_diff_error"] for seed in (0, 1)]
        assert found["errors"] == errors and errors[0] != errors[1]
        assert found["cl_diff_error"] == pytest.approx(np.mean(errors))

    def test_floors_are_other_features_on_the_same_pairs(self, matching):
        found = {kind: evaluate(matching(features=kind)) for kind in ("learned", "untrained", "colour")}
        assert len({result["cl_diff_error"] for result in found.values()}) == 3
        assert len({result["cl_diff_baseline"] for result in found.values()}) == 1

    def test_an_odd_image_is_left_out(self, matching):
        assert evaluate(matching(limit=5))["cl_diff_error"] == evaluate(matching(limit=4))["cl_diff_error"]

    def test_only_what_is_visible_counts(self, matching, two_points, monkeypatch):
        seen = []

        def match_pairs(*arguments, **options):
            seen.append((options, original(*arguments, **options)))
            return seen[0][1]

        original = evaluation.measure.match_pairs
        monkeypatch.setattr(evaluation.measure, "match_pairs", match_pairs)
        found = evaluate(matching(data=two_points, test_split="train", eyes=(0, 1), limit=None))
        ((options, matches),) = seen
        shown = shards.load(two_points, "train").visible
        assert options["eyes"] == (0, 1) and options["visible"].tolist() == shown.tolist() and not shown.all()
        assert matches.cl_diff.counted.sum() == (shown[0::2] & shown[1::2]).sum()
        assert found["cl_diff_error"] == pytest.approx(matches.cl_diff.error[matches.cl_diff.counted].mean().item())

    def test_command_line(self, run, data, capsys):
        evaluation.main([str(run), "--task", "matching", "--data", str(data), "--limit", "2", "--matching.grid", "24"])
        told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert told["cl_diff_error"].endswith("another image: what tables print") and "runs" not in told
        assert Path(told["kept"].removeprefix("in").strip()).exists()


class TestRegression:
    def test_result_against_the_mean_face(self, regression, run, data):
        before = results(run)
        found = evaluate(regression(seeds=(7,)))
        (path,) = results(run) - before
        assert path.name.startswith("regression-mafl-learned-") and json.loads(path.read_text()) == found
        assert (found["images"], found["annotations"]) == (TEST, TRAIN)
        assert found["errors"] == [found["error"]] and found["error_std"] is None
        assert 0 < found["error"] < 100  # % of the inter-ocular distance
        train, test = (shards.load(data, split).landmarks.astype(np.float64) for split in ("train", "test"))
        distance = np.linalg.norm(test - train.mean(axis=0), axis=-1)
        eyes = np.linalg.norm(test[:, 0] - test[:, 1], axis=-1)
        assert found["mean_face"] == pytest.approx(100 * (distance / eyes[:, None]).mean(), rel=1e-4)

    def test_read_again_and_features_too(self, regression, monkeypatch):
        found = evaluate(regression())
        forbid(monkeypatch, features, "extract")
        again = evaluate(regression(seeds=(0, 1)))  # not measured yet, from cached features
        assert again["errors"][0] == pytest.approx(found["error"], rel=1e-6)
        forbid(monkeypatch, evaluation.measure.regression, "fit_each")
        assert evaluate(regression()) == found

    def test_floors_differ(self, regression):
        errors = {kind: evaluate(regression(features=kind))["error"] for kind in ("learned", "untrained", "colour")}
        assert len(set(errors.values())) == 3

    def test_few_annotations(self, regression, run):
        found = evaluate(regression(annotations=3, seeds=(0, 1)))
        assert found["annotations"] == 3 and len(found["errors"]) == 2
        assert found["error"] == pytest.approx(np.mean(found["errors"]))
        assert found["error_std"] == pytest.approx(np.std(found["errors"], ddof=1))
        assert any(path.name.startswith("regression-mafl-learned-3-") for path in results(run))

    def test_few_annotations_in_warped_copies(self, regression, monkeypatch):
        seen = []

        def extract(encoder, images, **options):
            seen.append((tuple(images.shape), options))
            return original(encoder, images, **options)

        original = features.extract
        evaluate(regression())  # so that the test images' features lie there
        monkeypatch.setattr(features, "extract", extract)
        found = evaluate(regression(annotations=3, copies=4))
        assert seen == [((12, 3, 96, 96), {"cropped": True})]
        assert 0 < found["error"] < 100 and found["annotations"] == 3
        assert found["error"] != evaluate(regression(annotations=3))["error"]

    def test_what_is_not_visible_stays_so_in_the_copies(self, regression, two_points, monkeypatch):
        seen = []

        def fit_each(blocks, sets, settings):
            seen.extend((len(each.landmarks), each.visible.tolist()) for each in sets)
            return original(blocks, sets, settings)

        original = evaluation.measure.regression.fit_each
        monkeypatch.setattr(evaluation.measure.regression, "fit_each", fit_each)
        evaluate(regression(data=two_points, test_split="train", eyes=(0, 1), limit=7, annotations=8, copies=2))
        ((count, visible),) = seen
        assert count == 16 and visible.count([True, False]) == 2
        first = visible.index([True, False])
        assert visible[first + 1] == [True, False], "copies of an image follow each other"

    @pytest.mark.parametrize(
        ("readout", "given", "expected"),
        [
            ("ours", REGRESSION, REGRESSION),
            ("paper", REGRESSION, paper(120, grid=24)),
            ("paper", RegressionSettings(epochs=45, epoch_steps=317), paper(45, epoch_steps=317)),
            ("paper-limited", REGRESSION, paper_limited(grid=24)),
            ("paper-limited", RegressionSettings(epochs=50), paper_limited(50)),
        ],
    )
    def test_the_readout_reaches_the_fit(self, regression, monkeypatch, readout, given, expected):
        seen = []

        def fit_each(blocks, sets, settings):
            seen.append(settings)
            return original(blocks, sets, REGRESSION)

        original = evaluation.measure.regression.fit_each
        monkeypatch.setattr(evaluation.measure.regression, "fit_each", fit_each)
        evaluate(regression(readout=readout, regression=given, seeds=(11,)))
        assert seen == [expected]


class TestSeveralCounts:
    """Several numbers of annotated images at once."""

    @pytest.mark.parametrize("copies", [0, 2])
    def test_each_is_measured_as_it_would_be_alone(self, regression, run, copies):
        common = {"seeds": (21, 22), "copies": copies, "regression": replace(REGRESSION, epochs=2)}
        before = results(run)
        found = evaluate_each(regression(annotations=(2, 5), **common))
        assert [result["annotations"] for result in found] == [2, 5]
        new = sorted(path.name for path in results(run) - before)
        assert [name.split("-")[3] for name in new] == ["2", "5"], "one file a number"
        for path in results(run) - before:
            path.unlink()
        for count, together in zip((2, 5), found, strict=True):
            alone = evaluate(regression(annotations=count, **common))
            assert alone["settings"] == together["settings"]
            assert alone["errors"] == pytest.approx(together["errors"], rel=1e-3)
            assert alone["mean_faces"] == pytest.approx(together["mean_faces"])
        assert results(run) - before == {run / "eval" / name for name in new}

    def test_what_is_finished_is_not_measured_again(self, regression, monkeypatch):
        seen = []

        def fit_each(blocks, sets, settings):
            seen.extend(len(each.landmarks) for each in sets)
            return original(blocks, sets, settings)

        original = evaluation.measure.regression.fit_each
        monkeypatch.setattr(evaluation.measure.regression, "fit_each", fit_each)
        (first,) = evaluate_each(regression(annotations=(4,), seeds=(31, 32)))
        several = regression(annotations=(6, 4, 3), seeds=(31, 32))
        found = evaluate_each(several)
        assert seen == [4, 4, 6, 6, 3, 3] and found[1] == first
        assert evaluate(regression(annotations=4, seeds=(31, 32))) == first
        forbid(monkeypatch, evaluation.measure.regression, "fit_each")
        assert evaluate_each(several) == found

    def test_images_are_encoded_once(self, regression, data, monkeypatch):
        seen = []

        def extract(encoder, images, **options):
            seen.append(len(images))
            return original(encoder, images, **options)

        original = features.extract
        evaluate(regression())  # so that all images' features lie there
        monkeypatch.setattr(features, "extract", extract)
        seeds = (41, 42, 43)
        evaluate_each(regression(annotations=(1, 2), seeds=seeds))
        assert seen == [len({int(row) for seed in seeds for row in annotations(2, TRAIN, seed)})]
        evaluate_each(regression(annotations=(1, 3, TRAIN), seeds=(41,)))
        assert len(seen) == 1, "all are cached"

    def test_copies_that_make_a_number_together(self, regression, run):
        several = regression(annotations=(1, 3, 40), copies_in_all=8)
        assert [(single.annotations, single.copies) for single in several.each()] == [(1, 8), (3, 3), (40, 1)]
        found = evaluate_each(regression(annotations=(1, 3), copies_in_all=8))
        assert found == [evaluate(regression(annotations=count, copies=copies)) for count, copies in ((1, 8), (3, 3))]

    def test_features_of_copies_are_held_as_far_as_there_is_room(self, regression, run, monkeypatch):
        common = {"annotations": (2, 3), "copies": 2, "seeds": (51,)}
        expected = [result["error"] for result in evaluate_each(regression(**common))]
        for path in results(run):
            if "51" in path.read_text():
                path.unlink()
        monkeypatch.setattr("lead_ray.readouts.annotated.POOL", 1)
        assert [result["error"] for result in evaluate_each(regression(**common))] == pytest.approx(expected)

    def test_results_of_earlier_versions_are_found(self, regression, data, run):
        """The name of a result depends on its settings: fields that came later must not change it."""
        settings = regression(annotations=7, seeds=(61,))
        later = {"copies_in_all", "margin", "validation", "reduce"}
        old = {name: value for name, value in plain(settings).items() if name not in later}
        old["regression"] = {name: old["regression"][name] for name in FIRST_READOUT}
        measured = {"data": shards.read_manifest(data).fingerprint, "run": weights.fingerprint(run), "device": None}
        name = f"regression-mafl-learned-7-{digest(old | measured)}.json"
        evaluate(settings)
        assert (run / "eval" / name).exists()

    def test_command_line(self, run, data, capsys):
        arguments = [
            str(run),
            "--task",
            "regression",
            "--data",
            str(data),
            "--annotations",
            "1",
            "2",
            "--device",
            "cpu",
        ]
        evaluation.main([*arguments, "--regression.grid", "12", "--regression.points", "4"])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line[1] for line in lines if line[0] == "annotations"] == ["1", "2"]

    def test_one_result_is_one_number(self, regression):
        with pytest.raises(ValueError, match=r"annotations must be one number here, got \(1, 2\): use evaluate_each"):
            evaluate(regression(annotations=(1, 2)))


class TestFeatures:
    def test_they_lie_channels_last_and_are_read_as_they_were(self, tmp_path):
        encoder = Trunk(TrunkSettings(depth=18, width=0.125)).eval()
        images = torch.randint(0, 256, (3, 3, 136, 136), dtype=torch.uint8)
        made = features.cached(tmp_path / "f.safetensors", encoder, images)
        read = features.cached(tmp_path / "f.safetensors", encoder, images)
        early = {f"block{level}": block.contiguous() for level, block in enumerate(made)}
        save_file(early, tmp_path / "early.safetensors")
        for blocks in (made, read, features.cached(tmp_path / "early.safetensors", encoder, images)):
            assert all(block.is_contiguous(memory_format=torch.channels_last) for block in blocks)
            assert all(torch.equal(block, known) for block, known in zip(blocks, made, strict=True))

    def test_batches_do_not_matter(self):
        encoder = Trunk(TrunkSettings(depth=18, width=0.125)).eval()
        images = torch.randint(0, 256, (5, 3, 136, 136), dtype=torch.uint8)
        several = features.extract(encoder, images, batch_size=2)
        for block, known in zip(several, features.extract(encoder, images), strict=True):
            torch.testing.assert_close(block, known, rtol=2e-3, atol=2e-3)

    def test_training_mode_is_refused(self):
        encoder = Trunk(TrunkSettings(depth=18, width=0.125))
        with pytest.raises(ValueError, match=r"in training mode: call its eval\(\) first"):
            features.extract(encoder, torch.zeros(2, 3, 136, 136, dtype=torch.uint8))


class TestEyes:
    def test_the_usual_points(self, regression):
        settings = regression()
        assert (settings.eyes_among(5), settings.eyes_among(68)) == ((0, 1), (36, 45))
        assert regression(eyes=(2, 3)).eyes_among(5) == (2, 3)

    def test_both_tasks_divide_by_their_distance(self, regression, matching, data):
        test = shards.load(data, "test").landmarks
        mean_face = shards.load(data, "train").landmarks.astype(np.float64).mean(axis=0)
        distance = np.linalg.norm(test - mean_face, axis=-1)
        mouth = np.linalg.norm(test[:, 3] - test[:, 4], axis=-1)
        found = evaluate(regression(eyes=(3, 4)))
        assert found["mean_face"] == pytest.approx(100 * (distance / mouth[:, None]).mean(), rel=1e-4)
        by_eyes, by_mouth = evaluate(matching()), evaluate(matching(eyes=(3, 4)))
        assert by_eyes["cl_diff_error"] == by_mouth["cl_diff_error"]
        assert by_eyes["cl_diff_iod_percent"] != by_mouth["cl_diff_iod_percent"]

    def test_other_numbers_of_landmarks_need_them(self, regression, matching, two_points):
        for settings in (regression, matching):
            with pytest.raises(ValueError, match=r"has 2 landmarks: .* with --eyes"):
                evaluate(settings(data=two_points, test_split="train"))


class TestWeights:
    def test_a_file_of_weights_has_its_results_beside_it(self, matching, tmp_path):
        path = save_trunk(tmp_path / "trunk.safetensors", seed=1)
        first = evaluate(matching(run=path))
        assert len(results(tmp_path / "trunk")) == 1
        save_trunk(path, seed=2)
        assert evaluate(matching(run=path))["cl_diff_error"] != first["cl_diff_error"], "read for other weights"

    def test_cached_features_are_those_of_the_weights(self, regression, tmp_path):
        path = save_trunk(tmp_path / "trunk.safetensors", seed=1)
        first = evaluate(regression(run=path))["error"]
        save_trunk(path, seed=2)
        assert evaluate(regression(run=path))["error"] != first


class TestErrors:
    def test_limit(self, matching):
        with pytest.raises(ValueError, match="limit must be at most the 8 images of test, got 9"):
            evaluate(matching(limit=9))

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("limit", 0, "limit must be >= 1, got 0"),
            ("annotations", 0, "annotations must be >= 1, got 0"),
            ("annotations", (3, 0), r"annotations must be >= 1, got \(3, 0\)"),
            ("annotations", (), "annotations must hold at least one number"),
            ("copies_in_all", 9, "copies_in_all=9 needs annotations"),
            ("copies", -1, "copies must be >= 0, got -1"),
            ("seeds", (), "seeds must hold at least one number"),
        ],
    )
    def test_settings_out_of_range(self, matching, field, value, message):
        with pytest.raises(ValueError, match=message):
            matching(**{field: value})

    def test_epochs_beyond_the_papers_schedule(self, regression):
        with pytest.raises(ValueError, match="schedule_epochs must be >= epochs=300, got 200"):
            regression(readout="paper", regression=RegressionSettings(epochs=300))

    def test_more_annotations_than_images(self, regression):
        with pytest.raises(ValueError, match=r"annotations must be in 1..16, the number of training images, got 17"):
            evaluate(regression(annotations=17))

    def test_no_landmarks(self, matching, regression, tmp_path):
        for seed in range(8):
            layouts.picture(tmp_path / f"raw/{seed}.png", 40, 40, seed=seed)
        prepare(Folder(raw=tmp_path / "raw"), tmp_path / "out", workers=0, progress=False)
        for settings in (matching, regression):
            with pytest.raises(ValueError, match="has no landmarks: prepare it with --landmarks"):
                evaluate(settings(data=tmp_path / "out", test_split="train"))
        with pytest.raises(ValueError, match=r"split must be one of \['train'\], got 'test'"):
            evaluate(matching(data=tmp_path / "out"))

    def test_missing_run_or_data(self, matching, tmp_path):
        for missing in (tmp_path / "run", tmp_path):  # no folder, and one of an unfinished run
            with pytest.raises(FileNotFoundError, match=r"no weights at .* give a finished run's folder"):
                evaluate(matching(run=missing))
        with pytest.raises(FileNotFoundError, match=r"none' does not exist. Run: lead-ray prepare"):
            evaluate(matching(data=tmp_path / "none"))
        assert not list(tmp_path.iterdir())
