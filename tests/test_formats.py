"""File formats: what goes in comes out, other libraries read what is written, and their own files are read."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_labels import ODD, SCHEMA, assert_same, image, some
from PIL import Image

from lead_ray import formats
from lead_ray.landmarks import boxes
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema, palette


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images, for formats that state no sizes."""
    root = tmp_path_factory.mktemp("images")
    for name in ODD:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", (64, 48)).save(root / name)
    return root


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


def test_a_box_that_only_coco_wants_is_none(tmp_path):
    labels = Labels(schema=SCHEMA, images=(image("a.png"), image("b.png", box=(1.0, 2.0, 9.0, 8.0))))
    formats.write("coco", labels, tmp_path / "coco.json")
    assert boxes.read(tmp_path / "coco.json") == {"b.png": [(1, 2, 9, 8)]}
    assert [one.box for one in formats.read("coco", tmp_path / "coco.json").images] == [None, (1, 2, 9, 8)]
    formats.write("coco", replace(labels, images=labels.images[:1]), tmp_path / "coco.json")
    with pytest.raises(ValueError, match="no annotation has a box of its own; leave --boxes away"):
        boxes.read(tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    del content["annotations"][0]["bbox"]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no annotation has a box of its own"):
        boxes.read(tmp_path / "coco.json")


def test_rows_without_boxes(tmp_path):
    formats.write(
        "csv",
        Labels(schema=SCHEMA, images=(image("a.png"), image("b.png", box=(1.0, 2.0, 9.0, 8.0)))),
        tmp_path / "a.csv",
    )
    assert boxes.read(tmp_path / "a.csv") == {"b.png": [(1, 2, 9, 8)]}
    formats.write("csv", Labels(schema=SCHEMA, images=(image("a.png"),)), tmp_path / "b.csv")
    with pytest.raises(ValueError, match="no row has a box; leave --boxes away"):
        boxes.read(tmp_path / "b.csv")


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


def test_our_json_as_a_person_writes_it(tmp_path):
    """Without colours and marks, pairs by name, a byte order mark; what is wrong is said with its place."""
    image = {"file": "f.png", "size": [80, 60], "points": [[1, 2], None]}
    schema = {"names": ["beak", "tail"], "skeleton": [["beak", "tail"]], "normaliser": ["tail", "beak"]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"schema": schema, "images": [image]}), encoding="utf-8-sig")
    found = formats.read("own", path)
    assert found.schema.normaliser == (1, 0) and found.schema.skeleton == ((0, 1),) and len(found.schema.colours) == 2
    assert found.images[0].marks.tolist() == [2, 0]
    for wrong, message in (
        (
            {"schema": schema | {"normaliser": ["tail", "nose"]}},
            r"a\.json: schema: a pair of landmarks must be two of .* 'nose'",
        ),
        ({"schema": {"names": "beak"}}, r"schema: not a schema of landmarks: 'names' must be a list"),
        ({"images": [image | {"marks": [3, 0]}]}, r"images\[0\]: 'marks' must be 0 .*got 3$"),
        ({"images": [image | {"marks": [2]}]}, "must be as many, got 2 and 1"),
    ):
        path.write_text(json.dumps({"schema": schema, "images": [image]} | wrong))
        with pytest.raises(ValueError, match=message):
            formats.read("own", path)


def test_csv_as_spreadsheets_and_pandas_leave_it(tmp_path):
    """Empty columns at the end, blank lines, whole numbers with a point, nan."""
    lines = ["file,width,height,a_x,a_y,a_mark,b_x,b_y,b_mark,,", "f.png,80,60,1,2,2.0,3.5,4,1.0,,", ""]
    lines += ["g.png,80,60,nan,nan,0.0,5,6,visible", "", ",,,,", ","]
    (tmp_path / "a.csv").write_text("\r\n".join(lines))
    first, second = formats.read("csv", tmp_path / "a.csv").images
    european = [line.replace(",", ";").replace("3.5", "3,5") for line in lines]
    (tmp_path / "b.csv").write_text("\r\n".join(european), encoding="utf-8-sig")
    for one, other in zip((first, second), formats.read("csv", tmp_path / "b.csv").images, strict=True):
        assert (one.file, one.size, one.marks.tolist()) == (other.file, other.size, other.marks.tolist())
        np.testing.assert_array_equal(one.points, other.points)
    assert first.points.tolist() == [[1, 2], [3.5, 4]] and first.marks.tolist() == [2, 1]
    assert np.isnan(second.points[0]).all() and second.points[1].tolist() == [5, 6]
    assert second.marks.tolist() == [0, 2] and first.size == second.size == (80, 60)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"schema": {}, "images": []}', "not a schema of landmarks"),
        ("a.json", '{"images": 1, "annotations": []}', "'images' must be a list of objects"),
        ("a.csv", "file,a_x\n", "needs a column file and columns NAME_x, NAME_y"),
        ("a.csv", "file,width,height,a_x,a_y\nf.png,9,9,one,2\n", "line 2: 'one' is not a number"),
        ("a.csv", "file,width,height,a_x,a_y\n\nf.png,9,9,1\n", "line 3: has 4 columns, the header 5"),
        ("a.csv", "file,width,height,a_x,a_y\nf.png,9,9,1,\n", "line 2: a has one of x and y, got '1', ''"),
        ("a.csv", "file,width,height,a_x,a_y\nf.png,9,9,1,2,3\n", "line 2: has 6 columns, the header 5"),
        ("a.csv", "file,width,height,a_x,a_y,a_x\n", "column 'a_x' comes twice"),
        ("a.csv", "file,width,height,a_x,a_y,a_mark\nf.png,9,9,1,2,3\n", "or 0, 1 or 2, got '3'"),
        ("a.csv", "file,a_x,a_y\nf.png,1,2\n", "size of f.png is not stated: name the folder"),
        ("a.csv", "scorer,me,me\nbodyparts,a,a\n", "must begin with rows scorer, bodyparts and coords"),
        ("a.xml", "<annotations>", "is not XML"),
        ("a.xml", "<annotations><track/></annotations>", "export as 'CVAT for images 1.1'"),
        ("a.slp", "no", r"is not a \.slp file of SLEAP"),
        ("a.txt", "1 2", "takes its name, --format, one of own, coco"),
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
