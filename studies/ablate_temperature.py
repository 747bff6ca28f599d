"""Which temperatures, of the student and of the teacher? A search, and a grid for the plot.

$ python studies/ablate_temperature.py --data DATA
$ python studies/ablate_temperature.py --preset quick
$ python studies/ablate_temperature.py --preset house --data DATA --given contrast RUN --workers 0
optuna-dashboard OUT/studies/ablate_temperature.journal          # while it runs, and after
"""

from dataclasses import dataclass

import tyro
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from lead_ray.errors import for_people
from lead_ray.figures import trials
from lead_ray.reporting.cells import Column
from lead_ray.reporting.report import Section
from sweep.fill import Entry, Sheet, cells
from sweep.plan import Encoder
from sweep.search import Search
from sweep.study import Study, carry_out, publish

NAMES = ("temperature", "teacher_temperature")
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
COLUMNS = {"validation, different": "cl_diff_error", "test, different": "cl_diff_error", "test, same": "cl_same_error"}
SHEET = Sheet("Temperatures of stage 2, 64 channels", [Column(name, "px", "lower") for name in COLUMNS])


@dataclass(frozen=True, kw_only=True)
class Temperature(Study):
    """Optuna's TPE with asynchronous successive halving, on validation images; the best meets the test once."""

    trials: int = 24
    least: float = 0.01
    most: float = 0.5
    grid: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    """Both temperatures alike."""


def encoder(study: Temperature, student: float, teacher: float, steps: int | None = None) -> Encoder:
    preset, seed = study.chosen(), study.network_seeds[0]
    both = {"temperature": student, "teacher_temperature": teacher}
    return preset.stage2("lead", preset.stage1(preset.lead, seed), seed, steps=steps, **both)


def search(study: Temperature) -> Search:
    preset = study.chosen()
    steps = preset.dense_steps
    between = FloatDistribution(study.least, study.most, log=True)
    return Search(
        "ablate_temperature",
        dict.fromkeys(NAMES, between),
        build=lambda tried, n: preset.on_validation(
            encoder(study, tried["temperature"], tried["teacher_temperature"], n)
        ),
        score=lambda measures: [measure.results()[0]["cl_diff_error"] for measure in measures],
        folder=study.notes,
        trials=study.trials,
        rungs=(steps // 9, steps // 3, steps),
        objectives=("matching, px",),
    )


def entries(study: Temperature, found: Search) -> list[Entry]:
    """The grid on validation images; the paper's 0.05 and the best that was found on the test images too."""
    preset, rows = study.chosen(), {f"both {value:g}": (value, value) for value in sorted({*study.grid, 0.05})}
    for trial in found.best()[:1]:
        pair = trial.params["temperature"], trial.params["teacher_temperature"]
        rows[f"found: student {pair[0]:.3f}, teacher {pair[1]:.3f}"] = pair
    plan = []
    for row, pair in rows.items():
        made = encoder(study, *pair, preset.dense_steps)
        (judged,) = preset.on_validation(made)
        tested = preset.matching(made)
        for column, read in COLUMNS.items():
            if column.startswith("validation") or row == "both 0.05" or row.startswith("found"):
                plan.append(Entry("temperature", row, column, judged if "validation" in column else tested, read))
    return plan


def figures(study: Temperature, plan: list[Entry], found: Search) -> dict[str, Section]:
    """The grid and the search's trials, on validation images."""
    column = "validation, different"
    grid = {tau: cells(plan, f"both {tau:g}").get(column) for tau in sorted({*study.grid, 0.05})}
    grid = {tau: values for tau, values in grid.items() if values}
    states = {TrialState.COMPLETE: True, TrialState.PRUNED: False}
    tried = [
        trials.Tried(*(each.params[name] for name in NAMES), each.values[0] if states[each.state] else None)
        for each in found.study.get_trials(deepcopy=False, states=tuple(states))
    ]
    if not grid and not found.finished():
        return {}
    names = {"first": "student's temperature", "second": "teacher's temperature", "y": "matching error, px"}
    ticks = [study.least, *(tick for tick in TICKS if study.least < tick < study.most), study.most]
    chart = trials.over_two(grid, tried, ticks=ticks, **names)
    return {"temperature": Section("The grid and the search, on validation images", content=chart)}


def main(study: Temperature) -> None:
    found = search(study)
    if carry_out(study, "ablate_temperature", entries(study, found), source=found):
        plan = entries(study, found)
        carry_out(study, "ablate_temperature", plan)  # the best, on the test images
        sheets = {"temperature": SHEET}
        publish(study, "ablate_temperature", plan, extra=sheets, figures=figures(study, plan, found))


if __name__ == "__main__":
    with for_people("ablate_temperature.py"):
        main(tyro.cli(Temperature, description=__doc__))
