"""CelebA, aligned, and its subset MAFL: 178x218 photographs with five landmarks (Liu et al., ICCV 2015).

The official folders (`Img/img_align_celeba`, `Anno`, `Eval`) are read where the download puts them, or all
directly under `raw` as torchvision keeps them. MAFL's two lists come from
github.com/zhzhanp/TCDCN-face-alignment: put its `MAFL` folder beside them. Landmarks: left eye, right eye,
nose, left and right mouth corner; "left" in the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from lead_ray.data.rows import Crop, Record

Partition = Literal["train", "val", "test"]
PARTITIONS: tuple[Partition, ...] = ("train", "val", "test")  # 0, 1, 2 in list_eval_partition.txt
ALIGNED = Crop(kind="window", window=(0, 30, 178, 178), source_size=(178, 218), exact_centres=False)
"""Rows 30..207, all columns; landmarks y - 30, then x size / 178 (DVE's data_loaders.py@2085144, 583-719)."""


@dataclass(frozen=True, kw_only=True)
class CelebA:
    """CelebA's aligned faces for pretraining: every chosen partition goes to the split "train"."""

    name: ClassVar[str] = "celeba"
    raw: Path
    """Folder of the unpacked download."""
    partitions: tuple[Partition, ...] = ("train",)
    """Official partitions to take. All three without MAFL's test images is DVE's and CL's widest choice."""
    include_mafl_test: bool = False
    """Keep MAFL's test images (808 lie in CelebA's training partition): a leak if you then test on MAFL."""
    leave_out: Literal["mafl"] | None = None
    """mafl: its training images, too, as DVE and CL have it: 146,501 images of the training partition remain."""

    def __post_init__(self):
        check_partitions(self.partitions)
        check_mafl(self.include_mafl_test, self.leave_out)

    @property
    def crop(self) -> Crop:
        return ALIGNED

    def records(self) -> Iterator[Record]:
        names = pretraining_names(self.raw, self.partitions, self.include_mafl_test, self.leave_out)
        yield from _aligned(self.raw, [(name, "train") for name in names])


@dataclass(frozen=True, kw_only=True)
class Mafl:
    """MAFL: five landmarks on aligned faces; splits "train" and "test", each in ascending order of name."""

    name: ClassVar[str] = "mafl"
    raw: Path
    """Folder of CelebA's unpacked download, with MAFL's lists in MAFL/."""

    @property
    def crop(self) -> Crop:
        return ALIGNED

    def records(self) -> Iterator[Record]:
        yield from _aligned(self.raw, mafl_names(self.raw))


def check_partitions(partitions: tuple[Partition, ...]) -> None:
    if not partitions or len(set(partitions)) < len(partitions):
        raise ValueError(f"partitions must be one or more of {PARTITIONS}, each once, got {partitions}")


def check_mafl(include_test: bool, leave_out: str | None) -> None:
    if include_test and leave_out is not None:
        raise ValueError(f"include_mafl_test and leave_out={leave_out} exclude each other: give one of them")


def find(raw: Path, *candidates: str) -> Path:
    """The first of these paths that exists below `raw`.

    Raises: FileNotFoundError naming all that were tried.
    """
    for candidate in candidates:
        if (raw / candidate).exists():
            return raw / candidate
    raise FileNotFoundError(f"raw={str(raw)!r} holds none of: {', '.join(candidates)}")


def pretraining_names(
    raw: Path,
    partitions: tuple[Partition, ...],
    include_mafl_test: bool,
    leave_out: Literal["mafl"] | None = None,
) -> list[str]:
    """File names of the chosen partitions in the list's order, without MAFL's test images unless asked; or without any
    of MAFL's."""
    listing = find(raw, "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    wanted = {str(PARTITIONS.index(partition)) for partition in partitions}
    names = []
    for number, (name, code) in table(listing, columns=2):
        if code not in ("0", "1", "2"):
            raise ValueError(f"{listing}, line {number}: partition must be 0, 1 or 2, got {code!r}")
        if code in wanted:
            names.append(name)
    if include_mafl_test:
        return names
    held_out = {name for name, split in mafl_names(raw) if split == "test" or leave_out == "mafl"}
    return [name for name in names if name not in held_out]


def mafl_names(raw: Path) -> list[tuple[str, str]]:
    """(file name, "train" or "test") from MAFL's lists, each split in ascending order."""
    splits = {"train": "training.txt", "test": "testing.txt"}
    listed = []
    for split, file in splits.items():
        rows = table(find(raw, f"MAFL/{file}"), columns=1)
        listed += [(name, split) for name in sorted(name for _, (name,) in rows)]
    return listed


def table(path: Path, *, columns: int, counted: bool = False) -> list[tuple[int, list[str]]]:
    """(line number, words) of every line of an annotation list; `counted`: below a count and a header line.

    Raises: ValueError naming the file and the line if a line has other columns or the count is wrong.
    """
    lines = list(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    rows = [(number, line.split()) for number, line in lines[2 if counted else 0 :] if line.strip()]
    for number, words in rows:
        if len(words) != columns:
            raise ValueError(f"{path}, line {number}: expected {columns} columns, got {len(words)}: {words[:12]}")
    if counted:
        stated = lines[0][1].strip() if lines else ""
        if stated != str(len(rows)):
            raise ValueError(f"{path}, line 1: states {stated!r} images, but {len(rows)} rows follow")
    return rows


def numbers(path: Path, columns: int) -> dict[str, np.ndarray]:
    """File name -> its float32 values, from a counted list.

    Raises: ValueError naming file and line for a value that is no number or a name that comes twice.
    """
    values: dict[str, np.ndarray] = {}
    for number, (name, *words) in table(path, columns=columns + 1, counted=True):
        try:
            row = np.array([float(word) for word in words], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if name in values:
            raise ValueError(f"{path}, line {number}: {name} is listed a second time")
        values[name] = row
    return values


def identities(raw: Path) -> dict[str, str]:
    """File name -> identity number, or nothing where the list (given out on request) is absent."""
    try:
        listing = find(raw, "Anno/identity_CelebA.txt", "identity_CelebA.txt")
    except FileNotFoundError:
        return {}
    return {name: identity for _, (name, identity) in table(listing, columns=2)}


def lookup(values: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in values:
        raise ValueError(f"{path} has no row for {name}, which the lists of this set name")
    return values[name]


def _aligned(raw: Path, names: list[tuple[str, str]]) -> Iterator[Record]:
    file = "list_landmarks_align_celeba.txt"
    listing = find(raw, f"Anno/{file}", file)
    folder = find(raw, "Img/img_align_celeba", "img_align_celeba/img_align_celeba", "img_align_celeba")
    points, identity = numbers(listing, 10), identities(raw)
    for name, split in names:
        yield Record(
            image_id=name,
            path=folder / name,
            split=split,
            identity=identity.get(name),
            landmarks=lookup(points, name, listing).reshape(5, 2),
        )
