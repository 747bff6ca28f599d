"""Run folders: what a run leaves on disk, written so that a kill or a full disk never spoils what was finished.

    runs/<stage>-<name>-<hash of the settings that matter>/
        config.json  env.json  metrics.jsonl  checkpoints/step-00001000.pt  encoder.safetensors  result.json

and, with --encoder-every, encoders/step-00001000.safetensors. `result.json` is written last: where it exists the run is
finished and is never trained twice.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lead_ray import locks, storage
from lead_ray.machine import environment

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
    """storage.atomic(), for writers that report disks in their own way.

    Raises: OSError saying what to do when it cannot be written, whatever the writer calls that.
    """
    try:
        with storage.atomic(path) as temporary:
            yield temporary
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's, safetensors'
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:
            raise  # the accelerator's, not the disk's
        raise OSError(
            f"{error}; while writing {path}: what was finished before is untouched; free space, run again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=1) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(storage.read_text(path))


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
        folder = cls(storage.absolute(Path(out)) / f"{name}-{digest(matters)}")
        storage.make_folder(folder.path)
        if not storage.exists(folder.path / "config.json"):
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
        with locks.held(self.path):
            for pattern in (".*.tmp", "checkpoints/.*.tmp", "encoders/.*.tmp"):  # what a kill left half written
                for leftover in storage.listed(self.path, pattern):
                    storage.remove(leftover)
            yield

    @property
    def result(self) -> dict | None:
        """What the finished run reported; None while it is not finished."""
        path = self.path / "result.json"
        return read_json(path) if storage.exists(path) else None

    def finish(self, result: dict) -> None:
        """Mark the run finished; its checkpoints, which only served to resume it, go."""
        write_json(self.path / "result.json", result)
        storage.remove_folder(self.path / "checkpoints")

    def append_metrics(self, metrics: dict) -> None:
        """Add one line to metrics.jsonl."""
        storage.append(self.path / "metrics.jsonl", json.dumps(metrics))

    def metrics(self) -> list[dict]:
        """All metrics in step order; of a step repeated after a resume, the last."""
        path = self.path / "metrics.jsonl"
        by_step = {}
        for line in storage.read_text(path).splitlines() if storage.exists(path) else []:
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
            storage.remove(old)
        return path

    def encoder(self, step: int) -> Path:
        """Where the encoder after so many steps is, if it is one of those that stay."""
        return self.path / "encoders" / f"step-{step:08d}.safetensors"

    def encoders(self) -> dict[int, Path]:
        """Those that are there, by steps, in rising order."""
        return {_steps(path): path for path in storage.listed(self.path / "encoders", "step-*.safetensors")}

    def kept_step(self) -> int:
        """Steps after which the newest checkpoint was kept, readable or not; 0 without any."""
        return max(map(_steps, self._checkpoints()), default=0)

    def latest_checkpoint(self, device: torch.device) -> dict | None:
        """The state of the newest readable checkpoint, or None.

        A damaged file is passed over for the one before it, and named: on stderr, or in the error if none is left.
        """
        damaged = []
        for path in reversed(self._checkpoints()):
            try:
                with storage.fetched(path) as local:
                    state = torch.load(local, map_location=device, weights_only=True)
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
        return storage.listed(self.path / "checkpoints", "step-*.pt")


def _steps(path: Path) -> int:
    """After how many a checkpoint or an encoder was kept."""
    return int(path.stem.removeprefix("step-"))
