"""`lead-ray bench model`: what it measures by hand, what it measures on, the command, and the table."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from annotated_faces import CARRIED, NAMES, draw

from lead_ray import formats
from lead_ray.bench import main
from lead_ray.data.synthetic import Synthetic
from lead_ray.landmarks.calibration import Calibration
from lead_ray.landmarks.framing import Framing
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema, palette
from lead_ray.landmarks.model import LandmarkModel, ModelCard
from lead_ray.landmarks.prediction import Prediction
from lead_ray.models import weights
from lead_ray.prepare import prepare
from lead_ray.readouts.ensemble import Ensemble
from lead_ray.readouts.regressor import Regressor
from lead_ray.speed import labelled, model
from lead_ray.speed.kept import markdown
from lead_ray.speed.labelled import Photographs
from lead_ray.speed.model import Model


class Off(LandmarkModel):
    """Says every point too far to the right, and that it is three quarters sure."""

    def predict(self, images, boxes=None, **options):
        there = np.array([[14.0, 20.0], [64.0, 20.0]], np.float32)  # 4 pixels beside the test's truth
        one = Prediction(points=there, confidence=np.full(2, 0.75, np.float32), spread=np.ones(2, np.float32))
        return [one] * len(images)


def test_error_and_calibration_by_hand(tmp_path):
    schema = Schema(names=("a", "b"), colours=palette(2), normaliser=(0, 1))
    marks = np.full(2, 2, np.uint8)

    def images(left: float, count: int) -> Labels:
        points = np.array([[left, 20.0], [left + 50, 20.0]], np.float32)
        each = (LabelledImage(file=f"{n}.png", size=(80, 40), points=points, marks=marks) for n in range(count))
        return Labels(schema=schema, images=tuple(each))

    given = images(15.0, 3)
    card = ModelCard(
        schema=schema, framing=Framing(), placed=(True, True),
        calibration=Calibration(slopes=(0.0, 0.0), offsets=(0.0,)),
        trained={}, measured={"error": 7.0}, versions={},
    )  # fmt: skip
    nothing = Ensemble(Regressor((torch.zeros(2, 1),), torch.zeros(2, 2, 2), torch.zeros(2, 2), 1.0, 2), 0, 1, ())
    off = Off(torch.nn.Identity(), nothing, card)
    found = model.judged(off, given, Photographs(folder=tmp_path, train=given, test=images(10.0, 5)))
    assert found["error"] == pytest.approx(100 * 4 / 50, abs=1e-3)
    assert found["mean_shape"] == pytest.approx(100 * 5 / 50, abs=1e-3)
    assert found["cross_validated"] == 7.0 and found["calibrated"]
    assert (found["said"], found["near"]) == (0.75, 1.0)  # 8 % is within 10 %
    assert found["calibration_error"] == pytest.approx(0.25)


def test_a_persons_folder_is_parted(tmp_path):
    labels = draw(tmp_path, 8)
    formats.write("own", labels, tmp_path / "labels.json")
    found = labelled.own(tmp_path, tmp_path / "labels.json", train=3, test=100, seed=0)
    train, test = ({image.file for image in part.images} for part in (found.train, found.test))
    assert len(train) == 3 and len(test) == 4 and not train & test
    assert found.train.schema.names == NAMES
    nested = [{image.file for image in labelled.first(labels, count, 0).images} for count in (2, 5)]
    assert nested[0] < nested[1]
    formats.write("own", replace(labels, images=labels.images[:5]), tmp_path / "few.json")
    with pytest.raises(ValueError, match="has 5 annotated images: to measure takes at least 6"):
        labelled.own(tmp_path, tmp_path / "few.json", train=3, test=100, seed=0)


def test_wrong_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="--images with their --labels"):
        Model(images=tmp_path)
    with pytest.raises(ValueError, match="at least 3 each, got"):
        Model(annotations=(2,))


def test_networks_are_described():
    assert model.described(weights.read_card(CARRIED)) == "ResNet-18 x 0.25, stage 1"


def test_the_table_by_hand():
    clock = {"seconds": 9.0, "processor": 0.5}
    row = {"annotations": 10, "fit": clock, "refit": clock, "mean_shape": 20.0, "error": 9.0, "cross_validated": 10.0}
    row |= {"said": 0.5, "near": 0.6, "calibration_error": 0.1}
    size = {"megabytes": 2.4, "one": clock, "batch": clock, "batch_size": 32}
    onnx = {"megabytes": 5.0, "pixels_apart": 8e-6, "confidence_apart": 1e-6, "one": clock, "batch": clock}
    one = {"data": "faces", "network": "ResNet-18", "landmarks": 5, "unit": "% of it", "settings": {}}
    full = one | {"found": [[row, row | {"error": 11.0, "cross_validated": None}]], "size": size | {"onnx": onnx}}
    bare = one | {"found": [[{"annotations": 50, "fit": clock, "refit": clock}]], "size": size}
    judged, sizes = (table.splitlines()[2:] for table in markdown([full, bare]).split("\n\n"))
    assert judged == [
        "| faces, 5 points; ResNet-18; % of it | 10 | 20.0 ± 0.0 | 10.0 ± 1.4 | 10.0 | 50 / 60 | 0.100 ± 0.000 |"
    ]
    assert sizes == [
        "| ResNet-18 | 5 | 2.40 | 0.500 | 0.500 | 5.00 | 0.500 | 8e-06 | 0.500 |",
        "| ResNet-18 | 5 | 2.40 | 0.500 | 0.500 |  |  |  | 0.500 |",
    ]


@pytest.mark.slow
def test_the_command_on_drawn_and_on_prepared_faces(tmp_path, capsys, monkeypatch):
    common = ["--annotations", "3", "5", "--seeds", "0", "--test", "4", "--rounds", "1"]
    main(["model", *common, "--out", str(tmp_path / "drawn.json")])
    drawn = json.loads((tmp_path / "drawn.json").read_text())
    assert capsys.readouterr().out.strip() == markdown([drawn])
    assert [row[0]["annotations"] for row in drawn["found"]] == [3, 5] and drawn["test_images"] == 4
    assert drawn["found"][1][0]["error"] > 0 and drawn["size"]["megabytes"] < 15
    assert drawn["size"]["onnx"]["pixels_apart"] < 1e-4 and drawn["size"]["onnx"]["confidence_apart"] < 1e-4
    reader = Synthetic(raw=tmp_path / "raw", images=24, identities=24, seed=4, test_share=1 / 3)
    prepare(reader, tmp_path / "shards", workers=0, progress=False)
    untrained = ["--untrained", "18", "--data", str(tmp_path / "shards"), "--annotations", "3"]
    monkeypatch.setattr(model, "NEEDED", ("no_such_package",))
    main(["model", *common, *untrained, "--out", str(tmp_path / "prepared.json")])
    prepared = json.loads((tmp_path / "prepared.json").read_text())
    assert prepared["network"] == "ResNet-18, stage 2, 64 channels" and prepared["data"] == "shards"
    assert "onnx" not in prepared["size"] and "error" not in prepared["found"][0][0] and prepared["landmarks"] == 5
