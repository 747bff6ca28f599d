"""Run folders: what kills, full disks and other settings leave behind."""

import errno
import json
import resource
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lead_ray import locks
from lead_ray.artefacts import RunFolder, atomic, environment, plain, write_json


class Killed(BaseException):
    """Not an error that anything handles."""


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    seed: int
    data: Path
    sides: tuple[int, int] = (3, 4)


def opened(out: Path, **changes) -> RunFolder:
    settings = plain(Settings(**{"seed": 0, "data": Path("faces")} | changes))
    return RunFolder.open(out, "stage1-lead", settings, settings)


class TestAtomic:
    def test_takes_the_place_of_the_old_file(self, tmp_path):
        path = tmp_path / "new/folder/file.json"
        write_json(path, {"a": 1})
        write_json(path, {"a": (Path("x"), None)})
        assert json.loads(path.read_text()) == {"a": ["x", None]}
        assert [p.name for p in path.parent.iterdir()] == ["file.json"]
        assert path.stat().st_mode & 0o777 == 0o644

    def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(self, tmp_path, monkeypatch):
        path = tmp_path / "file.json"
        write_json(path, "old")

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=rf"No space left on device; while writing {path}: .* free space, run again"):
            write_json(path, "new")
        assert json.loads(path.read_text()) == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file.json"]

    @pytest.mark.parametrize("writer", [torch.save, save_file])
    def test_as_torch_and_safetensors_meet_it(self, tmp_path, writer):
        """They raise errors of their own; a limit on the size of files stands in for the disk."""
        path, limit = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
        path.write_bytes(b"old")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
            with pytest.raises(OSError, match="free space, run again"), atomic(path) as temporary:
                writer({"a": torch.zeros(10_000)}, temporary)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError, KeyError])
    def test_what_is_not_the_disks_fault_stays_what_it_is(self, tmp_path, kind):
        with pytest.raises(kind), atomic(tmp_path / "file"):
            raise kind("not the disk's")

    def test_a_kill_leaves_no_temporary_file_either(self, tmp_path):
        with pytest.raises(Killed), atomic(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise Killed
        assert not list(tmp_path.iterdir())


class TestRunFolder:
    def test_holds_settings_and_environment(self, tmp_path):
        folder = opened(tmp_path)
        config = json.loads((folder.path / "config.json").read_text())
        assert config["matters"] == {"seed": 0, "data": "faces", "sides": [3, 4]}
        environment = json.loads((folder.path / "env.json").read_text())
        assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
        assert environment["cores"] >= 1 and environment["processor"]

    def test_settings_make_the_name(self, tmp_path):
        names = [opened(tmp_path, **changes).path.name for changes in ({}, {"seed": 1}, {"sides": (4, 3)}, {})]
        assert len(set(names)) == 3 and names[0] == names[3]
        assert all(name.startswith("stage1-lead-") for name in names)

    def test_other_settings_in_the_same_folder_are_refused_by_name(self, tmp_path):
        """As when two settings share a digest, or someone edited the file."""
        folder = opened(tmp_path)
        config = json.loads((folder.path / "config.json").read_text())
        config["matters"] |= {"seed": 7, "colour": "red"}
        write_json(folder.path / "config.json", config)
        with pytest.raises(ValueError, match=r"made with other settings \(colour, seed\): use another --name"):
            opened(tmp_path)

    def test_metrics_survive_a_line_cut_short(self, tmp_path):
        folder = opened(tmp_path)
        assert folder.metrics() == []
        for step in (2, 4, 6):
            folder.append_metrics({"step": step, "loss": 1.0})
        file = folder.path / "metrics.jsonl"
        file.write_bytes(file.read_bytes()[:-9])  # killed within step 6
        assert [line["step"] for line in folder.metrics()] == [2, 4]
        for step in (4, 6):  # resumed after step 2
            folder.append_metrics({"step": step, "loss": 2.0})
        assert [(line["step"], line["loss"]) for line in folder.metrics()] == [(2, 1.0), (4, 2.0), (6, 2.0)]

    def test_two_checkpoints_are_kept_and_the_newest_is_read(self, tmp_path):
        folder = opened(tmp_path)
        assert folder.latest_checkpoint(CPU) is None
        for step in (9, 10, 11):
            folder.save_checkpoint(step, {"value": torch.tensor(float(step))})
        assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == [
            "step-00000010.pt",
            "step-00000011.pt",
        ]
        assert folder.latest_checkpoint(CPU) == {"step": 11, "value": torch.tensor(11.0)}

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-10],
            lambda data: data[: len(data) // 2],
            lambda data: b"",
            lambda data: bytes(len(data)),
            lambda data: b"A note of someone's.\n" * 9,
            lambda data: data.replace(b"collections", b"collectiona"),
            lambda data: b"\x80" + data,
        ],
    )
    def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(self, tmp_path, damage, capsys):
        folder = opened(tmp_path)
        state = nn.Linear(2, 2).state_dict()
        older, newer = (folder.save_checkpoint(step, {"learner": state}) for step in (1, 2))
        newer.write_bytes(damage(newer.read_bytes()))
        assert folder.latest_checkpoint(CPU)["step"] == 1
        assert "going on from step-00000001.pt; cannot read step-00000002.pt (" in capsys.readouterr().err
        older.write_bytes(damage(older.read_bytes()))
        with pytest.raises(ValueError, match=r"step-00000002.pt .*step-00000001.pt .*Delete them to start"):
            folder.latest_checkpoint(CPU)

    def test_nothing_but_tensors_and_numbers_is_unpickled(self, tmp_path):
        folder = opened(tmp_path)
        folder.save_checkpoint(1, {"learner": Path("code")})
        with pytest.raises(ValueError, match=r"no checkpoint .* can be read"):
            folder.latest_checkpoint(CPU)

    def test_finished_is_what_has_a_result(self, tmp_path):
        folder = opened(tmp_path)
        folder.save_checkpoint(1, {})
        (folder.path / "checkpoints/.step-00000002.pt.x1y2").write_bytes(b"left by a kill")
        assert folder.result is None
        folder.finish({"loss": 0.5})
        write_json(folder.path / "env.json", "another machine's")
        assert opened(tmp_path).result == {"loss": 0.5}
        assert json.loads((folder.path / "env.json").read_text()) == "another machine's"
        assert not (folder.path / "checkpoints").exists()

    def test_one_process_trains_it_at_a_time(self, tmp_path):
        """Each file that is opened has a lock of its own, as if in another process."""
        folder = opened(tmp_path)
        for _ in range(2):  # given back at the end
            with folder.locked():
                with pytest.raises(ValueError, match=f"another process is training {folder.path}"), folder.locked():
                    pytest.fail("trained by two")
                with opened(tmp_path, seed=1).locked():
                    pass

    def test_no_lock_where_there_is_no_fcntl(self, tmp_path, monkeypatch):
        monkeypatch.setattr(locks, "fcntl", None)
        with opened(tmp_path).locked(), opened(tmp_path).locked():
            pass

    def test_environment_needs_no_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert environment()["commit"] is None
