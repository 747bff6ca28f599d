"""Birds: percentages of correct points, hidden points that may be anything, images that show none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frozen import annotated_pictures, save_trunk

from lead_ray.evaluate import Evaluate, details, evaluate, paths
from lead_ray.evaluation import measure
from lead_ray.evaluation.matching import Matching
from lead_ray.images import shards
from lead_ray.readouts import regression
from lead_ray.readouts.settings import RegressionSettings

IMAGES, PARTS = 30, 15
READOUT = RegressionSettings(grid=12, points=4)


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Two images of the test split show nothing; every part is hidden here and there."""
    random = np.random.default_rng(0)
    points = 60 + random.normal(0, 8, (1, PARTS, 2)) + random.normal(0, 3, (IMAGES, PARTS, 2))
    visible = random.random((IMAGES, PARTS)) < 0.8
    data = annotated_pictures(tmp_path_factory.mktemp("birds"), points, visible)
    test = [int(name[:2]) for name in shards.load(data, "test").ids]
    visible[test[:2]] = False
    return annotated_pictures(tmp_path_factory.mktemp("hidden"), points, visible)


@pytest.fixture
def settings(birds, tmp_path):
    run = save_trunk(tmp_path / "trunk.safetensors")

    def make(task: str = "regression", **given) -> Evaluate:
        few = {"regression": READOUT, "matching": Matching(grid=24), "device": "cpu"}
        return Evaluate(**{"run": run, "task": task, "data": birds} | few | given)

    return make


def share_within(predicted: np.ndarray, truth: np.ndarray, visible: np.ndarray) -> float:
    """PCK in a loop: nearer than 5 % of the 96 px that the network is shown."""
    right = [
        float(np.hypot(*(predicted[image, part] - truth[image, part])) < 0.05 * 96)
        for image, part in zip(*visible.nonzero(), strict=True)
    ]
    return 100 * sum(right) / len(right)


def test_percentages_of_the_fit_and_of_the_mean_shape(settings):
    asked = settings(seeds=(0, 1), annotations=8)
    found = evaluate(asked)
    assert found["skipped"] == 2 and found["annotations"] == 8 and "error" not in found
    for repeat in (0, 1):
        arrays = details(*paths(asked), repeat=repeat)
        truth, visible = arrays["truth"], arrays["visible"]
        assert found["images"] == len(truth) and (~visible.any(axis=1)).sum() == 2
        assert found["pcks"][repeat] == pytest.approx(share_within(arrays["predicted"], truth, visible))
        shape = np.broadcast_to(arrays["mean_shape"], truth.shape)
        assert found["mean_shapes"][repeat] == pytest.approx(share_within(shape, truth, visible))
        assert np.isnan(arrays["error"]).sum() == 2 and np.isnan(arrays["errors"][~visible]).all()
        assert (100 * (arrays["errors"][visible] < 5).mean()) == pytest.approx(found["pcks"][repeat])
    assert found["pck"] == pytest.approx(np.mean(found["pcks"]))
    assert found["pck_std"] == pytest.approx(np.std(found["pcks"], ddof=1))
    assert 0 < found["pck_coded"] <= 100 and 0 < found["mean_shape_coded"] <= 100


@pytest.mark.parametrize(("poison", "copies"), [(np.nan, 0), (1e6, 2), (-1e6, 0)])
def test_hidden_points_may_be_anything(settings, monkeypatch, poison, copies):
    asked = settings(annotations=9, copies=copies, regression=replace(READOUT, epochs=2))
    clean = evaluate(asked)
    for path in paths(asked):
        path.unlink()
    load = shards.load

    def poisoned(*arguments, **options) -> shards.Images:
        images = load(*arguments, **options)
        return replace(images, landmarks=np.where(images.visible[..., None], images.landmarks, np.float32(poison)))

    monkeypatch.setattr(measure.shards, "load", poisoned)
    again = evaluate(asked)
    assert {name: again[name] for name in ("pcks", "pcks_coded", "mean_shapes")} == {
        name: clean[name] for name in ("pcks", "pcks_coded", "mean_shapes")
    }
    matched = evaluate(settings("matching", eyes=(0, 1)))
    monkeypatch.undo()
    for path in paths(settings("matching", eyes=(0, 1))):
        path.unlink()
    assert evaluate(settings("matching", eyes=(0, 1)))["runs"] == matched["runs"]


def test_matching_without_eyes_is_in_pixels_alone(settings):
    found = evaluate(settings("matching"))
    assert "cl_diff_error" in found and not any("iod" in name for name in found)


def test_with_eyes_they_are_measured_in_percent(settings, birds):
    found = evaluate(settings(eyes=(3, 4)))
    visible = shards.load(birds, "test").visible
    assert "pck" not in found
    assert found["skipped"] == (~visible[:, [3, 4]].all(axis=1)).sum() > 2


def test_the_mean_shape_is_of_what_the_annotated_images_show(settings, birds):
    arrays = details(*paths(asked)) if evaluate(asked := settings(annotations=9)) else {}
    train = shards.load(birds, "train")
    rows = regression.annotations(9, len(train.ids), 0).numpy()
    assert arrays["annotated"].tolist() == [train.ids[row] for row in rows]
    shown = np.where(train.visible[rows][..., None], train.landmarks[rows], np.nan)
    np.testing.assert_allclose(arrays["mean_shape"], np.nanmean(shown, axis=0), rtol=1e-5)
