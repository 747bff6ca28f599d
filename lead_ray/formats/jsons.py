"""What the JSON formats share: lists that are written piece by piece, entries that are checked, short numbers."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np


def load(path: Path) -> Any:
    """Raises: ValueError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def write_list(file: TextIO, entries: Iterable[Any]) -> None:
    """A JSON list, an entry a line."""
    file.write("[")
    for number, entry in enumerate(entries):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(entry))
    file.write("\n]")


def number(value: float | np.floating) -> float:
    """A float32 as the shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


def entries(where: str, content: Any, key: str) -> Iterator[tuple[str, dict]]:
    """The objects in a list, each with the words that say where it is.

    Raises: ValueError if it is no such list.
    """
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{where}: {key!r} must be a list of objects")
    return ((f"{where}: {key}[{position}]", entry) for position, entry in enumerate(found))


def field(where: str, entry: dict, key: str, kind: type | tuple[type, ...]) -> Any:
    """Raises: ValueError if it is missing or of another kind."""
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {key!r} must be {names}, got {value!r}")
    return value


def numbers(where: str, entry: dict, key: str, count: int | None = None) -> list[float]:
    """Raises: ValueError if it is not a list of so many numbers."""
    values = field(where, entry, key, list)
    good = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not good or count not in (None, len(values)):
        raise ValueError(f"{where}: {key!r} must hold {count or 'only'} numbers, got {values[:6]}")
    return [float(value) for value in values]
