"""The presets: the paper's networks; small ones on real faces; synthetic faces in minutes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from lead_ray.augmentation.noise import Noise
from lead_ray.augmentation.views import ViewSettings
from lead_ray.augmentation.warped import cl_noise, cl_views, dve_noise, dve_views
from lead_ray.data.synthetic import Synthetic
from lead_ray.dense import Dense
from lead_ray.machine import cores
from lead_ray.models.fpn import FpnSettings
from lead_ray.models.projection import ProjectionSettings
from lead_ray.objectives.align import AlignSettings
from lead_ray.objectives.byol import ByolSettings
from lead_ray.objectives.contrast import ContrastSettings
from lead_ray.objectives.equivariance import DveSettings, EquivarianceSettings
from lead_ray.objectives.moco import MocoSettings
from lead_ray.prepare import prepare
from lead_ray.pretrain import Pretrain
from lead_ray.quickstart import CARRIED
from lead_ray.readouts.settings import RegressionSettings, paper
from lead_ray.train import Optim
from recipes import Stage1, Stage2, coarse_and_fine, compact_stage, small_views
from sweep.pace import Size
from sweep.plan import LATER, Encoder, Given, Measure, Train, chain
from sweep.preset import Preset, TestSet

ADAM: dict[str, Any] = {"lr": 1e-3, "weight_decay": 5e-4, "warmup_epochs": 0.0}
CL = Optim(algorithm="adam", momentum=0.5, batch_size=32, epochs=10.0, **ADAM)
OFTEN = {"report_every": 10, "checkpoint_every": 10}
DVE = Optim(algorithm="amsgrad", batch_size=16, epochs=100.0, decay_epochs=50.0, **ADAM)


@dataclass(frozen=True, kw_only=True)
class Paper(Preset):
    """ResNet-50, 200 + 20 epochs, and each method's own settings."""

    seeds = (0, 1, 2)
    caption = "The paper's settings; LEAD leaves some open, which PROTOCOLS' choices fill."
    pairs = TestSet("mafl")
    dense_steps = 20 * 161_962 // 256
    validation = 0.1
    sizes: ClassVar = {
        "celeba": Size(161_962),
        "celeba-wild": Size(161_962),
        "inat-aves": Size(100_000),
        **dict.fromkeys(("mafl", "mafl-wild", "mafl-unaligned"), Size(19_000, 1_000, 5)),
        "aflw-m": Size(10_122, 2_995, 5),
        "aflw-r": Size(10_122, 2_991, 5),
        "300w": Size(3_148, 689, 68),
        "cub": Size(1_241, 383, 15),
    }
    sets: ClassVar = {
        "MAFL": TestSet("mafl", 120),
        "AFLW_M": TestSet("aflw-m", 45),
        "AFLW_R": TestSet("aflw-r", 45),
        "300W": TestSet("300w", 80),
        "MAFL in the wild": TestSet("mafl-wild", 120),
        "unaligned MAFL": TestSet("mafl-unaligned", 120),
        "CUB": TestSet("cub", 2000),
    }

    def stage1(self, objective: Stage1, seed: int, faces: str = "celeba") -> Train:
        settings, views, optim = {
            "byol": (ByolSettings(), ViewSettings(), Optim()),
            "contrast": (ContrastSettings(), ViewSettings(), Optim()),
            "moco": (MocoSettings(), cl_views(), Optim(epochs=800.0, warmup_epochs=0.0)),
        }[objective]
        noise = cl_noise() if objective == "moco" else Noise()
        common = {"data": self.data / faces, "seed": seed, "name": "paper", **self._common}
        return Train(Pretrain(objective=settings, views=views, noise=noise, optim=optim, **common))

    def stage2(
        self, objective: Stage2, stage1: Encoder, seed: int, *, dim: int = 64, head: int | None = None,
        steps: int | None = None, **align: Any,
    ) -> Train:  # fmt: skip
        fpn = FpnSettings(dim=dim)
        lead = AlignSettings(fpn=fpn, projector=self.head if head is None else head, **align)
        settings, optim, views = {
            "lead": (lead, Optim(epochs=20.0), ViewSettings()),
            "cl": (EquivarianceSettings(decoder=ProjectionSettings(dim=dim, finer=4)), CL, cl_views()),
            "cl-fpn": (EquivarianceSettings(decoder=fpn), CL, cl_views()),
            "dve": (DveSettings(network=fpn), DVE, dve_views()),
        }[objective]
        noise = {"lead": Noise(), "dve": dve_noise()}.get(objective, cl_noise())
        common = {"data": stage1.data, "seed": seed, "name": "paper", **self._common}
        optim = replace(optim, steps=steps)
        return Train(Dense(stage1=LATER, objective=settings, optim=optim, views=views, noise=noise, **common), stage1)

    def dve(self, seed: int, faces: str = "celeba") -> Train:
        common = {"data": self.data / faces, "seed": seed, "name": "paper", **self._common}
        return Train(Dense(objective=DveSettings(), optim=DVE, views=dve_views(), noise=dve_noise(), **common))

    def _readout(self, chosen: TestSet) -> dict[str, Any]:
        if chosen.data == "cub":  # CL: with all its labels
            birds = replace(paper(1), epochs=chosen.epochs, schedule_epochs=None, lr=0.01, weight_decay=0.005)
            return {"regression": birds}
        return {"readout": "paper", "regression": RegressionSettings(epochs=chosen.epochs)}

    def _few(self) -> dict[str, Any]:
        return {"readout": "paper-limited", "copies_in_all": 1000}


@dataclass(frozen=True, kw_only=True)
class House(Preset):
    """Quarter-width ResNet-18s on some thousand real faces: what two CPU cores train in hours."""

    given: dict[Stage1, Path] = field(default_factory=dict)
    """Finished stage-1 runs that stand in for trainings."""

    columns = ("AFLW_M", "300W")
    head = 64
    caption = (
        "Not the paper's networks nor images: quarter-width ResNet-18s, hypercolumns of 240 channels; DVE is its loss "
        "on LEAD's decoder; AFLW_M and the pairs are MTFL's AFLW faces."
    )
    sets: ClassVar = {"AFLW_M": TestSet("mtfl"), "300W": TestSet("300w"), "MAFL": TestSet("mafl")}
    pairs = TestSet("mtfl", split="matching")
    steps: ClassVar[tuple[int, int, int]] = (8000, 1000, 600)
    """Of stage 1 at 64 px and at 96 px, and of stage 2."""
    dense_steps = steps[2]

    def stage1(self, objective: Stage1, seed: int, faces: str = "celeba") -> Encoder:
        if objective in self.given and seed == 0:
            return Given(self.given[objective], self.data / faces)
        common = {"data": self.data / faces, "seed": seed, **self._common}
        small, full, _ = self.steps
        return chain(*coarse_and_fine(f"house-{objective}", small, full, objective=objective, init=LATER, **common))

    def stage2(
        self, objective: Stage2, stage1: Encoder, seed: int, *, dim: int = 64, head: int | None = None,
        steps: int | None = None, **align: Any,
    ) -> Train:  # fmt: skip
        head = self.head if head is None else head
        common = {"data": stage1.data, "seed": seed, "dim": dim, "head": head, "align": align, **self._common}
        first = "given" if isinstance(stage1, Given) else stage1.stage.name.removeprefix("house-").removesuffix("96")
        name = f"house-{first}-{objective}"
        return Train(compact_stage(name, objective, LATER, steps or self.steps[2], **common), stage1)

    def dve(self, seed: int, faces: str = "celeba") -> Train:
        return self.stage2("dve", self.stage1(self.lead, seed, faces), seed)


@dataclass(frozen=True, kw_only=True)
class Quick(House):
    """Synthetic faces, a few steps from the encoder that the package carries: does a study work?"""

    columns = ("MAFL",)
    dims = (64,)
    counts = (1, 10, 50)
    lead = "byol"
    caption = "A try on synthetic faces, which stand for all data sets, with a few steps from the carried encoder."
    pairs = TestSet("synthetic")
    sets: ClassVar = dict.fromkeys(Paper.sets, pairs)
    steps = (0, 30, 40)
    dense_steps = steps[2]
    limit: ClassVar[int] = 100
    """Images to match."""

    def prepare(self) -> None:
        people = {"images": 600, "identities": 200, "seed": 1, "test_share": 0.3}
        faces = Synthetic(raw=self.data / "faces", draw_workers=cores(), **people)
        prepare(faces, self.data / "synthetic", workers=0)

    def stage1(self, objective: Stage1, seed: int, faces: str = "celeba") -> Encoder:
        common = {"data": self.data / "synthetic", "seed": seed, "init": CARRIED, **OFTEN, **self._common}
        _, fine = coarse_and_fine(f"quick-{objective}", 1, 1, objective=objective, **common)
        optim = Optim(lr=0.03, batch_size=64, steps=self.steps[1])
        return Train(replace(fine, views=small_views(64, 0.4), optim=optim))

    def stage2(self, objective: Stage2, stage1: Encoder, seed: int, **options: Any) -> Train:
        stage = super().stage2(objective, stage1, seed, **options).stage
        return Train(replace(stage, name="quick", **OFTEN), stage1)

    def matching(self, encoder: Encoder, **changes: Any) -> Measure:
        return super().matching(encoder, **{"limit": self.limit, **changes})
