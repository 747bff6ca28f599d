"""How few annotated images are enough? Table 5: 1 to 100 of them, methods and widths.

$ python studies/ablate_annotations.py --data DATA
$ python studies/ablate_annotations.py --preset quick
$ python studies/ablate_annotations.py --preset house --data DATA --given contrast RUN --seeds 0
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.figures.curves import Series
from lead_ray.figures.panels import Panel, side_by_side
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


def figures(plan: Sequence[Entry]) -> dict[str, Section]:
    """Errors by annotations, of the narrowest maps and of hypercolumns, beside what the paper printed."""
    sheet, panels = sheets()["5"], []
    for width, title in (("64", "64 channels"), ("hypercolumn", "Hypercolumns")):
        lines = []
        for method in ("LEAD", "CL", "DVE"):
            row = f"{method}, {width}"
            values = {int(count): values for count, values in cells(plan, row).items()}
            if places := sorted(values):
                printed = [[sheet.printed[row, str(count)].mean] for count in places]
                lines.append(Series(name=method, places=places, values=[values[count] for count in places]))
                lines.append(Series(name=method, places=places, values=printed, printed=True))
        if lines:
            panels.append(Panel(title=title, y="error, % IOD", series=lines))
    if not panels:
        return {}
    chart = side_by_side(panels, x="annotated images", same_scale=True)
    return {"annotations": Section("Errors by the number of annotated images", content=chart)}


def main(study: Annotations) -> None:
    plan = entries(study)
    if carry_out(study, "ablate_annotations", plan):
        publish(study, "ablate_annotations", plan, figures=figures(plan))


if __name__ == "__main__":
    with for_people("ablate_annotations.py"):
        main(tyro.cli(Annotations, description=__doc__))
