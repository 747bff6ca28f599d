"""Files in local folders and in object stores, behind one set of functions.

A place is a `Path`. Where its first part is `s3:` or `gs:`, it lies in that object store, read and written by pyarrow
with the credentials that the machine has: `Path("s3://bucket/faces")` and `Path("s3:/bucket/faces")` are the same. An
object is written in one piece, so it is there whole or not at all, as a local file is that `atomic` wrote. No torch
here: processes that only prepare images import this.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TypeVar

import pyarrow.fs

STORES = ("s3:", "gs:")
ATTEMPTS = 4  # at a request that the store refuses for the moment, beside those that its client makes
FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE")  # no use in asking again
PAUSE = 1.0  # seconds before the second attempt; each later one waits four times as long
Answer = TypeVar("Answer")


def is_remote(path: Path) -> bool:
    """Whether it lies in an object store."""
    return path.parts[:1] != () and path.parts[0] in STORES


def absolute(path: Path) -> Path:
    """The place whatever folder a process stands in.

    Raises: ValueError if it is an address with a password in it, which would end in logs and settings, or one of a
      kind that is not read.
    """
    first = path.parts[0] if path.parts else ""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+:", first):
        if "@" in "".join(path.parts[1:2]):
            raise ValueError(
                f"an address {first}//...@... holds a name or a password: leave it out; credentials come from the "
                "machine's role, or from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if first not in STORES:
            raise ValueError(f"{uri(path)}: a place is a folder, s3://BUCKET/... or gs://BUCKET/...")
        if len(path.parts) < 2:
            raise ValueError(f"{first}// names no bucket")
        return path
    return path.absolute()


def uri(path: Path) -> str:
    """As other programs, and Ray, want it written."""
    first, *others = path.parts or ("",)
    return f"{first}//{'/'.join(others)}" if first.endswith(":") else str(path)


@cache
def _store(scheme: str, process: int) -> pyarrow.fs.FileSystem:
    """One client a process: what is forked must not share its threads."""
    if scheme == "s3:":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return pyarrow.fs.S3FileSystem(endpoint_override=endpoint, region=region)
    return pyarrow.fs.GcsFileSystem()


def _ask(path: Path, request: Callable[[pyarrow.fs.FileSystem, str], Answer]) -> Answer:
    """What the store answers to a request about a path; asked again when it fails.

    Raises: FileNotFoundError; OSError naming the place once it has failed ATTEMPTS times, or for good.
    """
    path = absolute(path)  # refuses passwords
    store, key = _store(path.parts[0], os.getpid()), "/".join(path.parts[1:])
    for attempt in range(ATTEMPTS):
        try:
            return request(store, key)
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == ATTEMPTS - 1 or any(word in str(error) for word in FINAL):
                raise OSError(f"{uri(path)}: {error}") from error
            time.sleep(PAUSE * 4**attempt)
    raise AssertionError("unreachable")


def exists(path: Path) -> bool:
    """Whether there is a file."""
    if not is_remote(path):
        return path.exists()
    return _ask(path, lambda store, key: store.get_file_info(key)).type == pyarrow.fs.FileType.File


def is_folder(path: Path) -> bool:
    """Whether there is a folder; in an object store, whether anything lies below it."""
    if not is_remote(path):
        return path.is_dir()
    return _ask(path, lambda store, key: store.get_file_info(key)).type == pyarrow.fs.FileType.Directory


def make_folder(path: Path) -> None:
    """Object stores need none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """All of it, or of an object in a store the first `most` bytes. Raises: FileNotFoundError, OSError."""
    if not is_remote(path):
        return path.read_bytes()

    def read(store: pyarrow.fs.FileSystem, key: str) -> bytes:
        with store.open_input_stream(key) as stream:
            return stream.read(most)

    return _ask(path, read)


def read_text(path: Path) -> str:
    """Raises: FileNotFoundError, OSError; UnicodeDecodeError, a ValueError."""
    return read_bytes(path).decode()


def write_bytes(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def append(path: Path, line: str) -> None:
    """Add a line to a text file. Object stores know no appending: there the whole file is written anew."""
    if is_remote(path):
        write_bytes(path, (read_bytes(path) if exists(path) else b"") + f"{line}\n".encode())
        return
    with path.open("ab+") as lines:
        if lines.tell():
            lines.seek(-1, os.SEEK_END)
            if lines.read(1) != b"\n":  # a kill cut this line short; appended to it, the next would be lost too
                lines.write(b"\n")
        lines.write(f"{line}\n".encode())


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary local file to write to; it takes `path`'s place, durably, on success and is gone on failure.

    Raises: OSError when it cannot be written.
    """
    remote = is_remote(path)
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=None if remote else path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if remote:
            _ask(path, lambda store, key: _upload(store, key, temporary))
            return
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _upload(store: pyarrow.fs.FileSystem, key: str, file: Path) -> None:
    # In one piece, which Ctrl-C cannot cut: however a stream is left, what went through it becomes an object.
    content = file.read_bytes()
    stream = store.open_output_stream(key)
    stream.write(content)
    stream.close()


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """The file itself, or a copy of the object while it is needed, for what reads only local files."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="lead-ray-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(read_bytes(path))
        yield copy


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose path from there matches, sorted; each * stands for part of one name."""
    return sorted(written(folder, pattern) if is_remote(folder) else folder.glob(pattern))


def written(folder: Path, pattern: str) -> dict[Path, float]:
    """Such objects of a store, and the seconds since 1970 at which each was written, by the store's clock."""
    selector = pyarrow.fs.FileSelector("/".join(folder.parts[1:]), allow_not_found=True, recursive="/" in pattern)
    found = _ask(folder, lambda store, _: store.get_file_info(selector))
    files = [info for info in found if info.type == pyarrow.fs.FileType.File]
    when = {Path(folder.parts[0], info.path): info.mtime_ns / 1e9 for info in files}
    return {place: seconds for place, seconds in when.items() if _matches(place.relative_to(folder), pattern)}


def names_below(folder: Path) -> Iterator[str]:
    """The names of all objects below a folder of a store, from there, in no order."""
    root = "/".join(folder.parts[1:])
    found = _ask(folder, lambda store, key: store.get_file_info(pyarrow.fs.FileSelector(key, recursive=True)))
    return (info.path.removeprefix(f"{root}/") for info in found if info.type == pyarrow.fs.FileType.File)


def _matches(path: Path, pattern: str) -> bool:
    parts, patterns = path.parts, pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
    elif exists(path):
        _ask(path, lambda store, key: store.delete_file(key))


def remove_folder(path: Path) -> None:
    """Remove a folder and everything below, if it is there."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif is_folder(path):
        _ask(path, lambda store, key: store.delete_dir(key))
