"""What lies beside a result says the same as the result, and is refused where it does not belong to it."""

import numpy as np
import pytest
from frozen import annotated_pictures, save_trunk

from lead_ray import geometry
from lead_ray.evaluate import Evaluate, details, evaluate, evaluate_each, paths
from lead_ray.evaluation.details import mean, path_of
from lead_ray.evaluation.matching import Matching
from lead_ray.images import shards
from lead_ray.readouts.settings import RegressionSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(1)
    points = np.array([[48, 55], [88, 55], [68, 70], [55, 90], [82, 90]]) + random.normal(0, 3, (20, 5, 2))
    return annotated_pictures(tmp_path_factory.mktemp("faces"), points, np.ones((20, 5), bool))


@pytest.fixture
def settings(data, tmp_path):
    run = save_trunk(tmp_path / "trunk.safetensors")

    def make(task: str, **given) -> Evaluate:
        few = {"regression": RegressionSettings(grid=12, points=4), "matching": Matching(grid=24), "device": "cpu"}
        return Evaluate(**{"run": run, "task": task, "data": data, "seeds": (3, 5)} | few | given)

    return make


def test_regression(settings, data):
    asked = settings("regression", annotations=(3, 5))
    found, test = evaluate_each(asked), shards.load(data, "test")
    for path, result in zip(paths(asked), found, strict=True):
        for repeat, seed in enumerate((3, 5)):
            arrays = details(path, repeat=repeat)
            assert (arrays["task"], arrays["seed"], arrays["annotations"]) == (
                "regression",
                seed,
                result["annotations"],
            )
            assert arrays["ids"].tolist() == test.ids and arrays["annotated"].shape == (result["annotations"],)
            np.testing.assert_array_equal(arrays["truth"], test.landmarks)
            eyes = np.linalg.norm(test.landmarks[:, 0] - test.landmarks[:, 1], axis=1)
            np.testing.assert_allclose(arrays["normaliser"], eyes, rtol=1e-6)
            distances = np.linalg.norm(arrays["predicted"] - test.landmarks, axis=2)
            np.testing.assert_allclose(arrays["pixels"], distances, rtol=1e-6)
            np.testing.assert_allclose(arrays["errors"], 100 * distances / eyes[:, None], rtol=1e-5)
            assert arrays["error"].mean() == pytest.approx(result["errors"][repeat], rel=1e-4)
            assert arrays["mean_face"].mean() == pytest.approx(result["mean_faces"][repeat], rel=1e-4)
            assert "factor" not in arrays, "nothing was cropped to a box"


def test_all_images_annotated_are_not_listed(settings):
    asked = settings("regression", seeds=(0,))
    evaluate(asked)
    assert "annotated" not in details(*paths(asked))


def test_matching(settings, data):
    asked = settings("matching")
    found, test = evaluate(asked), shards.load(data, "test")
    even = len(test.ids) // 2 * 2
    for repeat, seed in enumerate((3, 5)):
        arrays = details(*paths(asked), repeat=repeat)
        assert (arrays["task"], arrays["seed"]) == ("matching", seed)
        assert arrays["ids"].ravel().tolist() == test.ids[:even]
        np.testing.assert_array_equal(arrays["points"], test.landmarks[0:even:2])
        np.testing.assert_array_equal(arrays["truth"], test.landmarks[1:even:2])
        run = found["runs"][repeat]
        assert arrays["errors"].mean() == pytest.approx(run["cl_diff_error"], rel=1e-5)
        assert arrays["same_errors"].mean() == pytest.approx(run["cl_same_error"], rel=1e-5)
        for name in ("baseline", "floor"):
            assert arrays[name].mean() == pytest.approx(run[f"cl_diff_{name}"], rel=1e-5)


def test_found_points_lie_in_the_image_as_it_is_stored(settings):
    """Without a warp that is the prediction itself, on CL's grid of 24 cells over the crop."""
    asked = settings("matching", seeds=(0,), matching=Matching(grid=24, warper=geometry.still()))
    evaluate(asked)
    arrays = details(*paths(asked))
    cells = (arrays["found"] - 20) / (95 / 23)
    np.testing.assert_allclose(cells, cells.round(), atol=1e-3)
    pixels = np.linalg.norm(arrays["found"] - arrays["truth"].round(), axis=-1)  # points move to pixels
    np.testing.assert_allclose(arrays["point_errors"], pixels * 69 / 95, atol=0.01)


def test_what_does_not_count_is_in_no_mean():
    np.testing.assert_array_equal(mean(np.array([[1.0, np.nan, 3.0], [np.nan] * 3])), [2.0, np.nan])


def test_refused(settings, tmp_path):
    asked = settings("matching", seeds=(0,))
    (path,) = paths(asked)
    with pytest.raises(FileNotFoundError, match=r"no result at .*: measure it with lead-ray evaluate"):
        details(path)
    evaluate(asked)
    with pytest.raises(ValueError, match=r"repeat must be in 0..0, the result's seeds, got 1"):
        details(path, repeat=1)
    path_of(path).write_bytes(path_of(path).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*: delete .*\.json and evaluate again"):
        details(path)
    path_of(path).unlink()
    with pytest.raises(ValueError, match=r"by a version that kept no points: delete it and evaluate again"):
        details(path)
