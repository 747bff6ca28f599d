"""How much does a face's size matter? Figure 9: read-outs trained on 1 to 1.5 times zoomed out, tested on 1 to 2 times.

$ python studies/ablate_scale.py --data DATA          # mafl-unaligned
$ python studies/ablate_scale.py --preset quick       # its faces have one size: only whether the study runs
"""

from dataclasses import dataclass

import torch
import tyro

from lead_ray.errors import for_people
from lead_ray.evaluate import details
from lead_ray.figures import curves
from lead_ray.reporting.cells import Column
from lead_ray.reporting.report import Section
from sweep.fill import Entry, Sheet
from sweep.study import Study, carry_out, publish

READS = {"all": "error", "seen, 1-1.5": "seen_error", "unseen, 1.5-2": "unseen_error"}
READS |= {f"{bin / 10:.1f}-{(bin + 1) / 10:.1f}": f"zoom {bin / 10}" for bin in range(10, 20)}
SHEET = Sheet(
    "Figure 9. Regression on unaligned MAFL by zoom-out factor",
    [Column(name, "% IOD", "lower") for name in READS],
    note="The paper shows curves, no numbers.",
)


@dataclass(frozen=True, kw_only=True)
class Scale(Study):
    """64-d features, as in the paper."""

    dim: int = 64


def entries(study: Scale) -> list[Entry]:
    """One measurement a method gives all the columns."""
    preset = study.chosen()
    return [
        Entry("figure-9", f"{method}, {study.dim}", column, measured, read)
        for seed in study.network_seeds
        for method in ("LEAD", "CL")
        for measured in [preset.regression(preset.system(method, study.dim, seed), "unaligned MAFL")]
        for column, read in READS.items()
    ]


def figures(plan: list[Entry]) -> dict[str, Section]:
    """Errors of the same images by both methods, of the first seed."""
    measures = {entry.row: entry.measure for entry in reversed(plan) if entry.measure.done()}
    found = {row: details(measure.paths[0]) for row, measure in measures.items()}
    found = {row: arrays for row, arrays in found.items() if "factor" in arrays}
    if not found:
        return {}
    first = next(iter(found.values()))
    errors = {row: torch.as_tensor(arrays["error"]) for row, arrays in found.items()}
    low, high = (float(bound) for bound in first["train_factor"])
    chart = curves.zoom(errors, torch.as_tensor(first["factor"]), seen=(low, high))
    return {"scale": Section("By zoom-out factor", content=chart)}


def main(study: Scale) -> None:
    if study.preset == "house":
        raise ValueError("preset=house has no faces of several sizes: use paper or quick")
    plan = entries(study)
    if carry_out(study, "ablate_scale", plan):
        publish(study, "ablate_scale", plan, extra={"figure-9": SHEET}, figures=figures(plan))


if __name__ == "__main__":
    with for_people("ablate_scale.py"):
        main(tyro.cli(Scale, description=__doc__))
