"""Stage 2: a dense, compact map that matches as stage 1's hypercolumns do.

$ lead-ray dense --data faces --stage1 runs/stage1-lead-0123abcd --workers 2
$ lead-ray dense --data faces --stage1 runs/stage1-lead-0123abcd objective:equivariance  # CL's, not LEAD's
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor, nn

from lead_ray.artefacts import plain
from lead_ray.augmentation.warped import warped_views
from lead_ray.errors import for_people
from lead_ray.launch import run
from lead_ray.models import teacher, weights
from lead_ray.models.dve import DveNetworkSettings
from lead_ray.objectives.align import Align, AlignSettings
from lead_ray.objectives.equivariance import Dve, DveSettings, Equivariance, EquivarianceSettings
from lead_ray.settings_file import command_line
from lead_ray.stage import Stage
from lead_ray.train import Optim


@dataclass(frozen=True, kw_only=True)
class Dense(Stage):
    """Stage 2 (LEAD section 3.3); 20 epochs."""

    stage1: Path | None = None
    """A finished stage-1 run, or a file of trunk weights; all need it but DVE's own networks."""
    optim: Optim = field(default_factory=lambda: Optim(epochs=20.0))
    objective: (
        Annotated[AlignSettings, tyro.conf.subcommand("align")]
        | Annotated[EquivarianceSettings, tyro.conf.subcommand("equivariance")]
        | Annotated[DveSettings, tyro.conf.subcommand("dve")]
    ) = field(default_factory=AlignSettings)
    pairing: Literal["images", "views"] = "images"
    """What is matched: different images (section 3.3), or two views of one image; DVE matches an image and itself."""

    kind = "stage2"

    def __post_init__(self):
        super().__post_init__()
        own = isinstance(self.objective, DveSettings) and isinstance(self.objective.network, DveNetworkSettings)
        if own and self.stage1 is not None:
            raise ValueError(f"stage1 is not for DVE's own networks, got {self.stage1}: leave it out, or train the FPN")
        if not own and self.stage1 is None:
            raise ValueError(
                "stage1 is missing: give a finished stage-1 run, or a file of trunk weights, with --stage1"
            )
        if isinstance(self.objective, DveSettings) and self.group < 2:
            raise ValueError(f"optim.batch_size must be >= {2 * self.lanes} to exchange, got {self.optim.batch_size}")

    @property
    def pairs(self) -> Literal["views", "images"]:
        return "views" if isinstance(self.objective, DveSettings) else self.pairing

    @property
    def group(self) -> int:
        """Images of a lane in a batch."""
        return self.optim.batch_size // self.lanes

    def matters(self) -> dict:
        """The weights of trunk and teacher matter, not where they lie."""
        settings = super().matters() | {"stage1": self.stage1 and weights.fingerprint(self.stage1)}
        if isinstance(self.objective, AlignSettings):
            foreign = settings["objective"].pop("foreign")
            if foreign is not None:
                settings["objective"]["foreign"] = plain(teacher.identity(self.objective.foreign))
        return settings

    def pair_views(
        self, images: Tensor, partners: Tensor, *, rows: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """DVE's views come with the warp that relates them."""
        if not isinstance(self.objective, DveSettings):
            return super().pair_views(images, partners, rows=rows, generator=generator)
        drawn = {"total": self.optim.batch_size, "rows": rows, "generator": generator}
        warper, margin = self.objective.warper, self.objective.margin
        return warped_views(images, self.views, warper, margin=margin, noise=self.noise, **drawn)

    def build(self) -> nn.Module:
        trunk = None if self.stage1 is None else weights.load_trunk(self.stage1)
        if isinstance(self.objective, DveSettings):
            return Dve(trunk, self.objective, group=self.group)
        if isinstance(self.objective, EquivarianceSettings):
            return Equivariance(trunk, self.objective)
        return Align(trunk, self.objective)


def main(arguments: list[str] | None = None) -> None:
    with for_people("dense"):
        run(command_line(Dense, arguments, __doc__, "lead-ray dense"))


if __name__ == "__main__":
    main()
