"""Stage 1: an instance-level encoder of unlabelled images.

python -m lead_ray.pretrain --data faces --workers 2                    # the paper's BYOL, ResNet-50, 200 epochs
python -m lead_ray.pretrain --data faces --trunk.depth 18 --trunk.width 0.25 --optim.steps 20      # a try
"""

from dataclasses import dataclass, field

import tyro
from torch import nn

from lead_ray.launch import run
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.objectives.byol import Byol, ByolSettings
from lead_ray.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Pretrain(Stage):
    """Stage 1 (LEAD section 3.2); defaults are the paper's, and OpenSelfSup's where it is silent."""

    trunk: TrunkSettings = field(default_factory=TrunkSettings)
    objective: ByolSettings = field(default_factory=ByolSettings)

    kind = "stage1"

    def build(self) -> nn.Module:
        return Byol(Trunk(self.trunk), self.objective)


def main(arguments: list[str] | None = None) -> None:
    run(tyro.cli(Pretrain, args=arguments, description=__doc__))


if __name__ == "__main__":
    main()
