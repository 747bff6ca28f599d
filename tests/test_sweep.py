"""The studies' machinery without training: names of tasks, what comes next, what a table says, searches that go on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from small_plans import dense, matching, pretrain

from lead_ray.artefacts import write_json
from lead_ray.dense import Dense
from lead_ray.evaluate import Evaluate
from lead_ray.pretrain import Pretrain
from lead_ray.reporting.cells import Cell, Failed, Printed


@pytest.fixture
def task(sweep):
    """A task that is done when a test says so."""

    class Fake(sweep.plan.Task):
        def __init__(self, name, *needs, kind="stage2", finished=False):
            self.name, self._needs, self.kind, self.finished = name, needs, kind, finished

        needs = property(lambda self: self._needs)
        title = property(lambda self: self.name)

        def done(self):
            return self.finished

        def job(self, notes):
            raise AssertionError("not performed here")

        def _matters(self):
            return {"name": self.name}

    return Fake


class TestPlan:
    def test_the_same_settings_are_one_task(self, sweep):
        plan = sweep.plan
        measures = [
            matching(plan, dense(plan, pretrain(plan, seed=seed), name=name))
            for seed in (0, 1)
            for name in ("b", "b", "c")
        ]
        found = plan.closure(measures)
        assert [item.kind for item in found.values()].count("stage1") == 2
        assert [item.kind for item in found.values()].count("stage2") == 4
        assert len(found) == 2 + 4 + 4

    def test_where_and_how_fast_does_not_matter_what_and_from_where_does(self, sweep):
        plan = sweep.plan
        first = dense(plan, pretrain(plan))
        assert first.key == dense(plan, pretrain(plan, out=Path("x"), workers=8)).key
        assert first.key == dense(plan, pretrain(plan), device="cpu", report_every=10).key
        others = [dense(plan, pretrain(plan, seed=1)), dense(plan, pretrain(plan), seed=1), pretrain(plan)]
        assert len({first.key, *(other.key for other in others)}) == 4
        assert matching(plan, first).key == matching(plan, first, device="cpu").key
        assert matching(plan, first).key != matching(plan, first, seeds=(1,)).key

    def test_what_is_needed_comes_first(self, sweep, task):
        deep = task("c", task("b", task("a")))
        assert [item.name for item in sweep.plan.closure([deep, task("b", task("a"))]).values()] == ["a", "b", "c"]

    def test_a_stage_begins_from_a_task_or_from_nothing(self, sweep):
        with pytest.raises(ValueError, match="stage2 b: stage1 must be LATER where, and only where"):
            sweep.plan.Train(Dense(data=Path("faces"), name="b", stage1=sweep.plan.LATER))
        with pytest.raises(ValueError, match=r"settings\.run must be LATER, got runs/x"):
            matching(sweep.plan, pretrain(sweep.plan), run=Path("runs/x"))

    def test_nothing_is_done_before_the_data_are_there(self, sweep, tmp_path):
        first = pretrain(sweep.plan, data=tmp_path / "none", out=tmp_path)
        assert not first.done() and not dense(sweep.plan, first).done() and not matching(sweep.plan, first).done()
        assert list(tmp_path.iterdir()) == []

    def test_changed_reaches_every_run_that_is_gone_back_to(self, sweep):
        plan = sweep.plan
        made = plan.changed(dense(plan, pretrain(plan)), lambda stage: replace(stage, seed=5))
        assert (made.stage.seed, made.start.stage.seed) == (5, 5)
        given = plan.Given(Path("runs/x"), Path("faces"))
        assert plan.changed(given, lambda stage: pytest.fail("changed")) is given


class TestAgenda:
    def agenda(self, sweep, tmp_path, *tasks, source=None):
        return sweep.agenda.Agenda(tasks, notes=tmp_path, source=source)

    def trains(self, sweep, count):
        """Independent trainings of the same stage."""
        return [pretrain(sweep.plan, seed=seed) for seed in range(count)]

    def test_two_that_need_one_training_wait_for_it(self, sweep, tmp_path):
        first = pretrain(sweep.plan)
        agenda = self.agenda(sweep, tmp_path, dense(sweep.plan, first, seed=1), dense(sweep.plan, first, seed=2))
        assert agenda.next(9) == [first]
        assert agenda.next(9) == [], "both need what is being trained"
        agenda.tell(first.key, None)
        assert [item.stage.seed for item in (*agenda.next(9), *agenda.next(9))] == [1, 2]
        assert not agenda.over

    def test_no_more_trainings_than_there_is_room_for(self, sweep, tmp_path):
        agenda = self.agenda(sweep, tmp_path, *self.trains(sweep, 3))
        assert [len(agenda.next(2)) for _ in range(3)] == [1, 1, 0]

    def test_measurements_go_first_and_those_of_an_encoder_together(self, sweep, tmp_path):
        plan = sweep.plan
        one, two = self.trains(sweep, 2)
        agenda = self.agenda(sweep, tmp_path, matching(plan, one), matching(plan, one, seeds=(1,)), two)
        assert agenda.next(1) == [one]
        agenda.tell(one.key, None)
        assert [item.settings.seeds for item in agenda.next(1)] == [(0,), (1,)]
        assert agenda.next(1) == [two], "read-outs run while others train"
        assert agenda.next(1) == []

    def test_features_of_an_encoder_are_not_computed_twice_at_a_time(self, sweep, tmp_path):
        plan, (one,) = sweep.plan, self.trains(sweep, 1)
        agenda = self.agenda(sweep, tmp_path, matching(plan, one))
        agenda.next(1)
        agenda.tell(one.key, None)
        assert len(agenda.next(1)) == 1
        agenda.add([matching(plan, one, seeds=(1,))])
        assert agenda.next(1) == []

    def test_a_failure_takes_with_it_what_needs_it_and_nothing_else(self, sweep, tmp_path):
        one, two = self.trains(sweep, 2)
        below = matching(sweep.plan, dense(sweep.plan, one))
        agenda = self.agenda(sweep, tmp_path, below, two)
        agenda.next(2)
        agenda.tell(one.key, "the loss is not finite")
        assert agenda.next(2) == [two]
        assert agenda.states[below.key] == "failed"
        assert agenda.reasons[below.key].endswith(f"{one.title}: the loss is not finite")
        agenda.tell(two.key, None)
        assert agenda.over

    def test_a_given_run_that_is_not_there(self, sweep, tmp_path):
        given = sweep.plan.Given(tmp_path / "none", Path("faces"))
        agenda = self.agenda(sweep, tmp_path, dense(sweep.plan, given))
        assert agenda.next(1) == [] and agenda.over
        assert all("no weights at" in reason for reason in agenda.reasons.values()) and len(agenda.reasons) == 2

    def test_what_is_on_disk_is_done(self, sweep, tmp_path, task):
        agenda = self.agenda(sweep, tmp_path, task("a", finished=True))
        assert agenda.over and agenda.next(1) == []


class TestTrial:
    def job(self, sweep, tmp_path, settings):
        return sweep.trial.Job("0123abcd", "a title", settings, tmp_path / "run", tmp_path / "notes")

    def test_a_failure_is_kept_until_it_succeeds(self, sweep, tmp_path, monkeypatch, task):
        measure = Evaluate(run=tmp_path / "run", task="matching", data=tmp_path)
        tried = []

        def fail_once(settings):
            tried.append(settings)
            if len(tried) == 1:
                raise ValueError("first line\nthe loss is not finite")

        monkeypatch.setattr(sweep.trial, "evaluate_each", fail_once)
        job = self.job(sweep, tmp_path, measure)
        assert sweep.trial.attempt(job, print) == "the loss is not finite"
        kept = json.loads((tmp_path / "notes/failed-0123abcd.json").read_text())
        assert kept["task"] == "a title" and "Traceback" in kept["traceback"]
        assert sweep.trial.attempt(job, print) is None
        assert not (tmp_path / "notes/failed-0123abcd.json").exists()
        (line,) = (tmp_path / "notes/seconds.jsonl").read_text().splitlines()
        assert json.loads(line)["kind"] == "measure"

    def test_a_fault_of_ours_is_named_and_ctrl_c_goes_through(self, sweep, tmp_path, monkeypatch):
        job = self.job(sweep, tmp_path, Evaluate(run=tmp_path, task="matching", data=tmp_path))
        monkeypatch.setattr(sweep.trial, "evaluate_each", lambda _: [][0])
        assert sweep.trial.attempt(job, print) == "IndexError: list index out of range"

        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(sweep.trial, "evaluate_each", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep.trial.attempt(job, print)

    def test_lines_of_metrics_are_reported_once(self, sweep, tmp_path, monkeypatch):
        seen = []
        folder = sweep.trial.RunFolder(tmp_path / "run")

        def train(stage, title):
            folder.path.mkdir()
            for step in (1, 2):
                folder.append_metrics({"step": step, "loss": 1.0 / step})

        monkeypatch.setattr(sweep.trial.launch, "run", train)
        job = self.job(sweep, tmp_path, Pretrain(data=tmp_path))
        assert sweep.trial.attempt(job, seen.append) is None
        assert [line["step"] for line in seen] == [1, 2]


class Results:
    """Stands for a measurement with numbers."""

    def __init__(self, numbers, counts=(None,), reason=None):
        self.numbers, self.reason = numbers, reason
        self.settings = SimpleNamespace(counts=lambda: counts)
        self.encoder = SimpleNamespace(folder=SimpleNamespace(path=Path("/runs/stage2-a-0123abcd")))
        self.paths = [Path(f"/runs/stage2-a-0123abcd/eval/{count}.json") for count in counts]

    def results(self):
        return self.numbers


class TestFill:
    @pytest.fixture(autouse=True)
    def quiet(self, sweep, monkeypatch):
        monkeypatch.setattr(sweep.fill, "failure_of", lambda measure, notes: measure.reason)
        monkeypatch.setattr(sweep.fill.Entry, "record", lambda entry: {"run": entry.run.name})

    def sheet(self, sweep):
        return sweep.fill.sheets()["3"]

    def row(self, sweep, entries, tmp_path):
        filled = sweep.fill.fill(self.sheet(sweep), entries, tmp_path, beside=Path("/runs/studies/x"))
        return filled, next(row for row in filled.table.rows if row.label == "64, head 256")

    def entry(self, sweep, numbers, column="different", **more):
        return sweep.fill.Entry("3", "64, head 256", column, Results(numbers, **more), "cl_diff_error")

    def test_one_network_spreads_over_its_repeats(self, sweep, tmp_path):
        runs = [{"cl_diff_error": value} for value in (2.0, 3.0, 4.0)]
        filled, row = self.row(sweep, [self.entry(sweep, [{"runs": runs}])], tmp_path)
        assert row.values == [None, Cell(3.0, 1.0, 3, of_one=True)]
        assert row.printed == [Printed(0.51), Printed(2.6)]
        assert [(link.text, link.address) for link in row.links] == [("0123abcd", "../../stage2-a-0123abcd")]
        assert filled.record == [
            {"table": "3", "row": "64, head 256", "column": "different", "values": [2.0, 3.0, 4.0],
             "run": "stage2-a-0123abcd"}
        ]  # fmt: skip

    def test_several_networks_spread_over_their_means(self, sweep, tmp_path):
        networks = [[{"runs": [{"cl_diff_error": v} for v in values]}] for values in ((1.0, 3.0), (5.0, 7.0))]
        _, row = self.row(sweep, [self.entry(sweep, numbers) for numbers in networks], tmp_path)
        assert row.values[1] == Cell(4.0, 8**0.5, 2)

    def test_a_network_that_is_missing_is_not_counted(self, sweep, tmp_path):
        found = [{"runs": [{"cl_diff_error": 2.0}]}]
        _, row = self.row(sweep, [self.entry(sweep, found), self.entry(sweep, None, reason="lost")], tmp_path)
        assert row.values[1] == Cell(2.0, None, 1, of_one=True)

    def test_what_failed_says_why_and_what_was_not_run_is_blank(self, sweep, tmp_path):
        entries = [self.entry(sweep, None, reason="no room"), self.entry(sweep, None, column="same")]
        filled, row = self.row(sweep, entries, tmp_path)
        assert row.values == [None, Failed("no room")]
        assert filled.record == []

    def test_reasons_do_not_say_where_files_are(self, sweep, tmp_path):
        entries = [self.entry(sweep, None, reason=f"data={tmp_path}/x/mafl has no manifest.json")]
        filled = sweep.fill.fill(self.sheet(sweep), entries, tmp_path, places={str(tmp_path): "DATA"})
        assert "data=DATA/x/mafl has no manifest.json" in filled.table.notes
        assert str(tmp_path) not in filled.table.markdown() + filled.table.csv()

    def test_the_leader_in_words(self, sweep):
        entries = [
            sweep.fill.Entry("3", row, "same", Results([{"runs": [{"x": value}]}]), "x")
            for row, value in (("64, no head", 0.9), ("64, head 64", 0.7))
        ]
        assert sweep.fill.leader(entries) == "best so far, same: 0.70 px by 64, head 64"
        assert sweep.fill.leader([]) == "" == sweep.fill.leader([self.entry(sweep, None)])

    def test_a_row_that_the_paper_lacks_comes_last(self, sweep, tmp_path):
        own = sweep.fill.Entry("3", "32, no head", "same", Results([{"same": 1.5}]), "same", group="ours")
        filled = sweep.fill.fill(self.sheet(sweep), [own], tmp_path)
        assert (filled.table.rows[-1].label, filled.table.rows[-1].group) == ("32, no head", "ours")
        assert filled.table.rows[-1].values[0] == Cell(1.5, None, 1, of_one=True)

    def test_numbers_by_annotations_and_by_zoom(self, sweep):
        counts = (1, 10)
        results = [{"errors": [9.0, 8.0]}, {"errors": [4.0], "by_factor": [{"from": 1.2, "error": 3.5}]}]
        measure = Results(results, counts)
        read = [sweep.fill.Entry("5", "a", "b", measure, "error", count).values() for count in counts]
        assert read == [[9.0, 8.0], [4.0]]
        assert sweep.fill.Entry("5", "a", "b", measure, "zoom 1.2", 10).values() == [3.5]
        assert sweep.fill.Entry("5", "a", "b", measure, "zoom 1.3", 10).values() == []


class TestSearch:
    RUNGS = (1, 3, 9)

    def make(self, sweep, task, folder, trials=9, rungs=RUNGS, objectives=("error",)):
        """Errors are x, at every budget."""

        def build(tried, steps):
            made = task(f"{tried['x']:.6f} {steps}", kind="measure")
            made.value = tried["x"]
            return [made]

        def score(measures):
            return [measures[0].value] * len(objectives)

        space = {"x": FloatDistribution(0.1, 10.0, log=True)}
        options = {"folder": folder, "trials": trials, "rungs": rungs, "objectives": objectives}
        return sweep.search.Search("try", space, build, score, **options)

    def finish(self, search, stop_after=1000):
        """Every task is done as soon as it is there."""
        agenda = SimpleNamespace(states={})
        for _ in range(stop_after):
            if search.over:
                break
            agenda.states |= {each.key: "done" for each in search.more(agenda, 0)}
        return [(trial.params["x"], trial.state) for trial in search.study.get_trials()]

    def test_only_the_best_reach_the_largest_budget(self, sweep, task, tmp_path):
        search = self.make(sweep, task, tmp_path)
        trials = self.finish(search)
        assert len(trials) == 9 and search.over
        states = [state for _, state in trials]
        assert 1 <= states.count(TrialState.COMPLETE) < 6 and TrialState.PRUNED in states
        (best,) = search.best()
        assert best.params["x"] == min(x for x, state in trials if state == TrialState.COMPLETE)
        assert "complete" in search.said() and "x=" in search.said()

    def test_interrupted_it_tries_the_same(self, sweep, task, tmp_path):
        whole = self.finish(self.make(sweep, task, tmp_path / "whole"))
        self.finish(self.make(sweep, task, tmp_path / "cut"), stop_after=7)
        left = self.make(sweep, task, tmp_path / "cut")
        assert len(left.active) == 1, "the trial that it was at"
        assert self.finish(left) == whole

    def test_it_goes_on_where_all_that_a_trial_asks_for_is_done(self, sweep, task, tmp_path):
        """As after a kill between a measurement and the next budget: nothing to carry out is not the end."""

        def finished(name, **kind):
            return task(name, finished=True, **kind)

        search = self.make(sweep, finished, tmp_path)
        agenda = sweep.agenda.Agenda([], notes=tmp_path, source=search)
        assert agenda.next(1) == [] and search.over and agenda.over
        assert len(search.study.get_trials()) == 9 and search.best()

    def test_a_failed_trial_does_not_sink_the_others(self, sweep, task, tmp_path):
        search = self.make(sweep, task, tmp_path, trials=4)
        agenda = SimpleNamespace(states={})
        for number in range(30):
            for each in search.more(agenda, 0):
                agenda.states.setdefault(each.key, "failed" if number == 0 else "done")
        states = [trial.state for trial in search.study.get_trials()]
        assert states[0] == TrialState.FAIL and states.count(TrialState.FAIL) == 1 and search.over

    def test_no_more_trials_at_a_time_than_there_is_room_for(self, sweep, task, tmp_path):
        search, agenda = self.make(sweep, task, tmp_path), SimpleNamespace(states={})
        for _ in range(5):
            search.more(agenda, 2)
        assert len(search.active) == 3, "one may be measured while two are trained"

    def test_two_objectives_have_one_budget(self, sweep, task, tmp_path):
        with pytest.raises(ValueError, match=r"rungs must be one with several objectives, got \[1, 3, 9\]"):
            self.make(sweep, task, tmp_path, objectives=("a", "b"))
        search = self.make(sweep, task, tmp_path, rungs=(9,), objectives=("a", "b"), trials=3)
        assert {state for _, state in self.finish(search)} == {TrialState.COMPLETE}
        assert len(search.best()[0].values) == 2


def test_failures_are_found_again(sweep, tmp_path):
    first = pretrain(sweep.plan, data=tmp_path / "none", out=tmp_path)
    measure = matching(sweep.plan, first)
    assert sweep.agenda.failure_of(measure, tmp_path) is None
    write_json(tmp_path / f"failed-{first.key}.json", {"reason": "the disk is full"})
    assert sweep.agenda.failure_of(measure, tmp_path) == f"{first.title}: the disk is full"
