"""The pictures of a folder: found in one walk of the file system, opened only when somebody looks."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lead_ray.data.folder import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures below a folder, sorted by path."""

    root: Path
    names: tuple[str, ...]
    """Paths below the folder, with forward slashes; bytes that are no UTF-8 as Python's surrogates."""
    keys: dict[str, int]
    """Key of every picture -> its place among the names. A request names pictures by key, never by path."""

    def path(self, name: str) -> Path:
        return self.root / name


def key(name: str) -> str:
    """Sixteen letters and digits that stand for a picture in an address, whatever its name is made of."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find(root: Path) -> Pictures:
    """All pictures below a folder; hidden files and folders are left out.

    Raises: FileNotFoundError if there is no such folder; ValueError if it holds no picture.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"images={str(root)!r} is not a folder: name the one that holds the pictures")
    names = sorted(_walk(os.fspath(root), ""))
    if not names:
        raise ValueError(f"images={str(root)!r} holds no image ({', '.join(sorted(SUFFIXES))})")
    return Pictures(root=root, names=tuple(names), keys={key(name): place for place, name in enumerate(names)})


def _walk(folder: str, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield prefix + entry.name
