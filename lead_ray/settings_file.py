"""Settings of a stage from a file, flags on top: `--config runs/stage1-.../config.json --seed 1`."""

import json
import sys
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lead_ray import storage
from lead_ray.usage import parsed

FLAG = "--config"
BESIDE = "matters"  # what config.json holds beside the settings; see RunFolder.open()
Settings = TypeVar("Settings")


def command_line(
    kind: type[Settings], arguments: Sequence[str] | None, description: str | None, prog: str | None = None
) -> Settings:
    """The settings that these words (None: this process's) ask for; those of a file named by --config are the defaults.

    Raises: ValueError, OSError naming the file, and the field in it, that is wrong. SystemExit for wrong flags.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    file = f"With {FLAG} FILE the settings of a run's config.json, or of a file like it; other flags go before them."
    said = f"{description or ''}\n{file}"
    default = {}
    if FLAG in words:
        place = words.index(FLAG)
        if place + 1 == len(words):
            raise ValueError(f"{FLAG} needs a file: a run's config.json, or one like it")
        default = {"default": read(kind, Path(words[place + 1]))}
        del words[place : place + 2]
    return parsed(kind, words, said, prog, **default)


def read(kind: type[Settings], file: Path) -> Settings:
    """The settings in a run's config.json, or in a file with some of its fields.

    Raises: FileNotFoundError; ValueError naming the field that is unknown or of a wrong type.
    """
    if not storage.exists(file):
        raise FileNotFoundError(f"config={str(file)!r} does not exist")
    try:
        content = json.loads(storage.read_text(file))
        if not isinstance(content, dict):
            raise ValueError("it must hold an object")
        content.pop(BESIDE, None)
        return _typed(kind, content, "")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"config={str(file)!r}: {error}") from error


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type that a field is annotated with."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _typed(get_args(kind)[0], value, name)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, name)
    if is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or (kinds[1:] != (...,) and len(kinds) != len(value)):
            raise ValueError(f"{name} must be a list of {len(kinds)}, got {value!r}")
        return tuple(_typed(kinds[0 if kinds[1:] == (...,) else i], item, name) for i, item in enumerate(value))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_args(kind):  # Literal
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {get_args(kind)}, got {value!r}")
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} must be {kind.__name__}, got {value!r}")
    return value


def _dataclass(kind: type, value: Any, name: str) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name for field in fields(kind)}
    if not isinstance(value, dict) or not value.keys() <= known:
        unknown = sorted(value.keys() - known) if isinstance(value, dict) else value
        raise ValueError(f"{name or 'it'} has no field {unknown!r}; there are {', '.join(sorted(known))}")
    return kind(**{key: _typed(hints[key], item, f"{name}.{key}".lstrip(".")) for key, item in value.items()})


def _one_of(kinds: Sequence[Any], value: Any, name: str) -> Any:
    """The first type that the value fits; of several dataclasses that is the one that has all of its fields and no
    others, for a file does not say which."""
    if value is None and type(None) in kinds:
        return None
    whole = [kind for kind in kinds if _fields_of(kind) is not None and _fields_of(kind) == _keys(value)]
    refused = []
    for kind in whole or [kind for kind in kinds if kind is not type(None)]:
        try:
            return _typed(kind, value, name)
        except ValueError as error:
            refused.append(str(error))
    raise ValueError("; or ".join(refused) or f"{name} must not be {value!r}")


def _fields_of(kind: Any) -> set[str] | None:
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return {field.name for field in fields(kind)} if is_dataclass(kind) else None


def _keys(value: Any) -> set[str] | None:
    return set(value) if isinstance(value, dict) else None
