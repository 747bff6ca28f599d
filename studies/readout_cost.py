"""What does a read-out cost, by the features' channels? Table 10, and the time that it takes.

$ python studies/readout_cost.py                     # every width, on this machine
$ python studies/readout_cost.py --preset quick      # a batch of 4, one round
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from lead_ray import storage
from lead_ray.artefacts import read_json, write_json
from lead_ray.errors import for_people
from lead_ray.figures import cost
from lead_ray.machine import environment
from lead_ray.reporting.cells import Column
from lead_ray.reporting.report import Section
from lead_ray.speed.readout import FEATURES, Readout, costs
from sweep.fill import Kept, Sheet
from sweep.study import Study, publish, sheets

OURS = "an image, lead_ray"
TIMES = {"built_seconds": "hypercolumn built, as CL", "seconds": "lead_ray", "bf16_seconds": "lead_ray, bf16"}


@dataclass(frozen=True, kw_only=True)
class Cost(Study):
    """Steps of CL's regressor on 5 landmarks; nothing is trained here that a run would keep."""

    threads: int = 1
    """Of torch on a CPU."""

    @property
    def file(self) -> Path:
        return self.notes / f"readout_cost-{self.preset}.json"


def measure(study: Cost) -> None:
    """Products of the forward pass by arithmetic, times of steps measured; kept in a file."""
    bench = Readout(device=study.device, threads=study.threads, out=None)
    if study.preset == "quick":
        bench = replace(bench, batch=4, steps=1, rounds=1)
    found = {}
    for kind, each in zip(FEATURES.values(), costs(bench), strict=True):
        work = bench.work(kind)  # operations, two a product
        times = {column: 1e3 * getattr(each, name) for name, column in TIMES.items()}
        found[str(each.channels)] = {"an image": work.built / 2e9, OURS: work.ours / 2e9, **times}
    write_json(study.file, {"found": found, "environment": environment()})


def entries(study: Cost) -> list[Kept]:
    """What was kept, by channels and column; without values if nothing was measured yet."""
    kept = read_json(study.file) if storage.exists(study.file) else {"found": {}, "environment": {"commit": None}}
    found, commit = kept["found"], kept["environment"]["commit"]
    columns = ("an image", OURS, *TIMES.values())
    return [
        Kept("10", dim, column, study.file, found.get(dim, {}).get(column), commit)
        for dim in (str(sum(count for count, _ in kind)) for kind in FEATURES.values())
        for column in columns
    ]


def sheet() -> Sheet:
    """Table 10 with our way of the same read-out, and the times of both, beside it."""
    table = sheets()["10"]
    (products,) = table.columns
    times = [Column(name, "ms an image", "lower", 3) for name in TIMES.values()]
    return replace(table, columns=[products, replace(products, name=OURS), *times])


def figures(plan: list[Kept]) -> dict[str, Section]:
    """Time and operations by channels."""
    found = {(entry.row, entry.column): entry.value for entry in plan if entry.value is not None}
    ways = {"hypercolumn built, as CL": "an image", "lead_ray": OURS}
    rows = [
        cost.Cost(system=way, dim=int(dim), milliseconds=found[dim, way], gflops=2 * found[dim, products])
        for dim in dict.fromkeys(row for row, _ in found)
        for way, products in ways.items()
    ]
    return {"readout-cost": Section("Cost of a read-out", content=cost.drawn(rows))} if rows else {}


def main(study: Cost) -> None:
    if study.dry_run:
        print(f"readout_cost: {'done' if storage.exists(study.file) else 'to be measured here, minutes'}, {study.file}")
        return
    if not storage.exists(study.file):
        measure(study)
    plan = entries(study)
    publish(study, "readout_cost", plan, extra={"10": sheet()}, figures=figures(plan))


if __name__ == "__main__":
    with for_people("readout_cost.py"):
        main(tyro.cli(Cost, description=__doc__))
