"""Does learning from photographs that nobody cropped do as well? Tables 7 and 8.

$ python studies/ablate_wild.py --data DATA          # celeba-wild, mafl-wild and the four sets of Table 2
$ python studies/ablate_wild.py --preset quick
"""

from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from sweep.fill import Entry
from sweep.study import Study, carry_out, publish


@dataclass(frozen=True, kw_only=True)
class Wild(Study):
    """Both stages on faces in the wild."""

    faces: str = "celeba-wild"
    """The prepared folder that is learned from."""


def entries(study: Wild) -> list[Entry]:
    """Table 4's methods and hypercolumns; Table 8 has four of them on faces in the wild."""
    preset, found = study.chosen(), []
    for seed in study.network_seeds:
        for method, dims in (("DVE", (64,)), ("CL", (*preset.dims, None)), ("LEAD", (*preset.dims, None))):
            for dim in dims:
                encoder, row = preset.system(method, dim, seed, study.faces), f"{method}, {dim or 'hypercolumn'}"
                for column in preset.columns:
                    found.append(Entry("7", row, column, preset.regression(encoder, column), "error"))
                if row in ("DVE, 64", "LEAD, 64", "CL, hypercolumn", "LEAD, hypercolumn"):
                    column = "MAFL in the wild"
                    found.append(Entry("8", row, column, preset.regression(encoder, column), "error"))
    return found


def main(study: Wild) -> None:
    if study.preset == "house":
        raise ValueError("preset=house has no faces in the wild to test on: use paper or quick")
    plan = entries(study)
    if carry_out(study, "ablate_wild", plan):
        publish(study, "ablate_wild", plan)


if __name__ == "__main__":
    with for_people("ablate_wild.py"):
        main(tyro.cli(Wild, description=__doc__))
