"""Lists on disk: the order of sorted(), lines as they came, and what is said where there is no room."""

import hashlib
import json
import sqlite3
import tracemalloc
from contextlib import closing
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lead_ray.data import listing
from lead_ray.data.crops import Crop
from lead_ray.data.folder import Folder
from lead_ray.data.listing import Listing, in_order
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
        items = [plan.item(shard) for shard in plan.shards]
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


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    def most(count: int) -> int:
        reader, packs, _ = planned(tmp_path / "raw", 0)
        monkeypatch.setattr(packing.raw, "records", lambda _: reader.records_of(f"{n}.jpg" for n in range(count)))
        tracemalloc.start()
        with closing(packing.Plan(reader, packs)):
            found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    most(1000)  # what is kept from the first call on
    assert most(16_000) - most(8_000) < 8_000 * 20, "more than twenty bytes an image"
