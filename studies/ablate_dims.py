"""How wide must a descriptor be, and does the discarded projection head help? Tables 3 and 4.

python studies/ablate_dims.py --data DATA                      # the whole grid, on the cluster that Ray finds
python studies/ablate_dims.py --preset quick                   # synthetic faces, minutes
python studies/ablate_dims.py --preset house --data DATA --workers 0
python studies/ablate_dims.py --data DATA --dry-run            # what is done, what is left, hours
"""

from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from sweep.fill import Entry
from sweep.study import Study, carry_out, publish


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


def main(study: Dims) -> None:
    plan = entries(study)
    if carry_out(study, "ablate_dims", plan):
        publish(study, "ablate_dims", plan)


if __name__ == "__main__":
    with for_people("ablate_dims"):
        main(tyro.cli(Dims, description=__doc__))
