"""What the encoder said of whole images, kept in the project's folder: of 100,000 images some 50 MB."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lead_ray.storage import atomic

CHUNK = 256  # images a file; what a kill costs at most


class Embeddings:
    """Unit vectors by image name; files that are complete or not there."""

    def __init__(self, folder: Path | None = None):
        """Folder: None until open()."""
        self._rows: dict[str, np.ndarray] = {}
        self._new: list[str] = []
        self._parts = 0
        if folder is not None:
            self.open(folder)

    def open(self, folder: Path) -> None:
        """Read what is kept in a folder, and keep there what is added from now on."""
        self.folder = folder
        for path in sorted(folder.glob("part-*.npz")):
            with np.load(path, allow_pickle=False) as kept:
                # Names as bytes: they need not be text.
                names = kept["names"].tobytes().split(b"\0")[:-1]
                self._rows.update(zip(map(os.fsdecode, names), kept["vectors"], strict=True))
        self._parts = len(list(folder.glob("part-*.npz")))

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, names: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Raises: KeyError for an image that was not added."""
        return np.stack([self._rows[name] for name in names]).astype(np.float32)

    def add(self, names: Sequence[str], vectors: Float[np.ndarray, "n d"]) -> None:
        """Know them from now on; on the disk they are once there are CHUNK of them, or at flush()."""
        self._rows.update(zip(names, vectors.astype(np.float16), strict=True))
        self._new += names
        if len(self._new) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is not on the disk yet."""
        if self._new:
            joined = b"".join(os.fsencode(name) + b"\0" for name in self._new)
            vectors = np.stack([self._rows[name] for name in self._new])
            with atomic(self.folder / f"part-{self._parts:06d}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, names=np.frombuffer(joined, np.uint8), vectors=vectors)
            self._parts += 1
            self._new = []
