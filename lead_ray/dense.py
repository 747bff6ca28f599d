"""Stage 2: a dense, compact map that matches as stage 1's hypercolumns do.

python -m lead_ray.dense --data faces --stage1 runs/stage1-lead-0123abcd --workers 2
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from torch import nn

from lead_ray.errors import for_people
from lead_ray.launch import run
from lead_ray.models import weights
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.stage import Stage
from lead_ray.train import Optim


@dataclass(frozen=True, kw_only=True)
class Dense(Stage):
    """Stage 2 (LEAD section 3.3); 20 epochs."""

    stage1: Path
    """A finished stage-1 run, or a file of trunk weights."""
    optim: Optim = field(default_factory=lambda: Optim(epochs=20.0))
    objective: AlignSettings = field(default_factory=AlignSettings)

    pairing: Literal["images", "views"] = "images"
    """What is matched: different images (section 3.3), or two views of one image."""

    kind = "stage2"

    @property
    def pairs(self) -> Literal["views", "images"]:
        return self.pairing

    def matters(self) -> dict:
        """The trunk's weights matter, not where they lie."""
        return super().matters() | {"stage1": weights.fingerprint(self.stage1)}

    def build(self) -> nn.Module:
        return Align(weights.load_trunk(self.stage1), self.objective)


def main(arguments: list[str] | None = None) -> None:
    with for_people("dense"):
        run(tyro.cli(Dense, args=arguments, description=__doc__))


if __name__ == "__main__":
    main()
