"""One shard -> its images. Processes that do nothing else import this, so it imports no torch."""

from pathlib import Path
from typing import Any

import numpy as np

from lead_ray.images.shards import Shard, decode, mending, read_shard


def decode_shard(folder: Path, shard: Shard, *, size: int, command: str) -> np.ndarray:
    """All images of one shard: uint8 [rows, size, size, 3], RGB.

    Raises: ValueError naming the file and the command that mends it: it is missing, cut short or altered.
    """
    rows = read_shard(folder, shard, command=command, columns=["image"])
    with mending(folder, shard, command):
        return decode(rows["image"].to_pylist(), size)


def decode_row(row: dict[str, Any], *, folder: Path, shards: list[Shard], size: int, command: str) -> dict[str, Any]:
    """{"item": number among the shards} -> {"pixels", "error": what decode_shard raises, or ""}.

    For Ray Data, which would wrap an error beyond recognition.
    """
    try:
        return {"pixels": decode_shard(folder, shards[row["item"]], size=size, command=command), "error": ""}
    except ValueError as error:
        return {"pixels": np.empty((0, size, size, 3), np.uint8), "error": str(error)}
