"""Records -> the files of a prepared folder, one shard at a time; nothing here knows how the work is spread.

A shard's plan lists its records and carries a digest over them and the way they are stored. The digest is
kept in the file: an interrupted run finds what is done, and a file made from other records is never
mistaken for it.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from lead_ray import storage
from lead_ray.data.listing import Listing
from lead_ray.data.rows import BadImage, Crop, Reader, Record, render
from lead_ray.images import raw, shards
from lead_ray.images.shards import Manifest, Shard, Split

Encoding = Literal["jpeg", "png"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the photographs are, where the shards go and how an image is stored."""

    raw: Path
    out: Path
    crop: Crop
    encoding: Encoding


class Plan:
    """What each shard will hold; the records themselves are on disk until they are asked for.

    Raises: ValueError for no image, an image listed twice in a split, or a varying number of landmarks; OSError if
      their list does not fit the disk.
    """

    landmarks: dict[str, int]
    """Split -> how many landmarks each of its images has."""
    parts: list[dict]
    """{file, rows, digest} of every shard."""
    checksum: str
    """Of all names and annotations."""

    def __init__(self, reader: Reader, packing: Packing):
        self._listing = Listing()
        try:
            self.landmarks = self._listed(reader, packing)
            self._cut(packing)
        except BaseException:
            self.close()
            raise

    def item(self, part: dict) -> dict:
        """One of the parts with its records, as lines of JSON: what make_shard() is given."""
        return part | {"records": self._listing.lines(*self._where[part["file"]])}

    def close(self) -> None:
        """Give the disk back."""
        self._listing.close()

    def _listed(self, reader: Reader, packing: Packing) -> dict[str, int]:
        where, landmarks = f"raw={str(reader.raw)!r}", {}

        def lines() -> Iterator[tuple[str, str, str]]:
            for record in raw.records(reader):
                expected = landmarks.setdefault(record.split, len(record.landmarks))
                if len(record.landmarks) != expected:
                    found = f"{record.image_id} has {len(record.landmarks)} landmarks, the images before it {expected}"
                    raise ValueError(f"{where}: {found}")
                yield record.split, record.image_id, record.to_json(packing.raw)

        self._listing.add(lines())
        if not landmarks:
            raise ValueError(f"{where} holds no image that these settings select")
        if twice := self._listing.twice():
            raise ValueError(f"{where}: {twice[1]} comes twice in split {twice[0]!r}")
        return landmarks

    def _cut(self, packing: Packing) -> None:
        """Into shards, each with its digest."""
        self.parts, self._where = [], {}
        stored = json.dumps([shards.FORMAT_VERSION, dataclasses.asdict(packing.crop), packing.encoding])
        checksum = hashlib.sha256()
        for split, count in self._listing.counts.items():
            for ordinal, (start, end) in enumerate(shards.shard_bounds(count)):
                file = f"{split}/part-{ordinal:05d}.parquet"
                self._where[file] = split, start, end
                records = self._listing.lines(split, start, end)
                checksum.update(f"{split}\n{records}\n".encode())
                digest = hashlib.sha256(f"{stored}\n{records}".encode()).hexdigest()
                self.parts.append({"file": file, "rows": end - start, "digest": digest})
        self.checksum = checksum.hexdigest()


def read_note(path: Path) -> tuple[str, list[dict], int] | None:
    """(plan, quarantined, rows) that write_shard() left in a finished shard; None if this is not one."""
    try:
        with storage.fetched(path) as local:
            footer = pq.read_metadata(local)
        note = footer.metadata or {}
        return note[b"lead_ray.plan"].decode(), json.loads(note[b"lead_ray.quarantined"]), footer.num_rows
    except (OSError, KeyError, ValueError):  # pa.ArrowInvalid, for a file cut short, is a ValueError
        return None


def make_shard(item: dict, packing: Packing) -> dict:
    """Do one plan, or recognise that it is done; returns {file, rows, sha256, quarantined, error}, all small.

    A finished shard that misses images is made again: they may have been mended since.
    An OSError of the disk comes back as `error`: raised in another process, it would arrive wrapped.
    """
    path, rows, bad = packing.out / item["file"], [], []
    note = read_note(path)
    if note is not None and note[0] == item["digest"] and not note[1]:
        done = {"rows": note[2], "sha256": shards.file_sha256(path), "quarantined": [], "error": ""}
        return {"file": item["file"]} | done
    records = [Record.from_json(line, packing.raw) for line in item["records"].splitlines()]
    sha256, error = "", ""
    try:
        with closing(raw.contents(records, packing.raw)) as contents:
            for record, content in zip(records, contents, strict=True):
                try:
                    check_name(record, packing.raw)
                    rows.append(render(record, packing.crop, encoding=packing.encoding, content=content()))
                except BadImage as reason:
                    bad.append({"image_id": legible(record.image_id), "reason": legible(str(reason))})
        sha256 = shards.write_shard(path, rows, plan=item["digest"], quarantined=bad)
    except OSError as failure:
        error = str(failure)
    return {"file": item["file"], "rows": len(rows), "sha256": sha256, "quarantined": bad, "error": error}


def check_name(record: Record, folder: Path) -> None:
    """What a list may name: a file below the raw folder. Links are followed, for many keep their pictures so.

    Raises: BadImage for a path that leads out of it by its words alone, and for a name that is no text.
    """
    if not raw.below(record.path, folder):
        raise BadImage(f"is listed as {record.path}, which is not below {folder}")
    try:
        f"{record.image_id}{record.identity}".encode()
    except UnicodeEncodeError:
        raise BadImage("has a name that is not UTF-8: rename the file") from None


def legible(text: str) -> str:
    """As it may be shown on a terminal: a stranger's list may hold control sequences in its names."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def describe(reader: Reader, packing: Packing) -> dict:
    """The fields of the manifest that say how it was made; equal for two runs that make the same files.

    A reader's field with metadata={"matters": False} changes no file and is left out.
    """
    kept = [f.name for f in dataclasses.fields(reader) if f.name != "raw" and f.metadata.get("matters", True)]
    options = {name: getattr(reader, name) for name in kept}
    crop = packing.crop
    words = ["lead-ray", "prepare", reader.name, "--raw", storage.uri(reader.raw)]
    defaults = {f.name: f.default for f in dataclasses.fields(reader)} | {"encoding": "jpeg", "size": 136}
    for key, value in (options | {"encoding": packing.encoding, "size": crop.size}).items():
        if value != defaults[key]:
            flag = key.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{flag}", *(storage.uri(one) if isinstance(one, Path) else str(one) for one in values)]
    plain = {"settings": options | {"encoding": packing.encoding}, "protocol": dataclasses.asdict(crop)}
    plain = json.loads(json.dumps(plain, default=str))
    return {"dataset": reader.name, "size": crop.size, "command": shlex.join(words)} | plain


def prepared(out: Path, made: dict, checksum: str) -> Manifest | None:
    """The manifest if `out` is complete and whole; damaged shards are removed, so that they are made again.

    Raises: ValueError naming the setting that differs from what `out` was prepared with.
    """
    if not storage.exists(out / "manifest.json"):
        return None
    manifest = shards.read_manifest(out)
    before = {"dataset": manifest.dataset, "size": manifest.size} | manifest.settings | manifest.protocol
    now = {"dataset": made["dataset"], "size": made["size"]} | made["settings"] | made["protocol"]
    refused = "choose another --out, or delete that folder to prepare it anew"
    for key in before | now:
        if before.get(key) != now.get(key):
            change = f"{key}={before.get(key)!r}, now {key}={now.get(key)!r}"
            raise ValueError(f"out={str(out)!r} was prepared with {change}: {refused}")
    if manifest.source_checksum != checksum:
        raise ValueError(f"out={str(out)!r} was prepared from other names or annotations: {refused}")
    files = [shard for split in manifest.splits.values() for shard in split.shards]

    def whole(shard: Shard) -> bool:
        path = out / shard.file
        return storage.exists(path) and shards.file_sha256(path) == shard.sha256

    with ThreadPoolExecutor() as pool:
        damaged = [shard for shard, good in zip(files, pool.map(whole, files), strict=True) if not good]
    if not damaged:
        return manifest
    storage.remove(out / "manifest.json")  # its presence means complete
    for shard in damaged:
        storage.remove(out / shard.file)
    return None


def collect_splits(results: Sequence[dict], landmarks: dict[str, int], out: Path) -> dict[str, Split]:
    """The manifest's splits from the results of all plans, in the plans' order.

    Raises: ValueError if a split has no usable image; OSError if a file cannot be seen from this machine.
    """
    splits = {}
    for name, points in landmarks.items():
        mine = [result for result in results if result["file"].startswith(f"{name}/")]
        seen = set(storage.listed(out, f"{name}/part-*.parquet"))
        count = sum(result["rows"] for result in mine)
        if not count:
            bad = [image for result in mine for image in result["quarantined"]]
            raise ValueError(f"no image of split {name!r} can be used: {summary(bad)}")
        files = tuple(Shard(file=r["file"], rows=r["rows"], sha256=r["sha256"]) for r in mine)
        for shard in files:
            if out / shard.file not in seen and not storage.exists(out / shard.file):  # a listing may be late
                raise OSError(f"{shard.file} was written by a machine whose {out} is not this one's")
        splits[name] = Split(count=count, landmarks=points, shards=files)
    return splits


def remove_leftovers(out: Path, expected: set[str]) -> None:
    """Shards that an interrupted run with other settings left behind.

    Raises: ValueError if a file is none of ours.
    """
    for path in storage.listed(out, "*/part-*.parquet"):
        if path.relative_to(out).as_posix() not in expected:
            if read_note(path) is None:
                raise ValueError(f"{path} is not a shard of this data set: choose another --out or remove it")
            storage.remove(path)


def summary(quarantined: Sequence[dict]) -> str:
    """How many images were set aside, and why the first five."""
    first = "; ".join(f"{image['image_id']} {image['reason']}" for image in quarantined[:5])
    more = "; ..." if len(quarantined) > 5 else ""
    images = "1 image" if len(quarantined) == 1 else f"{len(quarantined)} images"
    return f"{images} set aside{': ' if first else ''}{first}{more}"
