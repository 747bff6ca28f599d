"""Run folders: what a run leaves on disk, written so that a kill or a full disk never spoils what was finished.

    runs/<stage>-<name>-<hash of the settings that matter>/
        config.json  env.json  metrics.jsonl  checkpoints/step-00001000.pt  encoder.safetensors  result.json

`result.json` is written last: where it exists the run is finished and is never trained twice.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lead_ray.machine import environment

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KEPT_CHECKPOINTS = 2


def plain(value: Any) -> Any:
    """Settings as JSON can hold them: dataclasses become dicts, paths strings, tuples lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def digest(settings: dict) -> str:
    """Eight hexadecimal digits that name these settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary neighbour to write to; it takes `path`'s place on success and is gone on failure.

    Raises: OSError when it cannot be written, whatever the writer calls that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors report disks in their own way
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # the accelerator's, not the disk's
        raise OSError(
            f"{error}; while writing {path}: what was finished before is untouched; free space, run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def open(cls, out: Path, name: str, config: dict, matters: dict) -> "RunFolder":
        """The folder for these settings, made if new; an existing one must have been made by the same settings.

        Args:
            out: parent of all runs.
            name: beginning of the folder's name.
            config: every setting, kept for the reader.
            matters: the settings that change the result; they make the folder's name.
        """
        folder = cls(Path(out).absolute() / f"{name}-{digest(matters)}")
        folder.path.mkdir(parents=True, exist_ok=True)
        if not (folder.path / "config.json").exists():
            write_json(folder.path / "config.json", {**config, "matters": matters})
        elif (kept := read_json(folder.path / "config.json")["matters"]) != plain(matters):
            fields = sorted(key for key in kept.keys() | matters.keys() if kept.get(key) != plain(matters).get(key))
            raise ValueError(f"{folder.path} was made with other settings ({', '.join(fields)}): use another --name")
        if folder.result is None:  # a finished run keeps the environment that it was made in
            write_json(folder.path / "env.json", environment())
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training this run; the lock goes with this process, however it ends.

        Raises: ValueError if another process holds it.
        """
        with (self.path / ".lock").open("a") as lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ValueError(f"another process is training {self.path}") from error
            yield

    @property
    def result(self) -> dict | None:
        """What the finished run reported; None while it is not finished."""
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def finish(self, result: dict) -> None:
        """Mark the run finished; its checkpoints, which only served to resume it, go."""
        write_json(self.path / "result.json", result)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def append_metrics(self, metrics: dict) -> None:
        """Add one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("ab+") as lines:
            if lines.tell():
                lines.seek(-1, os.SEEK_END)
                if lines.read(1) != b"\n":  # a kill cut this line short; appended to it, the next would be lost too
                    lines.write(b"\n")
            lines.write(json.dumps(metrics).encode() + b"\n")

    def metrics(self) -> list[dict]:
        """All metrics in step order; of a step repeated after a resume, the last."""
        path = self.path / "metrics.jsonl"
        by_step = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that a kill cut short
            by_step[entry["step"]] = entry
        return [by_step[step] for step in sorted(by_step)]

    def save_checkpoint(self, step: int, state: dict) -> Path:
        """Keep what resuming after `step` finished steps needs; older checkpoints but one go."""
        path = self.path / "checkpoints" / f"step-{step:08d}.pt"
        with atomic(path) as temporary:
            torch.save({"step": step, **state}, temporary)
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink()
        return path

    def latest_checkpoint(self, device: torch.device) -> dict | None:
        """The state of the newest readable checkpoint, or None.

        A damaged file is passed over for the one before it, and named: on stderr, or in the error if none is left.
        """
        damaged = []
        for path in reversed(self._checkpoints()):
            try:
                state = torch.load(path, map_location=device, weights_only=True)
            except Exception as error:  # damage shows as almost any of them, pickle's and KeyError included
                damaged.append(f"{path.name} ({type(error).__name__})")
                continue
            if damaged:
                print(f"{self.path}: going on from {path.name}; cannot read {', '.join(damaged)}", file=sys.stderr)
            return state
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.path / 'checkpoints'} can be read: {'; '.join(damaged)}. "
                "Delete them to start this run again from its first step"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.pt"))
