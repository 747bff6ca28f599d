"""Lists on disk: the order of sorted(), lines as they came, and what is said where there is no room."""

import hashlib
import json
import sqlite3
import tracemalloc
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lead_ray.data import listing
from lead_ray.data.crops import Crop
from lead_ray.data.folder import Folder
from lead_ray.data.listing import Listing, in_order
from lead_ray.data.rows import Record
from lead_ray.images import packing, shards

names = st.text(st.characters(exclude_categories=()), max_size=6)  # surrogates, too: names that are not UTF-8 on disk


@given(st.lists(names))
def test_in_order_is_sorted(given):
    assert list(in_order(iter(given))) == sorted(given)


@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), names)), st.integers(0, 20), st.integers(0, 20))
def test_lines_come_back_as_they_came(given, start, length):
    kept: dict[str, list[str]] = {}
    for number, (split, _) in enumerate(given):
        kept.setdefault(split, []).append(str(number))
    with closing(Listing()) as found:
        found.add((split, image_id, str(number)) for number, (split, image_id) in enumerate(given))
        assert list(found.counts.items()) == [(split, len(lines)) for split, lines in kept.items()]
        for split, lines in kept.items():
            assert found.lines(split, start, start + length) == "\n".join(lines[start : start + length])
        twice = found.twice()
    assert (twice is None) == (len(set(given)) == len(given))
    assert twice is None or given.count(twice) > 1


def test_the_first_that_comes_twice_is_named():
    with closing(Listing()) as found:
        found.add(("train", name, "") for name in "xzzaay")
        assert found.twice() == ("train", "z")


def test_a_full_disk_is_said(monkeypatch):
    opened = sqlite3.connect

    def small(path: str) -> sqlite3.Connection:
        found = opened(path)
        found.execute("PRAGMA max_page_count = 8")
        return found

    monkeypatch.setattr(listing.sqlite3, "connect", small)
    with pytest.raises(OSError, match=r"the list of all images, kept in .* full\. Free some space, or .* TMPDIR"):
        list(in_order(f"{number:06}.jpg" for number in range(10_000)))
    with closing(Listing()) as found, pytest.raises(OSError, match="TMPDIR"):
        found.add(("train", f"{number:06}.jpg", "line") for number in range(10_000))


def planned(folder, count):
    reader = Folder(raw=folder, test_fraction=0.3)
    packs = packing.Packing(raw=folder, out=folder.parent / "out", crop=Crop(kind="centre"), encoding="jpeg")
    return reader, packs, [f"{number:07}.jpg" for number in reversed(range(count))]


def test_a_plan_is_what_it_would_be_in_memory(tmp_path, monkeypatch):
    """Digests name finished shards, and the checksum a prepared folder: those of before must be known again."""
    reader, packs, listed = planned(tmp_path / "raw", 9000)
    monkeypatch.setattr(packing.raw, "records", lambda _: reader.records_of(listed))
    with closing(packing.Plan(reader, packs)) as plan:
        items = [plan.item(part) for part in plan.parts]
    by_split = {}
    for name in sorted(listed):
        line = json.dumps([name, name, reader._split(name), None, None, [], None])
        by_split.setdefault(reader._split(name), []).append(line)
    stored, checksum, expected = json.dumps([shards.FORMAT_VERSION, asdict(packs.crop), "jpeg"]), hashlib.sha256(), []
    for split, lines in by_split.items():
        for ordinal, (start, end) in enumerate(shards.shard_bounds(len(lines))):
            records = "\n".join(lines[start:end])
            checksum.update(f"{split}\n{records}\n".encode())
            digest = hashlib.sha256(f"{stored}\n{records}".encode()).hexdigest()
            file = f"{split}/part-{ordinal:05d}.parquet"
            expected.append({"file": file, "rows": end - start, "digest": digest, "records": records})
    assert items == expected and len(items) > 2 * shards.LANES
    assert plan.checksum == checksum.hexdigest()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 64)  # all of one are in memory: these images make more than one lot

    def most(count: int) -> int:
        folder = tmp_path / str(count) / "raw"
        (folder / "deep").mkdir(parents=True)
        for number in range(count):
            (folder / "deep" / f"{number:07}.jpg").touch()
        reader, packs, _ = planned(folder, 0)
        tracemalloc.start()
        with closing(packing.Plan(reader, packs)) as plan:
            found = tracemalloc.get_traced_memory()[1]
            assert sum(part["rows"] for part in plan.parts) == count
        tracemalloc.stop()
        return found

    most(1000)  # what is kept from the first call on
    assert most(4000) - most(2000) < 2000 * 20, "more than twenty bytes an image"


def test_a_folder_is_walked_as_rglob_does(tmp_path):
    names = ("a.jpg", "b/c.PNG", "b/d/e.jpg", "b.jpg/f.jpg", ".hidden/g.jpg", "b/.h.jpg", "notes.txt")
    for name in names:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "raw" / "link").symlink_to(tmp_path / "raw" / "b")
    (tmp_path / "raw" / "link.jpg").symlink_to(tmp_path / "raw" / "a.jpg")
    found = [record.image_id for record in Folder(raw=tmp_path / "raw").records()]
    walked = (path.relative_to(tmp_path / "raw").as_posix() for path in (tmp_path / "raw").rglob("*"))
    assert found == [record.image_id for record in Folder(raw=tmp_path / "raw").records_of(walked)]
    assert found == ["a.jpg", "b.jpg", "b.jpg/f.jpg", "b/c.PNG", "b/d/e.jpg", "link.jpg"]


@pytest.mark.parametrize("raw", ["/", "/raw", "raw", "."])
@pytest.mark.parametrize("name", ["", ".", "a.jpg", "b/c.jpg", "../d.jpg", "/elsewhere/e.jpg"])
def test_a_line_has_paths_as_relative_to_says(raw, name):
    path = Path(raw) / name
    line = Record(image_id=name, path=path, split="train").to_json(Path(raw))
    expected = path.relative_to(raw) if path.is_relative_to(raw) else path
    assert json.loads(line)[1] == expected.as_posix()
    assert Record.from_json(line, Path(raw)).path == path
