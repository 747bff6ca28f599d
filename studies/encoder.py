"""Train the small encoder that the package carries: synthetic faces alone, of people whom the quickstart never draws.

$ python studies/encoder.py                          # about an hour and a half of one core; resumes
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from lead_ray.artefacts import RunFolder, atomic, read_json
from lead_ray.data.synthetic import Synthetic
from lead_ray.errors import for_people
from lead_ray.machine import cores, environment
from lead_ray.models import weights
from lead_ray.prepare import prepare
from lead_ray.quickstart import CARRIED
from recipes import coarse_to_fine


@dataclass(frozen=True, kw_only=True)
class Study:
    """Draw, prepare, train, and write weights whose card says how they came about."""

    work: Path = Path("encoder")
    """Receives faces, shards and runs."""
    images: int = 12000
    identities: int = 1500
    seed: int = 100
    """Of the faces; the quickstart's is another."""
    small_steps: int = 8000
    """Steps of 128 images at 64 px."""
    steps: int = 2000
    """Steps of 128 images at 96 px that follow."""
    workers: int = 0
    out: Path = CARRIED
    """The file of weights."""


def card(study: Study, fine: RunFolder) -> dict:
    """What the file says of itself. No path in it: it goes to other machines."""
    settings = read_json(fine.path / "config.json")
    runs = (RunFolder(Path(settings["init"])), fine)
    stages = []
    for folder in runs:
        config, result = read_json(folder.path / "config.json"), folder.result
        stage = {name: config[name] for name in ("views", "optim", "objective", "seed")}
        stages.append(stage | {name: result[name] for name in ("steps", "loss", "seconds")})
    hardware = environment()
    return {
        "command": f"python studies/encoder.py --small-steps {study.small_steps} --steps {study.steps}",
        "objective": "in-batch InfoNCE (objectives/contrast.py), not BYOL",
        "data": f"{study.images:,} synthetic faces of {study.identities:,} people, seed {study.seed}; no photograph",
        "images": fine.result["images"],
        "steps": sum(stage["steps"] for stage in stages),
        "batch_size": settings["optim"]["batch_size"],
        "seconds": round(sum(stage["seconds"] for stage in stages)),
        "stages": stages,
        "hardware": {name: hardware[name] for name in ("processor", "torch_threads", "gpus", "versions", "commit")},
    }


def main(study: Study) -> None:
    reader = Synthetic(
        raw=study.work / "faces",
        images=study.images,
        identities=study.identities,
        seed=study.seed,
        test_share=0.02,
        draw_workers=cores(),
    )
    prepare(reader, study.work / "shards", workers=study.workers)
    fine = coarse_to_fine(
        "encoder",
        study.small_steps,
        study.steps,
        data=study.work / "shards",
        out=study.work / "runs",
        workers=study.workers,
    )
    with atomic(study.out) as temporary:
        weights.save(temporary, weights.load_trunk(fine.path), card(study, fine))
    print(f"{study.out}: {study.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    with for_people("encoder.py"):
        main(tyro.cli(Study, description=__doc__))
