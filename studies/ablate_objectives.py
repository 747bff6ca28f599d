"""Which objective in which stage? Table 6, and the matrix of every stage 1 with every stage 2.

$ python studies/ablate_objectives.py --data DATA
$ python studies/ablate_objectives.py --preset quick
$ python studies/ablate_objectives.py --preset house --data DATA --workers 0
"""

from dataclasses import dataclass

import tyro

from lead_ray.errors import for_people
from lead_ray.reporting.cells import Column
from recipes import Stage1, Stage2
from sweep.fill import Entry, Sheet
from sweep.study import Study, carry_out, publish

PAPERS: tuple[Stage1, ...] = ("byol", "moco")
NAMES = {"byol": "BYOL", "moco": "MoCo", "contrast": "InfoNCE in the batch"}
DECODERS = {"lead": "LEAD", "cl": "CL's projection", "cl-fpn": "CL on LEAD's decoder", "dve": "DVE on LEAD's decoder"}


@dataclass(frozen=True, kw_only=True)
class Objectives(Study):
    """Table 6 compares losses, so all of its second stages have LEAD's decoder."""

    firsts: tuple[Stage1, ...] | None = None
    """byol, moco and contrast; quick: the paper's two."""
    seconds: tuple[Stage2, ...] = ("lead", "cl", "cl-fpn", "dve")
    dims: tuple[int, ...] | None = None
    """Channels of Table 6, in place of the preset's."""


def sheet(study: Objectives) -> Sheet:
    """The matrix: matching, and regression on every data set of the preset."""
    columns = [Column("matching, different", "px", "lower"), Column("matching, same", "px", "lower")]
    columns += [Column(name, "% IOD", "lower") for name in study.chosen().columns]
    return Sheet("Stage 1 by stage 2, 64 channels", columns)


def entries(study: Objectives) -> list[Entry]:
    """Table 6's widths of two by two objectives, then the matrix at 64 channels with stage 1 alone and untrained."""
    preset, found = study.chosen(), []
    for seed in study.network_seeds:
        for first, first_name in ((preset.lead, "LEAD"), ("moco", "CL")):
            for second, second_name in (("lead", "LEAD"), ("cl-fpn", "CL")):
                for dim in study.dims or preset.dims:
                    encoder = preset.stage2(second, preset.stage1(first, seed), seed, dim=dim)
                    measured = preset.regression(encoder, "AFLW_M")
                    found.append(Entry("6", f"{first_name}, then {second_name}", str(dim), measured, "error"))
        for first in study.firsts or (PAPERS if study.preset == "quick" else (*PAPERS, "contrast")):
            stage1 = preset.stage1(first, seed)
            systems = {DECODERS[second]: (preset.stage2(second, stage1, seed), {}) for second in study.seconds}
            systems["none: hypercolumn"] = (stage1, {})
            systems["none: untrained"] = (stage1, {"features": "untrained"})
            for name, (encoder, changes) in systems.items():
                row, group = f"{NAMES[first]}, {name}", f"stage 1: {NAMES[first]}"
                matched = preset.matching(encoder, **changes)
                for column, read in (("different", "cl_diff_error"), ("same", "cl_same_error")):
                    found.append(Entry("objectives", row, f"matching, {column}", matched, read, group=group))
                for column in preset.columns:
                    measured = preset.regression(encoder, column, **changes)
                    found.append(Entry("objectives", row, column, measured, "error", group=group))
    return found


def main(study: Objectives) -> None:
    plan = entries(study)
    if carry_out(study, "ablate_objectives", plan):
        publish(study, "ablate_objectives", plan, extra={"objectives": sheet(study)})


if __name__ == "__main__":
    with for_people("ablate_objectives.py"):
        main(tyro.cli(Objectives, description=__doc__))
