"""How a regressor is started and trained: our own way, and the published ones."""

import math
from dataclasses import dataclass, replace
from typing import Literal

ReadOut = Literal["ours", "paper", "paper-limited", "sce-mae"]

NOT_COMPARABLE = (
    "read out by a block of convolutions, as SCE-MAE does: not comparable with DVE's, CL's and LEAD's rows, which use "
    "one 1x1 convolution, nor exactly with SCE-MAE's, whose text leaves the block open; repeats are trained in turn"
)


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """How a regressor is started and trained: the defaults are ours, paper() and paper_limited() CL's.

    Raises: ValueError if a field is outside its range.
    """

    start: Literal["random", "detectors"] = "detectors"
    """random: DVE and CL. detectors: closed form, from the annotations and the features' correlations."""
    grid: int = 48
    """Cells per side of the response maps; 24 costs less and was as good."""
    points: int = 50
    """Virtual points per landmark."""
    temperature: float = 2.0
    """Factor on the responses inside the softmax."""
    spread: float = 0.2
    """Standard deviation of the detectors' places around their landmark, normalised units."""
    folds: int = 10
    """Runs of images that judge each other when the start chooses its regularisation; see detectors.py."""
    shrinkage: float | None = None
    """The detectors' regularisation, added to the diagonal of the features' correlations; None: the best of 0.3, 1, 3.
    Given, it is not searched for, which is most of the time."""
    head: Literal["linear", "convolutions"] = "linear"
    """What makes the response maps. linear: one 1x1 convolution (DVE, CL, LEAD). convolutions: a block of two, with a
    random start; see convolution_head.py."""
    width: int = 256
    """Channels between the two convolutions."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the products of gradient descent. bf16: factors rounded to 8 bits, sums in 32, on a CPU with the instructions
    (on others fp32), TF32 on a GPU; faster on hypercolumns of thousands of channels."""
    epochs: int = 0
    """Epochs of gradient descent after the start."""
    schedule_epochs: int | None = None
    """Epochs of the whole cosine; None: all of `epochs`. CL stops early on a longer one."""
    epoch_steps: int | None = None
    """Steps that count as an epoch; None: until every image was seen once."""
    batch_size: int = 32
    lr: float = 1e-3
    final_lr: float = 8e-4
    """Where the cosine would end, as a share of lr."""
    weight_decay: float = 0.0
    """Adam's: added to the gradient."""

    def __post_init__(self):
        if self.start not in ("random", "detectors"):
            raise ValueError(f"regression.start must be random or detectors, got {self.start!r}")
        if self.head not in ("linear", "convolutions"):
            raise ValueError(f"regression.head must be linear or convolutions, got {self.head!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"regression.precision must be fp32 or bf16, got {self.precision!r}")
        if self.head == "convolutions" and (self.start, self.epochs > 0) != ("random", True):
            raise ValueError(
                f"regression.head=convolutions is trained from a random start: set start=random and epochs >= 1, "
                f"got {self.start} and {self.epochs}"
            )
        bounds = {
            ">= 1": ("grid", "points", "folds", "width", "schedule_epochs", "epoch_steps", "batch_size"),
            ">= 0": ("epochs", "spread", "weight_decay", "final_lr"),
            "> 0": ("temperature", "lr", "shrinkage"),
        }
        for bound, name in [(bound, name) for bound, names in bounds.items() for name in names]:
            value = getattr(self, name)
            if value is not None and (value < int(bound[-1]) or (bound == "> 0" and value == 0)):
                raise ValueError(f"regression.{name} must be {bound}, got {value}")
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs must be >= epochs={self.epochs}, got {self.schedule_epochs}")


def paper(stop: int = 120, *, epoch_steps: int | None = None, grid: int = 48) -> RegressionSettings:
    """CL's read-out, which LEAD took over: 120 epochs on MAFL, 45 on AFLW, 80 on 300W, of a cosine over 200.

    `epoch_steps` keeps the original's steps on fewer images: 317 for AFLW's 10,122 in batches of 32.
    Beware: on features of many channels it starts saturated and only the linear layer learns.
    Source: CL, eval_face.py and README.
    """
    schedule = {"epochs": stop, "schedule_epochs": 200, "epoch_steps": epoch_steps}
    return RegressionSettings(start="random", temperature=100.0, weight_decay=5e-4, grid=grid, **schedule)


def paper_limited(epochs: int = 1000, *, grid: int = 48) -> RegressionSettings:
    """CL's read-out of a few annotated images: train it on warped_copies() that make 1,000.

    CL warps anew in every epoch; frozen features are computed once, so here the copies stay.
    Source: CL, eval_face.py (lr 0.01, weight decay 0.05, 1,000 epochs).
    """
    return replace(paper(1, grid=grid), epochs=epochs, schedule_epochs=None, lr=0.01, weight_decay=0.05)


def sce_mae(stop: int = 120, *, epoch_steps: int | None = None, grid: int = 48) -> RegressionSettings:
    """SCE-MAE's kind of head, a block of convolutions in place of one, trained like paper().

    SCE-MAE's text does not say what its block holds; ours is in convolution_head.py. A temperature of 10, because
    the block's normalised features saturate at 100.
    Source: SCE-MAE (CVPR 2024), section 4.2.
    """
    return replace(paper(stop, epoch_steps=epoch_steps, grid=grid), head="convolutions", temperature=10.0)


def named(readout: ReadOut, given: RegressionSettings) -> RegressionSettings:
    """ours: what is given. The others take its grid, precision, epochs if above 0; paper, sce-mae its epoch_steps."""
    if readout == "ours":
        return given
    if readout == "paper-limited":
        published = paper_limited(given.epochs or 1000, grid=given.grid)
    else:
        published = {"paper": paper, "sce-mae": sce_mae}[readout](
            given.epochs or 120, epoch_steps=given.epoch_steps, grid=given.grid
        )
    return replace(published, precision=given.precision)


def caution(settings: RegressionSettings) -> str | None:
    """What a reader of a result must know about its read-out; None: nothing beyond the settings."""
    return NOT_COMPARABLE if settings.head == "convolutions" else None


def learning_rate(epoch: int, settings: RegressionSettings) -> float:
    """Rate of an epoch, counted from 0: CL steps its cosine before each epoch, so the first is below lr."""
    lowest = settings.final_lr * settings.lr
    share = (epoch + 1) / (settings.schedule_epochs or settings.epochs)
    return lowest + (settings.lr - lowest) * (1 + math.cos(math.pi * share)) / 2
