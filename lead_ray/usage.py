"""Command lines by tyro: help in paragraphs, whatever the lines of its source, and a word on flags misspelt."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

WRONG = 2  # tyro's exit code for words that it does not understand


def parsed(
    kind: Any, arguments: Sequence[str] | None, description: str | None, prog: str | None = None, **options: Any
) -> Any:
    """What these words (None: this process's) ask for, of a dataclass, a union of some, or a function, which is called.

    Raises: SystemExit for wrong words, and after --help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    said = None if description is None else paragraphs(description)
    try:
        found = tyro.cli(kind, args=words, prog=prog, description=said, registry=_in_paragraphs(), **options)
        sys.stdout.flush()
        return found
    except BrokenPipeError:
        if not {"-h", "--help"} & set(words):
            raise  # of the work that a function does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except SystemExit as stopped:
        if stopped.code == WRONG:
            for word, meant in misspelt(kind, words):
                print(f"no {word}; did you mean {' or '.join(meant)}?", file=sys.stderr)
        raise


def paragraphs(text: str) -> str:
    """Text whose single line breaks are spaces; commands, which begin with $, and indented lines stay as they are."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        if line.startswith("$"):
            line = re.sub(r"\s{2,}#", "  #", line)  # comments need not stand below each other
        elif line and line[0] != " " and lines and lines[-1] and lines[-1][0] not in "$ ":
            line = f"{lines.pop()} {line}"
        if line and not line[0].isalpha() and lines and not lines[-1]:
            lines.pop()  # tyro sets such a line apart by itself, and would by two with this one
        lines.append(line)
    return "\n".join(lines)


def _in_paragraphs() -> ConstructorRegistry:
    """tyro takes a docstring's further lines, which are indented, for lines to be kept."""
    registry, asking = ConstructorRegistry(), False

    @registry.struct_rule
    def unwrapped(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or not is_dataclass(info.type):
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)  # tyro's own
        finally:
            asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(replace(field, helptext=_joined(field.helptext)) for field in spec.fields))

    return registry


def _joined(helptext: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    def joined() -> str | None:
        text = helptext() if callable(helptext) else helptext
        return text and "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))

    return joined


def misspelt(kind: Any, words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag of a dataclass or a union that there is not, with those deeper down whose own name is like it.

    So --setps comes with --optim.steps. Of flags that are like it as a whole, tyro tells by itself.
    """
    known = dict.fromkeys(flags(kind))
    for word in words:
        name = word.partition("=")[0].removeprefix("--").replace("_", "-")
        if not word.startswith("--") or name in known or name.removeprefix("no-") in known:
            continue
        deeper = {flag: flag.rpartition(".")[2] for flag in known if "." in flag}
        like = get_close_matches(name.rpartition(".")[2], set(deeper.values()), cutoff=0.75)
        if meant := [f"--{flag}" for flag, last in deeper.items() if last in like]:
            yield word.partition("=")[0], meant


def flags(kind: Any, above: str = "") -> Iterator[str]:
    """Names of all flags of a dataclass or a union, those of subcommands too, without the dashes."""
    if get_origin(kind) is Annotated:
        yield from flags(get_args(kind)[0], above)
    elif is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            name = f"{above}{field.name.replace('_', '-')}"
            yield name
            yield from flags(hints[field.name], f"{name}.")
    elif get_args(kind):
        for one in get_args(kind):
            yield from flags(one, above)
