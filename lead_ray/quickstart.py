"""The whole way in a few minutes on two cores: synthetic faces, both stages, errors against floors, one page.

$ lead-ray quickstart                       # goes on from the small encoder that the package carries
$ lead-ray quickstart --from-scratch        # without it, and what that gives
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lead_ray.artefacts import RunFolder, read_json, write_json
from lead_ray.augmentation.views import ViewSettings
from lead_ray.data.synthetic import Synthetic
from lead_ray.dense import Dense
from lead_ray.errors import for_people
from lead_ray.evaluate import Evaluate, evaluate, numbers
from lead_ray.launch import run
from lead_ray.machine import cores, environment
from lead_ray.models import weights
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.trunk import TrunkSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.prepare import prepare
from lead_ray.pretrain import Pretrain
from lead_ray.progress import phase
from lead_ray.quickstart_page import READOUT, make_page, make_table
from lead_ray.train import Optim
from lead_ray.usage import parsed

CARRIED = Path(__file__).parent / "models" / "synthetic-faces.safetensors"
SEEDS = (0, 1, 2)
VIEWS = ViewSettings(size=96, scale=(0.4, 1.0), flip=0.0, blur=(0.5, 0.1))
ANNOTATIONS = 10
SYSTEMS = {
    "stage 2": ("stage 2", "learned"),
    "stage 1": ("stage 1", "learned"),
    "untrained": ("stage 1", "untrained"),
    "colour": ("stage 1", "colour"),
}
"""What is measured: name -> the run it belongs to, and its features."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Five minutes on two cores."""

    out: Path = Path("quickstart")
    """Folder for everything; run again, what is done is skipped."""
    from_scratch: bool = False
    """Train stage 1 from random weights, not from the carried encoder."""
    workers: int = 2
    """Ray Train workers; 0: this process alone, without Ray."""
    images: int = 1500
    """Synthetic faces to draw."""
    steps: int = 100
    """Steps of stage 1."""
    dense_steps: int = 200
    """Steps of stage 2."""
    test_images: int = 200
    """Test images to match, two a pair."""

    @property
    def runs(self) -> Path:
        return self.out / "runs"

    @property
    def name(self) -> str:
        return "scratch" if self.from_scratch else "quickstart"

    def synthetic(self) -> Synthetic:
        """Other people than the carried encoder has seen: another seed."""
        return Synthetic(
            raw=self.out / "faces",
            images=self.images,
            identities=self.images // 3,
            seed=1,
            test_share=0.4,
            draw_workers=cores(),
        )

    def stage1(self) -> Pretrain:
        """BYOL on a quarter-width ResNet-18 and small crops; mirror images are off: they make left and right alike."""
        carried = CARRIED if not self.from_scratch else None
        return Pretrain(
            data=self.out / "shards",
            out=self.runs,
            name=self.name,
            trunk=weights.read_card(carried).trunk if carried else TrunkSettings(depth=18, width=0.25),
            objective=ByolSettings(hidden=512, dim=128, momentum=0.99),
            init=carried,
            views=VIEWS,
            optim=Optim(lr=0.2 if self.from_scratch else 0.03, batch_size=64, steps=self.steps),
            workers=self.workers,
            report_every=10,
            checkpoint_every=50,
        )

    def stage2(self, stage1: RunFolder) -> Dense:
        """LEAD's alignment. A teacher this young knows parts better within one image than between two, and once its
        features are taken about their mean: so two views, and "centred"; the paper pairs different images."""
        return Dense(
            data=self.out / "shards",
            out=self.runs,
            name=self.name,
            stage1=stage1.path,
            pairing="views",
            objective=AlignSettings(fpn=FpnSettings(dim=64, lateral=64, branch=64), teacher="centred", projector=64),
            views=VIEWS,
            optim=Optim(lr=0.1, batch_size=32, steps=self.dense_steps),
            workers=self.workers,
            report_every=10,
            checkpoint_every=50,
        )


class Clock:
    """Seconds of each phase, kept in a file. A finished phase keeps its time when it is only looked up again; one
    that was interrupted adds what it took until then."""

    def __init__(self, path: Path):
        self.path = path
        kept = read_json(path) if path.exists() else {"seconds": {}, "finished": []}
        self.seconds: dict[str, float] = kept["seconds"]
        self.finished: list[str] = kept["finished"]

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        done = False
        try:
            yield
            done = True
        finally:
            if name not in self.finished:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
                self.finished += [name] * done
                write_json(self.path, {"seconds": self.seconds, "finished": self.finished})


def measure(settings: Quickstart, runs: dict[str, RunFolder]) -> dict[str, dict[str, Any]]:
    """Matching and 10-annotation regression of all systems; three seeds each."""
    results: dict[str, dict[str, Any]] = {}
    with phase("measuring", 2 * len(SYSTEMS)) as shown:
        for system, (stage, features) in SYSTEMS.items():
            common = {"run": runs[stage].path, "data": settings.out / "shards", "features": features, "seeds": SEEDS}
            results[system] = {"matching": evaluate(Evaluate(task="matching", limit=settings.test_images, **common))}
            shown.update(shown.done + 1, f"{system}: matching")
            results[system]["regression"] = evaluate(
                Evaluate(task="regression", annotations=ANNOTATIONS, regression=READOUT, **common)
            )
            shown.update(shown.done + 1, f"{system}: regression")
        shown.update(shown.done, f"{len(SYSTEMS)} systems")
    return results


def quickstart(settings: Quickstart) -> dict[str, Any]:
    """Run what is missing; returns summary.json's content."""
    settings.out.mkdir(parents=True, exist_ok=True)
    name = "summary-scratch" if settings.from_scratch else "summary"
    clock = Clock(settings.out / f"{name.replace('summary', 'seconds')}.json")
    if settings.from_scratch:
        print("stage 1 starts from random weights")
    else:
        trained = weights.read_card(CARRIED).trained
        print(
            f"stage 1 goes on from {CARRIED.name}: {trained['steps']:,} steps of {trained['objective']} on other faces"
        )
    with clock.measure("draw and prepare"):
        prepare(settings.synthetic(), settings.out / "shards", workers=settings.workers and None)
    runs = {}
    with clock.measure("stage 1"):
        runs["stage 1"] = run(settings.stage1(), title="stage 1 (BYOL)")
    with clock.measure("stage 2"):
        runs["stage 2"] = run(settings.stage2(runs["stage 1"]), title="stage 2 (LEAD)")
    with clock.measure("measure"):
        results = measure(settings, runs)
    summary = {
        "from_scratch": settings.from_scratch,
        "start": None if settings.from_scratch else weights.read_card(CARRIED).trained,
        "systems": {
            system: {task: numbers(result) for task, result in found.items()} for system, found in results.items()
        },
        "stages": {stage: folder.result for stage, folder in runs.items()},
        "seconds": clock.seconds,
        "hardware": environment(),
    }
    with clock.measure("page"):
        page = settings.out / f"{name.replace('summary', 'report')}.html"
        make_page(page, summary, runs, settings.out / "shards", ANNOTATIONS)
    summary["seconds"] = clock.seconds
    summary["report"] = str(page)
    write_json(settings.out / f"{name}.json", summary)
    return summary


def main(arguments: list[str] | None = None) -> None:
    settings = parsed(Quickstart, arguments, __doc__, "lead-ray quickstart")
    with for_people("quickstart"):
        summary = quickstart(settings)
    make_table(summary).show()
    print("seconds: " + ", ".join(f"{what} {seconds:.0f}" for what, seconds in summary["seconds"].items()))
    print(f"open {Path(summary['report']).absolute()}")


if __name__ == "__main__":
    main()
