"""All ten tables from whatever runs exist, and one page with them.

python studies/tables.py --preset house --data DATA --out RUNS --results studies/results/tables
"""

from dataclasses import dataclass, fields

import tyro

import ablate_annotations
import ablate_dims
import ablate_objectives
import ablate_scale
import ablate_wild
import birds
import compare
import readout_cost
from lead_ray.errors import for_people
from sweep.fill import Entries
from sweep.study import Study, publish

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
NUMBERS = tuple(str(number) for number in range(1, 11))
HOUSE_LACKS = (ablate_wild, birds, ablate_scale)


@dataclass(frozen=True, kw_only=True)
class Tables(Study):
    """Nothing is trained or measured; what is missing is blank."""


def entries(study: Study) -> Entries:
    """Of every study, told where the runs are."""
    told = {each.name: getattr(study, each.name) for each in fields(Study)}
    known = [each for each in STUDIES if study.preset != "house" or each[0] not in HOUSE_LACKS]
    return [entry for module, kind in known for entry in module.entries(kind(**told))]


def main(study: Tables) -> None:
    plan = entries(study)
    extra = {"objectives": ablate_objectives.sheet(study), "figure-9": ablate_scale.SHEET, "10": readout_cost.sheet()}
    others = {entry.table for entry in plan if entry.table in extra and entry.values()} - {*NUMBERS}
    sections = ablate_annotations.figures([entry for entry in plan if entry.table == "5"])
    sections += ablate_scale.figures([entry for entry in plan if entry.table == "figure-9"])
    publish(study, "tables", plan, extra=extra, only=[*NUMBERS, *sorted(others)], figures=sections)


if __name__ == "__main__":
    with for_people("tables"):
        main(tyro.cli(Tables, description=__doc__))
