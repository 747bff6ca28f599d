"""Does it work on birds? Table 9: learn from iNaturalist's Aves, find the parts of CUB's songbirds.

$ python studies/birds.py --data DATA          # inat-aves and cub
$ python studies/birds.py --preset quick       # synthetic faces in their place: only whether the study runs
"""

from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.reporting.cells import Column
from sweep.fill import Entry, Sheet
from sweep.study import Study, carry_out, publish

QUICK = Sheet("Faces in place of birds", [Column("error", "% IOD", "lower")])


@dataclass(frozen=True, kw_only=True)
class Birds(Study):
    """Stage 1 alone: the paper reads birds from hypercolumns."""

    faces: str = "inat-aves"
    """The prepared folder that is learned from."""


def entries(study: Birds) -> list[Entry]:
    """Correct key points in %; of quick's faces their error, in a table of its own."""
    preset = study.chosen()
    where = ("birds", "error", "error") if study.preset == "quick" else ("9", "PCK", "pck")
    return [
        Entry(where[0], f"{method}, hypercolumn", where[1], preset.regression(encoder, "CUB"), where[2])
        for seed in study.network_seeds
        for method in ("CL", "LEAD")
        for encoder in [preset.system(method, None, seed, study.faces)]
    ]


def main(study: Birds) -> None:
    if study.preset == "house":
        raise ValueError("preset=house has no birds: use paper or quick")
    plan = entries(study)
    if carry_out(study, "birds", plan):
        publish(study, "birds", plan, extra={"birds": QUICK})


if __name__ == "__main__":
    with for_people("birds.py"):
        main(tyro.cli(Birds, description=__doc__))
