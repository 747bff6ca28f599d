"""The prepared form of a data set: Parquet shards below one folder, and a manifest that is written last.

    OUT/<split>/part-00000.parquet ...      rows of SCHEMA, in the data set's order across a split's shards
    OUT/manifest.json                       its presence means that everything is there

A split has a multiple of LANES shards, balanced to within one row; shard i belongs to lane i % LANES, so 1,
2, 4 or 8 workers each read files of their own. Images set aside while preparing are missing from their
shard.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lead_ray import storage
from lead_ray.images.pixels import decode
from lead_ray.machine import cores

if TYPE_CHECKING:  # writing shards, in many processes, needs no torch
    import torch

FORMAT_VERSION = 1
LANES = 8
ROWS_PER_SHARD = 512
LARGEST = 4096  # side of stored images, in pixels
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("identity", pa.string()),
        pa.field("box", pa.list_(pa.float32(), 4)),
        pa.field("landmarks", pa.list_(pa.list_(pa.float32(), 2)), nullable=False),
        pa.field("visible", pa.list_(pa.bool_()), nullable=False),
    ]
)
WITHOUT_BOX = [name for name in SCHEMA.names if name != "box"]
"""What is read of a shard if nobody asks for boxes: pyarrow before 26 stumbles over one that is null."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, its path relative to the folder of the manifest."""

    file: str
    rows: int
    sha256: str

    def __post_init__(self):
        if not re.fullmatch(r"(?!\.)[^/\\]+/part-\d+\.parquet", self.file):  # damaged shards are removed by this name
            raise ValueError(f"file must be SPLIT/part-NUMBER.parquet, got {self.file!r}")
        if not isinstance(self.rows, int) or self.rows < 0:
            raise ValueError(f"rows must be >= 0, got {self.rows!r}")


@dataclass(frozen=True, kw_only=True)
class Split:
    count: int
    landmarks: int
    """K, the number of landmarks of every image of the split; 0 for unlabelled images."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds and how it was made."""

    dataset: str
    protocol: dict
    """The crop that was applied: fields of data.rows.Crop."""
    size: int
    """Side of the stored images in pixels."""
    splits: dict[str, Split]
    quarantined: tuple[dict, ...]
    """{image_id, reason} of every image that could not be used."""
    source_checksum: str
    """sha256 over the names and annotations of all records, the raw folder's own place left out."""
    settings: dict
    """The reader's options and the encoding; preparing again with others is refused."""
    command: str
    """The command that made it, without --out."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self):
        if not isinstance(self.size, int) or not 8 <= self.size <= LARGEST:
            raise ValueError(f"size must be in 8..{LARGEST}, got {self.size!r}")

    @property
    def fingerprint(self) -> str:
        """What tells prepared data apart: the images and their annotations, how they were cropped and stored, and what
        came out of it."""
        made = {"source": self.source_checksum, "size": self.size, "protocol": self.protocol}
        files = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        text = json.dumps(made | {"dataset": self.dataset, "settings": self.settings, "files": files}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        storage.write_bytes(folder / "manifest.json", (json.dumps(asdict(self), indent=1) + "\n").encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder, checked.

    Raises: FileNotFoundError naming the command to run when there is none; ValueError when it is damaged.
    """
    path = Path(folder) / "manifest.json"
    storage.absolute(path)  # refuses what is no place
    if not storage.exists(path):
        there = storage.is_remote(path) or path.parent.exists()
        raise FileNotFoundError(
            f"{str(folder)!r} "
            + ("has no manifest.json: not prepared, or preparation was interrupted" if there else "does not exist")
            + f". Run: lead-ray prepare SET --raw RAW_DIR --out {folder}"
        )
    try:
        fields = json.loads(storage.read_text(path))
        version = fields["format_version"]
        if version == FORMAT_VERSION:
            for name, split in fields["splits"].items():
                shards = tuple(Shard(**shard) for shard in split.pop("shards"))
                fields["splits"][name] = Split(**split, shards=shards)
                if len(shards) % LANES or sum(shard.rows for shard in shards) != split["count"]:
                    raise ValueError(f"shards of split {name!r} do not add up to its count {split['count']}")
            return Manifest(**fields | {"quarantined": tuple(fields["quarantined"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run lead-ray prepare again") from error
    raise ValueError(f"{path} has format_version {version}, this code reads {FORMAT_VERSION}: prepare anew")


def shard_bounds(count: int) -> list[tuple[int, int]]:
    """Start and end of each shard of a split: a multiple of LANES, sizes that differ by one row at most."""
    if count < 1:
        raise ValueError(f"a split needs at least one image, got {count}")
    shards = LANES * -(-count // (LANES * ROWS_PER_SHARD))
    least, more = divmod(count, shards)
    return list(pairwise(accumulate((least + (i < more) for i in range(shards)), initial=0)))


def write_shard(path: Path, rows: Sequence[dict], *, plan: str, quarantined: Sequence[dict]) -> str:
    """Write one shard and return its sha256; `plan` is kept inside, so that a later run knows the file."""
    note = {"lead_ray.plan": plan, "lead_ray.quarantined": json.dumps(list(quarantined))}
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(note))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False)  # the images are compressed already
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Of the whole file, in hexadecimal digits."""
    with storage.fetched(path) as local, local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def select(manifest: Manifest, split: str, lanes: Sequence[int] | None = None) -> list[Shard]:
    """The shards of a split, or those of some lanes only, in order.

    Raises: ValueError for an unknown split or lane.
    """
    if split not in manifest.splits:
        raise ValueError(
            f"split must be one of {sorted(manifest.splits)}, got {split!r}: all that `{manifest.command}` prepared"
        )
    lanes = range(LANES) if lanes is None else lanes
    if not lanes or not set(lanes) <= set(range(LANES)) or len(set(lanes)) < len(lanes):
        raise ValueError(f"lanes must be one or more different numbers of 0..{LANES - 1}, got {list(lanes)}")
    return [shard for ordinal, shard in enumerate(manifest.splits[split].shards) if ordinal % LANES in lanes]


@contextmanager
def mending(folder: Path, shard: Shard, command: str) -> Iterator[Path]:
    """The shard's path; what goes wrong with it becomes a ValueError that names it and the command that mends it."""
    path = Path(folder) / shard.file
    try:
        yield path
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}). Mend it by: {command} --out {folder}") from error


def read_shard(
    folder: Path, shard: Shard, *, command: str, checksum: bool = True, columns: Sequence[str] = SCHEMA.names
) -> pa.Table:
    """The rows of one shard, still encoded.

    Raises: ValueError naming the file and the command that mends it: it is missing, cut short or altered.
    """
    with mending(folder, shard, command) as path:
        content = storage.read_bytes(path)
        if checksum and hashlib.sha256(content).hexdigest() != shard.sha256:
            raise ValueError("its sha256 is not the manifest's")
        table = pq.read_table(pa.BufferReader(content), schema=SCHEMA, columns=list(columns), partitioning=None)
        if table.num_rows != shard.rows:
            raise ValueError(f"{table.num_rows} rows, the manifest says {shard.rows}")
    return table


@dataclass(frozen=True, kw_only=True)
class Images:
    """Decoded images that stay in memory.

    Shapes: pixels uint8 [n, 3, H, W] RGB, stored channels last; landmarks float32 [n, K, 2]; visible bool
      [n, K]; n ids and n identities (None: unknown).
    Units: landmarks (x, y) in pixels of the stored image, the centre of the first at (0, 0).
    """

    pixels: "torch.Tensor"
    ids: list[str]
    identity: list[str | None]
    landmarks: np.ndarray
    visible: np.ndarray


def load(folder: Path | str, split: str, *, lanes: Sequence[int] | None = None, checksum: bool = True) -> Images:
    """All images of a split, or of some lanes of it, decoded; in the data set's order.

    Raises: FileNotFoundError, ValueError: not prepared, unknown split, a shard that is damaged.
    """
    import torch

    folder, manifest = Path(folder), read_manifest(Path(folder))
    shards = select(manifest, split, lanes)
    bounds = list(pairwise(accumulate((shard.rows for shard in shards), initial=0)))
    landmarks = manifest.splits[split].landmarks
    count, size = bounds[-1][1], manifest.size
    pixels = np.empty((count, size, size, 3), np.uint8)

    def read(shard: Shard, bound: tuple[int, int]) -> pa.Table:
        rows = read_shard(folder, shard, command=manifest.command, checksum=checksum, columns=WITHOUT_BOX)
        pixels[slice(*bound)] = decode(rows["image"].to_pylist(), size)
        return rows.drop_columns(["image"])

    with ThreadPoolExecutor(cores()) as pool:
        rows = pa.concat_tables(list(pool.map(read, shards, bounds)))
    return Images(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        ids=rows["image_id"].to_pylist(),
        identity=rows["identity"].to_pylist(),
        landmarks=np.array(rows["landmarks"].to_pylist(), np.float32).reshape(count, landmarks, 2),
        visible=np.array(rows["visible"].to_pylist(), bool).reshape(count, landmarks),
    )
