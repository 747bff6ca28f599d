"""What the commands say of themselves, and of words that they do not understand."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lead_ray import cli, convert, formats, pretrain
from lead_ray.cli import COMMANDS
from lead_ray.landmarks.labels import Mark
from lead_ray.usage import misspelt, paragraphs

PAGE = Path(__file__).parents[1] / "lead_ray" / "landmarks" / "README.md"


def helped(command: str, capsys) -> str:
    """What `lead-ray COMMAND --help` prints, on 80 columns."""
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"lead_ray.{command}").main(["--help"])
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_installed_command_and_fills_its_lines(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = helped(command, capsys)
    assert f"usage: lead-ray {command} " in said and "python -m" not in said
    lines = [line.strip("│").rstrip() for line in said.splitlines()]
    helps = [re.match(" {8,}", line) for line in lines]
    room = max(len(line) for line, indent in zip(lines, helps, strict=True) if indent) if any(helps) else 0
    for (first, one), (second, other) in pairwise(zip(lines, helps, strict=True)):
        if one and other and one[0] == other[0]:  # at a line break of the source the next word would have had room
            assert len(first) + 1 + len(second.split()[0]) > room, f"{first!r}, {second!r}"


def test_paragraphs_by_hand():
    text = """A title.

$ lead-ray x --a            # one
$ lead-ray x --b     # another

First line
(second) line:

    kept   as
      it is

Last
line.
"""
    expected = """A title.
$ lead-ray x --a  # one
$ lead-ray x --b  # another

First line (second) line:
    kept   as
      it is

Last line."""
    assert paragraphs(text) == expected


def test_a_misspelt_flag_is_told_what_was_meant(capsys):
    with pytest.raises(SystemExit) as stopped:
        pretrain.main(["--data", "x", "--setps", "3"])
    assert stopped.value.code == 2
    assert "no --setps; did you mean --optim.steps?" in capsys.readouterr().err


def test_a_misspelt_command_and_the_version(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lead-ray", "pretain"])
    with pytest.raises(SystemExit, match="no command 'pretain'; did you mean pretrain"):
        cli.main()
    monkeypatch.setattr("sys.argv", ["lead-ray", "zzz"])
    with pytest.raises(SystemExit, match="no command 'zzz'; commands: quickstart, prepare, "):
        cli.main()
    monkeypatch.setattr("sys.argv", ["lead-ray", "--version"])
    cli.main()
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_help_that_nobody_reads_to_its_end_is_no_error():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "lead_ray.convert", "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_flags_deeper_down_are_found_and_those_that_there_are_not_mentioned():
    words = [
        "--optim.steps",
        "3",
        "--no-compile",
        "--batchsize=4",
        "--hiden",
        "5",
        "--zzz",
        "-h",
        "--report_every",
        "1",
    ]
    found = dict(misspelt(pretrain.Pretrain, words))
    assert found == {"--batchsize": ["--optim.batch-size"], "--hiden": ["--objective.hidden"]}


def examples(text: str, block: str) -> list[str]:
    """The labels among the blocks that are set apart, each without its indent."""
    found = [textwrap.dedent(one) for one in re.findall(block, text)]
    return [one.strip() for one in found if one.lstrip().startswith(("file,", '{"schema"'))]


def test_the_layouts_that_help_and_page_show_are_read(tmp_path):
    shown = examples(convert.__doc__, r"(?m)(?:^    .*\n)+")
    assert len(shown) == 2 and examples(PAGE.read_text(), r"(?s)(?<=\n```\n).*?(?=```\n)") == shown
    Image.new("L", (80, 60)).save(tmp_path / "a.jpg")
    for name, content in zip(("labels.csv", "labels.json"), shown, strict=True):
        file = tmp_path / name
        file.write_text(content)
        labels = formats.read(formats.guess(file), file, images=tmp_path)
        (image,) = labels.images
        assert (labels.schema.names, image.file, image.size) == (("beak", "tail"), "a.jpg", (80, 60))
        assert image.marks.tolist() == [Mark.OCCLUDED, Mark.MISSING] and image.box is image.confidence is None
        np.testing.assert_array_equal(image.points, [[31.5, 40], [np.nan, np.nan]])


@pytest.mark.parametrize(
    "words",
    [
        "fit model --images nowhere --labels labels.csv --out fitted",
        "convert labels.csv own.json --to own --images nowhere",
        "annotate --images nowhere",
        "prepare folder --raw nowhere --out shards --workers 0",
    ],
)
def test_a_folder_of_images_that_is_not_there(words, tmp_path, monkeypatch):
    """Field, value, and what to do; not the first picture that is missed in it."""
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("file,a_x,a_y\nfirst.jpg,1,2\n")
    command, *rest = words.split()
    with pytest.raises(SystemExit, match=r"(images|raw)='.*nowhere' is not a folder: name the one ") as stopped:
        importlib.import_module(f"lead_ray.{command}").main(rest)
    assert "first.jpg" not in stopped.value.code
