"""How wide must a descriptor be, and does the discarded projection head help? Tables 3 and 4.

$ python studies/ablate_dims.py --data DATA                      # the whole grid, on the cluster that Ray finds
$ python studies/ablate_dims.py --preset quick                   # synthetic faces, minutes
$ python studies/ablate_dims.py --preset house --data DATA --workers 0
$ python studies/ablate_dims.py --data DATA --dry-run            # what is done, what is left, hours
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.figures.curves import Series
from lead_ray.figures.panels import Panel, side_by_side
from lead_ray.reporting.report import Section
from sweep.fill import Entry, Sheet, cells
from sweep.study import Study, carry_out, publish, sheets


@dataclass(frozen=True, kw_only=True)
class Dims(Study):
    """The grid: seeds share their stage 1, so six widths of three seeds train three encoders."""

    heads: tuple[tuple[int, int], ...] = ((64, 0), (64, 64), (64, 256), (128, 256), (256, 256))
    """Channels of the map and of the head; 0: no head."""


def entries(study: Dims) -> list[Entry]:
    """Matching for every pair of widths; regression for every method and width."""
    preset, found = study.chosen(), []
    for seed in study.network_seeds:
        lead = preset.stage1(preset.lead, seed)
        for dim, head in study.heads:
            measured = preset.matching(preset.stage2("lead", lead, seed, dim=dim, head=head))
            row = f"{dim}, head {head}" if head else f"{dim}, no head"
            found += [Entry("3", row, column, measured, f"cl_{column[:4]}_error") for column in ("same", "different")]
        for method, dims in (("DVE", (64,)), ("CL", preset.dims), ("LEAD", preset.dims)):
            for dim in dims:
                encoder = preset.system(method, dim, seed)
                for column in preset.columns:
                    measured = preset.regression(encoder, column)
                    found.append(Entry("4", f"{method}, {dim}", column, measured, "error"))
    return found


def figures(plan: Sequence[Entry], head: int) -> dict[str, Section]:
    """Matching and regression by the map's channels, beside what the paper printed.

    Args:
        head: channels of LEAD's discarded head in the runs of Table 4.
    """
    known, panels = sheets(), []
    for number, column in dict.fromkeys((entry.table, entry.column) for entry in plan if entry.column != "same"):
        own = [entry for entry in plan if (entry.table, entry.column) == (number, column)]
        lines = _lines(own, known[number], column, head)
        if lines:
            unit = next(each.unit for each in known[number].columns if each.name == column)
            title = "Matching, other faces" if number == "3" else f"Regression, {column}"
            panels.append(Panel(title=title, y=f"error, {unit}", series=lines))
    if not panels:
        return {}
    chart = side_by_side(panels, x="channels of the map")
    return {"dims": Section("Errors by the width of the map", content=chart)}


def _lines(own: Sequence[Entry], sheet: Sheet, column: str, head: int) -> list[Series]:
    """For each method its errors by channels, measured and printed."""
    found: dict[str, dict[int, list[list[float]]]] = {}
    for entry in own:
        first, rest = entry.row.split(", ")  # such as `64, head 256` and `LEAD, 64`
        name, dim = (f"LEAD, {rest}", first) if first.isdecimal() else (first, rest)
        values = cells(own, entry.row).get(column)
        if values and (printed := sheet.printed.get((entry.row, column))):
            name = f"LEAD, head {head}" if name == "LEAD" else name
            found.setdefault(name, {})[int(dim)] = [values, [printed.mean]]
    lines = []
    for name, by_dim in found.items():
        dims = sorted(by_dim)
        for place, printed in enumerate((False, True)):
            lines.append(Series(name=name, places=dims, values=[by_dim[dim][place] for dim in dims], printed=printed))
    return lines


def main(study: Dims) -> None:
    plan = entries(study)
    if carry_out(study, "ablate_dims", plan):
        publish(study, "ablate_dims", plan, figures=figures(plan, study.chosen().head))


if __name__ == "__main__":
    with for_people("ablate_dims.py"):
        main(tyro.cli(Dims, description=__doc__))
