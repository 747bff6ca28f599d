"""Any frozen network as the teacher of stage 2: torchvision's by name, timm's by name, or an encoder of this package.

    teacher = load(TeacherSettings(network="vit_b_16", weights=Path("vit.safetensors"), layers=(2, 5, 8, 11)))
    blocks = teacher(images)      # maps, as a trunk's blocks

Images come normalised as for this package's encoders and are normalised anew for the network. Maps are taken where a
network has them; of vision transformers, patch tokens are laid out as maps.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.augmentation.augment import FACE_MEAN, FACE_STD
from lead_ray.models import foreign, weights

STAGES = (
    ("layer1", "layer2", "layer3", "layer4"),  # ResNets
    ("features.1", "features.3", "features.5", "features.7"),  # torchvision's ConvNeXt and Swin
    ("stages.0", "stages.1", "stages.2", "stages.3"),  # timm's ConvNeXt
)
TOKENS = ("encoder.layers", "blocks")
"""Where torchvision and timm keep a vision transformer's layers."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Which network, and where in it the maps are."""

    network: str
    """A model of torchvision ("resnet50"), or of timm ("timm/vit_small_patch16_224"), or a run of this package or its
    file of weights."""
    weights: Path | None = None
    """A file of weights for it, safetensors or a pickle of plain tensors; if not given, torchvision's best ones where
    torch.hub keeps them, which this never fetches, or what timm has or fetches."""
    random: bool = False
    """Random weights instead: a floor."""
    layers: tuple[int | str, ...] = ()
    """Names of modules whose outputs are the maps, finest first, or numbers of a transformer's layers; if not given the
    four stages of a convolutional network, or every third of a transformer's layers up to its last."""
    size: int | None = None
    """Side in pixels that images are resized to; transformers want the one they were trained with."""
    channels_last: bool = False
    """Maps come as [b, h, w, c], as Swin's do."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the images it was trained on; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.random and self.weights is not None:
            raise ValueError(f"teacher.random goes without teacher.weights, got {self.weights}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"teacher.size must be >= 1, got {self.size}")


class Teacher(nn.Module):
    """A frozen network in evaluation mode: image -> the maps of some of its modules."""

    def __init__(self, network: nn.Module, settings: TeacherSettings):
        super().__init__()
        self.settings = settings
        self.network = network.requires_grad_(False).eval()
        self.seen: list[Tensor] = []
        for name in module_names(network, settings.layers):
            network.get_submodule(name).register_forward_hook(self._keep)
        # (image * face_std + face_mean - mean) / std
        faces, own = torch.tensor([FACE_MEAN, FACE_STD]), torch.tensor([settings.mean, settings.std])
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (faces[1] / own[1])[:, None, None], persistent=False)
        self.register_buffer("shift", ((faces[0] - own[0]) / own[1])[:, None, None], persistent=False)

    def _keep(self, _module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        self.seen.append(output)

    def train(self, mode: bool = True) -> "Teacher":
        """It stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Maps [b, c, h, w], in the order of the network's own pass; images are square if it is a transformer."""
        if self.settings.size is not None:
            size = [self.settings.size] * 2
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        self.seen.clear()
        self.network(images * self.scale + self.shift)
        maps = [as_map(output, channels_last=self.settings.channels_last) for output in self.seen]
        self.seen.clear()
        return maps


def as_map(output: Tensor, *, channels_last: bool = False) -> Float[Tensor, "b c h w"]:
    """What a module gave as a map. Tokens [b, n, c] are those of the largest square; class and registers before it go.

    Raises: ValueError if it is neither a map nor tokens.
    """
    if output.dim() == 4:
        if not channels_last and output.shape[1] == output.shape[2] != output.shape[3]:
            raise ValueError(
                f"teacher.layers gave {list(output.shape)}, which looks like [b, h, w, c]: set teacher.channels_last"
            )
        return output.permute(0, 3, 1, 2) if channels_last else output
    if output.dim() != 3:
        raise ValueError(f"teacher.layers must name maps [b, c, h, w] or tokens [b, n, c], got {list(output.shape)}")
    side = isqrt(output.shape[1])
    return output[:, output.shape[1] - side * side :].mT.unflatten(2, (side, side))


def module_names(network: nn.Module, layers: tuple[int | str, ...]) -> list[str]:
    """Names of the modules that `layers` mean, or that are usual for such a network.

    Raises: ValueError if there are none of that name, or none usual.
    """
    known = dict(network.named_modules())
    tokens = next((name for name in TOKENS if name in known), None)
    depth = len(known[tokens]) if tokens else 0
    if not layers and depth:
        layers = tuple(sorted({depth - 1 - step * max(1, depth // 4) for step in range(min(4, depth))}))
    layers = layers or next((names for names in STAGES if known.keys() >= set(names)), ())
    if not layers:
        raise ValueError(f"teacher.layers must name modules, such as {_some(known)}; got none")
    numbers = [layer for layer in layers if isinstance(layer, int)]
    if numbers and not all(0 <= number < depth for number in numbers):
        raise ValueError(
            f"teacher.layers must be names, or numbers below {depth} (its transformer layers), got {layers}"
        )
    children = [f"{tokens}.{name}" for name, _ in known[tokens].named_children()] if tokens else []
    names = [children[layer] if isinstance(layer, int) else layer for layer in layers]
    if strange := [name for name in names if name not in known]:
        raise ValueError(f"teacher.layers must name modules, such as {_some(known)}; got {', '.join(strange)}")
    return names


def _some(known: dict[str, nn.Module]) -> str:
    return ", ".join([name for name in known if name and name.count(".") < 2][:12])


def load(settings: TeacherSettings) -> nn.Module:
    """The teacher; this package's encoders as they are, for they give maps and know the normalisation already.

    Raises: FileNotFoundError, ValueError: no such network, weights that are not here or not its own, or timm is not
      installed.
    """
    if _is_own(settings):
        return weights.load(Path(settings.network)).requires_grad_(False)
    make, name = _maker(settings.network)
    file = _file(settings)
    network = make(file is None and not settings.random)
    if file is not None:
        state, match = foreign.select(foreign.read(file), network.state_dict())
        heads = tuple(n for n in match.missing + match.other_shape if not n.startswith(("fc.", "head", "classifier.")))
        if any(not n.endswith(foreign.OPTIONAL) for n in heads):
            raise ValueError(f"{file} does not hold a whole {name}: {match}")
        network.load_state_dict(state, strict=False)
    return Teacher(network, settings)


def identity(settings: TeacherSettings) -> dict:
    """What tells teachers apart wherever their weights lie: the settings, with checksums in place of files.

    Raises: as load(), where weights are not here.
    """
    told = asdict(settings)
    if _is_own(settings):
        return told | {"network": weights.fingerprint(Path(settings.network))}
    _maker(settings.network)
    file = _file(settings)
    return told | {"weights": file and hashlib.sha256(foreign.existing(file).read_bytes()).hexdigest()}


def _is_own(settings: TeacherSettings) -> bool:
    local = Path(settings.network)
    return local.exists() or local.suffix == ".safetensors"


def _file(settings: TeacherSettings) -> Path | None:
    """The file of weights; None: random ones, or timm's affair.

    Raises: FileNotFoundError saying what to fetch.
    """
    if settings.weights is not None or settings.random or settings.network.startswith("timm/"):
        return settings.weights
    url = _torchvision().get_model_weights(settings.network).DEFAULT.url
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not kept.exists():
        raise FileNotFoundError(
            f"no weights of teacher.network={settings.network!r} here: curl -L --create-dirs -o {kept} {url}, or name "
            "a file with teacher.weights"
        )
    return kept


def _maker(network: str) -> tuple[Callable[[bool], nn.Module], str]:
    """What makes the network, with weights that timm fetches or random ones, and its name."""
    library, _, name = network.rpartition("/")
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"teacher.network={network!r} needs timm: uv pip install timm") from error

        def make(fetched: bool) -> nn.Module:
            try:
                return timm.create_model(name, pretrained=fetched)
            except (OSError, RuntimeError, ValueError) as error:  # also what fetching them raises
                raise ValueError(
                    f"timm gives no teacher.network={network!r}: {error}; where it cannot fetch weights, give a file "
                    "with teacher.weights"
                ) from error

        return make, name
    models = _torchvision()
    if library or name not in models.list_models():
        raise ValueError(
            f"teacher.network must be a model of torchvision, such as resnet50 or vit_b_16, timm/NAME, or an encoder's "
            f"file, got {network!r}"
        )
    return lambda _: models.get_model(name, weights=None), name


def _torchvision() -> ModuleType:
    """Imported only where it is needed: that takes as long as importing torch."""
    from torchvision import models

    return models
