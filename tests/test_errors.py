"""What a person at a terminal meets when something is wrong."""

import pytest

from lead_ray import cli
from lead_ray.errors import WorkerError, for_people


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError, WorkerError])
def test_one_line_and_exit_code_1(kind):
    with pytest.raises(SystemExit) as stopped, for_people("dense"):
        raise kind("stage1=x holds nothing")
    assert stopped.value.code == "lead-ray dense: stage1=x holds nothing"


def test_ctrl_c(capsys):
    with pytest.raises(SystemExit) as stopped, for_people("dense"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert said == "lead-ray dense: interrupted; the same command goes on from the last checkpoint\n"


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(TypeError), for_people("dense"):
        raise TypeError("not the user's")


def test_help_lists_every_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lead-ray"])
    cli.main()
    printed = capsys.readouterr().out
    assert all(command in printed for command in cli.COMMANDS)
