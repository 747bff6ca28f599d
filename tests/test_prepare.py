"""Preparing: the same bytes however it is run, resumed, or mended; and a clear stop when it cannot go on."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import layouts
import numpy as np
import pytest

from lead_ray.data.celeba import CelebA, Mafl
from lead_ray.data.folder import Folder
from lead_ray.data.mtfl import Mtfl
from lead_ray.data.rows import Crop, Record
from lead_ray.data.synthetic import Synthetic
from lead_ray.images import packing, shards
from lead_ray.prepare import main, prepare


@pytest.fixture
def raw(tmp_path):
    return layouts.celeba(tmp_path / "raw")


@pytest.fixture
def here():
    """prepare() in this process, small and quiet."""

    def run(reader, out, **options):
        return prepare(reader, out, **{"workers": 0, "size": 16, "progress": False} | options)

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_manifest_counts_and_protocol(raw, tmp_path, here):
    manifest = here(Mafl(raw=raw), tmp_path / "out")
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 2, "test": 2}
    assert all(len(split.shards) == 8 and split.landmarks == 5 for split in manifest.splits.values())
    assert manifest.protocol["window"] == [0, 30, 178, 178] and manifest.size == 16
    assert manifest == shards.read_manifest(tmp_path / "out")
    leak = here(CelebA(raw=raw, include_mafl_test=True), tmp_path / "leak")
    assert leak.settings["include_mafl_test"] is True


def test_matching_and_test_may_share_images(tmp_path, here):
    manifest = here(Mtfl(raw=layouts.mtfl(tmp_path / "raw")), tmp_path / "out")
    assert {name: split.count for name, split in manifest.splits.items()} == {
        "train": 3,
        "test": 6,
        "matching": 3,
    }


def test_twice_is_a_no_op_that_says_so(raw, tmp_path, here, capsys):
    here(CelebA(raw=raw), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    here(CelebA(raw=raw), tmp_path / "out", progress=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "already prepared" in capsys.readouterr().out


def test_a_raw_folder_that_moved_is_still_the_same(raw, tmp_path, here):
    first = here(CelebA(raw=raw), tmp_path / "out")
    raw.rename(tmp_path / "moved")
    assert here(CelebA(raw=tmp_path / "moved"), tmp_path / "out") == first


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"size": 24}, {}, "size=16, now size=24"),
        ({"encoding": "png"}, {}, "encoding='jpeg', now encoding='png'"),
        ({}, {"partitions": ("val",)}, r"partitions=\['train'\], now partitions=\['val'\]"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(raw, tmp_path, here, options, change, message):
    here(CelebA(raw=raw), tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match=message + ".*choose another --out"):
        here(CelebA(raw=raw, **change), tmp_path / "out", **options)
    with pytest.raises(ValueError, match="dataset='celeba', now dataset='mafl'"):
        here(Mafl(raw=raw), tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_changed_annotations_are_refused(raw, tmp_path, here):
    here(CelebA(raw=raw), tmp_path / "out")
    layouts.replace_line(raw / "Anno/list_landmarks_align_celeba.txt", 3, "000001.jpg 1 2 3 4 5 6 7 8 9 9")
    with pytest.raises(ValueError, match="other names or annotations"):
        here(CelebA(raw=raw), tmp_path / "out")


class Killed(BaseException):
    """Not an error that anything handles."""


def killed_after(count: int, monkeypatch) -> None:
    whole, done = packing.make_shard, []

    def make_shard(*arguments):
        if len(done) == count:
            raise Killed
        done.append(1)
        return whole(*arguments)

    monkeypatch.setattr("lead_ray.prepare.make_shard", make_shard)


def test_an_interrupted_run_keeps_what_is_done(raw, tmp_path, here, monkeypatch):
    here(CelebA(raw=raw), tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_after(3, patch)
        with pytest.raises(Killed):
            here(CelebA(raw=raw), out)
    assert not (out / "manifest.json").exists() and len(list(out.glob("train/*"))) == 3
    (out / "train/.part-00003.parquet.1.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("train/part-*")}
    here(CelebA(raw=raw), out)
    assert content(out) == content(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_an_interrupted_run_with_other_settings_is_not_mixed_in(raw, tmp_path, here, monkeypatch):
    here(CelebA(raw=raw), tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_after(11, patch)
        with pytest.raises(Killed):
            here(Mafl(raw=raw), out, size=24)
    here(CelebA(raw=raw), out)
    assert content(out) == content(tmp_path / "whole")


def test_a_strangers_file_is_not_deleted(raw, tmp_path, here):
    stranger = tmp_path / "out/other/part-00000.parquet"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"precious")
    with pytest.raises(ValueError, match="is not a shard of this data set"):
        here(CelebA(raw=raw), tmp_path / "out")
    assert stranger.read_bytes() == b"precious"


@pytest.mark.parametrize("damage", [lambda data: data[:-50], lambda data: data[:200] + b"?" + data[201:], None])
def test_the_same_command_mends_a_damaged_shard(raw, tmp_path, here, damage):
    out = tmp_path / "out"
    here(CelebA(raw=raw), out)
    before, shard = content(out), out / "train/part-00004.parquet"
    if damage is None:
        shard.unlink()
    else:
        shard.write_bytes(damage(shard.read_bytes()))
    here(CelebA(raw=raw), out)
    assert content(out) == before


def test_a_full_disk_stops_cleanly_and_the_same_command_goes_on(raw, tmp_path, here, monkeypatch):
    here(CelebA(raw=raw), tmp_path / "whole")
    out, sync, calls = tmp_path / "out", os.fsync, []

    def fsync(descriptor):
        calls.append(1)
        if len(calls) > 6:  # two a shard: the file and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"No space left.*part-00003.*3 of 8 shards are finished"):
            here(CelebA(raw=raw), out)
    assert sorted(path.name for path in out.rglob("*.*")) == [f"part-0000{n}.parquet" for n in range(3)]
    here(CelebA(raw=raw), out)
    assert content(out) == content(tmp_path / "whole")


def test_bad_images_are_set_aside_counted_and_said(raw, tmp_path, here, capsys):
    pictures = raw / "Img/img_align_celeba"
    (pictures / "000001.jpg").write_text("not an image")
    (pictures / "000006.jpg").unlink()
    layouts.replace_line(raw / "Anno/list_landmarks_align_celeba.txt", 9, "000007.jpg nan 2 3 4 5 6 7 8 9 9")
    manifest = here(CelebA(raw=raw), tmp_path / "out", progress=True)
    assert [bad["image_id"] for bad in manifest.quarantined] == ["000001.jpg", "000006.jpg", "000007.jpg"]
    assert manifest.splits["train"].count == 7 == len(shards.load(tmp_path / "out", "train").ids)
    said = capsys.readouterr().out
    assert "3 images set aside" in said and "000006.jpg is listed but the file is missing" in said
    (tmp_path / "out/manifest.json").unlink()
    assert here(CelebA(raw=raw), tmp_path / "out") == manifest  # what was not mended is set aside again


def test_too_many_bad_images_stop_the_run(raw, tmp_path, here):
    for number in (1, 6, 10):
        (raw / f"Img/img_align_celeba/{number:06d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"more than max_bad=1 .*2 images set aside: 000001\.jpg is listed"):
        here(CelebA(raw=raw), tmp_path / "out", max_bad=1)
    assert not (tmp_path / "out/manifest.json").exists()
    assert len(here(CelebA(raw=raw), tmp_path / "out").quarantined) == 3
    with pytest.raises(ValueError, match="no image of split 'train' can be used"):
        (raw / "Img/img_align_celeba/000007.jpg").unlink()
        here(Mafl(raw=raw), tmp_path / "mafl")


def test_mending_the_images_and_the_same_command_bring_them_in(raw, tmp_path, here):
    here(CelebA(raw=raw), tmp_path / "whole")
    out, pictures = tmp_path / "out", raw / "Img/img_align_celeba"
    for number in (1, 6):
        (pictures / f"{number:06d}.jpg").rename(tmp_path / f"{number:06d}.jpg")
    with pytest.raises(ValueError, match="Mend or remove them and run the same command again"):
        here(CelebA(raw=raw), out, max_bad=1)
    assert list(out.glob("train/*"))
    for number in (1, 6):
        (tmp_path / f"{number:06d}.jpg").rename(pictures / f"{number:06d}.jpg")
    assert here(CelebA(raw=raw), out, max_bad=1).quarantined == ()
    assert content(out) == content(tmp_path / "whole")


def test_a_complete_folder_stays_as_it_is_when_images_are_mended(raw, tmp_path, here):
    picture = raw / "Img/img_align_celeba/000001.jpg"
    picture.rename(tmp_path / "aside.jpg")
    manifest = here(CelebA(raw=raw), tmp_path / "out")
    (tmp_path / "aside.jpg").rename(picture)
    assert here(CelebA(raw=raw), tmp_path / "out") == manifest and len(manifest.quarantined) == 1


def test_how_many_processes_draw_does_not_tell_data_apart(tmp_path, here):
    faces = Synthetic(raw=tmp_path / "raw", images=10, identities=5)
    manifest = here(faces, tmp_path / "out")
    assert here(replace(faces, draw_workers=2), tmp_path / "out") == manifest
    packed = packing.Packing(raw=faces.raw, out=tmp_path / "out", crop=faces.crop, encoding="jpeg")
    assert packing.describe(replace(faces, draw_workers=2), packed) == packing.describe(faces, packed)
    assert "draw_workers" not in manifest.settings and manifest.settings["images"] == 10


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A reader of whatever a test lists."""

    name: ClassVar[str] = "listed"
    raw: Path
    rows: tuple[tuple[str, int], ...]

    crop: ClassVar[Crop] = Crop(kind="centre")

    def records(self):
        for image_id, points in self.rows:
            zeros = np.zeros((points, 2), np.float32)
            yield Record(image_id=image_id, path=self.raw / image_id, split="train", landmarks=zeros)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "holds no image"),
        ((("a", 0), ("b", 0), ("a", 0)), "a comes twice in split 'train'"),
        ((("a", 2), ("b", 3)), "b has 3 landmarks, the images before it 2"),
    ],
)
def test_inconsistent_records(tmp_path, here, rows, message):
    with pytest.raises(ValueError, match=message):
        here(Listed(raw=tmp_path, rows=rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_options(raw, tmp_path, here):
    for options in ({"workers": -1}, {"max_bad": -1}, {"size": 4}):
        with pytest.raises(ValueError, match=next(iter(options))):
            here(CelebA(raw=raw), tmp_path / "out", **options)


def test_command_line(raw, tmp_path, capsys):
    out = tmp_path / "out"
    main(["celeba", "--raw", str(raw), "--out", str(out), "--partitions", "train", "val", "--workers", "0"])
    said = capsys.readouterr().out
    assert "celeba train: 14 images, 5 landmarks, 8 shards" in said and "0 images set aside" in said
    assert json.loads((out / "manifest.json").read_text())["settings"]["partitions"] == ["train", "val"]
    with pytest.raises(SystemExit) as stopped:
        main(["folder", "--raw", str(tmp_path / "none"), "--out", str(out), "--workers", "0"])
    assert "is not a folder" in str(stopped.value.code)  # a message as code: stderr and exit status 1


def test_in_process_runs_import_neither_ray_nor_torch(raw, tmp_path):
    code = (
        "import sys; from lead_ray.prepare import main; main(sys.argv[1:]); "
        "assert not {'ray', 'torch'} & set(sys.modules), 'imported without need'"
    )
    words = ["folder", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "0"]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=Path(__file__).parents[1])
    assert shards.read_manifest(tmp_path / "out").splits["train"].count == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own deprecated settings
def test_ray_writes_the_same_bytes_and_stops_as_cleanly(raw, tmp_path, here, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # keeps a token file out of the home folder
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (raw / "Img/img_align_celeba/000006.jpg").unlink()
    reader = Folder(raw=raw)
    here(reader, tmp_path / "here")
    try:
        prepare(reader, tmp_path / "ray", workers=2, size=16, progress=False)
        assert content(tmp_path / "ray") == content(tmp_path / "here")
        with pytest.raises(ValueError, match=r"more than max_bad=0 .*000006\.jpg"):
            prepare(CelebA(raw=raw), tmp_path / "bad", workers=2, size=16, max_bad=0, progress=False)
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="shards are finished and stay"):
            prepare(reader, tmp_path / "file" / "out", workers=2, size=16, progress=False)
    finally:
        ray.shutdown()
