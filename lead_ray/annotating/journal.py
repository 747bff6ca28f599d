"""Edits as lines of JSON, each on the disk before anyone is told that it is saved.

A kill or a power cut can only spoil the last line, which nobody was told of: opening drops it.
"""

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """The file of edits; one process may have it open."""

    def __init__(self, path: Path):
        """Open, or begin, a journal.

        Raises: ValueError if a line before the last is damaged: that was no kill.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rstrip(b"\0").rfind(b"\n") + 1]  # zeros: a power cut came before the data
        self.entries = _parsed(whole, path)
        """What was in the file when it was opened, oldest first."""
        self._file = path.open("ab", buffering=0)
        self._end = len(whole)
        self._file.truncate(self._end)
        os.fsync(self._file.fileno())
        _sync_folder(path.parent)  # else a power cut may forget that there is such a file

    def append(self, entry: dict[str, Any]) -> None:
        """Write one edit; it is on the disk when this returns.

        Raises: OSError when the disk is full or gone; the journal is then as it was before.
        """
        line = memoryview(json.dumps(entry).encode() + b"\n")  # ASCII: names of any bytes survive
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        self._file.close()


def _parsed(whole: bytes, path: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise ValueError(
                f"{path}: line {number} is no edit: the file was damaged, not cut short. "
                "Put a copy of it back, or take that line out to go on without it"
            )
        entries.append(entry)
    return entries


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
