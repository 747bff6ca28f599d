"""Readers of the birds: CUB-200-2011 with its parts, iNaturalist's Aves without."""

import layouts
import numpy as np
import pytest
from layouts import ids, rendered, shared, unpacked
from PIL import Image

from lead_ray.data.crops import Crop
from lead_ray.data.cub import PASSEROIDEA, Cub
from lead_ray.data.inat import INatAves
from lead_ray.data.rows import render


def test_cub_by_species_and_official_split(tmp_path):
    raw = layouts.cub(tmp_path)
    bunting, warbler, albatross = (f"{name}_{{}}.jpg" for name in (
        "014.Indigo_Bunting/Indigo_Bunting", "170.Mourning_Warbler/Mourning_Warbler",
        "001.Black_footed_Albatross/Black_footed_Albatross",
    ))  # fmt: skip
    reader = Cub(raw=raw, species=(14, 170))
    assert ids(reader) == [bunting.format(0), warbler.format(0)]
    assert ids(reader, "test") == [bunting.format(1), warbler.format(1)]
    assert ids(Cub(raw=raw, species="all"))[0] == albatross.format(0)
    with pytest.raises(ValueError, match=r"classes\.txt has no species 15, 16, 17, .*, 168: give --species"):
        list(Cub(raw=raw).records())


def test_cub_names_35_species():
    assert len(PASSEROIDEA) == len(set(PASSEROIDEA)) == 35


def test_cub_shows_the_whole_photograph_to_evaluation(tmp_path):
    reader = Cub(raw=layouts.cub(tmp_path), species="all")
    record = next(reader.records())
    pixels, row = rendered(record, reader.crop)
    whole = Image.open(record.path).resize((96, 96), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels[20:116, 20:116], whole)
    np.testing.assert_array_equal(pixels[:20, 20:116], np.tile(pixels[20, 20:116], (20, 1, 1)))
    np.testing.assert_allclose(row["landmarks"][4], [20 + 50 * 96 / 200, 20 + 25 * 96 / 100], atol=1e-4)
    assert row["visible"] == [part != 3 for part in range(1, 16)]
    np.testing.assert_allclose(row["box"], [20 + 20 * 0.48, 20 + 10 * 0.96, 48, 48], atol=1e-4)
    with pytest.raises(ValueError, match="size must be >= 8 pixels inside a margin of 20, got 40"):
        Crop(kind="whole", margin=20, size=40)


def test_cub_by_the_lists_of_cl(tmp_path):
    raw, lists = layouts.cub(tmp_path / "raw"), tmp_path / "split"
    names = ids(Cub(raw=raw, species="all")) + ids(Cub(raw=raw, species="all"), "test")
    for file, chosen in {"train": names[:2], "val": names[2:3], "test": names[3:]}.items():
        layouts.write_lines(lists / f"{file}.txt", [f"/home/somebody/CUB_200_2011/images/{name}" for name in chosen])
    reader = Cub(raw=raw, lists=lists)
    assert [ids(reader, split) for split in ("train", "val", "test")] == [names[:2], names[2:3], names[3:]]
    with pytest.raises(ValueError, match="leave species out"):
        Cub(raw=raw, lists=lists, species="all")
    layouts.replace_line(lists / "val.txt", 1, "images/014.Indigo_Bunting/none.jpg")
    with pytest.raises(ValueError, match=r"val\.txt, line 1: 014\.Indigo_Bunting/none\.jpg is not in .*images\.txt"):
        list(reader.records())
    (lists / "test.txt").unlink()
    layouts.write_lines(lists / "val.txt", names[2:3])
    with pytest.raises(FileNotFoundError, match=r"lists=.* has no test\.txt"):
        list(reader.records())


@pytest.mark.parametrize(
    ("file", "line", "content", "message"),
    [
        ("parts/part_locs.txt", 5, "1 16 1 1 1", "line 5: expected each part 1..15 of an image once, got 16"),
        ("parts/part_locs.txt", 5, "1 4 1 1 1", "line 5: expected each part 1..15 of an image once, got 4"),
        ("parts/part_locs.txt", 5, "1 5 1 x 1", "line 5: could not convert"),
        ("parts/part_locs.txt", 5, "9 5 1 1 1", r"part_locs\.txt: image 1 has no parts \[5\]"),
        ("bounding_boxes.txt", 1, "9 1 1 1 1", r"bounding_boxes\.txt has no row for image 1, 001"),
        ("bounding_boxes.txt", 1, "1 1 1 1", "line 1: expected 5 columns, got 4"),
        ("train_test_split.txt", 2, "2 7", "line 2: expected an image of images.txt"),
        ("train_test_split.txt", 2, "99 1", "line 2: expected an image of images.txt"),
    ],
)
def test_a_wrong_list_of_cub(tmp_path, file, line, content, message):
    raw = layouts.cub(tmp_path)
    layouts.replace_line(raw / file, line, content)
    with pytest.raises(ValueError, match=message) as raised:
        list(Cub(raw=raw, species="all").records())
    assert file in str(raised.value)


def test_inat_takes_birds_of_the_training_list_or_of_a_list(tmp_path):
    raw = layouts.inat(tmp_path)
    reader = INatAves(raw=raw)
    assert ids(reader) == ["Vireo griseus/b.jpg", "Vireo griseus/a.jpg", "Ardea alba/c.jpg"]
    record = next(reader.records())
    pixels, row = rendered(record, reader.crop)
    assert row["landmarks"] == [] and row["box"] is None
    np.testing.assert_array_equal(pixels, Image.open(record.path).resize((136, 136), Image.Resampling.BILINEAR))
    layouts.write_lines(tmp_path / "100K.txt", ["/data/inat/train_val_images/Aves/Ardea alba/c.jpg"])
    assert ids(INatAves(raw=raw, listing=tmp_path / "100K.txt")) == ["Ardea alba/c.jpg"]


def test_what_is_wrong_with_inat(tmp_path):
    raw = layouts.inat(tmp_path)
    layouts.write_lines(tmp_path / "list.txt", ["c.jpg"])
    with pytest.raises(ValueError, match=r"list\.txt, line 1: expected a path that ends in <species>/<image>\.jpg"):
        list(INatAves(raw=raw, listing=tmp_path / "list.txt").records())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(INatAves(raw=raw, listing=tmp_path / "none.txt").records())
    for content in ("{", "[]", '{"images": [1]}'):
        (raw / "train2017.json").write_text(content)
        with pytest.raises(ValueError, match=r"train2017\.json is not a list of images"):
            list(INatAves(raw=raw).records())
    (raw / "train2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of: train2017\.json"):
        list(INatAves(raw=raw).records())


def test_command_lines(tmp_path):
    raw = str(layouts.cub(tmp_path / "cub"))
    assert layouts.counts("cub", "--raw", raw, "--species", "all") == {"train": (3, 15), "test": (3, 15)}
    assert layouts.counts("cub", "--raw", raw, "--species", "14", "170") == {"train": (2, 15), "test": (2, 15)}
    assert layouts.counts("inat-aves", "--raw", str(layouts.inat(tmp_path / "inat"))) == {"train": (3, 0)}


@shared
def test_the_real_birds(tmp_path):
    reader = Cub(raw=unpacked("cub", 12, tmp_path), species="all")
    records = list(reader.records())
    assert [sum(record.split == split for record in records) for split in ("train", "test")] == [240, 211]
    there = [record for record in records if record.path.exists()]
    assert len(there) >= 12
    for record in there:
        row = render(record, reader.crop)
        points, visible = np.array(row["landmarks"]), np.array(row["visible"])
        assert visible.sum() == record.visible.sum() > 0
        assert (points[visible] >= 20).all() and (points[visible] <= 116).all()
