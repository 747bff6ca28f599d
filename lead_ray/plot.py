"""Pictures of finished runs and of what evaluation measured, one a call.

$ lead-ray plot heat-maps runs/stage1-... runs/stage2-... --data TEST --out heat.png
$ lead-ray plot parts runs/stage2-... --data TEST --out parts.png
$ lead-ray plot counts runs/*/eval/regression-mtfl-learned-*.json --out counts.svg
"""

from typing import Annotated

import tyro

from lead_ray.errors import for_people
from lead_ray.plotting.charts import Cost, Counts, Distribution, Sweep, Trials, Zoom
from lead_ray.plotting.marked import FewAnnotations, Landmarks, Matching
from lead_ray.plotting.networks import Clusters, HeatMaps, Losses, Parts
from lead_ray.usage import parsed

Pictures = (
    Annotated[HeatMaps, tyro.conf.subcommand("heat-maps")]
    | Annotated[Matching, tyro.conf.subcommand("matching")]
    | Annotated[Clusters, tyro.conf.subcommand("clusters")]
    | Annotated[Parts, tyro.conf.subcommand("parts")]
    | Annotated[Landmarks, tyro.conf.subcommand("landmarks")]
    | Annotated[FewAnnotations, tyro.conf.subcommand("few-annotations")]
    | Annotated[Counts, tyro.conf.subcommand("counts")]
    | Annotated[Distribution, tyro.conf.subcommand("distribution")]
    | Annotated[Zoom, tyro.conf.subcommand("zoom")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Trials, tyro.conf.subcommand("trials")]
    | Annotated[Cost, tyro.conf.subcommand("cost")]
    | Annotated[Losses, tyro.conf.subcommand("losses")]
)


def main(arguments: list[str] | None = None) -> None:
    with for_people("plot"):
        parsed(Pictures, arguments, __doc__, "lead-ray plot").make()


if __name__ == "__main__":
    main()
