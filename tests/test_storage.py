"""Local files and a made-up S3, a server process on loopback: whole or not at all, through refused requests as well."""

import errno
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import load_file
from small_runs import STEPS, losses, stage1

from lead_ray import launch, locks, prepare, storage
from lead_ray.artefacts import RunFolder
from lead_ray.data.celeba import CelebA
from lead_ray.data.folder import Folder
from lead_ray.evaluate import Evaluate, evaluate, numbers
from lead_ray.images import shards
from lead_ray.pretrain import Pretrain


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """S3 with one bucket, faces."""
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")
    started = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made-up")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setattr(storage, "PAUSE", 0.0)
        boto3.client("s3").create_bucket(Bucket="faces")
        yield
    started.stop()


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path) -> Path:
    if request.param == "local":
        return tmp_path
    request.getfixturevalue("server")
    return Path(f"s3://faces/{tmp_path.name}")


def refusing(monkeypatch, times: int) -> list[str]:
    """The store's next uploads fail so often, half of each sent; returns what was asked for."""
    upload, asked = storage._upload, []

    def refuse(store, key: str, file: Path) -> None:
        asked.append(key)
        if len(asked) <= times:
            raise OSError("AWS Error SLOW_DOWN: reduce your request rate")
        upload(store, key, file)

    monkeypatch.setattr(storage, "_upload", refuse)
    return asked


class TestFiles:
    def test_written_read_listed_removed(self, place):
        assert not storage.exists(place / "a/b.txt") and not storage.is_folder(place / "a")
        assert storage.listed(place / "a", "*.txt") == []
        storage.write_bytes(place / "a/b.txt", b"first")
        storage.write_bytes(place / "a/b.txt", b"second")
        storage.write_bytes(place / "a/deep/c.txt", b"")
        assert storage.read_text(place / "a/b.txt") == "second" and storage.is_folder(place / "a")
        assert storage.listed(place / "a", "*.txt") == [place / "a/b.txt"]
        assert storage.listed(place, "a/*/*.txt") == [place / "a/deep/c.txt"]
        with storage.fetched(place / "a/b.txt") as local:
            assert local.read_bytes() == b"second"
        for _ in range(2):
            storage.remove(place / "a/b.txt")
        assert not storage.exists(place / "a/b.txt") and storage.exists(place / "a/deep/c.txt")
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(place / "a/b.txt")
        storage.remove_folder(place / "a")
        assert not storage.is_folder(place / "a")

    def test_an_interrupted_write_leaves_what_was_there(self, place):
        storage.write_bytes(place / "file", b"old")
        with pytest.raises(KeyboardInterrupt), storage.atomic(place / "file") as temporary:
            temporary.write_bytes(b"ha")
            raise KeyboardInterrupt
        assert storage.read_bytes(place / "file") == b"old" and storage.listed(place, "*") == [place / "file"]

    def test_lines_are_added(self, place):
        storage.make_folder(place)
        for line in ("one", "two"):
            storage.append(place / "lines", line)
        assert storage.read_text(place / "lines") == "one\ntwo\n"

    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        target = tmp_path / "part.parquet"
        storage.write_bytes(target, b"old")

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            storage.write_bytes(target, b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"] and target.read_bytes() == b"old"

    def test_names_of_temporary_files_do_not_depend_on_the_process(self, tmp_path, monkeypatch):
        """On two machines that share a folder, process ids and seeds may be the same."""
        monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: iter(["same", "other"]))
        with storage.atomic(tmp_path / "file") as first, storage.atomic(tmp_path / "file") as second:
            assert first != second


class TestPlaces:
    @pytest.mark.parametrize("text", ["s3://faces/a/b", "s3:/faces/a/b"])
    def test_one_place_however_it_is_written(self, text):
        path = Path(text)
        assert storage.is_remote(path) and storage.absolute(path) == path == Path("s3:/faces/a/b")
        assert storage.uri(path) == "s3://faces/a/b"

    def test_a_folder_stays_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert storage.absolute(Path("runs")) == tmp_path / "runs" and storage.uri(Path("runs/a")) == "runs/a"
        assert not any(storage.is_remote(Path(text)) for text in ("", "s3", "a/s3:/b", "s3:x"))

    @pytest.mark.parametrize("text", ["s3://key:secret@faces/a", "https://me:secret@host/a", "gs://secret@faces"])
    def test_passwords_are_refused_and_not_repeated(self, text, tmp_path):
        for use in (storage.absolute, lambda path: RunFolder.open(path, "x", {}, {}), shards.read_manifest):
            with pytest.raises(ValueError, match="holds a name or a password") as refused:
                use(Path(text))
            assert "secret" not in str(refused.value)

    def test_no_variable_of_the_environment_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        folder = stage1(Pretrain, layouts.prepared_pictures(tmp_path), tmp_path / "runs").open()
        kept = {path.name: path.read_text() for path in folder.path.iterdir()}
        assert {"config.json", "env.json"} <= kept.keys() and not any("a-secret" in text for text in kept.values())

    @pytest.mark.parametrize(("text", "message"), [("https://host/a", "a place is a folder, s3"), ("s3:", "no bucket")])
    def test_what_is_no_place(self, text, message):
        with pytest.raises(ValueError, match=message):
            storage.absolute(Path(text))


class TestLocks:
    def test_one_process_at_a_time(self, place):
        storage.make_folder(place)
        for _ in range(2):  # given back at the end
            busy = pytest.raises(ValueError, match="another process is training ")
            with locks.held(place), busy, locks.held(place):
                pytest.fail("trained by two")

    @pytest.mark.slow
    def test_what_is_no_longer_renewed_is_given_up(self, server, monkeypatch):
        place = Path("s3://faces/given-up")
        storage.write_bytes(place / ".lock/dead", b"")
        message = r"ended without a word less than 60 seconds ago \(dead\)"
        with pytest.raises(ValueError, match=message), locks.held(place):
            pytest.fail("did not look")
        monkeypatch.setattr(locks, "LEASE", 0.0)  # its time is over
        with locks.held(place):
            pass


@pytest.mark.slow
class TestStore:
    def test_a_refused_request_is_made_again_and_a_broken_store_is_named(self, server, monkeypatch):
        asked = refusing(monkeypatch, storage.ATTEMPTS - 1)
        storage.write_bytes(Path("s3://faces/again"), b"there")
        assert asked == ["faces/again"] * storage.ATTEMPTS
        assert storage.read_bytes(Path("s3://faces/again")) == b"there"
        asked = refusing(monkeypatch, storage.ATTEMPTS)
        with pytest.raises(OSError, match="s3://faces/never: AWS Error SLOW_DOWN"):
            storage.write_bytes(Path("s3://faces/never"), b"lost")
        assert not storage.exists(Path("s3://faces/never"))

    def test_what_cannot_mend_is_asked_once(self, server, monkeypatch):
        asked = refusing(monkeypatch, 0)
        with pytest.raises(OSError, match=r"s3://nobodys/a: .*NO_SUCH_BUCKET"):
            storage.write_bytes(Path("s3://nobodys/a"), b"lost")
        assert asked == ["nobodys/a"]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_photographs_straight_from_a_bucket(self, quiet_ray, server, tmp_path, monkeypatch, workers):
        """The shards of the same folder on a disk, byte for byte; broken objects are set aside, none is copied first.

        The list of landmarks lies in the bucket as well, and names an object that is not there.
        """
        monkeypatch.setattr(prepare, "AT_ONCE", 3)  # shards: the eight go to Ray in turns
        raw, bucket = tmp_path / "raw", Path(f"s3://faces/photographs-{workers}")
        for number in range(20):
            layouts.picture(raw / f"deep/{number}.png", 30 + number, 40)
        (raw / "broken.jpg").write_bytes(b"no picture")
        (raw / "notes.txt").write_text("no picture either")
        (raw / ".hidden.png").write_bytes(b"")
        for path in raw.rglob("*.*"):
            storage.write_bytes(bucket / path.relative_to(raw), path.read_bytes())
        names = [f"deep/{number}.png" for number in range(0, 20, 2)]
        listing = layouts.coco(tmp_path / "marks.json", [*names, "missing.png", "../secret.png"])
        storage.write_bytes(bucket / "marks.json", listing.read_bytes())
        found = {}
        for way, root, marks in (("disk", raw, listing), ("bucket", bucket, bucket / "marks.json")):
            options = {"workers": 0 if way == "disk" else workers, "size": 16, "progress": False}
            made = prepare.prepare(Folder(raw=root), tmp_path / way / "all", **options)
            listed = prepare.prepare(Folder(raw=root, landmarks=marks), tmp_path / way / "listed", **options)
            loaded = shards.load(tmp_path / way / "listed", "train")
            found[way] = [
                (made.splits, made.quarantined),
                (loaded.ids, loaded.pixels.tolist(), loaded.landmarks.tolist()),
                [bad["image_id"] for bad in listed.quarantined],
            ]
        assert found["bucket"] == found["disk"]
        (splits, (bad,)), (ids, *_), missing = found["bucket"]
        assert splits["train"].count == 20 and sorted(ids) == sorted(names)
        assert bad == {"image_id": "broken.jpg", "reason": "cannot be read: cannot identify image file 'broken.jpg'"}
        assert missing == ["../secret.png", "missing.png"]
        assert f"--raw s3://faces/photographs-{workers} " in listed.command
        assert f"--landmarks s3://faces/photographs-{workers}/marks.json" in listed.command

    def test_a_store_that_fails_stops_preparing_and_no_image_is_blamed(self, server, tmp_path, monkeypatch):
        bucket = Path("s3://faces/failing")
        for name in ("a.png", "b.png"):
            layouts.picture(tmp_path / name, 30, 30)
            storage.write_bytes(bucket / name, (tmp_path / name).read_bytes())
        read = storage.read_bytes

        def fail(path: Path, most: int | None = None) -> bytes:
            if path.name == "b.png":
                raise OSError(f"{storage.uri(path)}: AWS Error INTERNAL_FAILURE")
            return read(path, most)

        options = {"workers": 0, "size": 16, "progress": False}
        with monkeypatch.context() as patch:
            patch.setattr(storage, "read_bytes", fail)
            with pytest.raises(OSError, match=r"s3://faces/failing/b\.png: .* run the same command again"):
                prepare.prepare(Folder(raw=bucket), tmp_path / "out", **options)
        assert prepare.prepare(Folder(raw=bucket), tmp_path / "out", **options).splits["train"].count == 2

    def test_other_data_sets_are_read_from_disks(self, tmp_path):
        with pytest.raises(ValueError, match=r"raw='s3://faces/celeba': only `prepare folder` reads an object store"):
            prepare.prepare(CelebA(raw=Path("s3://faces/celeba")), tmp_path, workers=0, progress=False)

    def test_from_photographs_to_errors_in_a_bucket(self, server, tmp_path, monkeypatch):
        """Prepare, train with checkpoints, evaluate: the same numbers as on a disk, through two failures of the store.

        The first, of one request, nobody notices; the second, of all, stops the run, and the same command goes on.
        """
        reader = CelebA(raw=layouts.celeba(tmp_path / "raw", images=40), partitions=("train", "val", "test"))
        ways = {"disk": tmp_path / "disk", "bucket": Path("s3://faces/whole")}
        runs = {}
        for way, root in ways.items():
            with monkeypatch.context() as patch:
                if way == "bucket":
                    refusing(patch, 1)
                prepare.prepare(reader, root / "data", workers=0, size=136, progress=False)
            run = stage1(Pretrain, root / "data", root / "runs", checkpoint_every=1)
            if way == "bucket":
                storing = storage._upload

                def broken(store, key, file, storing=storing):
                    if "step-00000005" in key:
                        raise OSError("AWS Error INTERNAL_FAILURE")
                    storing(store, key, file)

                with monkeypatch.context() as patch:
                    patch.setattr(storage, "_upload", broken)
                    with pytest.raises(OSError, match=r"INTERNAL_FAILURE; while writing .*free space, run again"):
                        launch.run(run)
                assert run.open().latest_checkpoint(torch.device("cpu"))["step"] == 4
            runs[way] = launch.run(run)
        disk, bucket = runs.values()
        assert bucket.path.parts[:2] == ("s3:", "faces") and losses(bucket) == losses(disk)
        assert len(losses(bucket)) == STEPS and storage.listed(bucket.path, "checkpoints/*") == []
        states = []
        for run in (disk, bucket):
            with storage.fetched(run.path / "encoder.safetensors") as local:
                states.append(load_file(local))
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        errors = [
            numbers(evaluate(Evaluate(run=runs[way].path, task="matching", data=root / "data", test_split="train")))
            for way, root in ways.items()
        ]
        assert errors[0] == errors[1] and errors[0]["pairs"] == 19
        assert len(storage.listed(bucket.path, "eval/*.json")) == 1


def test_the_clock_and_everyones_seeds_may_be_the_same_or_anything(tmp_path, monkeypatch):
    """A run depends on neither: set back, repeated, the loss curve is the same."""
    data = layouts.prepared_pictures(tmp_path)
    first = losses(launch.run(stage1(Pretrain, data, tmp_path / "first")))
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    random.seed(0)
    torch.manual_seed(0)
    assert losses(launch.run(stage1(Pretrain, data, tmp_path / "second"))) == first
    again = stage1(Pretrain, data, tmp_path / "second")
    assert launch.run(replace(again, workers=0)).path == again.open().path, "the same settings are the same run"
