"""Readers of the paper's other faces: tiny folders in the public layouts, crops and landmarks by hand."""

import json
import sys

import layouts
import numpy as np
import pytest
from layouts import ids, rendered, shared, unpacked
from PIL import Image

from lead_ray.data.aflw_r import AflwR
from lead_ray.data.celeba_wild import CelebAWild, MaflUnaligned, MaflWild
from lead_ray.data.crops import BadImage, Crop, frame
from lead_ray.data.mtfl import AflwM
from lead_ray.data.rows import Record, render
from lead_ray.data.w300 import W300, read_points
from lead_ray.prepare import prepare


def needs_scipy() -> None:
    pytest.importorskip("scipy.io", reason="scipy, which reads MATLAB files, is not installed")


def test_aflw_m_trains_on_set_1_and_tests_on_mtfl(tmp_path):
    reader = AflwM(raw=layouts.aflw_m(tmp_path))
    assert ids(reader) == ["cropped/0.jpg", "cropped/1.jpg"]
    assert ids(reader, "test") == [f"AFLW/{n:04d}-image.jpg" for n in range(6)]
    for record in reader.records():
        row = render(record, reader.crop)
        np.testing.assert_allclose(row["landmarks"], (record.landmarks - 1) * 136 / 150, atol=1e-4)
    first = next(reader.records())
    np.testing.assert_array_equal(first.landmarks, [[31, 32], [33, 34], [35, 36], [37, 38], [39, 40]])


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (1, "image_file,crop_file,x,y,set" + ",0" * 9, r"line 1: no heading \['set'\] among the first four"),
        (3, "image1.jpg,cropped/1.jpg,1,1,3", "line 3: expected 14 columns, got 5"),
        (3, "image1.jpg,cropped/1.jpg,1,1" + ",x" * 10, "line 3: could not convert"),
        (3, "image.jpg,cropped/1.jpg,1,1" + ",3" * 10, r"line 3: image\.jpg is a training image here and a test"),
    ],
)
def test_a_wrong_row_of_aflw_m(tmp_path, line, content, message):
    raw = layouts.aflw_m(tmp_path)
    layouts.replace_line(raw / "aflw_cropped/facedata_cropped.csv", line, content)
    with pytest.raises(ValueError, match=message):
        list(AflwM(raw=raw).records())


@pytest.mark.parametrize("released", [True, False])
def test_aflw_r_squashes_crops_and_keeps_duplicates(tmp_path, released):
    needs_scipy()
    reader = AflwR(raw=layouts.aflw_r(tmp_path, released=released))
    assert ids(reader) == ["a.jpg", "b.jpg", "c.jpg"]
    assert ids(reader, "test") == ["d.jpg", "e.jpg", "d.jpg (2)", "f.jpg"]
    record = next(reader.records())
    pixels, row = rendered(record, reader.crop)
    np.testing.assert_allclose(row["landmarks"][0], [20 * 136 / 80, 30 * 136 / 100], atol=1e-4)
    np.testing.assert_allclose(row["landmarks"][4], [55 * 136 / 80, 71 * 136 / 100], atol=1e-4)
    np.testing.assert_array_equal(pixels, Image.open(record.path).resize((136, 136), Image.Resampling.BILINEAR))
    layouts.picture(record.path, 90, 100)
    with pytest.raises(BadImage, match="is 90x100 pixels, its annotation says 80x100"):
        render(record, reader.crop)


def test_what_is_wrong_with_a_matlab_file(tmp_path, monkeypatch):
    needs_scipy()
    file = "aflw_test_keypoints.mat"
    raw = layouts.aflw_r(tmp_path / "few", gt=np.zeros((3, 5, 2)))
    with pytest.raises(ValueError, match=rf"{file}: gt must be \[4, 5, 2\] .* got \[3, 5, 2\]"):
        list(AflwR(raw=raw).records())
    layouts.matlab(raw / file, {"gt": np.zeros((4, 5, 2))})
    with pytest.raises(ValueError, match=f"{file} holds no hw"):
        list(AflwR(raw=raw).records())
    (raw / file).write_text("this is none")
    with pytest.raises(ValueError, match=f"{file} cannot be read as a MATLAB file"):
        list(AflwR(raw=raw).records())
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"aflw_train_keypoints\.mat is a MATLAB file: install scipy"):
        list(AflwR(raw=raw).records())


def test_300w_sources_go_to_their_splits_in_order_of_name(tmp_path):
    reader = W300(raw=layouts.w300(tmp_path), boxes="points")
    assert ids(reader) == ["afw/1.jpg", "afw/2.jpg", "helen/trainset/1.jpg", "lfpw/trainset/image_0001.png"]
    assert ids(reader, "test") == ["helen/testset/1.jpg", "lfpw/testset/image_0001.png", "ibug/image_092 _01.jpg"]
    record = next(reader.records())
    assert record.box == (101, 61, 104, 130) and record.landmarks.shape == (68, 2)


def test_300w_official_boxes_go_before_the_points(tmp_path):
    needs_scipy()
    raw = layouts.w300_boxes(layouts.w300(tmp_path))
    official, extent = (list(W300(raw=raw, boxes=boxes).records()) for boxes in ("official", "points"))
    assert [record.box for record in official] == [record.box for record in extent]
    layouts.w300_boxes(raw, box=(91, 61, 214, 190))
    assert {record.box for record in W300(raw=raw).records()} == {(91, 61, 124, 130)}
    layouts.w300_boxes(raw, field="bb")
    with pytest.raises(ValueError, match=r"bounding_boxes_afw\.mat: an entry has no imgName or no bb_ground_truth"):
        list(W300(raw=raw).records())


def test_300w_names_what_is_missing(tmp_path):
    raw = layouts.w300(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes_afw\.mat does not exist: .* --boxes points"):
        list(W300(raw=raw).records())
    for file in (raw / "ibug").glob("image*.pts"):
        file.unlink()
    with pytest.raises(ValueError, match=r"ibug holds no \.pts file"):
        list(W300(raw=raw, boxes="points").records())
    (raw / "helen/testset/1.jpg").unlink()
    record = next(r for r in W300(raw=raw, boxes="points").records() if r.image_id == "helen/testset/1.jpg")
    with pytest.raises(BadImage, match="listed but the file is missing"):
        render(record, W300(raw=raw).crop)
    with pytest.raises(FileNotFoundError, match=r"none of: train\.txt"):
        list(W300(raw=raw, boxes="cropped").records())


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (2, "n_points: 5", "expected 'version: 1', 'n_points: 68'"),
        (5, "", "states 68 points, but 67 lines follow"),
        (5, "1.0 x", r"line 5: expected x and y, got '1\.0 x'"),
        (5, "1.0", r"line 5: expected x and y, got '1\.0'"),
    ],
)
def test_a_wrong_pts_file(tmp_path, line, content, message):
    file = layouts.pts(tmp_path / "a.pts", layouts.W300_FACE)
    layouts.replace_line(file, line, content)
    with pytest.raises(ValueError, match=rf"a\.pts.*{message}"):
        read_points(file)


def test_300w_frame_by_hand(tmp_path):
    """Scale 52 / 104 sends the centre (153.5, 126.5) to floor(76.75, 63.25); the frame begins 50 and 52 before."""
    assert frame((101.0, 61.0, 104.0, 130.0)) == (53, 23, 200, 200)
    reader = W300(raw=layouts.w300(tmp_path), boxes="points")
    pixels, row = rendered(next(reader.records()), reader.crop)
    assert pixels.shape == (136, 136, 3)
    np.testing.assert_allclose(
        row["landmarks"][0], [(101 * 0.5 - 26 - 1) * 1.36, (61 * 0.5 - 11 - 1) * 1.36], atol=1e-4
    )
    np.testing.assert_allclose(row["landmarks"][67][0], (204 * 0.5 - 26 - 1) * 1.36, atol=1e-4)
    np.testing.assert_allclose(row["box"][2:], [104 * 0.68, 130 * 0.68], atol=1e-4)


@pytest.mark.parametrize(
    "box",
    [(101.0, 61.0, 104.0, 130.0), (3.0, 9.0, 31.0, 44.0), (250.0, 180.0, 77.0, 61.0), (-20.0, -30.0, 400.0, 290.0)],
)
def test_300w_pixels_are_those_of_the_shrunk_photograph_framed_in_black(tmp_path, box):
    photograph = Image.open(layouts.picture(tmp_path / "a.png", 320, 240, seed=3))
    scale = 52 / box[2]
    shrunk = np.asarray(photograph.resize((int(320 * scale), int(240 * scale)), Image.Resampling.BILINEAR))
    canvas = np.zeros((shrunk.shape[0] + 400, shrunk.shape[1] + 400, 3), np.uint8)
    canvas[200:-200, 200:-200] = shrunk
    left = int(np.floor(scale * (box[0] + (box[2] + 1) / 2))) + 150
    top = int(np.floor(scale * (box[1] + (box[3] + 1) / 2))) + 148
    expected = Image.fromarray(canvas[top : top + 100, left : left + 100]).resize((136, 136), Image.Resampling.BILINEAR)
    crop = Crop(kind="framed", first_pixel=1.0, exact_centres=False)
    got = crop.pixels(photograph, crop.place(320, 240, box))
    assert np.abs(np.asarray(got).astype(int) - np.asarray(expected)).max() <= 1


def test_a_frame_far_from_the_photograph_is_a_bad_image():
    crop = Crop(kind="framed")
    with pytest.raises(BadImage, match="nothing inside the frame"):
        crop.pixels(Image.new("RGB", (50, 50)), crop.place(50, 50, (10.0, 20.0, 5.0, 2000.0)))
    with pytest.raises(BadImage, match="far larger"):
        crop.place(50, 50, (0.0, 0.0, 400.0, 400.0))


def test_300w_crops_made_elsewhere_are_resized_whole(tmp_path):
    reader = W300(raw=layouts.w300_cropped(tmp_path), boxes="cropped")
    assert (ids(reader), ids(reader, "test")) == (["lfpw/1.jpg"], ["helen/2.jpg"])
    _, row = rendered(next(reader.records()), reader.crop)
    np.testing.assert_allclose(row["landmarks"], (layouts.W300_FACE / 2 - 1) * 136 / 160, atol=1e-4)


def test_celeba_wild_is_whole_unless_asked_otherwise(tmp_path):
    raw = layouts.celeba(tmp_path, wild=True)
    record = next(CelebAWild(raw=raw).records())
    for framing, window in {"whole": (0, 0, 240, 300), "photo": (0, 30, 240, 240), "box": (32, 72, 115, 115)}.items():
        crop = CelebAWild(raw=raw, framing=framing).crop
        assert crop.place(240, 300, record.box) == window
    assert len(ids(CelebAWild(raw=raw, partitions=("train", "val", "test")))) == 18
    _, row = rendered(record, CelebAWild(raw=raw).crop)
    eye = record.landmarks[0]
    np.testing.assert_allclose(row["landmarks"][0], (eye + 0.5) * [136 / 240, 136 / 300] - 0.5, atol=1e-4)


def test_mafl_in_the_wild_grows_each_box_by_its_own_draw(tmp_path):
    raw = layouts.celeba(tmp_path, wild=True)
    wild, unaligned = list(MaflWild(raw=raw).records()), list(MaflUnaligned(raw=raw).records())
    assert [record.image_id for record in wild if record.split == "test"] == ["000002.jpg", "000005.jpg"]
    assert len({record.box_factor for record in wild}) == 4
    assert all(1.1 <= record.box_factor <= 1.2 for record in wild)
    for record in unaligned:
        assert 1 <= record.box_factor <= {"train": 1.5, "test": 2}[record.split]
    assert [r.box_factor for r in MaflWild(raw=raw).records()] == [r.box_factor for r in wild]
    assert all(a.box_factor != b.box_factor for a, b in zip(MaflWild(raw=raw, seed=1).records(), wild, strict=True))
    _, row = rendered(unaligned[0], MaflUnaligned(raw=raw).crop)
    assert 136 / max(row["box"][2:]) == pytest.approx(unaligned[0].box_factor, abs=0.01)
    for wrong in ({"train_factor": (1.2, 1.1)}, {"test_factor": (0.0, 1.0)}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MaflWild(raw=raw, **wrong)


def test_a_box_factor_and_a_size_survive_json(tmp_path):
    plain = Record(image_id="a", path=tmp_path / "a.jpg", split="s")
    record = Record(image_id="a", path=tmp_path / "a.jpg", split="s", box_factor=1.25, size=(30, 40))
    back = Record.from_json(record.to_json(tmp_path), tmp_path)
    assert (back.box_factor, back.size) == (1.25, (30, 40))
    assert len(json.loads(plain.to_json(tmp_path))) == 7  # as it was before there were such fields


def test_what_was_prepared_before_there_were_margins_stays(tmp_path):
    reader = AflwM(raw=layouts.aflw_m(tmp_path / "raw"))
    manifest = prepare(reader, tmp_path / "out", workers=0, size=16, progress=False)
    file = tmp_path / "out/manifest.json"
    fields = json.loads(file.read_text())
    assert fields["protocol"].pop("margin", "absent") is None
    file.write_text(json.dumps(fields))
    assert prepare(reader, tmp_path / "out", workers=0, size=16, progress=False).splits == manifest.splits
    assert "margin" not in json.loads(file.read_text())["protocol"]  # nothing was done


def test_command_lines(tmp_path):
    raw = str(layouts.w300(tmp_path / "raw"))
    assert layouts.counts("300w", "--raw", raw, "--boxes", "points") == {"train": (4, 68), "test": (3, 68)}
    raw = str(layouts.celeba(tmp_path / "wild", wild=True))
    for name in ("mafl-wild", "mafl-unaligned"):
        assert layouts.counts(name, "--raw", raw) == {"train": (2, 5), "test": (2, 5)}
    assert layouts.counts("aflw-m", "--raw", str(layouts.aflw_m(tmp_path / "m"))) == {"train": (2, 5), "test": (6, 5)}


@shared
def test_the_real_300w_crops(tmp_path):
    raw = unpacked("300w", 12, tmp_path)
    records = list(W300(raw=raw, boxes="cropped").records())
    assert [sum(record.split == split for record in records) for split in ("train", "test")] == [1692, 473]
    there = [record for record in records if record.path.exists()]
    assert len(there) >= 12
    for record in there:
        points = np.array(render(record, W300(raw=raw, boxes="cropped").crop)["landmarks"])
        extent = points.max(0) - points.min(0)
        assert extent.max() == pytest.approx(136 / 1.5, abs=3)  # the crops are 1.5 times the points' box
        assert points[36, 0] < points[45, 0]
        framed = np.array(render(record, Crop(kind="framed", first_pixel=1.0, exact_centres=False))["landmarks"]) / 1.36
        scale = 52 / record.box[2]
        assert np.ptp(framed[:, 0]) == pytest.approx(52 - scale, abs=1e-3)
        middle = (framed.max(0) + framed.min(0)) / 2 + scale  # then rounded down to whole pixels of the frame
        assert (middle >= [48.999, 50.999]).all() and (middle <= [50.001, 52.001]).all()


@shared
def test_the_real_photographs_in_the_wild(tmp_path):
    raw = unpacked("celeba_wild", 12, tmp_path)
    assert (len(ids(MaflWild(raw=raw))), len(ids(MaflWild(raw=raw), "test"))) == (342, 10)
    there = [record for record in CelebAWild(raw=raw).records() if record.path.exists()]
    assert len(there) >= 8
    for record in there:
        for reader in (CelebAWild(raw=raw), CelebAWild(raw=raw, framing="box")):
            points = np.array(render(record, reader.crop)["landmarks"])
            assert ((points > -10) & (points < 146)).all()
            assert points[0, 0] < points[1, 0] and points[0, 1] < points[3, 1]  # upright
