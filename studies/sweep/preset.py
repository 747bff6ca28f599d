"""What a study's grid is filled with: which data, networks and read-outs a preset stands for."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lead_ray.evaluate import Evaluate
from lead_ray.readouts.settings import RegressionSettings
from recipes import Stage1, Stage2
from sweep.pace import Size
from sweep.plan import LATER, Encoder, Measure, Train

Method = Literal["LEAD", "CL", "DVE"]


@dataclass(frozen=True)
class TestSet:
    """Where an error is measured, and how the paper's regressor is stopped there."""

    data: str
    """A prepared folder's name."""
    epochs: int = 120
    split: str = "test"


@dataclass(frozen=True, kw_only=True)
class Preset(ABC):
    """Settings of every run that a table may ask for."""

    data: Path
    """Holds the prepared folders."""
    out: Path
    workers: int
    device: Literal["auto", "cpu", "cuda"]

    seeds: ClassVar[tuple[int, ...]] = (0,)
    """Of networks; a cell is over these, each trained through both stages."""
    repeats: ClassVar[tuple[int, ...]] = (0, 1, 2)
    """Of warps and of annotated images for each network."""
    dims: ClassVar[tuple[int, ...]] = (64, 128, 256)
    columns: ClassVar[tuple[str, ...]] = ("MAFL", "AFLW_M", "AFLW_R", "300W")
    """Of the regression tables."""
    head: ClassVar[int] = 256
    """Channels of stage 2's discarded head where a study does not ask for others."""
    counts: ClassVar[tuple[int, ...]] = (1, 5, 10, 20, 50, 100)
    """Numbers of annotated images."""
    dense_steps: ClassVar[int]
    """Of stage 2: what a search's budgets are shares of."""
    validation: ClassVar[float] = 0.3
    """Share of the annotated training images that settings are chosen on."""
    lead: ClassVar[Stage1] = "byol"
    """Objective of LEAD's stage 1."""
    caption: ClassVar[str]
    sets: ClassVar[dict[str, TestSet]]
    """By the paper's names."""
    pairs: ClassVar[TestSet]
    """Whose images are matched."""
    sizes: ClassVar[dict[str, Size]] = {}
    """Of data sets that may not be prepared yet, for estimates."""

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Make the data that can be made here; other folders are prepared by `lead-ray prepare`."""

    @abstractmethod
    def stage1(self, objective: Stage1, seed: int, faces: str = "celeba") -> Encoder:
        """An instance-level encoder of a prepared folder's images."""

    @abstractmethod
    def stage2(
        self, objective: Stage2, stage1: Encoder, seed: int, *, dim: int = 64, head: int | None = None,
        steps: int | None = None, **align: Any,
    ) -> Train:  # fmt: skip
        """A compact map of so many channels. steps: in place of the preset's; align: fields of LEAD's objective."""

    def system(self, method: Method, dim: int | None, seed: int, faces: str = "celeba") -> Encoder:
        """A method's encoder with so many channels; None: its stage 1, whose features are hypercolumns."""
        if method == "DVE":
            return self.dve(seed, faces)
        stage1 = self.stage1(self.lead if method == "LEAD" else "moco", seed, faces)
        if dim is None:
            return stage1
        return self.stage2("lead" if method == "LEAD" else "cl", stage1, seed, dim=dim)

    @abstractmethod
    def dve(self, seed: int, faces: str = "celeba") -> Train:
        """DVE's own network, or what stands for it."""

    def regression(self, encoder: Encoder, column: str, **changes: Any) -> Measure:
        """All annotations."""
        chosen = self.sets[column]
        settings = Evaluate(
            run=LATER, task="regression", data=self.data / chosen.data, seeds=(encoder.seed,), **self._readout(chosen)
        )  # fmt: skip
        return Measure(replace(settings, device=self.device, **changes), encoder)

    def limited(self, encoder: Encoder, column: str = "AFLW_M") -> Measure:
        """Few annotations: one measurement of all their numbers."""
        data = self.data / self.sets[column].data
        common: dict[str, Any] = {"run": LATER, "task": "regression", "data": data, "device": self.device}
        settings = Evaluate(**common, annotations=self.counts, seeds=self.repeats, **self._few())
        return Measure(settings, encoder)

    def matching(self, encoder: Encoder, **changes: Any) -> Measure:
        settings = Evaluate(
            run=LATER, task="matching", data=self.data / self.pairs.data, test_split=self.pairs.split,
            seeds=self.repeats, device=self.device,
        )  # fmt: skip
        return Measure(replace(settings, **changes), encoder)

    def on_validation(self, encoder: Encoder, *, regression: bool = False) -> list[Measure]:
        """What settings are chosen by: errors on images that no test sees."""
        held_out = {"validation": self.validation, "test_split": "test"}
        data = self.data / self.pairs.data
        found = [self.matching(encoder, **held_out)]
        if regression:
            common: dict[str, Any] = {"run": LATER, "task": "regression", "data": data, "device": self.device}
            readout = RegressionSettings(grid=24)
            settings = Evaluate(annotations=50, seeds=self.repeats, regression=readout, **held_out, **common)
            found.append(Measure(settings, encoder))
        return found

    def _readout(self, chosen: TestSet) -> dict[str, Any]:
        return {"regression": RegressionSettings(grid=24)}

    def _few(self) -> dict[str, Any]:
        return {"regression": RegressionSettings(grid=24)}

    @property
    def _common(self) -> dict[str, Any]:
        return {"out": self.out, "workers": self.workers, "device": self.device}
