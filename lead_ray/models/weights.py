"""Encoders on disk: safetensors, whose header says what they are, what they learned from and how to load them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lead_ray import storage
from lead_ray.models.dve import DveNetworkSettings, Hourglass, SmallNet, dve_network
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.projection import CompactEncoder, Projection, ProjectionSettings
from lead_ray.models.reduce import Reduction, ReductionSettings
from lead_ray.models.trunk import Trunk, TrunkSettings

LOAD = "lead_ray.models.weights.load('PATH'): image batch -> list of feature maps"

PARTS = {
    "trunk": TrunkSettings,
    "fpn": FpnSettings,
    "projection": ProjectionSettings,
    "reduction": ReductionSettings,
    "network": DveNetworkSettings,
}
KINDS = {
    "trunk": {"trunk"},
    "dense": {"trunk", "fpn"},
    "projected": {"trunk", "projection"},
    "reduced": {"trunk", "reduction"},
    "dve": {"network"},
}
"""The parts that each kind of encoder has."""


class View(NamedTuple):
    """What of a stored image a network is shown."""

    margin: int
    """Pixels cropped from every side."""
    side: int | None = None
    """Side of the stored images that this is meant for; None: any."""


FACES, SMALL = View(20), View(15, 100)
"""136 px with 96 of them shown, unless prepared otherwise; DVE's SmallNet is shown 70 of 100."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a file of weights is."""

    kind: Literal["trunk", "dense", "projected", "reduced", "dve"]
    trunk: TrunkSettings | None = None
    fpn: FpnSettings | None = None
    projection: ProjectionSettings | None = None
    reduction: ReductionSettings | None = None
    network: DveNetworkSettings | None = None
    trained: dict
    """Data, steps, images seen, commit: how the weights came about."""
    load: str = LOAD

    def __post_init__(self):
        given = {name for name in PARTS if getattr(self, name) is not None}
        if given != KINDS.get(self.kind):
            raise ValueError(f"kind={self.kind!r} with {sorted(given)}: kinds and their parts are {KINDS}")

    @property
    def view(self) -> View:
        """What the network is shown in evaluation."""
        return SMALL if self.network is not None and self.network.network == "smallnet" else FACES


def build(card: Card) -> nn.Module:
    """The encoder that a card describes, with fresh weights."""
    if card.kind == "dve":
        return dve_network(card.network)
    trunk = Trunk(card.trunk)
    if card.kind == "projected":
        return CompactEncoder(trunk, Projection(trunk.channels, card.projection), finer=card.projection.finer)
    if card.kind == "reduced":
        return CompactEncoder(trunk, Reduction(trunk.channels, card.reduction))
    return trunk if card.kind == "trunk" else DenseEncoder(trunk, Fpn(trunk.channels, card.fpn))


def describe(encoder: nn.Module, trained: dict) -> Card:
    """The card of an encoder."""
    if isinstance(encoder, DenseEncoder):
        return Card(kind="dense", trunk=encoder.trunk.settings, fpn=encoder.fpn.settings, trained=trained)
    if isinstance(encoder, CompactEncoder):
        trunk, decoder = encoder.trunk.settings, encoder.decoder.settings
        if isinstance(encoder.decoder, Projection):
            return Card(kind="projected", trunk=trunk, projection=decoder, trained=trained)
        return Card(kind="reduced", trunk=trunk, reduction=decoder, trained=trained)
    if isinstance(encoder, Hourglass | SmallNet):
        return Card(kind="dve", network=encoder.settings, trained=trained)
    return Card(kind="trunk", trunk=encoder.settings, trained=trained)


def save(path: Path, encoder: nn.Module, trained: dict, *, dtype: torch.dtype = torch.float32) -> None:
    """Write weights and card; the caller makes it atomic."""
    state = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in encoder.state_dict().items()
    }
    save_file(state, path, metadata={"lead_ray": json.dumps(asdict(describe(encoder, trained)))})


def find(path: Path | str) -> Path:
    """The file of weights: the path itself, or the encoder.safetensors of a run's folder."""
    path = Path(path)
    return path / "encoder.safetensors" if storage.is_folder(path) else path


def fingerprint(path: Path | str) -> str:
    """What tells weights apart wherever they lie."""
    if not storage.exists(find(path)):
        raise FileNotFoundError(f"no weights at {find(path)}: give a finished run's folder or a .safetensors file")
    return hashlib.sha256(storage.read_bytes(find(path))).hexdigest()


def read_card(path: Path | str) -> Card:
    """The card alone. Raises: FileNotFoundError; ValueError if the file is not an encoder of this package."""
    path = find(path)
    if not storage.exists(path):
        raise FileNotFoundError(f"no weights at {path}: give a finished run's folder or a .safetensors file")
    try:
        with storage.fetched(path) as local, safe_open(local, framework="pt") as file:
            fields = json.loads(file.metadata()["lead_ray"])
        for name, settings in PARTS.items():
            if fields.get(name) is not None:
                fields[name] = settings(**fields[name])
        return Card(**fields)
    except (SafetensorError, OSError, TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a lead_ray encoder (safetensors with its card): {error}") from error


def load(path: Path | str) -> nn.Module:
    """An encoder in evaluation mode: normalised images [b, 3, h, w] -> list of maps, finest first."""
    encoder = build(read_card(path))
    with storage.fetched(find(path)) as local, safe_open(local, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a lead_ray encoder: its weights are not those of its card") from error
    return encoder.eval().to(memory_format=torch.channels_last)


def load_trunk(path: Path | str, expected: TrunkSettings | None = None) -> Trunk:
    """Stage-1 weights. Raises: ValueError if they are not a trunk, or not of the expected kind."""
    card = read_card(path)
    if card.kind != "trunk":
        raise ValueError(f"{find(path)} holds stage-2 weights: give a stage-1 run")
    if expected is not None and card.trunk != expected:
        raise ValueError(f"{find(path)} holds a trunk of {card.trunk}, wanted {expected}: set --trunk.* alike")
    return load(path)
