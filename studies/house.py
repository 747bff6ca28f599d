"""What do two CPU cores and 8,969 faces teach? Both stages on CelebA, errors on AFLW's faces, beside their floors.

$ lead-ray prepare celeba --raw CELEBA --out celeba --partitions train val test
$ lead-ray prepare mtfl --raw MTFL --out mtfl
$ python studies/house.py --celeba celeba --mtfl mtfl                       # hours: see the steps below
$ python studies/house.py --celeba celeba --mtfl mtfl --stage1 RUN --stage2 RUN    # measure runs that are there
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

from lead_ray.artefacts import read_json, write_json
from lead_ray.dense import Dense
from lead_ray.errors import for_people
from lead_ray.evaluate import Evaluate, Features, evaluate, numbers
from lead_ray.launch import run
from lead_ray.machine import environment
from lead_ray.models import weights
from lead_ray.models.fpn import FpnSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.readouts.regression import RegressionSettings
from lead_ray.reporting.tables import Cell, Column, Row, Table
from lead_ray.train import Optim
from recipes import coarse_to_fine, small_views

COUNTS: tuple[int | None, ...] = (None, 100, 10)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A quarter-width ResNet-18, in-batch InfoNCE at 64 and then 96 px, LEAD's alignment of two views."""

    celeba: Path
    """Prepared CelebA faces to learn from."""
    mtfl: Path
    """Prepared MTFL: train, test and matching."""
    out: Path = Path("runs")
    small_steps: int = 9000
    """Steps of 128 images at 64 px."""
    steps: int = 2000
    """Steps of 128 images at 96 px that follow."""
    dense_steps: int = 1000
    """Steps of 32 images of stage 2."""
    workers: int = 0
    stage1: Path | None = None
    """A finished run to measure in place of training one."""
    stage2: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    results: Path = RESULTS / "house"
    """Receives .json and .md."""


def train(study: Study) -> tuple[Path, Path]:
    """Folders of stage 1 and stage 2; what is finished is not trained again."""
    common: dict[str, Any] = {"data": study.celeba, "out": study.out, "workers": study.workers}
    stage1 = study.stage1 or coarse_to_fine("house", study.small_steps, study.steps, **common).path
    if study.stage2 is not None:
        return stage1, study.stage2
    align = AlignSettings(fpn=FpnSettings(lateral=64, branch=64), projector=64, teacher="centred")
    optim = Optim(lr=0.1, batch_size=32, steps=study.dense_steps)
    dense = Dense(
        name="house", stage1=stage1, pairing="views", views=small_views(96, 0.4), objective=align, optim=optim, **common
    )
    return stage1, run(dense).path


def measure(study: Study, stage1: Path, stage2: Path) -> dict[str, dict[str, Any]]:
    """Matching and regression of both stages and of features that learned nothing."""
    systems: dict[str, tuple[Path, Features]] = {
        "LEAD stage 2": (stage2, "learned"),
        "stage 1, hypercolumn": (stage1, "learned"),
        "the same network, untrained": (stage1, "untrained"),
        "raw colour patches": (stage1, "colour"),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (path, features) in systems.items():
        common: dict[str, Any] = {"run": path, "data": study.mtfl, "features": features}
        found[name] = {"matching": evaluate(Evaluate(task="matching", test_split="matching", **common))}
        for count in COUNTS:
            seeds = study.seeds if count else study.seeds[:1]
            readout = RegressionSettings(grid=24)
            settings = Evaluate(task="regression", annotations=count, seeds=seeds, regression=readout, **common)
            found[name][str(count)] = evaluate(settings)
        print(f"{name}: measured", flush=True)
    return found


def make_table(found: dict[str, dict[str, Any]]) -> Table:
    """One row a system; the floors below."""

    def cell(values: list[float]) -> Cell:
        return Cell(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    columns = [
        Column("matching, other identity", "px", better="lower"),
        Column("matching, same image", "px", better="lower"),
        *(Column(f"regression, {count or 'all'} annotations", "% IOD", better="lower") for count in COUNTS),
    ]
    rows = []
    for name, results in found.items():
        cells = [cell([results["matching"][f"cl_{column}_error"]]) for column in ("diff", "same")]
        cells += [cell(results[str(count)]["errors"]) for count in COUNTS]
        rows.append(Row(name, "LEAD" if "stage" in name else "floors", cells))
    first = next(iter(found.values()))
    cells = [cell([first["matching"][f"cl_{column}_baseline"]]) for column in ("diff", "same")]
    cells += [cell(first[str(count)]["mean_faces"]) for count in COUNTS]
    rows.append(Row("the same position; the mean face", "floors", cells))
    return Table("CelebA's faces, AFLW's landmarks", columns, rows)


def trained(path: Path) -> dict[str, Any]:
    """How a run was trained, on what, and how fast at its end."""
    card, result = weights.read_card(path).trained, read_json(path / "result.json")
    where = read_json(path / "env.json")
    told = {key: card[key] for key in ("run", "images", "steps", "batch_size", "precision")}
    spent = {key: result[key] for key in ("seconds", "images_per_second")}
    return told | spent | {"on": where["gpus"] or [where["processor"]], "versions": where["versions"]}


def main(study: Study) -> None:
    stage1, stage2 = train(study)
    found = measure(study, stage1, stage2)
    table = make_table(found)
    runs = {name: trained(path) for name, path in (("stage 1", stage1), ("stage 2", stage2))}
    kept = {
        name: {
            task: {key: value for key, value in numbers(result).items() if key != "runs"}
            for task, result in results.items()
        }
        for name, results in found.items()
    }
    write_json(study.results.with_suffix(".json"), {"found": kept, "trained": runs, "hardware": environment()})
    study.results.with_suffix(".md").write_text(table.markdown())
    table.show()


if __name__ == "__main__":
    with for_people("house.py"):
        main(tyro.cli(Study, description=__doc__))
