"""How does LEAD stand beside CL, DVE and non-negative factors? Tables 1 and 2.

$ python studies/compare.py --data DATA
$ python studies/compare.py --preset quick
$ python studies/compare.py --preset house --data DATA --workers 0
"""

from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.evaluate import Reduce
from sweep.fill import Entry
from sweep.plan import Measure
from sweep.study import Study, carry_out, publish


@dataclass(frozen=True, kw_only=True)
class Compare(Study):
    """Every method at every width of Table 1; Table 2's rows that this package trains."""


def entries(study: Compare) -> list[Entry]:
    """Rows of others that Table 2 quotes stay as printed."""
    preset, found = study.chosen(), []

    def matched(row: str, measure: Measure) -> list[Entry]:
        return [Entry("1", row, column, measure, f"cl_{column[:4]}_error") for column in ("same", "different")]

    for seed in study.network_seeds:
        dims = [dim for dim in (64, 256) if dim in preset.dims]
        for method, widths in (("DVE", (64,)), ("CL", (*dims, None)), ("LEAD", (*dims, None))):
            for dim in widths:
                row = f"{method}, {dim or 'hypercolumn'}"
                found += matched(row, preset.matching(preset.system(method, dim, seed)))
        lead = preset.system("LEAD", None, seed)
        for dim in dims:
            factors = Reduce(dim=dim, data=lead.data, seed=seed)
            found += matched(f"BYOL + NMF, {dim}", preset.matching(lead, features="nmf", reduce=factors))
        rows = {"DVE Hourglass": preset.dve(seed), "CL, hypercolumn": preset.system("CL", None, seed)}
        for row, encoder in (rows | {"LEAD, hypercolumn": lead}).items():
            found += [Entry("2", row, name, preset.regression(encoder, name), "error") for name in preset.columns]
    return found


def main(study: Compare) -> None:
    plan = entries(study)
    if carry_out(study, "compare", plan):
        publish(study, "compare", plan)


if __name__ == "__main__":
    with for_people("compare.py"):
        main(tyro.cli(Compare, description=__doc__))
