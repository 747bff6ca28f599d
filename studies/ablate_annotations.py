"""How few annotated images are enough? Table 5: 1 to 100 of them, methods and widths.

python studies/ablate_annotations.py --data DATA
python studies/ablate_annotations.py --preset quick
python studies/ablate_annotations.py --preset house --data DATA --given contrast RUN --seeds 0
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.figures import curves
from lead_ray.reporting.report import Section
from sweep.fill import Entry, cells
from sweep.study import Study, carry_out, publish, sheets


@dataclass(frozen=True, kw_only=True)
class Annotations(Study):
    """All methods on the set that the paper takes, AFLW_M."""

    column: str = "AFLW_M"
    """The data set, by the paper's name."""
    dims: tuple[int, ...] | None = None
    """Channels of CL's and LEAD's maps, in place of the preset's."""


def entries(study: Annotations) -> list[Entry]:
    """One measurement an encoder: all numbers of annotations and all repeats are fitted together."""
    preset, found = study.chosen(), []
    widths = (*(study.dims or preset.dims), None)
    for seed in study.network_seeds:
        for method, dims in (("DVE", (64,)), ("CL", widths), ("LEAD", widths)):
            for dim in dims:
                measured = preset.limited(preset.system(method, dim, seed), study.column)
                row = f"{method}, {dim or 'hypercolumn'}"
                found += [Entry("5", row, str(count), measured, "error", count) for count in preset.counts]
    return found


def figures(plan: Sequence[Entry]) -> list[Section]:
    """Errors by annotations: LEAD's and CL's narrowest maps and hypercolumns, and what the paper printed of them."""
    sheet, lines = sheets()["5"], []
    for row in ("LEAD, 64", "CL, 64", "LEAD, hypercolumn", "CL, hypercolumn"):
        values = {int(column): values for column, values in cells(plan, row).items()}
        if values:
            places = sorted(values)
            printed = [[sheet.printed[row, str(count)].mean] for count in places]
            lines.append(curves.Series(name=row, places=places, values=[values[count] for count in places]))
            lines.append(curves.Series(name=f"{row}, paper", places=places, values=printed, printed=True))
    if not lines:
        return []
    chart = curves.against(lines, x="annotated images", y="error, % IOD", title="Few annotations")
    return [Section("Errors by the number of annotated images", content=chart)]


def main(study: Annotations) -> None:
    plan = entries(study)
    if carry_out(study, "ablate_annotations", plan):
        publish(study, "ablate_annotations", plan, figures=figures(plan))


if __name__ == "__main__":
    with for_people("ablate_annotations"):
        main(tyro.cli(Annotations, description=__doc__))
