"""The prepared form: balanced plans, atomic files, and loads that notice every kind of damage."""

import json
from dataclasses import replace
from itertools import pairwise

import layouts
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lead_ray.data.celeba import CelebA
from lead_ray.images import decoding, shards
from lead_ray.prepare import prepare


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """18 images of 32 pixels as PNG, so that pixels are exact."""
    root = tmp_path_factory.mktemp("shards")
    reader = CelebA(raw=layouts.celeba(root / "raw"), partitions=("train", "val", "test"))
    prepare(reader, root / "out", workers=0, encoding="png", size=32, progress=False)
    return root / "out"


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy that a test may spoil."""
    for path in pristine.rglob("*.*"):
        (tmp_path / path.relative_to(pristine)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(pristine)).write_bytes(path.read_bytes())
    return tmp_path


@given(st.integers(1, 200_000))
def test_a_plan_is_a_balanced_partition(count):
    bounds = shards.shard_bounds(count)
    sizes = [end - start for start, end in bounds]
    assert bounds[0][0] == 0 and bounds[-1][1] == count
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert len(bounds) % 8 == 0 and max(sizes) - min(sizes) <= 1 and max(sizes) <= 512
    assert len(bounds) == 8 or max(sizes) > 512 - 512 * 8 / len(bounds) - 1  # no more files than needed


def test_plans_by_hand():
    assert shards.shard_bounds(3) == [(0, 1), (1, 2), (2, 3)] + [(3, 3)] * 5
    assert len(shards.shard_bounds(4096)) == 8 and len(shards.shard_bounds(4097)) == 16
    with pytest.raises(ValueError, match="at least one image"):
        shards.shard_bounds(0)


def test_load_gives_the_data_sets_order_and_channels_last(pristine):
    images = shards.load(pristine, "train")
    assert images.ids == [f"{n:06d}.jpg" for n in range(1, 21) if n not in (2, 5)]
    assert images.pixels.shape == (18, 3, 32, 32) and images.pixels.dtype == torch.uint8
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.landmarks.shape == (18, 5, 2) and images.landmarks.dtype == np.float32
    assert images.visible.shape == (18, 5) and images.visible.dtype == bool
    assert images.identity[:3] == ["0", "1", "1"]
    manifest = shards.read_manifest(pristine)
    table = shards.read_shard(pristine, manifest.splits["train"].shards[0], command="")
    decoded = shards.decode(table["image"].to_pylist(), 32)
    np.testing.assert_array_equal(images.pixels[: len(decoded)].permute(0, 2, 3, 1).numpy(), decoded)


def test_boxes_are_read_for_nobody_who_has_not_asked(pristine, monkeypatch):
    """pyarrow before 26 cannot read a null among lists of a fixed size."""
    read, asked = shards.read_shard, []

    def spy(*arguments, columns, **options):
        asked.append(columns)
        return read(*arguments, columns=columns, **options)

    monkeypatch.setattr(shards, "read_shard", spy)
    shards.load(pristine, "train")
    assert asked and all("box" not in columns and "landmarks" in columns for columns in asked)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 7), min_size=1, unique=True))
def test_lanes_partition_the_images(pristine, lanes):
    rest = sorted(set(range(8)) - set(lanes))
    everything = shards.load(pristine, "train").ids
    taken = shards.load(pristine, "train", lanes=lanes).ids
    others = shards.load(pristine, "train", lanes=rest).ids if rest else []
    assert sorted(taken + others) == everything


@pytest.mark.parametrize("lanes", [[8], [0, 0], [-1], []])
def test_unknown_splits_and_lanes(pristine, lanes):
    with pytest.raises(ValueError, match=r"different numbers of 0\.\.7"):
        shards.load(pristine, "train", lanes=lanes)
    with pytest.raises(ValueError, match=r"split must be one of \['train'\], got 'test'"):
        shards.load(pristine, "test")


def test_damaged_shards_name_the_file_and_the_command(folder):
    shard = folder / "train/part-00002.parquet"
    content = shard.read_bytes()
    mend = rf"part-00002\.parquet is damaged .*lead-ray prepare celeba --raw .*--out {folder}"
    shard.write_bytes(content[: len(content) // 2])
    for checksum in (True, False):
        with pytest.raises(ValueError, match=mend):
            shards.load(folder, "train", checksum=checksum)
    shard.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    with pytest.raises(ValueError, match="sha256 is not the manifest's"):
        shards.load(folder, "train")
    shard.write_bytes((folder / "train/part-00000.parquet").read_bytes())
    with pytest.raises(ValueError, match="3 rows, the manifest says 2"):
        shards.load(folder, "train", checksum=False)
    shard.unlink()
    with pytest.raises(ValueError, match=mend):
        shards.load(folder, "train")


def test_decoding_one_shard(folder):
    manifest = shards.read_manifest(folder)
    first, second = manifest.splits["train"].shards[:2]
    path = folder / second.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    pixels = decoding.decode_shard(folder, first, size=32, command="lead-ray prepare")
    np.testing.assert_array_equal(pixels, shards.load(folder, "train", lanes=[0]).pixels.permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match=rf"{path} is damaged \(its sha256 .*\)\. Mend it by: lead-ray prepare --out"):
        decoding.decode_shard(folder, second, size=32, command="lead-ray prepare")
    path.unlink()
    with pytest.raises(ValueError, match=r"is damaged .*No such file.* Mend it by"):
        decoding.decode_shard(folder, second, size=32, command="lead-ray prepare")
    with pytest.raises(ValueError, match=r"is damaged \(image 0 is not a 40x40 .*\)\. Mend it by"):
        decoding.decode_shard(folder, first, size=40, command="lead-ray prepare")


def test_other_pixels_are_other_data(pristine):
    manifest = shards.read_manifest(pristine)
    split = manifest.splits["train"]
    altered = (replace(split.shards[0], sha256="0" * 64), *split.shards[1:])
    other = replace(manifest, splits={"train": replace(split, shards=altered)})
    assert other.fingerprint != manifest.fingerprint == shards.read_manifest(pristine).fingerprint


def test_the_command_that_mends_repeats_every_flag(folder):
    command = shards.read_manifest(folder).command
    assert "--partitions train val test" in command and "--encoding png --size 32" in command


def test_a_stored_image_of_another_size_or_kind(pristine):
    with pytest.raises(ValueError, match="image 0 is not a 16x16"):
        shards.decode([_first_image(pristine)], 16)
    with pytest.raises(ValueError, match="image 1 is not a 32x32"):
        shards.decode([_first_image(pristine), b"no image"], 32)


def _first_image(folder) -> bytes:
    return pq.read_table(folder / "train/part-00000.parquet")["image"][0].as_py()


def test_manifests_that_cannot_be_used(folder):
    path = folder / "manifest.json"
    fields = json.loads(path.read_text())
    for content, message in [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps(fields | {"format_version": 99}), "format_version 99, this code reads 1"),
        (json.dumps({k: v for k, v in fields.items() if k != "size"}), "is damaged"),
        (json.dumps(fields | {"splits": {"train": fields["splits"]["train"] | {"count": 7}}}), "add up"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            shards.read_manifest(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json.*lead-ray prepare"):
        shards.load(folder, "train")


def test_a_manifest_reads_back_equal(pristine, tmp_path):
    manifest = replace(shards.read_manifest(pristine), quarantined=({"image_id": "x", "reason": "y"},))
    manifest.write(tmp_path)
    assert shards.read_manifest(tmp_path) == manifest
