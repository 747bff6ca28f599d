"""The main job, small: it makes what it promises, and does nothing twice."""

import json

import pytest

from lead_ray import launch, quickstart
from lead_ray.quickstart import Clock, Quickstart

pytestmark = pytest.mark.slow
SMALL = {"workers": 0, "images": 120, "steps": 2, "dense_steps": 2, "test_images": 8}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    return out, quickstart.quickstart(Quickstart(out=out, **SMALL))


def test_it_leaves_a_page_and_every_number(first):
    out, summary = first
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary["systems"]) == ["stage 2", "stage 1", "untrained", "colour"]
    for found in summary["systems"].values():
        assert len(found["matching"]["runs"]) == len(found["regression"]["errors"]) == 3
    assert set(summary["seconds"]) == {"draw and prepare", "stage 1", "stage 2", "measure", "page"}
    assert summary["hardware"]["processor"] and summary["stages"]["stage 1"]["steps"] == 2
    page = (out / "report.html").read_text()
    assert page.count("<img") == 4 and "LEAD stage 2" in page
    assert "in-batch InfoNCE" in page, "what the carried encoder is must be said"


def test_it_does_nothing_twice(first, monkeypatch, capsys):
    out, summary = first

    def refuse(*arguments, **options):
        raise AssertionError("trained twice")

    monkeypatch.setattr(launch, "work", refuse)
    again = quickstart.quickstart(Quickstart(out=out, **SMALL))
    assert again["systems"] == summary["systems"] and again["seconds"] == summary["seconds"]
    assert capsys.readouterr().out.count("finished before") == 2


def test_from_scratch_is_another_run_and_another_report(first):
    out, summary = first
    scratch = quickstart.quickstart(Quickstart(out=out, from_scratch=True, **SMALL))
    assert scratch["start"] is None and (out / "report-scratch.html").exists()
    assert scratch["systems"]["stage 1"]["matching"] != summary["systems"]["stage 1"]["matching"]
    assert scratch["systems"]["colour"] == summary["systems"]["colour"]
    assert json.loads((out / "summary.json").read_text()) == summary


def test_interrupted_phases_add_up_and_finished_ones_keep_their_time(tmp_path):
    clock = Clock(tmp_path / "seconds.json")
    with pytest.raises(KeyboardInterrupt), clock.measure("stage 1"):
        raise KeyboardInterrupt
    before = clock.seconds["stage 1"]
    clock = Clock(tmp_path / "seconds.json")
    with clock.measure("stage 1"):
        sum(range(1000))
    finished = clock.seconds["stage 1"]
    assert finished > before
    with clock.measure("stage 1"):
        sum(range(1000))
    assert Clock(tmp_path / "seconds.json").seconds["stage 1"] == finished
