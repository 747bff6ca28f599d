"""lead-ray predict on a stranger's folder: odd names, broken files, boxes, interruptions, pictures, many images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lead_ray
from lead_ray import bulk, formats
from lead_ray import convert as convert_command
from lead_ray import predict as predict_command
from lead_ray.bulk import Item, Parts, PartWriter, find, predict_parts
from lead_ray.landmarks import boxes
from lead_ray.landmarks.fitting import fit
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.reporting import overlays

SCHEMA = Schema(category="spot", names=("here", "there"), colours=("#ff0000", "#00ff00"), skeleton=((0, 1),))
ODD = ("a b.png", "wäldchen/ü.JPG", "line\nbreak.png", "deep/er/grey.tif", "tall.png")


def picture(place: int, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Two coloured discs on grey, and their centres."""
    random = np.random.default_rng(place)
    points = random.uniform(0.2, 0.8, (2, 2)) * size
    rows, columns = np.mgrid[: size[1], : size[0]]
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    for (x, y), colour in zip(points, [(230, 40, 40), (40, 200, 60)], strict=True):
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < (min(size) / 10) ** 2] = colour
    return Image.fromarray(pixels), points.astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of an untrained network: this file is not about how good points are."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    weights.save(root / "encoder.safetensors", Trunk(TrunkSettings(depth=18, width=0.125)), {"steps": 0})
    images = []
    for place in range(4):
        image, points = picture(place, (80, 60))
        image.save(root / f"{place}.png")
        marks = np.full(2, 2, np.uint8)
        images.append(LabelledImage(file=f"{place}.png", size=(80, 60), points=points, marks=marks))
    fit(root / "encoder.safetensors", Labels(schema=SCHEMA, images=tuple(images)), root).save(root / "model")
    return root / "model"


@pytest.fixture
def stranger(tmp_path):
    """A folder as people have them."""
    root = tmp_path / "photos"
    for place, name in enumerate(ODD):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image, _ = picture(place, (40 + 30 * place, 90 if name == "tall.png" else 50))
        (image.convert("L") if "grey" in name else image).save(root / name)
    (root / "broken.jpg").write_bytes((root / ODD[1]).read_bytes()[:300])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    Image.new("L", (9, 9)).save(root / ".hidden" / "x.png")
    return root


def run(root: Path, model: Path, out: Path, *more: str) -> None:
    predict_command.main([str(root), "--model", str(model), "--out", str(out), *more])


def test_a_strangers_folder(stranger, model, tmp_path, capsys):
    run(stranger, model, tmp_path / "out.json", "--outliers", "2")
    said = capsys.readouterr().out
    assert "5 objects in" in said and "could not be used: 'broken.jpg' cannot be read" in said
    found = formats.read("coco", tmp_path / "out.json")
    assert [one.file for one in found.images] == sorted(ODD) and found.schema == SCHEMA
    known = lead_ray.load(model)
    for one in found.images:
        alone = known.predict([stranger / one.file])[0]
        np.testing.assert_allclose(one.points, alone.points, atol=1e-2)
        np.testing.assert_allclose(one.confidence, alone.confidence, atol=1e-3)
        with Image.open(stranger / one.file) as image:
            assert one.size == image.size
    with (tmp_path / "out.json.bad.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "reason"] and [row[0] for row in rows[1:]] == ["broken.jpg", "empty.png"]
    assert not (tmp_path / "out.json.parts").exists()
    named = [line for line in said.splitlines() if line[:2] == "0." and line[4:6] == "  "]
    order = sorted(found.images, key=lambda one: one.confidence.mean())
    assert [line[6:] for line in named] == [repr(one.file) for one in order[:2]]


@pytest.mark.parametrize("name", ["out.csv", "out.xml", "out.slp", "out"])
def test_the_suffix_is_the_format(name, stranger, model, tmp_path):
    (stranger / "tall.png").unlink()
    run(stranger, model, tmp_path / name)
    images = stranger if name in ("out.slp", "out") else None
    read = formats.read(formats.guess(tmp_path / name), tmp_path / name, schema=SCHEMA, images=images)
    assert sorted(one.file for one in read.images) == sorted(set(ODD) - {"tall.png"})


def test_one_image_and_no_image(stranger, model, tmp_path, capsys):
    run(stranger / "tall.png", model, tmp_path / "one.csv")
    assert [one.file for one in formats.read("csv", tmp_path / "one.csv").images] == ["tall.png"]
    (tmp_path / "none").mkdir()
    for root, message in ((tmp_path / "none", "holds no image"), (tmp_path / "no", "neither a folder nor an image")):
        with pytest.raises(SystemExit, match=message):
            run(root, model, tmp_path / "x.csv")
    with pytest.raises(SystemExit, match=r"no image could be used: the reasons are in .*x\.csv\.bad\.csv"):
        run(stranger / "broken.jpg", model, tmp_path / "x.csv")
    assert "broken.jpg" in (tmp_path / "x.csv.bad.csv").read_text()
    with pytest.raises(SystemExit, match="no landmark model at"):
        run(stranger, tmp_path, tmp_path / "x.csv")
    with pytest.raises(SystemExit):
        run(stranger, model, tmp_path / "x.doc")
    assert "which format? Name it with --format" in capsys.readouterr().err


def test_objects_in_boxes(stranger, model, tmp_path, capsys):
    """A line an object; an image that is listed twice has two, one that is not is not read, a bad box is set aside."""
    rows = [
        ("tall.png", 5, 10, 60, 60),
        ("tall.png", 40, 20, 70, 60),
        ("a b.png", 500, 0, 9, 9),
        ("gone.png", 0, 0, 9, 9),
    ]
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "x", "y", "width", "height"), *rows])
    run(
        stranger,
        model,
        tmp_path / "out.json",
        "--boxes",
        str(tmp_path / "boxes.csv"),
        "--overlays",
        str(tmp_path / "drawn"),
    )
    found = formats.read("coco", tmp_path / "out.json").images
    assert [one.box for one in found] == [(5, 10, 60, 60), (40, 20, 70, 60)]
    alone = lead_ray.load(model).predict([stranger / "tall.png"] * 2, [one.box for one in found])
    for one, same in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.points, same.points, atol=1e-2)
    bad = (tmp_path / "out.json.bad.csv").read_text()
    assert "lies outside its 40x50 pixels" in bad and "file is missing" in bad
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["tall.png.2.jpg", "tall.png.jpg"]
    assert "--boxes" not in capsys.readouterr().out
    of_boxes = shutil.copytree(model, tmp_path / "of-boxes")
    card = json.loads((model / "card.json").read_text())
    card["trained"]["boxed"] = True
    (of_boxes / "card.json").write_text(json.dumps(card))
    run(stranger, of_boxes, tmp_path / "whole.csv")
    assert "say with --boxes where they are" in capsys.readouterr().out
    # The COCO file that was written says where objects are, too.
    listed = boxes.read(tmp_path / "out.json")
    assert listed == {"tall.png": [(5, 10, 60, 60), (40, 20, 70, 60)]}
    (tmp_path / "bad.csv").write_text("file,left\n")
    with pytest.raises(ValueError, match="needs columns file, x, y, width, height"):
        boxes.read(tmp_path / "bad.csv")


def test_an_interrupted_run_goes_on(stranger, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART", 2)
    root, files = find(stranger)
    items = [Item(file, None) for file in files]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sum(done.bad for done in predict_parts(model, root, items, whole)) == 2
    cut_short = predict_parts(model, root, items, parts)
    next(cut_short)
    next(cut_short)
    cut_short.close()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    assert len(kept) == 2
    done = list(predict_parts(model, root, items, parts))
    assert sum(one.images for one in done) == len(items) and sum(one.bad for one in done) == 2
    assert {name: (parts / name).stat().st_mtime_ns for name in kept} == kept
    for path in whole.iterdir():
        assert (parts / path.name).read_bytes() == path.read_bytes()
    list(predict_parts(model, root, items[:3], parts))  # other images: the old parts go
    assert len(list(parts.glob("part-*"))) == 2 and sum(1 for _ in Parts(parts)) == 2


@pytest.mark.slow
def test_a_hundred_thousand_images(model, tmp_path, monkeypatch):
    """The list and its parts, without the pictures: work in proportion, nothing but numbers held."""
    monkeypatch.setattr(
        bulk, "predict_some", lambda model, root, items: [{"file": i.file, "error": "made up"} for i in items]
    )
    items = [Item(f"{place // 1000}/{place}.jpg", None) for place in range(100_000)]
    done = list(predict_parts(model, tmp_path, items, tmp_path / "parts"))
    assert sum(one.images for one in done) == sum(one.bad for one in done) == 100_000
    assert len(done) == -(-100_000 // bulk.PART)
    assert [file for file, _ in Parts(tmp_path / "parts").bad()] == [item.file for item in items]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_data_says_the_same(quiet_ray, stranger, model, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "PART", 3)
    root, files = find(stranger)
    items = [Item(file, None) for file in files]
    list(predict_parts(model, root, items, tmp_path / "alone"))
    done = list(predict_parts(model, root, items, tmp_path / "ray", workers=2))
    assert sum(one.bad for one in done) == 2
    for ours, theirs in zip(Parts(tmp_path / "alone"), Parts(tmp_path / "ray"), strict=True):
        assert ours.file == theirs.file
        np.testing.assert_allclose(ours.points, theirs.points, atol=1e-2)


def test_a_part_is_a_line_an_image(stranger, model, tmp_path):
    work = PartWriter(model, stranger, tmp_path)
    result = work({"number": 7, "items": json.dumps([["line\nbreak.png", None], ["empty.png", None]])})
    assert result == {"images": 2, "bad": 1}
    first, second = map(json.loads, (tmp_path / "part-000007.jsonl").read_text().splitlines())
    assert first["file"] == "line\nbreak.png" and len(first["confidence"]) == 2
    assert set(second) == {"file", "error"}


def test_overlays_show_points_where_they_are():
    points = np.array([[20.0, 30.0], [120.0, 60.0]], np.float32)
    one = LabelledImage(
        file="a",
        size=(200, 100),
        points=points,
        marks=np.array([2, 2], np.uint8),
        confidence=np.array([0.9, 0.1], np.float32),
    )
    drawn = np.asarray(overlays.draw(Image.new("RGB", (200, 100), (90, 90, 90)), SCHEMA, one)).astype(int)
    assert (np.abs(drawn[30, 20] - (255, 0, 0)) < 40).all()
    assert drawn[60, 120].max() < 120  # hollow: it is doubtful
    assert drawn[45, 70].min() > 150  # the skeleton's line, half way
    assert (drawn[10, 190] == 90).all()
    large = overlays.draw(Image.new("RGB", (4096, 2048)), SCHEMA, one)
    assert large.size == (1024, 512)
    missing = LabelledImage(
        file="a", size=(9, 9), points=np.full((2, 2), np.nan, np.float32), marks=np.zeros(2, np.uint8)
    )
    assert not np.asarray(overlays.draw(Image.new("RGB", (9, 9)), SCHEMA, missing)).any()


def test_convert_does_not_write_over_its_source(tmp_path):
    (tmp_path / "a.csv").write_text("file,width,height,a_x,a_y\nf.png,9,9,1,2\n")
    with pytest.raises(SystemExit, match="is the source itself, which would be lost"):
        convert_command.main([str(tmp_path / "a.csv"), str(tmp_path / "." / "a.csv"), "--to", "deeplabcut"])
    assert (tmp_path / "a.csv").read_text().startswith("file,")


def test_convert_from_the_command_line(stranger, model, tmp_path, capsys):
    run(stranger, model, tmp_path / "out.json")
    convert_command.main([str(tmp_path / "out.json"), str(tmp_path / "out.slp"), "--to", "sleap"])
    assert "it does not hold: colours, normaliser, boxes, occlusion" in capsys.readouterr().out
    convert_command.main(
        [str(tmp_path / "out.slp"), str(tmp_path / "own.json"), "--to", "own", "--images", str(stranger)]
    )
    given, back = (formats.read(kind, tmp_path / name) for kind, name in (("coco", "out.json"), ("own", "own.json")))
    for one, same in zip(given.images, back.images, strict=True):
        np.testing.assert_allclose(one.points, same.points)
    with pytest.raises(SystemExit, match=r"the size of .* is not stated: name the folder of the images"):
        convert_command.main([str(tmp_path / "out.slp"), str(tmp_path / "again.json"), "--to", "own"])
