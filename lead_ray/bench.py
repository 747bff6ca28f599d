"""Speed: the project's paths beside plain references and, where installed, other libraries. Nothing is asserted.

$ lead-ray bench views
$ lead-ray bench step --batch 64 --rounds 3
$ lead-ray bench stage2 --loss-only --size 256 --batch 2
$ lead-ray bench profile --stage 2                  # where the time goes
$ lead-ray bench all --out measured                 # minutes on a GPU, a quarter of an hour on a core
"""

import os
from typing import Annotated

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler tells stderr of every start

import tyro

from lead_ray.errors import for_people
from lead_ray.speed.everything import Everything
from lead_ray.speed.ingest import Ingest
from lead_ray.speed.kept import Kept
from lead_ray.speed.model import Model
from lead_ray.speed.profile import Profile
from lead_ray.speed.readout import Readout, ReadoutWhole
from lead_ray.speed.scale import Scale
from lead_ray.speed.stage2 import Stage2
from lead_ray.speed.steps import Step, Views
from lead_ray.speed.workers import Workers
from lead_ray.usage import parsed

Measurements = (
    Annotated[Views, tyro.conf.subcommand("views")]
    | Annotated[Step, tyro.conf.subcommand("step")]
    | Annotated[Ingest, tyro.conf.subcommand("ingest")]
    | Annotated[Stage2, tyro.conf.subcommand("stage2")]
    | Annotated[Readout, tyro.conf.subcommand("readout")]
    | Annotated[ReadoutWhole, tyro.conf.subcommand("readout-whole")]
    | Annotated[Workers, tyro.conf.subcommand("workers")]
    | Annotated[Scale, tyro.conf.subcommand("scale")]
    | Annotated[Model, tyro.conf.subcommand("model")]
    | Annotated[Profile, tyro.conf.subcommand("profile")]
    | Annotated[Everything, tyro.conf.subcommand("all")]
    | Annotated[Kept, tyro.conf.subcommand("table")]
)


def main(arguments: list[str] | None = None) -> None:
    with for_people("bench"):
        parsed(Measurements, arguments, __doc__, "lead-ray bench").run()


if __name__ == "__main__":
    main()
