"""Input that someone else made, and not kindly: counted or refused by name; nothing of it runs or leaves its folder."""

import csv
import io
import json
import os
import pickle
import random
import struct
import zlib
from contextlib import closing
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lead_ray import artefacts, formats, predict
from lead_ray.data.crops import Crop
from lead_ray.data.folder import Folder
from lead_ray.data.inat import INatAves
from lead_ray.data.mtfl import Mtfl
from lead_ray.data.rows import BadImage, open_rgb
from lead_ray.images import packing, shards
from lead_ray.landmarks.fitting import fit
from lead_ray.landmarks.labels import LabelledImage, Labels, Schema
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.prepare import prepare

MUTATIONS = 4000
PREDICTED = 300


class Exploding:
    """A pickle that would leave a file behind when it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def prepared(raw: Path, out: Path, **options) -> shards.Manifest:
    return prepare(Folder(raw=raw, **options), out, workers=0, size=16, progress=False)


class TestNames:
    @pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "{root}/secret.png"])
    def test_a_list_cannot_reach_what_is_not_below_the_raw_folder(self, tmp_path, name):
        layouts.picture(tmp_path / "secret.png", 30, 30)
        layouts.picture(tmp_path / "raw/good.png", 30, 30)
        name = name.format(root=tmp_path)
        listing = layouts.coco(tmp_path / "marks.json", ["good.png", name])
        manifest = prepared(tmp_path / "raw", tmp_path / "out", landmarks=listing)
        assert manifest.splits["train"].count == 1
        (bad,) = manifest.quarantined
        assert bad["image_id"] == name and "which is not below" in bad["reason"]

    def test_nor_can_mtfls(self, tmp_path):
        raw = layouts.mtfl(tmp_path / "raw")
        layouts.picture(tmp_path / "secret.jpg", 150, 150)
        lines = (raw / "training.txt").read_text().splitlines()
        layouts.replace_line(raw / "training.txt", 1, "..\\secret.jpg " + " ".join(lines[0].split()[1:]))
        manifest = prepare(Mtfl(raw=raw), tmp_path / "out", workers=0, size=16, progress=False)
        assert [bad["image_id"] for bad in manifest.quarantined] == ["../secret.jpg"]

    def test_only_regular_files_are_opened(self, tmp_path):
        """A pipe would be waited for; of links, those that lead to a picture are followed."""
        layouts.picture(tmp_path / "elsewhere.png", 30, 30)
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw/link.png").symlink_to(tmp_path / "elsewhere.png")
        (tmp_path / "raw/zero.png").symlink_to("/dev/zero")
        (tmp_path / "raw/loop.png").symlink_to("loop.png")
        (tmp_path / "raw/folder.png").mkdir()
        os.mkfifo(tmp_path / "raw/pipe.png")
        manifest = prepared(tmp_path / "raw", tmp_path / "out")
        reasons = {bad["image_id"]: bad["reason"] for bad in manifest.quarantined}
        assert manifest.splits["train"].count == 1
        assert reasons["pipe.png"] == reasons["zero.png"] == reasons["folder.png"] == "is no regular file"
        assert reasons.keys() == {"pipe.png", "zero.png", "folder.png", "loop.png"}

    def test_names_that_are_no_text_or_would_move_the_cursor(self, tmp_path, capsys):
        layouts.picture(tmp_path / "raw/good.png", 30, 30)
        (tmp_path / "raw/red\x1b[31m.png").write_bytes(b"no picture")
        content = (tmp_path / "raw/good.png").read_bytes()
        Path(os.fsdecode(os.fsencode(tmp_path / "raw") + b"/latin\xe9.png")).write_bytes(content)
        manifest = prepare(Folder(raw=tmp_path / "raw"), tmp_path / "out", workers=0, size=16)
        assert {bad["image_id"] for bad in manifest.quarantined} == {"red\\x1b[31m.png", "latin\\udce9.png"}
        assert "\x1b" not in capsys.readouterr().out

    def test_a_manifest_cannot_name_files_of_others(self, tmp_path):
        """Preparing again removes damaged shards: by the manifest's word."""
        layouts.picture(tmp_path / "raw/good.png", 30, 30)
        prepared(tmp_path / "raw", tmp_path / "out")
        precious = tmp_path / "precious.parquet"
        precious.touch()
        text = (tmp_path / "out/manifest.json").read_text()
        for name in ("../precious.parquet", str(precious), "../part-00000.parquet", "train/../../precious.parquet"):
            (tmp_path / "out/manifest.json").write_text(text.replace("train/part-00000.parquet", name))
            with pytest.raises(ValueError, match=r"damaged .*file must be SPLIT/part-NUMBER"):
                prepared(tmp_path / "raw", tmp_path / "out")
        assert precious.exists()


class TestPictures:
    @pytest.mark.parametrize("shape", [(0, 7), (7, 0), (50_000, 50_000), (2**31 - 1, 1)])
    def test_sides_that_no_picture_has(self, tmp_path, shape):
        """The sides that a PNG's header states, its checksum mended."""
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9)).save(buffer, "png")
        content = bytearray(buffer.getvalue())
        content[16:24] = struct.pack(">II", *shape)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        (tmp_path / "bomb.png").write_bytes(content)
        with pytest.raises(BadImage):
            open_rgb(tmp_path / "bomb.png")

    def test_a_strip_of_50_000_pixels_is_a_picture(self, tmp_path):
        layouts.picture(tmp_path / "raw/strip.png", 50_000, 1)
        assert prepared(tmp_path / "raw", tmp_path / "out").splits["train"].count == 1

    @pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "ICO", "TGA"])
    def test_other_formats_under_a_pictures_name(self, tmp_path, kind):
        """Pillow would start Ghostscript for the first."""
        Image.new("RGB", (30, 30)).save(tmp_path / "x.jpg", kind)
        with pytest.raises(BadImage, match="cannot identify image file"):
            open_rgb(tmp_path / "x.jpg")

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # Pillow's, of broken files
    def test_thousands_of_broken_pictures(self, tmp_path):
        """JPEG, PNG, WebP and TIFF with bytes changed, cut, doubled: a row each, or set aside with a reason."""
        draw = random.Random(0)
        (tmp_path / "raw").mkdir()
        sound = {end: encoded(end) for end in ("jpg", "png", "webp", "tif")}
        crop = Crop(kind="centre", size=16)
        packs = packing.Packing(raw=tmp_path / "raw", out=tmp_path / "out", crop=crop, encoding="jpeg")
        for number in range(MUTATIONS):
            end = draw.choice(list(sound))
            (tmp_path / f"raw/{number:05}.{end}").write_bytes(mutated(sound[end], draw))
        with closing(packing.Plan(Folder(raw=tmp_path / "raw"), packs)) as plan:
            results = [packing.make_shard(plan.item(part), packs) for part in plan.parts]
        good, bad = (sum(map(count, results)) for count in (lambda r: r["rows"], lambda r: len(r["quarantined"])))
        assert good + bad == MUTATIONS and not any(result["error"] for result in results)
        assert good > MUTATIONS // 20 and bad > MUTATIONS // 20, "mutations are too harsh or too kind"
        assert all(image["reason"] for result in results for image in result["quarantined"])
        assert {path.partition("/")[0] for path in tree(tmp_path)} == {"raw", "out"}

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")  # Pillow's, of broken files
    def test_hundreds_of_broken_pictures_through_predict(self, tmp_path, capsys):
        """Each has its landmarks, and a drawing, or stands in OUT.bad.csv with a reason; nothing else is written."""
        draw = random.Random(2)
        photos, out = tmp_path / "photos", tmp_path / "out"
        photos.mkdir()
        sound = {end: encoded(end) for end in ("jpg", "png", "webp", "tif")}
        for number in range(PREDICTED):
            end = draw.choice(list(sound))
            (photos / f"{number:05}.{end}").write_bytes(mutated(sound[end], draw))
        model = landmark_model_of(photos.parent / "model")
        options = ["--model", str(model), "--out", str(out / "points.csv"), "--overlays", str(out / "drawn")]
        predict.main([str(photos), *options])
        good = {image.file for image in formats.read("csv", out / "points.csv").images}
        lines = list(csv.reader((out / "points.csv.bad.csv").open(newline="")))[1:]
        bad = {name for name, reason in lines if reason}
        assert good | bad == tree(photos) and not good & bad and len(lines) == len(bad)
        assert min(len(good), len(bad)) > PREDICTED // 20, "mutations are too harsh or too kind"
        assert tree(out) == {"points.csv", "points.csv.bad.csv", "drawn"} | {f"drawn/{name}.jpg" for name in good}
        assert f"{len(good)} objects in" in capsys.readouterr().out
        assert {path.partition("/")[0] for path in tree(tmp_path)} == {"photos", "out", "model"}

    @pytest.mark.filterwarnings("ignore")  # Pillow's, of broken files
    def test_stored_images_that_are_not_what_the_manifest_says(self, tmp_path):
        """Larger ones are refused before their pixels take memory."""
        buffer = io.BytesIO()
        Image.new("RGB", (9000, 9000)).save(buffer, "png")
        with pytest.raises(ValueError, match="image 0 is not a 16x16 RGB image: it is 9000x9000, RGB"):
            shards.decode([buffer.getvalue()], 16)
        draw = random.Random(1)
        sound = encoded("jpg", size=(16, 16))
        for _ in range(500):
            try:
                assert shards.decode([mutated(sound, draw)], 16).shape == (1, 16, 16, 3)
            except ValueError as error:
                assert "image 0 is not a 16x16 RGB image" in str(error)


def landmark_model_of(folder: Path) -> Path:
    """One of an untrained network, fitted to two images."""
    folder.mkdir()
    torch.manual_seed(0)
    weights.save(folder / "encoder.safetensors", Trunk(TrunkSettings(depth=18, width=0.125)), {})
    images = []
    for place in range(2):
        name = f"{place}.png"
        layouts.picture(folder / name, 40, 30)
        points = np.array([[10.0 + place, 12.0], [25.0, 20.0]], np.float32)
        images.append(LabelledImage(file=name, size=(40, 30), points=points, marks=np.full(2, 2, np.uint8)))
    schema = Schema(category="spot", names=("here", "there"), colours=("#ff0000", "#00ff00"))
    fit(folder / "encoder.safetensors", Labels(schema=schema, images=tuple(images)), folder).save(folder / "model")
    return folder / "model"


def encoded(end: str, size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if end == "tif" else {"exif": exif}
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(end, end), **options)
    return buffer.getvalue()


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few changes: bytes, numbers at their ends, a cut, a piece doubled or lost."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        # Half of the changes go to the head, where sizes and tables stand.
        place = draw.randrange(min(len(changed), 200) if draw.random() < 0.5 else len(changed))
        kind = draw.randrange(5)
        if kind == 0:
            changed[place] = draw.randrange(256)
        elif kind == 1:
            changed[place : place + 4] = draw.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif kind == 2:
            del changed[max(1, place) :]
        elif kind == 3:
            changed[place:place] = changed[place : place + draw.randrange(1, 64)]
        else:
            del changed[place : place + draw.randrange(1, 16)]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


class TestAnnotations:
    @pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e999"])
    def test_landmarks_that_are_no_numbers(self, tmp_path, value):
        for name in ("a.png", "b.png"):
            layouts.picture(tmp_path / "raw" / name, 60, 80)
        listing = layouts.coco(tmp_path / "marks.json", ["a.png", "b.png"], keypoints=[7e77, 30, 2, 21, 30, 2])
        listing.write_text(listing.read_text().replace("7e+77", value))
        with np.errstate(all="ignore"):
            manifest = prepared(tmp_path / "raw", tmp_path / "out", landmarks=listing)
        (bad,) = manifest.quarantined
        assert bad["image_id"] == "b.png" and bad["reason"].startswith("landmark 0 is [")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"keypoints": "20,30,2"}, r"annotations\[1\]: 'keypoints' must be list"),
            ({"keypoints": {"0": 1}}, "'keypoints' must be list"),
            ({"keypoints": [None] * 6}, "must hold numbers only"),
            ({"keypoints": [[1, 2, 2], [3, 4, 2]]}, "must hold numbers only"),
            ({"keypoints": [10**400, 1, 2, 1, 1, 2]}, "holds a number that is too large"),
            ({"bbox": [True, 0, 1, 1]}, "'bbox' must hold numbers only"),
            ({"bbox": None}, "'bbox' must be list"),
            ({"image_id": "1"}, "'image_id' must be int"),
            ({"image_id": 1.0}, "'image_id' must be int"),
            ({"image_id": True}, "'image_id' must be int"),
        ],
    )
    def test_coco_with_wrong_types(self, tmp_path, changes, message):
        (tmp_path / "raw").mkdir()
        listing = layouts.coco(tmp_path / "marks.json", ["a.png", "b.png"], **changes)
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path / "raw", tmp_path / "out", landmarks=listing)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"images":' * 50_000, "\0", "", "9" * 5000])
    def test_json_that_is_no_list_of_images(self, tmp_path, text):
        (tmp_path / "raw/Aves").mkdir(parents=True)
        for listing in ("marks.json", "raw/train2017.json"):
            (tmp_path / listing).write_text(text)
        with pytest.raises(ValueError, match=r"marks\.json"):
            list(Folder(raw=tmp_path / "raw", landmarks=tmp_path / "marks.json").records())
        with pytest.raises(ValueError, match=r"train2017\.json"):
            list(INatAves(raw=tmp_path / "raw").records())

    def test_hundreds_of_broken_coco_files(self, tmp_path):
        draw = random.Random(0)
        (tmp_path / "raw").mkdir()
        sound = layouts.coco(tmp_path / "marks.json", ["a.png", "b.png"]).read_bytes()
        refused = 0
        for _ in range(600):
            (tmp_path / "marks.json").write_bytes(mutated(sound, draw))
            try:
                list(Folder(raw=tmp_path / "raw", landmarks=tmp_path / "marks.json").records())
            except ValueError as error:
                refused += "marks.json" in str(error)
        assert refused > 300


class TestWeights:
    @pytest.fixture
    def sound(self, tmp_path) -> bytes:
        weights.save(tmp_path / "sound", Trunk(TrunkSettings(depth=18, width=0.125)), {})
        return (tmp_path / "sound").read_bytes()

    def test_a_pickle_under_their_name_is_not_run(self, tmp_path):
        path = tmp_path / "encoder.safetensors"
        for write in (pickle.dump, torch.save):
            with path.open("wb") as file:
                write(Exploding(tmp_path / "ran"), file)
            with pytest.raises(ValueError, match="is not a lead_ray encoder"):
                weights.load(path)
            checkpoints = tmp_path / "run/checkpoints"
            checkpoints.mkdir(parents=True, exist_ok=True)
            (checkpoints / "step-00000001.pt").write_bytes(path.read_bytes())
            with pytest.raises(ValueError, match=r"no checkpoint .* can be read"):
                artefacts.RunFolder(tmp_path / "run").latest_checkpoint(torch.device("cpu"))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("card", ["[]", "null", '"trunk"', '{"kind": "trunk", "trunk": []}', "[" * 100_000, "{}"])
    def test_cards_of_wrong_types(self, tmp_path, card):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"lead_ray": card})
        with pytest.raises(ValueError, match="is not a lead_ray encoder"):
            weights.load(tmp_path / "x.safetensors")

    def test_hundreds_of_broken_files(self, tmp_path, sound):
        draw, read = random.Random(0), 0
        for _ in range(300):
            (tmp_path / "x.safetensors").write_bytes(mutated(sound, draw))
            try:
                weights.read_card(tmp_path / "x.safetensors")
                read += 1
            except ValueError as error:
                assert "is not a lead_ray encoder" in str(error)
        assert read < 200


def test_manifests_of_wrong_types(tmp_path):
    layouts.picture(tmp_path / "raw/good.png", 30, 30)
    prepared(tmp_path / "raw", tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    sound = json.loads(file.read_text())
    for changes in ({"size": 10**9}, {"size": "16"}, {"splits": []}, {"splits": {"train": None}}, {"quarantined": 5}):
        file.write_text(json.dumps(sound | changes))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            shards.read_manifest(tmp_path / "out")
    draw = random.Random(0)
    for _ in range(500):
        file.write_bytes(mutated(json.dumps(sound).encode(), draw))
        try:
            shards.load(tmp_path / "out", "train")
        except ValueError as error:
            assert str(tmp_path) in str(error) or "split" in str(error)
