"""Stage 1: an instance-level encoder of unlabelled images.

$ lead-ray pretrain --data faces --workers 2                    # the paper's BYOL, ResNet-50, 200 epochs
$ lead-ray pretrain --data faces --trunk.depth 18 --trunk.width 0.25 --optim.steps 20      # a try
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn

from lead_ray.errors import for_people
from lead_ray.launch import run
from lead_ray.models import weights
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.objectives.contrast import Contrast, ContrastSettings
from lead_ray.objectives.moco import Moco, MocoSettings
from lead_ray.settings_file import command_line
from lead_ray.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Pretrain(Stage):
    """Stage 1 (LEAD section 3.2); defaults are the paper's, and OpenSelfSup's where it is silent."""

    trunk: TrunkSettings = field(default_factory=TrunkSettings)
    objective: (
        Annotated[ByolSettings, tyro.conf.subcommand("byol")]
        | Annotated[ContrastSettings, tyro.conf.subcommand("contrast")]
        | Annotated[MocoSettings, tyro.conf.subcommand("moco")]
    ) = field(default_factory=ByolSettings)
    init: Path | None = None
    """Stage-1 run or weights to go on from; the trunk must be the same. Heads and optimiser start anew."""

    kind = "stage1"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.objective, MocoSettings):
            self._check_moco(self.objective)

    def _check_moco(self, moco: MocoSettings) -> None:
        """Raises: ValueError where MoCo and the run do not go together."""
        if self.crew.elastic:
            raise ValueError(
                f"objective:moco gathers the keys of all workers at every step, so their number cannot change: give "
                f"one, not workers={self.workers}"
            )
        if self.sync_batchnorm:
            raise ValueError("sync_batchnorm makes one batch of all workers', whose statistics give MoCo's keys away")
        batch, workers = self.optim.batch_size, max(1, self.crew.most)
        if moco.queue % batch:
            raise ValueError(f"objective.queue must be a multiple of optim.batch_size={batch}, got {moco.queue}")
        if moco.groups > workers and moco.groups % workers:
            raise ValueError(f"objective.groups must be a multiple of workers={workers}, got {moco.groups}")
        groups = max(moco.groups, workers)
        if batch % groups or batch < 2 * groups:
            raise ValueError(
                f"optim.batch_size={batch} must be two images or more for each of objective.groups={moco.groups} "
                f"and workers={workers}, and as many for one as for another"
            )

    @property
    def meets(self) -> bool:
        """MoCo's do: they deal out images, and gather keys."""
        return super().meets or isinstance(self.objective, MocoSettings)

    def matters(self) -> dict:
        """The weights to go on from matter, not where they lie; and how many workers have negatives of their own."""
        settings = super().matters() | {"init": self.init and weights.fingerprint(self.init)}
        if isinstance(self.objective, ContrastSettings) and self.crew.most > 1:
            settings["workers"] = self.crew.most
        if isinstance(self.objective, MocoSettings) and self.objective.groups == 1:
            del settings["objective"]["groups"]  # as were all before there was a choice
        return settings

    def build(self) -> nn.Module:
        trunk = Trunk(self.trunk)
        if self.init is not None:
            trunk.load_state_dict(weights.load_trunk(self.init, self.trunk).state_dict())
        if isinstance(self.objective, ContrastSettings):
            return Contrast(trunk, self.objective)
        if isinstance(self.objective, MocoSettings):
            return Moco(trunk, self.objective)
        return Byol(trunk, self.objective)


def main(arguments: list[str] | None = None) -> None:
    with for_people("pretrain"):
        run(command_line(Pretrain, arguments, __doc__, "lead-ray pretrain"))


if __name__ == "__main__":
    main()
