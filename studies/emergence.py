"""When does correspondence appear? Matching by steps of stage 1, beside what the same position has.

$ lead-ray prepare celeba --raw CELEBA --out celeba --partitions train val test
$ lead-ray prepare mtfl --raw MTFL --out mtfl
$ python studies/emergence.py --celeba celeba --mtfl mtfl                      # an hour of one core
$ python studies/emergence.py --celeba celeba --mtfl mtfl --stage1 RUN         # a run made with --encoder-every

Stage 1 keeps its encoder every so many steps; of each the hypercolumns are matched, and for some stage 2 is trained.
The same command again goes on, and measures nothing twice.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from lead_ray.artefacts import RunFolder, write_json
from lead_ray.errors import for_people
from lead_ray.evaluate import Evaluate, evaluate, numbers
from lead_ray.figures import curves
from lead_ray.launch import run
from lead_ray.machine import environment
from lead_ray.models import weights
from recipes import coarse_and_fine, compact

RESULTS = Path(__file__).parent / "results"
SPLIT = "matching"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A quarter-width ResNet-18, in-batch InfoNCE at 64 px, batches of 128."""

    celeba: Path
    """Prepared CelebA faces to learn from."""
    mtfl: Path
    """Prepared MTFL, of which the split `matching` is matched."""
    out: Path = Path("runs")
    steps: int = 8000
    """Of stage 1."""
    every: int = 500
    """Steps between encoders of stage 1."""
    dense_steps: int = 300
    """Of stage 2, 32 images each."""
    dense_at: tuple[int, ...] = (1000, 4000, 8000)
    """Steps of stage 1 after which a stage 2 begins; of those at which it kept an encoder."""
    stage1: Path | None = None
    """A run to measure in place of training one: steps and every are its own."""
    workers: int = 0
    results: Path = RESULTS / "emergence"
    """Receives .json and .png."""

    @property
    def common(self) -> dict[str, Any]:
        """What all trainings are told."""
        return {"data": self.celeba, "out": self.out, "workers": self.workers}

    def __post_init__(self):
        if not 1 <= self.every <= self.steps:
            raise ValueError(f"every must be in 1..{self.steps}, the steps of stage 1, got {self.every}")
        if self.stage1 is None:
            check(self.dense_at, range(self.every, self.steps + 1, self.every))


def check(dense_at: Collection[int], kept: Collection[int]) -> None:
    """Raises: ValueError if stage 2 is to begin where stage 1 keeps no encoder."""
    if missing := sorted(set(dense_at) - set(kept)):
        raise ValueError(f"dense_at={missing}: stage 1 keeps its encoder after {', '.join(map(str, kept))} steps")


def train(study: Study) -> Path:
    """Folder of stage 1."""
    if study.stage1 is not None:
        return study.stage1
    coarse, _ = coarse_and_fine("emergence", study.steps, 1, **study.common)
    return run(replace(coarse, encoder_every=study.every, report_every=gcd(study.every, coarse.report_every))).path


def encoders(run: Path) -> dict[int, Path]:
    """Steps -> weights, of a run made with --encoder-every.

    Raises: ValueError if it kept none.
    """
    if not (found := RunFolder(run).encoders()):
        raise ValueError(f"{run} kept no encoders on its way: train it under another --name, with --encoder-every")
    return found


def measure(study: Study, stage1: Path) -> dict[str, Any]:
    """Matching errors by steps of stage 1, of its hypercolumns and of stage 2; the floors."""
    kept = encoders(stage1)
    check(study.dense_at, kept)
    matching: dict[str, Any] = {"task": "matching", "data": study.mtfl, "test_split": SPLIT}
    untrained = numbers(evaluate(Evaluate(run=stage1, features="untrained", **matching)))
    found: dict[str, dict[int, dict[str, Any]]] = {"stage 1, hypercolumn": {}, "LEAD stage 2": {}}
    for steps, path in kept.items():
        found["stage 1, hypercolumn"][steps] = numbers(evaluate(Evaluate(run=path, **matching)))
        if steps in study.dense_at:
            second = compact(f"emergence{steps}", "lead", path, study.dense_steps, **study.common).path
            found["LEAD stage 2"][steps] = numbers(evaluate(Evaluate(run=second, **matching)))
        print(f"{steps} steps: measured", flush=True)
    card = weights.read_card(next(iter(kept.values()))).trained
    return {"found": found, "untrained": untrained, "images": card["images"], "batch_size": card["batch_size"]}


def drawn(measured: dict[str, Any]) -> Figure:
    """Error in other people's images by images that stage 1 has seen: a line a system, the floors dashed."""
    batch, floors = measured["batch_size"], measured["untrained"]
    lines, places = [], []
    for name, by in measured["found"].items():
        seen = [batch * steps / 1e6 for steps in by]
        places += seen
        if seen:
            errors = [[each["cl_diff_error"]] for each in by.values()]
            lines.append(curves.Series(name=name, places=seen, values=errors))
    for name, floor in {"the same position": "cl_diff_baseline", "untrained": "cl_diff_error"}.items():
        ends = [min(places), max(places)]
        lines.append(curves.Series(name=name, places=ends, values=[[floors[floor]]] * 2, printed=True))
    title = "Matching, other identity, by images that stage 1 has seen"
    return curves.against(lines, x="million images", y="error, px", title=title, log_x=False)


def main(study: Study) -> None:
    measured = measure(study, train(study))
    write_json(study.results.with_suffix(".json"), measured | {"hardware": environment()})
    drawn(measured).savefig(study.results.with_suffix(".png"), dpi=150, metadata={"Software": None})
    for name, by in measured["found"].items():
        for steps, each in by.items():
            print(f"{name}, {steps} steps: {each['cl_diff_error']:.2f} px, same image {each['cl_same_error']:.2f}")


if __name__ == "__main__":
    with for_people("emergence.py"):
        main(tyro.cli(Study, description=__doc__))
