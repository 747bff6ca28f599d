"""File formats: what goes in comes out, other libraries read what is written, and their own files are read."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pandas
import pytest
from conftest import GOLDEN
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lead_ray import formats
from lead_ray.labels import LabelledImage, Labels, Mark, Schema, palette

SCHEMA = Schema(
    category="bird",
    names=("left eye", "right eye", "Schnabel, oben"),
    colours=("#ff0000", "#00ff00", "#0000ff"),
    skeleton=((0, 2), (1, 2)),
    normaliser=(0, 1),
)
ODD = ("a b.png", "wäldchen/ü.png", "line\nbreak.png")


def image(file: str, marks: tuple[int, ...] = (2, 2, 2), **more) -> LabelledImage:
    points = np.array([[10.25, 20.5], [30.125, 22.0], [20.75, 31.0]], np.float32)
    shown = np.array(marks, np.uint8)
    points[shown == 0] = np.nan
    return LabelledImage(file=file, size=(64, 48), points=points, marks=shown, **more)


def some(**more) -> Labels:
    images = (image(ODD[0]), image(ODD[1], (2, 1, 0)), image(ODD[2], **more))
    return Labels(schema=SCHEMA, images=images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images, for formats that state no sizes."""
    root = tmp_path_factory.mktemp("images")
    for name in ODD:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (64, 48)).save(root / name)
    return root


def assert_same(got: Labels, wanted: Labels, *, occlusion: bool = True, boxes: bool = True, confidence: bool = True):
    assert [one.file for one in got.images] == [one.file for one in wanted.images]
    for found, expected in zip(got.images, wanted.images, strict=True):
        assert found.size == expected.size
        np.testing.assert_allclose(found.points, expected.points, atol=1e-5)
        marks = expected.marks if occlusion else np.where(expected.marks > 0, Mark.VISIBLE, Mark.MISSING)
        np.testing.assert_array_equal(found.marks, marks)
        assert found.points.dtype == np.float32 and found.marks.dtype == np.uint8
        if boxes:
            assert (found.box is None) == (expected.box is None)
            assert found.box is None or found.box == pytest.approx(expected.box)
        if confidence and expected.confidence is not None:
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)
        elif confidence:
            assert found.confidence is None


HOLDS = {
    "own": {},
    "coco": {},
    "csv": {},
    "cvat": {"confidence": False},
    "label-studio": {},
    "deeplabcut": {"occlusion": False, "boxes": False},
    "sleap": {"occlusion": False, "boxes": False},
    "pts": {"occlusion": False, "boxes": False, "confidence": False},
}


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("scored", [False, True], ids=["person", "model"])
def test_what_is_written_is_read(format, scored, tmp_path, folder):
    labels = some()
    if scored:
        sure = np.array([0.9, 0.125, 0.5], np.float32)
        images = tuple(replace(one, confidence=sure) for one in labels.images)
        if format in ("label-studio",):  # has no place for the confidence of a missing point
            images = tuple(replace(one, confidence=np.where(one.marks > 0, sure, 0)) for one in images)
        labels = replace(labels, images=images)
    if HOLDS[format].get("boxes", True):
        labels = replace(labels, images=(*labels.images[:2], replace(labels.images[2], box=(4.0, 5.5, 40.0, 30.25))))
    path = tmp_path / f"labels{formats.FORMATS[format].suffix}"
    formats.write(format, labels, path)
    assert formats.guess(path) == format
    schema = None if format in ("own", "coco") else SCHEMA
    read = formats.read(format, path, schema=schema, images=folder)
    if format in ("deeplabcut", "pts"):  # sorted by name, not by order
        labels = (
            replace(labels, images=tuple(sorted(labels.images, key=lambda one: one.file)))
            if format == "pts"
            else labels
        )
    assert_same(read, labels, **HOLDS[format])
    assert read.schema == SCHEMA
    again = tmp_path / f"again{formats.FORMATS[format].suffix}"
    formats.write(format, read, again)
    if path.is_file() and format != "sleap" and not (scored and format == "cvat"):
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("format", [name for name in formats.FORMATS if name not in ("pts",)])
def test_names_of_landmarks_are_in_the_file(format, tmp_path, folder):
    labels = Labels(schema=SCHEMA, images=(image(ODD[0]), image(ODD[1])))
    formats.write(format, labels, tmp_path / "labels")
    read = formats.read(format, tmp_path / "labels", images=folder)
    assert read.schema.names == SCHEMA.names
    lost = formats.FORMATS[format].loses
    assert ("skeleton" in lost or "all but" in lost) == (read.schema.skeleton == ())


values = st.floats(-1e4, 1e5, width=32, allow_subnormal=False)


@given(
    points=st.lists(st.tuples(values, values, st.sampled_from([0, 1, 2])), min_size=1, max_size=5),
    name=st.text(min_size=1),
)
@pytest.mark.parametrize("format", ["own", "coco", "csv"])
def test_any_number_and_any_name_survive(format, points, name, tmp_path_factory):
    marks = np.array([mark for *_, mark in points], np.uint8)
    places = np.array([at for *at, _ in points], np.float32)
    places[marks == 0] = np.nan
    schema = Schema(names=tuple(f"p{place}" for place in range(len(points))), colours=palette(len(points)))
    one = LabelledImage(file=name, size=(7, 5), points=places, marks=marks)
    path = tmp_path_factory.mktemp("any") / "file"
    if format == "csv" and any("\ud800" <= letter < "\udc80" or "\udcff" < letter <= "\udfff" for letter in name):
        return  # no bytes of a file's name decode to these
    formats.write(format, Labels(schema=schema, images=(one,)), path)
    read = formats.read(format, path, schema=schema).images[0]
    assert read.file == name
    np.testing.assert_array_equal(read.points, places)
    np.testing.assert_array_equal(read.marks, marks)


def test_names_that_are_no_text_survive(tmp_path):
    """A Latin-1 name on a UTF-8 system, as Python holds it."""
    name = b"stra\xdfe.jpg".decode("utf-8", "surrogateescape")
    for format in ("own", "coco", "csv"):
        formats.write(format, Labels(schema=SCHEMA, images=(image(name),)), tmp_path / format)
        assert formats.read(format, tmp_path / format).images[0].file == name
    with pytest.raises(ValueError, match="XML cannot hold the name"):
        formats.write("cvat", Labels(schema=SCHEMA, images=(image(name),)), tmp_path / "cvat")
    assert not (tmp_path / "cvat").exists()


def test_several_objects_in_one_image(tmp_path, folder):
    twice = Labels(
        schema=SCHEMA, images=(image(ODD[0], box=(0.0, 0.0, 9.0, 9.0)), image(ODD[0], box=(9.0, 9.0, 9.0, 9.0)))
    )
    for format in ("own", "coco", "csv", "cvat"):
        formats.write(format, twice, tmp_path / format)
        assert_same(formats.read(format, tmp_path / format), twice)
    content = json.loads((tmp_path / "coco").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (1, 2)
    formats.write("sleap", twice, tmp_path / "sleap")
    assert len(formats.read("sleap", tmp_path / "sleap", images=folder).images) == 2
    for format in ("deeplabcut", "label-studio"):
        with pytest.raises(ValueError, match="has several objects"):
            formats.write(format, twice, tmp_path / format)


def test_pixel_conventions_by_hand(tmp_path, folder):
    """The centre of the first pixel is (0, 0) here; (1, 1) in 300-W; half a pixel from the corner in CVAT."""
    one = LabelledImage(file=ODD[0], size=(64, 48), points=np.zeros((1, 2), np.float32), marks=np.array([2], np.uint8))
    labels = Labels(schema=Schema(names=("p",), colours=("#ffffff",)), images=(one,))
    formats.write("pts", labels, tmp_path / "pts")
    assert (tmp_path / "pts" / "a b.pts").read_text() == "version: 1\nn_points: 1\n{\n1.0 1.0\n}\n"
    formats.write("cvat", labels, tmp_path / "cvat")
    assert 'points="0.5,0.5"' in (tmp_path / "cvat").read_text()
    formats.write("label-studio", labels, tmp_path / "studio")
    value = json.loads((tmp_path / "studio").read_text())[0]["annotations"][0]["result"][0]["value"]
    assert (value["x"], value["y"]) == pytest.approx((100 * 0.5 / 64, 100 * 0.5 / 48))
    formats.write("sleap", labels, tmp_path / "slp")
    with h5py.File(tmp_path / "slp") as file:
        assert file["points"][0].tolist() == (0.0, 0.0, True, False)
        assert file["metadata"].attrs["format_id"] >= 1.1  # from which on SLEAP counts from pixel centres


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
    deep = tuple(replace(one, file=f"labeled-data/session 1/{place}.png") for place, one in enumerate(some().images))
    path = tmp_path / "CollectedData_me.csv"
    formats.write("deeplabcut", Labels(schema=SCHEMA, images=deep), path)
    table = pandas.read_csv(path, index_col=[0, 1, 2], header=[0, 1, 2])
    assert table.index[1] == ("labeled-data", "session 1", "1.png")
    assert table["lead_ray"]["right eye"]["x"].tolist() == [30.125, 30.125, 30.125]
    assert np.isnan(table["lead_ray"]["Schnabel, oben"]["y"].iloc[1])
    # Its own files: pandas' to_csv of such a table, one index column in old projects.
    old = table.set_axis([f"labeled-data\\session 1\\{place}.png" for place in range(3)])
    old.to_csv(tmp_path / "old.csv")
    with pytest.raises(ValueError, match=r"labeled-data/session 1/0\.png cannot be read"):
        formats.read("deeplabcut", tmp_path / "old.csv", images=folder)
    (tmp_path / "labeled-data" / "session 1").mkdir(parents=True)
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
    """Its COCO export has the points where they were written, half a pixel from ours: it counts from the corner."""
    sdk = pytest.importorskip("label_studio_sdk.converter")
    labels = Labels(schema=SCHEMA, images=(image(ODD[0]), image(ODD[1], (2, 2, 0))))
    formats.write("label-studio", labels, tmp_path / "tasks.json")
    config = '<View><Image name="image" value="$image"/><KeyPointLabels name="label" toName="image">'
    config += "".join(f'<Label value="{name}"/>' for name in SCHEMA.names) + "</KeyPointLabels></View>"
    converter = sdk.Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_json(str(tmp_path / "tasks.json"), str(tmp_path / "out"), is_dir=False)
    theirs = json.loads((tmp_path / "out" / "result.json").read_text())
    for task, ours in zip(theirs, labels.images, strict=True):
        assert task["image"] == ours.file
        found = {one["keypointlabels"][0]: (one["x"], one["y"]) for one in task["label"]}
        assert set(found) == {name for name, mark in zip(SCHEMA.names, ours.marks, strict=True) if mark}
        for name, (x, y) in found.items():
            at = ours.points[SCHEMA.names.index(name)]
            assert (x * 64 / 100 - 0.5, y * 48 / 100 - 0.5) == pytest.approx(at.tolist(), abs=1e-4)


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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"schema": {}, "images": []}', "not a schema of landmarks"),
        ("a.json", '{"images": 1, "annotations": []}', "'images' must be a list of objects"),
        ("a.csv", "file,a_x\n", "needs a column file and columns NAME_x, NAME_y"),
        ("a.csv", "file,width,height,a_x,a_y\nf.png,9,9,one,2\n", "row 2: 'one' is not a number"),
        ("a.csv", "file,a_x,a_y\nf.png,1,2\n", "size of f.png is not stated: name the folder"),
        ("a.csv", "scorer,me,me\nbodyparts,a,a\n", "must begin with rows scorer, bodyparts and coords"),
        ("a.xml", "<annotations>", "is not XML"),
        ("a.xml", "<annotations><track/></annotations>", "export as 'CVAT for images 1.1'"),
        ("a.slp", "no", r"is not a \.slp file of SLEAP"),
        ("a.txt", "1 2", "Name its format, one of own, coco"),
    ],
)
def test_broken_files_say_what_is_wrong(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        formats.read(formats.guess(tmp_path / name), tmp_path / name)


def test_wrong_calls(tmp_path):
    with pytest.raises(ValueError, match=r"format must be one of own, coco, .*, got 'voc'"):
        formats.write("voc", some(), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no labels at"):
        formats.read("own", tmp_path / "none.json")
    pair = Labels(schema=SCHEMA, images=(image("a.jpg"), image("a.png")))
    with pytest.raises(ValueError, match="named by stem"):
        formats.write("pts", pair, tmp_path / "pts")
