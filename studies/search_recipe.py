"""Which of the choices that LEAD leaves open serve matching, which regression? Both at once, and what nothing beats.

$ python studies/search_recipe.py --data DATA --trials 60
$ python studies/search_recipe.py --preset quick
$ python studies/search_recipe.py --preset house --data DATA
optuna-dashboard OUT/studies/search_recipe.journal          # while it runs, and after
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from optuna.distributions import CategoricalDistribution, FloatDistribution

from lead_ray.dense import Dense
from lead_ray.errors import for_people
from lead_ray.figures import trials
from lead_ray.pretrain import Pretrain
from lead_ray.reporting.cells import Column
from lead_ray.reporting.report import Section
from sweep.fill import Entry, Sheet
from sweep.plan import Encoder, changed
from sweep.search import Search
from sweep.study import Study, carry_out, publish

SPACE = {
    "flip": CategoricalDistribution((0.0, 0.5)),
    "blur": CategoricalDistribution((0.0, 0.5, 1.0)),  # probability in view a
    "weight_decay": FloatDistribution(1.5e-6, 1e-3, log=True),
    "lr": FloatDistribution(0.1, 4.0, log=True),  # times the preset's, stage 1
    "dense_lr": FloatDistribution(0.1, 4.0, log=True),  # times the preset's, stage 2
    "pairing": CategoricalDistribution(("images", "views")),
    "teacher": CategoricalDistribution(("per-layer", "global", "centred")),
    "temperature": FloatDistribution(0.01, 0.3, log=True),
    "teacher_temperature": FloatDistribution(0.01, 0.3, log=True),
}
COLUMNS = {
    "validation, matching": "px",
    "validation, regression": "% IOD",
    "test, matching": "px",
    "test, regression": "% IOD",
}


@dataclass(frozen=True, kw_only=True)
class Recipe(Study):
    """Optuna's TPE with two objectives on validation images; the front meets the test once."""

    trials: int | None = None
    """60; quick: 4."""


def encoder(study: Recipe, tried: dict[str, Any]) -> Encoder:
    """The preset's runs with the choices of a trial."""
    preset, seed = study.chosen(), study.network_seeds[0]

    def first(stage: Pretrain | Dense) -> Pretrain | Dense:
        views = replace(stage.views, flip=tried["flip"], blur=(tried["blur"], stage.views.blur[1]))
        optim = replace(stage.optim, lr=stage.optim.lr * tried["lr"], weight_decay=tried["weight_decay"])
        return replace(stage, views=views, optim=optim)

    stage1 = changed(preset.stage1(preset.lead, seed), first)
    align = {name: tried[name] for name in ("teacher", "temperature", "teacher_temperature")}
    made = preset.stage2("lead", stage1, seed, **align)
    views = replace(made.stage.views, flip=tried["flip"], blur=(tried["blur"], made.stage.views.blur[1]))
    optim = replace(made.stage.optim, lr=made.stage.optim.lr * tried["dense_lr"])
    return replace(made, stage=replace(made.stage, views=views, optim=optim, pairing=tried["pairing"]))


def search(study: Recipe) -> Search:
    preset = study.chosen()
    return Search(
        "search_recipe",
        SPACE,
        build=lambda tried, _: preset.on_validation(encoder(study, tried), regression=True),
        score=lambda measures: [measures[0].results()[0]["cl_diff_error"], measures[1].results()[0]["error"]],
        folder=study.notes,
        trials=study.trials or (4 if study.preset == "quick" else 60),
        rungs=(preset.dense_steps,),
        objectives=("matching, px", "regression, % IOD"),
    )


def entries(study: Recipe, found: Search) -> list[Entry]:
    """The trials that no other beats on validation images: those, and on the test images."""
    preset, plan = study.chosen(), []
    for trial in found.best():
        made, row = encoder(study, trial.params), f"trial {trial.number}"
        matched, regressed = preset.on_validation(made, regression=True)
        plan += [
            Entry("recipe", row, "validation, matching", matched, "cl_diff_error"),
            Entry("recipe", row, "validation, regression", regressed, "error"),
            Entry("recipe", row, "test, matching", preset.matching(made), "cl_diff_error"),
            Entry("recipe", row, "test, regression", preset.regression(made, preset.columns[0]), "error"),
        ]
    return plan


def sheet(found: Search) -> Sheet:
    """Its note says what each trial of the front chose."""
    told = (f"Trial {trial.number}: {found.words(trial)}." for trial in found.best())
    columns = [Column(name, unit, "lower") for name, unit in COLUMNS.items()]
    note = "Regression on validation images is of 50 annotations, on test images of all."
    return Sheet("What nothing beats: matching against regression", columns, note=" ".join([note, *told]))


def figures(found: Search) -> dict[str, Section]:
    ended = found.finished()
    if not ended:
        return {}
    values = torch.tensor([trial.values for trial in ended], dtype=torch.float32)
    kinds = [f"{trial.params['pairing']}, {trial.params['teacher']}" for trial in ended]
    chart = trials.scatter(
        values, x="matching error, px", y="regression error, % IOD", kinds=kinds, labels=[str(t.number) for t in ended]
    )
    return {"recipe": Section("Every trial, on validation images", content=chart)}


def main(study: Recipe) -> None:
    found = search(study)
    if carry_out(study, "search_recipe", [], source=found):
        plan = entries(study, found)
        carry_out(study, "search_recipe", plan)  # the front, on the test images
        publish(study, "search_recipe", plan, extra={"recipe": sheet(found)}, only=["recipe"], figures=figures(found))


if __name__ == "__main__":
    with for_people("search_recipe.py"):
        main(tyro.cli(Recipe, description=__doc__))
