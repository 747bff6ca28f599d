"""All ten tables from whatever runs exist, and one page with them.

$ python studies/tables.py --preset house --data DATA --out RUNS --results studies/results/tables
"""

from dataclasses import dataclass, fields

import tyro

import ablate_annotations
import ablate_dims
import ablate_objectives
import ablate_scale
import ablate_temperature
import ablate_wild
import birds
import compare
import readout_cost
import search_recipe
from lead_ray.errors import for_people
from lead_ray.reporting.report import Section
from sweep.agenda import Agenda
from sweep.fill import Entries, Entry, Sheet, sheets
from sweep.study import Study, paces, publish
from sweep.whole import print_whole

STUDIES = (
    (compare, compare.Compare),
    (ablate_dims, ablate_dims.Dims),
    (ablate_annotations, ablate_annotations.Annotations),
    (ablate_objectives, ablate_objectives.Objectives),
    (ablate_wild, ablate_wild.Wild),
    (birds, birds.Birds),
    (ablate_scale, ablate_scale.Scale),
    (readout_cost, readout_cost.Cost),
)
HOUSE_LACKS = (ablate_wild, birds, ablate_scale)


@dataclass(frozen=True, kw_only=True)
class Tables(Study):
    """Nothing is trained or measured; what is missing is blank."""


def entries(study: Study) -> Entries:
    """Of every study, told where the runs are."""
    told = {each.name: getattr(study, each.name) for each in fields(Study)}
    known = [each for each in STUDIES if study.preset != "house" or each[0] not in HOUSE_LACKS]
    return [entry for module, kind in known for entry in module.entries(kind(**told))]


def known(study: Study) -> dict[str, Sheet]:
    """The paper's tables and, after them, those that it lacks."""
    beyond = {"objectives": ablate_objectives.sheet(study)}
    if study.preset != "house":
        beyond["figure-9"] = ablate_scale.SHEET
    if study.preset == "quick":
        beyond["birds"] = birds.QUICK
    return sheets() | {"10": readout_cost.sheet()} | beyond


def main(study: Tables) -> None:
    plan, every = entries(study), known(study)
    if study.dry_run:
        agenda = Agenda([entry.measure for entry in plan if isinstance(entry, Entry)], notes=study.notes)
        print_whole(f"tables, preset {study.preset}", plan, every, agenda, paces(study))
        return
    searched, extra, drawn = searches(study)
    plan, every, drawn = [*plan, *searched], every | extra, figures(study, plan) | drawn
    measured = {entry.table for entry in plan if entry.values()}
    only = [number for number, sheet in every.items() if sheet.printed or number in measured]
    publish(study, "tables", plan, extra=every, only=only, figures=drawn)


def searches(study: Study) -> tuple[Entries, dict[str, Sheet], dict[str, Section]]:
    """What was searched for here: entries, tables and figures."""
    plan, tables, drawn = [], {}, {}
    told = {each.name: getattr(study, each.name) for each in fields(Study)}
    if (study.notes / "ablate_temperature.journal").exists():
        temperature = ablate_temperature.Temperature(**told)
        found = ablate_temperature.search(temperature)
        plan += (own := ablate_temperature.entries(temperature, found))
        tables["temperature"] = ablate_temperature.SHEET
        drawn |= ablate_temperature.figures(temperature, own, found)
    if (study.notes / "search_recipe.journal").exists():
        recipe = search_recipe.Recipe(**told)
        found = search_recipe.search(recipe)
        plan += search_recipe.entries(recipe, found)
        tables["recipe"] = search_recipe.sheet(found)
        drawn |= search_recipe.figures(found)
    return plan, tables, drawn


def figures(study: Study, plan: Entries) -> dict[str, Section]:
    """Each study's own, of what is measured."""
    of_table = {number: [entry for entry in plan if entry.table == number] for number in known(study)}
    return {
        **ablate_dims.figures([*of_table["3"], *of_table["4"]], study.chosen().head),
        **ablate_annotations.figures(of_table["5"]),
        **readout_cost.figures(of_table["10"]),
        **ablate_scale.figures(of_table.get("figure-9", [])),
    }


if __name__ == "__main__":
    with for_people("tables.py"):
        main(tyro.cli(Tables, description=__doc__))
