"""File formats beside the libraries that own them: they read what is written here, and their files are read here."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
from conftest import GOLDEN
from odd_labels import ODD, SCHEMA, assert_same, image, some
from PIL import Image

from lead_ray import formats
from lead_ray.landmarks.labels import Labels


@pytest.fixture
def folder(tmp_path):
    """A folder without images."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def test_pycocotools_reads_coco(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    labels = some(box=(4.0, 5.0, 40.0, 30.0))
    formats.write("coco", labels, tmp_path / "coco.json")
    theirs = coco.COCO(str(tmp_path / "coco.json"))
    assert [theirs.imgs[one]["file_name"] for one in theirs.getImgIds()] == list(ODD)
    (category,) = theirs.loadCats(theirs.getCatIds())
    assert category["keypoints"] == list(SCHEMA.names) and category["skeleton"] == [[1, 3], [2, 3]]
    found = theirs.loadAnns(theirs.getAnnIds(imgIds=[2]))[0]
    assert found["keypoints"] == [10.25, 20.5, 2, 30.125, 22.0, 1, 0.0, 0.0, 0] and found["num_keypoints"] == 2


def test_pandas_reads_deeplabcut_as_deeplabcut_does(tmp_path, folder):
    deep = tuple(replace(one, file=f"labeled-data/video 1/{place}.png") for place, one in enumerate(some().images))
    path = tmp_path / "CollectedData_me.csv"
    formats.write("deeplabcut", Labels(schema=SCHEMA, images=deep), path)
    table = pandas.read_csv(path, index_col=[0, 1, 2], header=[0, 1, 2])
    assert table.index[1] == ("labeled-data", "video 1", "1.png")
    assert table["lead_ray"]["right eye"]["x"].tolist() == [30.125, 30.125, 30.125]
    assert np.isnan(table["lead_ray"]["Schnabel, oben"]["y"].iloc[1])
    # Its own files: pandas' to_csv of such a table, one index column in old projects.
    old = table.set_axis([f"labeled-data\\video 1\\{place}.png" for place in range(3)])
    old.to_csv(tmp_path / "old.csv")
    with pytest.raises(ValueError, match=r"labeled-data/video 1/0\.png is not in "):
        formats.read("deeplabcut", tmp_path / "old.csv", images=folder)
    (tmp_path / "labeled-data" / "video 1").mkdir(parents=True)
    for one in deep:
        Image.new("L", one.size).save(tmp_path / one.file)
    for name in ("CollectedData_me.csv", "old.csv"):
        read = formats.read("deeplabcut", tmp_path / name, images=tmp_path)
        assert_same(read, Labels(schema=SCHEMA, images=deep), occlusion=False)


def test_sleaps_own_file_is_read(tmp_path):
    """Made by sleap-io 0.9.5: a user's instance, and a prediction with scores."""
    for name in ("a b.png", "sub/ü.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (64, 48)).save(tmp_path / name)
    read = formats.read("sleap", GOLDEN / "sleap_io.slp", images=tmp_path)
    assert read.schema.names == ("left eye", "right eye", "beak") and read.schema.skeleton == ((0, 2), (1, 2))
    assert read.schema.category == "bird"
    first, second = read.images
    assert (first.file, second.file) == ("a b.png", "sub/ü.png")
    np.testing.assert_array_equal(first.points, [[10.25, 20.5], [30, 22], [np.nan, np.nan]])
    assert first.confidence is None and first.marks.tolist() == [2, 2, 0]
    np.testing.assert_array_equal(second.points, [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]])
    np.testing.assert_allclose(second.confidence, [0.9, 0.5, 0.25])


def test_sleap_io_reads_ours(tmp_path):
    sleap_io = pytest.importorskip("sleap_io")
    labels = some()
    labels = replace(
        labels, images=(*labels.images[:2], replace(labels.images[2], confidence=np.full(3, 0.5, np.float32)))
    )
    formats.write("sleap", labels, tmp_path / "ours.slp")
    theirs = sleap_io.load_slp(str(tmp_path / "ours.slp"), open_videos=False)
    assert theirs.skeleton.node_names == list(SCHEMA.names)
    assert theirs.skeleton.edge_inds == [(0, 2), (1, 2)]
    assert theirs.videos[0].filename == list(ODD)
    for frame, ours in zip(theirs.labeled_frames, labels.images, strict=True):
        np.testing.assert_allclose(frame.instances[0].numpy(), ours.points)
    assert isinstance(theirs.labeled_frames[2].instances[0], sleap_io.PredictedInstance)


def test_datumaros_cvat_file_is_read():
    """Made by datumaro 0.5.0: one `points` element with all landmarks, one with a landmark of its own label."""
    read = formats.read("cvat", GOLDEN / "datumaro_cvat.xml")
    assert read.schema.names == ("left eye", "right eye")
    assert [one.file for one in read.images] == ["a b.jpg", "wäldchen/ü.jpg"]
    np.testing.assert_allclose(read.images[0].points, [[9.75, 20.0], [29.5, 21.5]])
    assert read.images[1].marks.tolist() == [2, 0] and read.images[0].size == (64, 48)


def test_label_studios_converter_reads_ours(tmp_path):
    """Its COCO export has whole pixels, from the corner: half a pixel from ours before rounding."""
    sdk = pytest.importorskip("label_studio_sdk.converter")
    labels = Labels(schema=SCHEMA, images=(image(ODD[0]), image(ODD[1], (2, 2, 0))))
    formats.write("label-studio", labels, tmp_path / "tasks.json")
    names = (f'<Label value="{name}" model_index="{place}"/>' for place, name in enumerate(SCHEMA.names))
    points = f'<KeyPointLabels name="label" toName="image">{"".join(names)}</KeyPointLabels>'
    config = f'<View><Image name="image" value="$image"/>{points}</View>'
    converter = sdk.Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(tmp_path / "tasks.json"), str(tmp_path / "out"), is_dir=False)
    theirs = json.loads((tmp_path / "out" / "result.json").read_text())["annotations"]
    for found, ours in zip(theirs, labels.images, strict=True):
        triples = np.array(found["keypoints"]).reshape(-1, 3)
        assert (triples[:, 2] > 0).tolist() == (ours.marks > 0).tolist()
        there = ours.marks > 0
        np.testing.assert_allclose(triples[there, :2], ours.points[there] + 0.5, atol=0.5)


def test_label_studios_habits(tmp_path):
    """Paths of local files and of uploads, cancelled annotations, the last of several."""

    def task(address, *groups):
        return {"data": {"image": address}, "annotations": list(groups)}

    def group(x, **more):
        value = {"x": x, "y": 50.0, "width": 1, "keypointlabels": ["p"]}
        region = {"type": "keypointlabels", "original_width": 64, "original_height": 48, "value": value}
        return {"result": [region], **more}

    local = "/data/local-files/?d=birds/a%20b.png"
    tasks = [
        task(local, group(10.0), group(25.0)),
        task("/data/upload/3/0a1b2c3d-c%20d.png", group(50.0), group(1.0, was_cancelled=True)),
    ]
    (tmp_path / "tasks.json").write_text(json.dumps([*tasks, task("s3://bucket/e.png")]))
    read = formats.read("label-studio", tmp_path / "tasks.json")
    assert [one.file for one in read.images] == ["birds/a b.png", "c d.png"]
    assert [one.points[0, 0] for one in read.images] == [15.5, 31.5]
