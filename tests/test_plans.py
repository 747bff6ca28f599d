"""The studies' plans without training: the paper's tables complete, each run once, how long it should take."""

import json
from dataclasses import replace

import pytest
from small_plans import dense, matching, pretrain

from lead_ray.evaluate import Evaluate
from lead_ray.models.trunk import TrunkSettings
from lead_ray.readouts.settings import RegressionSettings


class TestPaper:
    """The data file against sentences of the paper."""

    def test_every_table_is_there(self, sweep):
        sheets = sweep.fill.sheets()
        assert list(sheets) == [str(number) for number in range(1, 11)]
        counts = {number: len(sheet.printed) for number, sheet in sheets.items()}
        assert counts == {"1": 18, "2": 39, "3": 10, "4": 28, "5": 54, "6": 12, "7": 36, "8": 4, "9": 2, "10": 4}

    def test_cells_are_in_named_rows_and_columns(self, sweep):
        for sheet in sweep.fill.sheets().values():
            columns = {column.name for column in sheet.columns}
            assert {column for _, column in sheet.printed} <= columns
            assert {row for row, _ in sheet.printed} == {label for _, label in sheet.rows}
            assert len({label for _, label in sheet.rows}) == len(sheet.rows)

    def test_matching_is_in_pixels(self, sweep):
        sheets = sweep.fill.sheets()
        assert {column.unit for number in ("1", "3") for column in sheets[number].columns} == {"px"}
        assert "pixels" in sheets["1"].note

    def test_what_the_paper_says_of_its_numbers(self, sweep):
        """About 10 % better than the best before on AFLW; 9.75 and 2.88 % in the wild; 55 times slower."""
        sheets = sweep.fill.sheets()
        value = {number: {key: cell.mean for key, cell in sheet.printed.items()} for number, sheet in sheets.items()}
        for column in ("AFLW_M", "AFLW_R"):
            ratio = value["2"]["LEAD, hypercolumn", column] / value["2"]["CL, hypercolumn", column]
            assert ratio == pytest.approx(0.9, abs=0.015)
        wild = {row: cell for (row, _), cell in value["8"].items()}
        assert 100 * (1 - wild["LEAD, 64"] / wild["DVE, 64"]) == pytest.approx(9.75, abs=0.01)
        assert 100 * (1 - wild["LEAD, hypercolumn"] / wild["CL, hypercolumn"]) == pytest.approx(2.88, abs=0.01)
        assert value["10"]["3840", "an image"] / value["10"]["64", "an image"] == pytest.approx(55, abs=0.5)

    def test_tables_that_share_cells_agree(self, sweep):
        value = {number: sheet.printed for number, sheet in sweep.fill.sheets().items()}
        assert value["1"]["LEAD, 64", "different"] == value["3"]["64, head 256", "different"]
        assert value["1"]["LEAD, 256", "same"] == value["3"]["256, head 256", "same"]
        for dim in ("64", "128", "256"):
            assert value["4"][f"LEAD, {dim}", "AFLW_M"] == value["6"]["LEAD, then LEAD", dim]
        assert value["2"]["DVE Hourglass", "300W"] == value["4"]["DVE, 64", "300W"]


class TestScripts:
    @pytest.mark.parametrize("preset", ["paper", "quick"])
    def test_plans_name_every_table(self, sweep, preset, tmp_path):
        """All rows that this package can train are in some plan; the rest are quoted from others."""
        study = sweep.script("tables").Tables(preset=preset, data=tmp_path / "data", out=tmp_path / "runs")
        entries = sweep.script("tables").entries(study)
        rows = {}
        for entry in entries:
            rows.setdefault(entry.table, set()).add(entry.row)
        sheets = sweep.fill.sheets()
        for number in map(str, range(1, 10)):
            known = {label for _, label in sheets[number].rows}
            assert rows.get(number, set()) <= known, f"table {number}"
            if preset == "paper" and number != "2":
                assert rows[number] == known, f"table {number}"
        assert rows["2"] == {"DVE Hourglass", "CL, hypercolumn", "LEAD, hypercolumn"}

    def test_six_widths_of_three_seeds_train_three_encoders(self, sweep):
        dims = sweep.script("ablate_dims")
        heads = tuple((dim, 256) for dim in (8, 16, 32, 64, 128, 256))
        plan = [entry.measure for entry in dims.entries(dims.Dims(heads=heads)) if entry.table == "3"]
        kinds = [item.kind for item in sweep.plan.closure(plan).values()]
        assert (kinds.count("stage1"), kinds.count("stage2"), kinds.count("measure")) == (3, 18, 18)

    def test_studies_share_what_they_train(self, sweep):
        names = {"ablate_dims": "Dims", "ablate_annotations": "Annotations", "compare": "Compare"}
        plans = []
        for name, kind in names.items():
            module = sweep.script(name)
            plans.append([entry.measure for entry in module.entries(getattr(module, kind)())])
        found = sweep.plan.closure(measure for plan in plans for measure in plan)
        assert sum(item.kind == "stage1" for item in found.values()) == 6, "BYOL and MoCo of three seeds"

    def test_given_runs_stand_in_for_trainings(self, sweep, tmp_path):
        dims = sweep.script("ablate_dims")
        given = {"byol": tmp_path / "byol", "moco": tmp_path / "moco"}
        study = dims.Dims(preset="house", given=given)
        kinds = {item.kind for item in sweep.plan.closure(entry.measure for entry in dims.entries(study)).values()}
        assert kinds == {"given", "stage2", "measure"}
        with pytest.raises(ValueError, match="given is of --preset house"):
            dims.Dims(given=given).chosen()

    def test_a_watcher_that_is_missing_is_named(self, sweep, monkeypatch):
        monkeypatch.setattr(sweep.watch.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match="watch=mlflow needs the package mlflow: uv pip install mlflow"):
            sweep.watch.loggers(("mlflow",), "study", workers=1)
        with pytest.raises(ValueError, match="watch=wandb needs Ray: use --workers 1"):
            sweep.watch.loggers(("wandb",), "study", workers=0)


class TestPace:
    def test_what_was_measured_wins_over_arithmetic(self, sweep, tmp_path):
        pace, plan = sweep.pace, sweep.plan
        training = pretrain(plan, data=tmp_path / "celeba")
        sizes = {"celeba": pace.Size(1000)}
        guessed = pace.Paces(tmp_path, tmp_path, tflops=10.0, sizes=sizes).of(training)
        gigaflop = pace.forward(training.stage.trunk, 96) * 8
        assert guessed.source == "estimated"
        assert guessed.seconds == pytest.approx(200 * 1000 * gigaflop / 10_000)
        assert pace.Paces(tmp_path, tmp_path, tflops=10.0).of(training) is None, "nobody knows how many images"
        assert pace.Paces(tmp_path, tmp_path, tflops=10.0).of(matching(plan, training)) is None
        (tmp_path / "seconds.jsonl").write_text(
            json.dumps(
                {"kind": "measure", "title": matching(plan, training).title.replace("seed 0", "seed 3"), "seconds": 5}
            )
        )
        known = pace.Paces(tmp_path, tmp_path, tflops=10.0).of(matching(plan, training))
        assert (known.seconds, known.source) == (5, "measured here")

    def test_a_resnet50_by_hand(self, sweep):
        """4.09 G multiplications at 224 px, without the classifier, are 0.75 at 96 px: 1.5 GFLOP."""
        assert sweep.pace.forward(TrunkSettings(), 96) == pytest.approx(1.5, rel=0.03)

    def test_a_readout_by_hand(self, sweep, tmp_path):
        """Every image through the trunk once; a step is twice the products of the maps' convolution, and a little."""
        pace, plan = sweep.pace, sweep.plan
        encoder = dense(plan, pretrain(plan))
        settings = Evaluate(run=plan.LATER, task="regression", data=tmp_path / "mafl", readout="paper")
        paces = pace.Paces(tmp_path, tmp_path, tflops=1.0, sizes={"mafl": pace.Size(100, 20, 5)})
        forward, convolution = pace.forward(TrunkSettings(), 96), 2 * 250 * 64 * 24**2 / 1e9
        seconds = (120 * forward + 120 * 100 * 2 * convolution) / 1000
        assert paces.of(plan.Measure(settings, encoder)).seconds == pytest.approx(seconds, rel=1e-3)
        few = replace(settings, annotations=(1, 50), copies_in_all=100, readout="ours", regression=RegressionSettings())
        few = replace(few, seeds=(0, 1))
        seen = 120 + 2 * (100 + 100)  # in warped copies; our read-out has no steps
        assert paces.of(plan.Measure(few, encoder)).seconds == pytest.approx(seen * forward / 1000)
        pairs = plan.Measure(Evaluate(run=plan.LATER, task="matching", data=tmp_path / "mafl", seeds=(0, 1)), encoder)
        assert paces.of(pairs).seconds == pytest.approx(40 * forward / 1000)


class TestWhole:
    """`tables.py --dry-run`."""

    @pytest.fixture
    def paper(self, sweep, tmp_path):
        """The script, its study at the paper's settings, and the plan."""
        tables = sweep.script("tables")
        study = tables.Tables(dry_run=True, data=tmp_path / "data", out=tmp_path / "runs")
        return tables, study, tables.entries(study)

    def test_every_cell_that_was_the_papers_own_run_has_runs_that_fill_it(self, sweep, paper):
        """Of three seeds, on the data set of its column, with the channels of its row; quoted cells have none."""
        _, _, plan = paper
        found = {}
        for entry in plan:
            found.setdefault((entry.table, entry.row, entry.column), []).append(entry)
        content = json.loads((sweep.fill.PAPER).read_text())["tables"]
        sets = {"MAFL": "mafl", "AFLW_M": "aflw-m", "AFLW_R": "aflw-r", "300W": "300w", "MAFL in the wild": "mafl-wild"}
        cells = quoted = 0
        for number, table in content.items():
            for row in table["rows"]:
                for column in row["cells"]:
                    entries = found.get((number, row["label"], column), [])
                    if row.get("quoted"):
                        quoted += 1
                        assert not entries, "quoted from another publication, and run here too?"
                        continue
                    cells += 1
                    if number == "10":
                        assert [entry.file.name for entry in entries] == ["readout_cost-paper.json"]
                        continue
                    assert [entry.measure.encoder.seed for entry in entries] == [0, 1, 2], (number, row, column)
                    (dim,) = {entry.measure.encoder.dim for entry in entries}
                    reduced = entries[0].measure.settings.reduce.dim if "NMF" in row["label"] else None
                    wanted = column if number == "6" else row["label"].partition(", head")[0].partition(", no")[0]
                    wanted = wanted.rpartition(", ")[2]
                    assert str(reduced or dim or "hypercolumn") == wanted or wanted == "DVE Hourglass"
                    (data,) = {entry.measure.settings.data.name for entry in entries}
                    where = {"1": "mafl", "3": "mafl", "5": "aflw-m", "6": "aflw-m", "9": "cub"}
                    assert data == (where.get(number) or sets[column])
        assert (cells, quoted) == (180, 27)
        own, have = sweep.whole.filled(plan, sweep.fill.sheets())
        assert len(own) == 180 and own == have

    def test_the_plan_names_every_run_once_and_sums_hours(self, sweep, paper, capsys):
        tables, study, plan = paper
        tables.main(study)
        said = capsys.readouterr().out
        lines = said.splitlines()
        tasks = sweep.whole.tasks_of(plan)
        named = [line.rpartition("[")[2].rstrip("]") for line in lines if line.startswith("waiting")]
        assert named == list(tasks), "each once, after what it needs"
        (ten,) = (line for line in lines if line.strip().startswith("The paper's tables"))
        # BYOL and MoCo of three seeds on CelebA, CelebA in the wild and birds; one measurement of costs.
        _, cells, rest = ten.partition("180 of 180")
        assert cells and rest.split()[0] == "18" and "0 of 418" in ten and ten.rstrip().endswith("h")
        for number in range(1, 11):
            assert sum(line.strip().startswith(f"Table {number}.") for line in lines) == 1
        shares = [line for line in lines if line.strip().startswith("Table ") and line.rstrip().endswith(" h")]
        assert len(shares) == 9, "hours of each but Table 10's minutes"
        hours = [float(line.split()[-2].replace(",", "")) for line in (*shares, ten)]
        assert max(hours[:-1]) < hours[-1] < sum(hours[:-1]), "what tables share counts once"
        assert not any((study.out / name).exists() for name in ("studies", "ablate_dims"))

    @pytest.mark.parametrize("preset", ["house", "quick"])
    def test_smaller_presets_have_plans_too(self, sweep, preset, tmp_path, capsys):
        tables = sweep.script("tables")
        tables.main(tables.Tables(preset=preset, dry_run=True, data=tmp_path / "data", out=tmp_path / "runs"))
        said = capsys.readouterr().out
        assert f"tables, preset {preset}" in said and "what they share once" in said
