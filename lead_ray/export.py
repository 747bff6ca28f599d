"""A landmark model as one file for other programs.

$ lead-ray export bird-model --out birds.onnx      # ONNX, for onnxruntime and whatever reads it
$ lead-ray export bird-model --out birds.pt2       # torch.export's program: torch.export.load("birds.pt2").module()

Both map `images`, uint8 [batch, 3, side, side] RGB, any batch, to `points` [batch, landmarks, 2] in pixels of these
images (pixel centres at integers) and `confidence` [batch, landmarks]. The ONNX file's metadata say what is what.
TorchScript is not offered: torch.jit is deprecated for torch.export.
"""

import importlib.util
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from lead_ray import geometry
from lead_ray.artefacts import atomic
from lead_ray.augmentation import augment
from lead_ray.errors import for_people
from lead_ray.landmarks import calibration
from lead_ray.landmarks import model as landmark_model
from lead_ray.landmarks.model import LandmarkModel
from lead_ray.landmarks.prediction import SMALLEST, View
from lead_ray.readouts.ensemble import GRID, Ensemble, Reading, heat_width
from lead_ray.usage import parsed

NEEDED = ("onnx", "onnxscript")


class Network(nn.Module):
    """All of a landmark model from the network's input on, in operations that can be exported.

    Landmarks that were annotated nowhere are left out.
    """

    def __init__(self, model: LandmarkModel):
        super().__init__()
        card = model.card
        self.encoder, self.readout, self.side = model.encoder, model.readout, card.framing.side
        self.names = [name for name, there in zip(card.schema.names, card.placed, strict=True) if there]
        self.share, self.normaliser = card.scale.share, None
        if card.schema.normaliser is not None:
            self.normaliser = [self.names.index(card.schema.names[place]) for place in card.schema.normaliser]
        view = View(card.framing.frame((self.side, self.side)), bool(card.trained["boxed"]))
        self.box = float(card.scale.boxes([view])[0])
        self.calibration = card.calibration
        if card.calibration is not None:
            offsets = torch.tensor(card.calibration.offsets)[torch.tensor(card.placed)]
            self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, images: UInt8[Tensor, "b 3 side side"]) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k"]]:
        """Points in pixels of the images, and their confidences."""
        blocks = self.encoder(augment.normalise(images.float() / 255))
        reading = self._ensemble(blocks) if isinstance(self.readout, Ensemble) else self.readout.read_batch(blocks)
        points = geometry.pixels(reading.points, height=self.side, width=self.side)
        return points, self._confidence(reading)

    def _ensemble(self, blocks: list[Tensor]) -> Reading:
        """Ensemble.read() by plain convolutions."""
        regressor = self.readout.regressor
        maps = self._responses(blocks, regressor.weights, regressor.grid).flatten(2)
        grid = geometry.identity_grid(height=regressor.grid, width=regressor.grid).flatten(0, 1)
        virtual = (maps.softmax(-1) @ grid).unflatten(1, (len(regressor.linear), -1)).flatten(2)
        each = torch.einsum("bmp,mpc->bmc", virtual, regressor.linear) + regressor.bias
        points, spread = self.readout.judged(each)
        return Reading(points, spread, heat_width(self._responses(blocks, self.readout.heat, GRID), points))

    def _responses(self, blocks: list[Tensor], weights: Sequence[Tensor], grid: int) -> Float[Tensor, "b m grid grid"]:
        total: Tensor | float = 0.0
        for block, weight in zip(blocks, weights, strict=True):
            found = functional.conv2d(block, self.readout.regressor.temperature * weight[..., None, None])
            total = total + functional.interpolate(found, size=(grid, grid), mode="bilinear", align_corners=False)
        return total

    def _confidence(self, reading: Reading) -> Float[Tensor, "b k"]:
        radius = torch.full_like(reading.points[:, 0, 0], self.share * self.box)
        if self.normaliser is not None:
            first, second = self.normaliser
            length = (reading.points[:, first] - reading.points[:, second]).square().sum(-1).sqrt()
            radius = self.share * length.clamp(min=SMALLEST * self.box)
        hints = torch.stack([reading.spread, reading.width], dim=-1)
        if self.calibration is None:
            return 1 - (-radius[:, None].square() / hints.square().sum(-1).clamp(min=1e-12)).exp()
        logs = (hints / radius[:, None, None]).clamp(min=calibration.LEAST).log()
        return (self.offsets + (logs * torch.tensor(self.calibration.slopes)).sum(-1)).sigmoid()


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a landmark model as one file."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Landmark model that `lead-ray fit` wrote."""
    out: Path
    """File to write: .onnx or .pt2."""

    def __post_init__(self):
        if self.out.suffix not in (".onnx", ".pt2"):
            raise ValueError(f"out must end in .onnx or .pt2, got {str(self.out)!r}")


def export(settings: Export) -> None:
    """Export as the suffix says.

    Raises: ValueError as landmark_model.load(), or if ONNX is wanted and its packages are missing.
    """
    network = Network(landmark_model.load(settings.model)).eval()
    example = torch.zeros(2, 3, network.side, network.side, dtype=torch.uint8)
    dynamic = {"images": {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters', about themselves
        if settings.out.suffix == ".pt2":
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
            with atomic(settings.out) as temporary, temporary.open("wb") as file:
                torch.export.save(program, file)
            return
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            raise ValueError(
                f"ONNX needs {' and '.join(missing)}: install them with uv pip install {' '.join(missing)}"
            )
        named = {"input_names": ["images"], "output_names": ["points", "confidence"]}
        program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=dynamic, verbose=False, **named)
    program.model.metadata_props["lead_ray"] = json.dumps(_metadata(landmark_model.load(settings.model), network))
    with atomic(settings.out) as temporary:
        program.save(temporary, external_data=False)


def _metadata(model: LandmarkModel, network: Network) -> dict[str, Any]:
    """What a program needs to feed the file and to read what it gives."""
    framing = model.card.framing
    return {
        "category": model.card.schema.category,
        "landmarks": network.names,
        "images": f"uint8 RGB, {framing.side}x{framing.side}: the smallest square around the photograph, edges "
        f"repeated, or a square of {framing.box_factor} times the longer side around the object's box",
        "points": "x, y in pixels of that square, pixel centres at integers",
        "confidence": model.card.confidence,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray export`."""
    with for_people("export"):
        settings = parsed(Export, arguments, __doc__, "lead-ray export")
        export(settings)
        print(f"{settings.out}: {settings.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
