"""What else evaluation can be asked for: a validation share, reduced hypercolumns, another margin, errors by zoom."""

from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from frozen import annotated_pictures, save_trunk

from lead_ray import features
from lead_ray.data.celeba import CelebA
from lead_ray.data.celeba_wild import CelebAWild, MaflUnaligned
from lead_ray.evaluate import Evaluate, Reduce, details, evaluate, paths
from lead_ray.evaluation import zoom
from lead_ray.evaluation.matching import Matching
from lead_ray.evaluation.measure import held_out, make_encoder
from lead_ray.images import shards
from lead_ray.models import dve, reduce, weights
from lead_ray.prepare import prepare
from lead_ray.readouts.settings import RegressionSettings

READOUT = RegressionSettings(grid=12, points=4)


def faces(root: Path, size: int = 136) -> Path:
    random = np.random.default_rng(1)
    usual = np.array([[48, 55], [88, 55], [68, 70], [55, 90], [82, 90]]) * size / 136
    points = usual + random.normal(0, 3, (24, 5, 2))
    return annotated_pictures(root, points, np.ones((24, 5), bool), size=size)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture
def settings(data, tmp_path):
    run = save_trunk(tmp_path / "trunk.safetensors")

    def make(task: str = "regression", **given) -> Evaluate:
        few = {"regression": READOUT, "matching": Matching(grid=24), "device": "cpu"}
        return Evaluate(**{"run": run, "task": task, "data": data} | few | given)

    return make


class TestValidation:
    def test_it_measures_on_training_images_that_no_regressor_sees(self, settings, data, monkeypatch):
        loaded = []
        load = shards.load
        monkeypatch.setattr(shards, "load", lambda folder, split: loaded.append(split) or load(folder, split))
        asked = settings(validation=0.3)
        found = evaluate(asked)
        arrays = details(*paths(asked))
        train = load(data, "train")
        held = held_out(train, 0.3)
        assert set(loaded) == {"train"}, "the test images stay unseen"
        assert arrays["ids"].tolist() == [name for name, aside in zip(train.ids, held, strict=True) if aside]
        assert (found["images"], found["annotations"]) == (held.sum(), (~held).sum())
        np.testing.assert_array_equal(arrays["truth"], train.landmarks[held])
        mean_face = train.landmarks[~held].mean(axis=0)
        np.testing.assert_allclose(arrays["mean_shape"], mean_face, rtol=1e-4)
        assert evaluate(settings("matching", validation=0.3))["pairs"] == held.sum() // 2

    def test_a_person_is_on_one_side_and_stays_there(self):
        people = [f"person {number % 40}" for number in range(200)]
        images = shards.Images(
            pixels=torch.zeros(200, 3, 1, 1, dtype=torch.uint8),
            ids=[str(number) for number in range(200)],
            identity=people,
            landmarks=np.zeros((200, 0, 2), np.float32),
            visible=np.zeros((200, 0), bool),
        )
        held = held_out(images, 0.25)
        assert {people[row] for row in held.nonzero()[0]}.isdisjoint(people[row] for row in (~held).nonzero()[0])
        assert 0.1 < held.mean() < 0.4
        more = replace(images, identity=[None] * 200)
        assert 0.15 < held_out(more, 0.25).mean() < 0.35
        assert (held_out(more, 0.5) >= held_out(more, 0.25)).all(), "a larger share holds a smaller one"
        with pytest.raises(ValueError, match=r"validation=1e-06 puts 0 of 200 images aside"):
            held_out(images, 1e-6)

    def test_refused(self, settings):
        with pytest.raises(ValueError, match=r"validation is a share of the training split in \[0, 1\), got 1.0"):
            settings(validation=1.0)
        with pytest.raises(ValueError, match=r"validation measures on train: leave test_split=val out"):
            settings(validation=0.2, test_split="val")


class TestReduced:
    @pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # scikit-learn's, of so few hypercolumns
    @pytest.mark.parametrize(
        ("name", "method"), [("pca", "pca"), ("random-projection", "random"), ("nmf", "nmf")]
    )  # fmt: skip
    def test_features_are_those_of_the_reduction_of_training_images(self, settings, data, name, method):
        if method == "nmf":
            pytest.importorskip("sklearn")
        asked = settings(features=name, reduce=Reduce(dim=8, images=10, seed=2))
        (block,) = make_encoder(asked, 20)(inputs := torch.randn(2, 3, 96, 96))
        assert block.shape == (2, 8, 24, 24)
        pixels = shards.load(data, "train").pixels
        chosen = np.random.default_rng(2).permutation(len(pixels))[:10]
        how = reduce.ReductionSettings(method=method, dim=8)
        batches = [features.crops(pixels[torch.from_numpy(chosen)])]
        (expected,) = reduce.fit(weights.load_trunk(asked.run), batches, how, seed=2)(inputs)
        torch.testing.assert_close(block, expected, rtol=1e-3, atol=1e-3)

    def test_they_are_measured_and_named_by_what_they_were_fitted_to(self, settings, data, tmp_path):
        asked = settings(features="pca", reduce=Reduce(dim=4, images=8))
        found = evaluate(asked)
        assert found["features"] == "pca" and found["settings"]["reduce"]["dim"] == 4
        others = [replace(asked, reduce=replace(asked.reduce, **change)) for change in ({"dim": 5}, {"seed": 1})]
        assert len({paths(each)[0].name for each in (asked, *others)}) == 3
        assert paths(settings(reduce=Reduce(dim=9))) == paths(settings()), "it says nothing of learned features"
        assert evaluate(replace(asked, task="matching"))["pairs"] > 0

    def test_of_stage_1_only(self, settings, tmp_path):
        network = dve.dve_network(dve.DveNetworkSettings(network="smallnet", dim=4))
        weights.save(tmp_path / "small.safetensors", network, {})
        with pytest.raises(ValueError, match="holds stage-2 weights: give a stage-1 run"):
            evaluate(settings(run=tmp_path / "small.safetensors", features="pca", margin=20))


class TestMargin:
    @pytest.fixture
    def small(self, settings, tmp_path):
        """SmallNet, which is shown 70 of 100 px."""
        torch.manual_seed(0)
        weights.save(tmp_path / "small.safetensors", dve.dve_network(dve.DveNetworkSettings(network="smallnet")), {})
        return lambda *words, **given: settings(*words, run=tmp_path / "small.safetensors", **given)

    def test_smallnet_is_shown_70_of_100_pixels(self, small, tmp_path, monkeypatch):
        data = faces(tmp_path / "hundred", size=100)
        shapes = []
        forward = dve.SmallNet.forward
        monkeypatch.setattr(
            dve.SmallNet, "forward", lambda self, x: shapes.append(tuple(x.shape[2:])) or forward(self, x)
        )
        asked = small(data=data, annotations=4, copies=2)
        found = evaluate(asked)
        evaluate(small("matching", data=data))
        assert set(shapes) == {(70, 70)}
        arrays = details(*paths(asked))
        assert arrays["error"].mean() == pytest.approx(found["error"], rel=1e-4), "points lie in the stored images"
        np.testing.assert_array_equal(arrays["truth"], shards.load(data, "test").landmarks)

    def test_other_images_are_refused_unless_a_margin_is_given(self, small):
        with pytest.raises(ValueError, match=r"images of 136 pixels, this network is for 100: prepare .* --size 100"):
            evaluate(small())
        assert evaluate(small(margin=33))["images"] > 0

    def test_others_keep_theirs(self, settings):
        assert settings().margin_of(136) == settings().margin_of(80) == 20
        assert settings("matching", matching=Matching(margin=10)).margin_of(136) == 10
        assert settings(margin=4).margin_of(136) == 4


class TestZoom:
    def test_factors_are_those_that_were_drawn(self, tmp_path):
        reader = MaflUnaligned(raw=layouts.celeba(tmp_path / "raw", wild=True))
        prepare(reader, tmp_path / "shards", workers=0, progress=False)
        for split in ("train", "test"):
            found = zoom.factors(tmp_path / "shards", split)
            drawn = {each.image_id: each.box_factor for each in reader.records() if each.split == split}
            assert found == pytest.approx(drawn, abs=0.006)  # crops are whole pixels, boxes 100

    def test_errors_by_factor(self, tmp_path, settings):
        prepare(
            MaflUnaligned(raw=layouts.celeba(tmp_path / "raw", wild=True)), tmp_path / "s", workers=0, progress=False
        )
        asked = settings(data=tmp_path / "s", seeds=(0, 1))
        found = evaluate(asked)
        assert sum(each["images"] for each in found["by_factor"]) == found["images"] == 2
        total = sum(each["images"] * each["error"] for each in found["by_factor"])
        assert total / 2 == pytest.approx(found["error"], rel=1e-4)
        arrays = details(*paths(asked), repeat=1)
        assert arrays["factor"].shape == (2,) and arrays["train_factor"].shape == (2,)
        assert "by_factor" not in evaluate(settings()), "nothing was cropped to a box"

    def test_bins_by_hand(self):
        factor = np.array([1.0, 1.04, 1.497, 1.503, 1.55, 1.98, 1.2])
        errors = np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, np.nan])
        found = zoom.by_factor(errors, factor, zoom.spread(np.array([1.003, 1.2, 1.4969])))
        assert [
            (each["from"], each["to"], each["images"], each["error"], each["seen"]) for each in found["by_factor"]
        ] == [
            (1.0, 1.1, 2, 2.0, True),
            (1.4, 1.5, 2, 6.0, True),
            (1.5, 1.6, 1, 9.0, False),
            (1.9, 2.0, 1, 11.0, False),
        ]
        assert (found["seen_error"], found["unseen_error"]) == (4.0, 10.0)
        assert zoom.by_factor(errors[:2], factor[:2], np.array([1.0, 1.5]))["unseen_error"] is None


class TestWithoutMafl:
    """146,501 of CelebA's 162,770 training images are in neither of MAFL's lists."""

    @pytest.mark.parametrize("wild", [False, True])
    def test_neither_of_its_lists_is_taken(self, tmp_path, wild):
        raw = layouts.celeba(tmp_path, wild=wild)
        reader = CelebAWild if wild else CelebA
        usual, without = layouts.ids(reader(raw=raw)), layouts.ids(reader(raw=raw, leave_out="mafl"))
        assert set(usual) - set(without) == {"000001.jpg", "000007.jpg"}
        assert not set(without) & {"000002.jpg", "000005.jpg"}
        with pytest.raises(ValueError, match="include_mafl_test and leave_out=mafl exclude each other"):
            reader(raw=raw, include_mafl_test=True, leave_out="mafl")

    def test_folders_from_before_there_was_a_choice_are_known(self, tmp_path):
        """Their manifests say nothing of it; preparing them again is still nothing to do."""
        raw, out = layouts.celeba(tmp_path / "raw"), tmp_path / "out"
        made = prepare(CelebA(raw=raw), out, workers=0, progress=False)
        manifest = out / "manifest.json"
        text = manifest.read_text()
        manifest.write_text("".join(line for line in text.splitlines(keepends=True) if '"leave_out"' not in line))
        again = prepare(CelebA(raw=raw), out, workers=0, progress=False)
        assert again.splits == made.splits and "leave_out" not in again.settings
        with pytest.raises(ValueError, match="was prepared with leave_out=None, now leave_out='mafl'"):
            prepare(CelebA(raw=raw, leave_out="mafl"), out, workers=0, progress=False)
