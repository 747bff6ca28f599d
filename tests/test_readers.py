"""Readers against tiny folders in the public layouts; every spoiled list or picture has its own sentence."""

import io
import re
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import SHARED, ids, shared
from PIL import Image

from lead_ray.data.celeba import ALIGNED, CelebA, Mafl
from lead_ray.data.celeba_wild import CelebAWild
from lead_ray.data.folder import Folder
from lead_ray.data.mtfl import Mtfl
from lead_ray.data.rows import BadImage, Crop, Record, open_rgb, render


def decoded(row: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["image"])))


def test_celeba_takes_the_training_partition_without_mafl_test_images(tmp_path):
    reader = CelebA(raw=layouts.celeba(tmp_path))
    kept = ids(reader)
    assert kept == [f"{n:06d}.jpg" for n in range(1, 21) if n % 5 <= 2 and n not in (2, 5)]
    first = next(iter(reader.records()))
    assert (first.identity, first.box) == ("0", None)
    np.testing.assert_array_equal(first.landmarks, layouts.FACE)


def test_celeba_with_all_partitions_and_with_the_leak_when_asked(tmp_path):
    raw = layouts.celeba(tmp_path)
    assert len(ids(CelebA(raw=raw, partitions=("train", "val", "test")))) == 18
    assert len(ids(CelebA(raw=raw, partitions=("train", "val", "test"), include_mafl_test=True))) == 20
    (raw / "Anno/identity_CelebA.txt").unlink()
    assert next(CelebA(raw=raw).records()).identity is None


def test_mafl_is_in_ascending_order(tmp_path):
    reader = Mafl(raw=layouts.celeba(tmp_path))
    assert ids(reader) == ["000001.jpg", "000007.jpg"]
    assert ids(reader, "test") == ["000002.jpg", "000005.jpg"]


def test_celeba_crop_by_hand(tmp_path):
    path = layouts.picture(tmp_path / "a.png", 178, 218, seed=1)
    row = render(Record(image_id="a", path=path, split="s", landmarks=layouts.FACE.astype(np.float32)), ALIGNED)
    scale = 136 / 178
    expected = [[68 * scale, 81 * scale], [109 * scale, 82 * scale]]
    np.testing.assert_allclose(row["landmarks"][:2], expected, atol=1e-5)
    whole = Image.open(path).crop((0, 30, 178, 208)).resize((136, 136), Image.Resampling.BILINEAR)
    assert np.abs(decoded(row).astype(int) - np.asarray(whole)).max() <= 8  # JPEG at quality 95
    exact = render(Record(image_id="a", path=path, split="s"), ALIGNED, encoding="png")
    np.testing.assert_array_equal(decoded(exact), np.asarray(whole))


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    path = layouts.picture(tmp_path / "a.png", 178, 218)
    stored = Image.open(io.BytesIO(render(Record(image_id="a", path=path, split="s"), ALIGNED)["image"]))
    assert {layer[1:3] for layer in stored.layer} == {(1, 1)}


def test_mtfl_order_and_crop(tmp_path):
    reader = Mtfl(raw=layouts.mtfl(tmp_path))
    first = next(reader.records())
    assert first.image_id == "lfw_5590/A_0001.jpg"
    np.testing.assert_array_equal(first.landmarks, [[52, 58], [91, 47], [73, 76], [68, 101], [92, 93]])
    placed = np.array(render(first, reader.crop)["landmarks"])
    np.testing.assert_allclose(placed, (first.landmarks - 1) * 136 / 150, atol=1e-4)
    assert ids(reader, "test") == [f"AFLW/{n:04d}-image.jpg" for n in range(6)]


def test_mtfl_matching_takes_the_first_with_eyes_apart(tmp_path):
    raw = layouts.mtfl(tmp_path)
    assert ids(Mtfl(raw=raw), "matching") == [f"AFLW/{n:04d}-image.jpg" for n in (0, 2, 4)]
    assert ids(Mtfl(raw=raw, matching=2), "matching") == [f"AFLW/{n:04d}-image.jpg" for n in (0, 2)]
    assert ids(Mtfl(raw=raw, matching=0), "matching") == []
    with pytest.raises(ValueError, match="even"):
        Mtfl(raw=raw, matching=3)


def test_wild_box_is_a_square_that_repeats_the_edge(tmp_path):
    reader = CelebAWild(raw=layouts.celeba(tmp_path, wild=True), framing="box", box_factor=1.5)
    record = next(reader.records())
    assert record.box == (50, 80, 80, 100)
    assert reader.crop.place(240, 300, record.box) == (15, 55, 150, 150)
    row = render(record, reader.crop)
    scale = 136 / 150
    eye = (68 - 15 + 0.5) * scale - 0.5, (111 - 55 + 0.5) * scale - 0.5
    np.testing.assert_allclose(row["landmarks"][0], eye, atol=1e-4)
    corner = 35.5 * scale - 0.5, 25.5 * scale - 0.5
    np.testing.assert_allclose(row["box"], [*corner, 80 * scale, 100 * scale], atol=1e-5)
    image = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).convert("RGB")
    cut = np.asarray(Crop(kind="centre", size=8).pixels(image, (-4, -4, 8, 8)))[..., 0]
    assert (cut[:5, :5] == 0).all() and cut[7, 7] == 33


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, np.nan, 5), (500, 0, 5, 5), (0, 0, 9e3, 9e3)])
def test_unusable_boxes_are_bad_images(box):
    with pytest.raises(BadImage, match="box"):
        Crop(kind="box").place(100, 100, tuple(map(float, box)))


def test_folder_searches_below_and_sorts(tmp_path):
    for name in ("b/x.PNG", "a.jpg", "b/a.webp", ".hidden/c.jpg", "b/._d.jpg"):
        target = layouts.picture(tmp_path / name.lower(), 60, 80)
        target.rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert ids(Folder(raw=tmp_path)) == ["a.jpg", "b/a.webp", "b/x.PNG"]
    assert decoded(render(next(Folder(raw=tmp_path).records()), Folder(raw=tmp_path).crop)).shape == (
        136,
        136,
        3,
    )


def test_folder_splits_by_a_hash_of_the_name(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.jpg").touch()
    reader = Folder(raw=tmp_path, test_fraction=0.3)
    test = ids(reader, "test")
    assert 8 <= len(test) <= 28 and set(test).isdisjoint(ids(reader)) and len(ids(reader)) + len(test) == 60
    (tmp_path / "new.jpg").touch()
    assert set(test) <= set(ids(reader, "test"))  # an added image moves no other


def test_folder_with_coco_keypoints_and_boxes(tmp_path):
    names = [f"{n}.jpg" for n in range(3)]
    for name in names:
        layouts.picture(tmp_path / name, 60, 80)
    file = layouts.coco(tmp_path / "points.json", names[:2])
    reader = Folder(raw=tmp_path, landmarks=file, boxes=True, box_factor=1.0)
    record = next(reader.records())
    assert ids(reader) == names[:2] and record.box == (10, 20, 30, 20)
    np.testing.assert_array_equal(record.landmarks, [[20, 30], [21, 30]])
    assert reader.crop.place(60, 80, record.box) == (10, 15, 30, 30)
    unlabelled = layouts.coco(tmp_path / "points.json", names[:1], keypoints=[0, 0, 0, 21, 30, 1])
    assert next(Folder(raw=tmp_path, landmarks=unlabelled).records()).visible.tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [1.0, 2.0, 2]}, r"annotations\[1\]: 3 numbers in keypoints, expected 6"),
        ({"keypoints": [1.0, 2.0]}, r"annotations\[1\]: 2 numbers"),
        ({"keypoints": "1 2 2"}, r"annotations\[1\]: 'keypoints' must be list, got '1 2 2'"),
        ({"keypoints": [1, "2", 2, 1, 2, 2]}, r"'keypoints' must hold numbers only"),
        ({"image_id": 9}, r"image_id 9 is not among the images"),
        ({"image_id": "0"}, r"'image_id' must be int"),
        ({"image_id": 0}, r"a second annotation of a.jpg"),
        ({"bbox": [1, 2, 3]}, r"bbox must be \[x, y, width, height\]"),
    ],
)
def test_coco_errors_name_the_entry(tmp_path, changes, message):
    file = layouts.coco(tmp_path / "points.json", ["a.jpg", "b.jpg"], **changes)
    with pytest.raises(ValueError, match=message) as raised:
        list(Folder(raw=tmp_path, landmarks=file).records())
    assert "points.json" in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": [1], "annotations": []}'])
def test_a_file_that_is_not_coco(tmp_path, content):
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(ValueError, match=r"points\.json"):
        list(Folder(raw=tmp_path, landmarks=tmp_path / "points.json").records())


def test_empty_and_absent_folders(tmp_path):
    with pytest.raises(ValueError, match="holds no image"):
        list(Folder(raw=tmp_path).records())
    with pytest.raises(FileNotFoundError, match="not a folder"):
        list(Folder(raw=tmp_path / "none").records())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(Folder(raw=tmp_path, landmarks=tmp_path / "none.json").records())
    with pytest.raises(FileNotFoundError, match="holds none of: Eval/list_eval_partition"):
        list(CelebA(raw=tmp_path).records())
    with pytest.raises(ValueError, match="boxes=True needs landmarks"):
        Folder(raw=tmp_path, boxes=True)
    with pytest.raises(ValueError, match="partitions"):
        CelebA(raw=tmp_path, partitions=())


@pytest.mark.parametrize(
    ("file", "line", "content", "message"),
    [
        ("Anno/list_landmarks_align_celeba.txt", 1, "21", "line 1: states '21' images, but 20 rows follow"),
        ("Anno/list_landmarks_align_celeba.txt", 4, "000002.jpg 1 2 3", "line 4: expected 11 columns, got 4"),
        (
            "Anno/list_landmarks_align_celeba.txt",
            4,
            "000002.jpg a 2 3 4 5 6 7 8 9 9",
            "line 4: could not convert",
        ),
        (
            "Anno/list_landmarks_align_celeba.txt",
            4,
            "000001.jpg 1 2 3 4 5 6 7 8 9 9",
            "line 4: 000001.jpg is listed",
        ),
        ("Anno/list_landmarks_align_celeba.txt", 3, "x.jpg 1 2 3 4 5 6 7 8 9 9", "has no row for 000001.jpg"),
        ("Eval/list_eval_partition.txt", 2, "000002.jpg 7", "line 2: partition must be 0, 1 or 2, got '7'"),
        ("Anno/identity_CelebA.txt", 2, "000002.jpg", "line 2: expected 2 columns, got 1"),
    ],
)
def test_a_wrong_list_is_an_error_with_file_and_line(tmp_path, file, line, content, message):
    raw = layouts.celeba(tmp_path)
    layouts.replace_line(raw / file, line, content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        list(CelebA(raw=raw).records())
    assert file in str(raised.value)


def test_a_wrong_mtfl_line(tmp_path):
    raw = layouts.mtfl(tmp_path)
    layouts.replace_line(raw / "training.txt", 2, "lfw_5590/B_0001.jpg " + "x " * 14)
    with pytest.raises(ValueError, match=r"training\.txt, line 2: could not convert"):
        list(Mtfl(raw=raw).records())


def test_landmarks_outside_the_photograph_are_kept_but_not_visible(tmp_path):
    path = layouts.picture(tmp_path / "a.jpg", 178, 218)
    points = np.array([[10, 5], [-0.4, 40], [177.6, 40], [-1, 40], [50, 218]], np.float32)
    row = render(Record(image_id="a", path=path, split="s", landmarks=points), ALIGNED)
    assert row["visible"] == [True, True, False, False, False]  # (10, 5) lies above the crop: legal
    assert row["landmarks"][0][1] == pytest.approx(-25 * 136 / 178, abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_landmark_that_is_no_number_is_a_bad_image(tmp_path, value):
    path = layouts.picture(tmp_path / "a.jpg", 178, 218)
    points = np.array([[1, 2], [3, value]], np.float32)
    with pytest.raises(BadImage, match="landmark 1 is"):
        render(Record(image_id="a", path=path, split="s", landmarks=points), ALIGNED)


def test_bad_pictures_say_why(tmp_path):
    good = layouts.picture(tmp_path / "a.jpg", 178, 218)
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("this is not an image")
    (tmp_path / "empty.jpg").touch()
    layouts.picture(tmp_path / "small.jpg", 100, 100)
    reasons = {"cut": "truncated", "text": "cannot identify", "empty": "cannot identify", "none": "missing"}
    for name, reason in (reasons | {"small": "is 100x100 pixels, this set's images are 178x218"}).items():
        with pytest.raises(BadImage, match=reason):
            render(Record(image_id=name, path=tmp_path / f"{name}.jpg", split="s"), ALIGNED)


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_before_its_pixels_are_read(tmp_path):
    Image.new("1", (12000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(BadImage, match="12000x9000, more than 100,000,000 pixels"):
        open_rgb(tmp_path / "bomb.png")


def test_every_kind_of_picture_becomes_rgb(tmp_path):
    grey = np.full((4, 6), 200, np.uint8)
    pictures = {
        "grey.png": (Image.fromarray(grey), (200, 200, 200)),
        "deep.png": (Image.fromarray(np.full((4, 6), 200 * 257, np.uint16)), (200, 200, 200)),
        "bit.png": (Image.new("1", (6, 4), 1), (255, 255, 255)),
        "palette.png": (Image.new("RGB", (6, 4), (10, 20, 30)).quantize(4), (10, 20, 30)),
        "clear.png": (Image.new("RGBA", (6, 4), (10, 20, 30, 0)), (255, 255, 255)),
        "half.png": (Image.new("LA", (6, 4), (0, 51)), (204, 204, 204)),
        "cmyk.tif": (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, colour) in pictures.items():
        image.save(tmp_path / name)
        opened = open_rgb(tmp_path / name)
        assert (opened.mode, opened.size, opened.getpixel((2, 2))) == ("RGB", (6, 4), colour), name
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BadImage, match="floating-point"):
        open_rgb(tmp_path / "float.tif")


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    image.save(tmp_path / "a.png", exif=exif)
    upright = open_rgb(tmp_path / "a.png")
    assert upright.size == (20, 40) and upright.getpixel((10, 5)) == (255, 255, 255)


def test_records_survive_json(tmp_path):
    record = Record(
        image_id="a", path=tmp_path / "x/a.jpg", split="s", identity="7", box=(1.0, 2.5, 3.0, 4.0),
        landmarks=np.array([[0.1, np.nan]], np.float32), visible=np.array([True]),
    )  # fmt: skip
    line = record.to_json(tmp_path)
    assert str(tmp_path) not in line
    back = Record.from_json(line, Path("/moved"))
    assert (back.path, back.box, back.identity) == (Path("/moved/x/a.jpg"), record.box, "7")
    np.testing.assert_array_equal(back.landmarks, record.landmarks)


@shared
def test_the_real_lists_have_the_promised_sizes(tmp_path):
    for name in ("Anno", "Eval", "MAFL"):
        (tmp_path / name).symlink_to(SHARED / "celeba" / name)
    (tmp_path / "img_align_celeba").mkdir()
    records = list(CelebA(raw=tmp_path, partitions=("train", "val", "test")).records())
    assert len(records) == 8969
    mtfl = list(Mtfl(raw=SHARED / "mtfl").records())
    assert [sum(r.split == split for r in mtfl) for split in ("train", "test", "matching")] == [
        1271,
        2552,
        1000,
    ]
