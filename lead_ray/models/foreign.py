"""ResNets that others have trained, read into the trunk by name: OpenSelfSup, mmselfsup, MoCo, CL, torchvision, ...

    trunk, match = foreign.load("byol_r50_bs256_ep200.pth")
    print(match)
    foreign.convert("byol_r50_bs256_ep200.pth", "byol.safetensors")      # what lead-ray dense --stage1 reads

Their parameters are torchvision's under a prefix (`state_dict.backbone.`, `module.encoder_q.`, ...), which is found
here, and depth and width with it. Such files know nothing of this package's normalisation of images: most were trained
on ImageNet's mean and deviation, which differ a little from the faces' ones.
"""

import argparse
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lead_ray.models import weights
from lead_ray.models.trunk import LAYERS, Trunk, TrunkSettings

AVERAGED = ("target", "encoder_k", "momentum", "teacher", "_ema")
"""What moving averages are called. The trained network is preferred to its average, as BYOL and MoCo hand it on."""
OPTIONAL = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Match:
    """What of a file went into a network."""

    prefix: str
    """What stood before the names."""
    matched: tuple[str, ...]
    """Names of the network that were found, in its own order."""
    missing: tuple[str, ...]
    """Names of the network that were not."""
    other_shape: tuple[str, ...]
    """Names that were found with another shape."""
    left: tuple[str, ...]
    """Tensors of the file, by their full names, that the network has no use for: heads, averages, queues."""

    @property
    def complete(self) -> bool:
        """Whether all that counts was found; BatchNorm's counters do not."""
        return not self.other_shape and all(name.endswith(OPTIONAL) for name in self.missing)

    def __str__(self) -> str:
        said = [f"{len(self.matched)} tensors under {self.prefix!r}, {len(self.left)} left aside"]
        for what, names in (("missing", self.missing), ("of another shape", self.other_shape)):
            said += [f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"] if names else []
        return "; ".join(said)


def existing(path: Path | str) -> Path:
    """The path itself. Raises: FileNotFoundError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}: give a .safetensors, .pth or .pt file")
    return path


def read(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of a pickle, by their names joined with dots.

    A pickle is read with weights_only=True: nothing in it is run. An argparse.Namespace, which holds CL's options, is
    let through as the plain data that it is.

    Raises: FileNotFoundError; ValueError if it is neither, or needs more than that.
    """
    path = existing(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as weights alone ({type(error).__name__}): if you trust it, open it with torch and "
            "save its state dict as .safetensors"
        ) from error
    return _flat(content, "")


def _flat(content: object, prefix: str) -> dict[str, Tensor]:
    if isinstance(content, Tensor):
        return {prefix.removesuffix("."): content}
    if isinstance(content, Mapping):
        parts = [_flat(value, f"{prefix}{key}.") for key, value in content.items()]
        return {name: tensor for part in parts for name, tensor in part.items()}
    return {}


def prefixes(tensors: Mapping[str, Tensor], name: str) -> list[str]:
    """What stands before a name in the tensors' names: trained networks first, then the shortest."""
    found = [full.removesuffix(name) for full in tensors if full == name or full.endswith(f".{name}")]
    return sorted(found, key=lambda prefix: (_averaged(prefix), len(prefix), prefix))


def _averaged(prefix: str) -> bool:
    return any(word in prefix for word in AVERAGED)


def select(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, prefix: str | None = None
) -> tuple[dict[str, Tensor], Match]:
    """Of a file's tensors those that a network's state dict wants, and how they matched.

    Args:
        prefix: what stands before the network's names; if not given, where most of them are found.
    Raises: ValueError if nothing bears the network's first name, or the prefix.
    """
    first = next(iter(wanted))
    known = prefixes(tensors, first)
    if not known or (prefix is not None and prefix not in known):
        raise ValueError(f"prefix must be one of {known} (before {first!r}), got {prefix!r}")
    if prefix is None:
        prefix = max(known, key=lambda p: (not _averaged(p), sum(f"{p}{name}" in tensors for name in wanted)))
    found = {name: tensors[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in tensors}
    state = {name: tensor for name, tensor in found.items() if tensor.shape == wanted[name].shape}
    used = {f"{prefix}{name}" for name in state}
    match = Match(
        prefix=prefix,
        matched=tuple(state),
        missing=tuple(name for name in wanted if name not in found),
        other_shape=tuple(name for name in found if name not in state),
        left=tuple(name for name in tensors if name not in used),
    )
    return state, match


def settings(tensors: Mapping[str, Tensor], prefix: str) -> TrunkSettings:
    """Depth and width of the ResNet under a prefix. Raises: ValueError if the trunk has none like it."""
    names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
    counts = tuple(
        len({name.split(".")[1] for name in names if name.startswith(f"layer{level}.")}) for level in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in names
    depths = [depth for depth, layers in LAYERS.items() if layers == counts and (depth == 50) == bottleneck]
    if not depths:
        raise ValueError(
            f"the network under {prefix!r} has {counts} {'bottlenecks' if bottleneck else 'basic blocks'} in its "
            f"layers: the trunk is a ResNet of depth {', '.join(map(str, sorted(LAYERS)))}"
        )
    return TrunkSettings(depth=depths[0], width=len(tensors[f"{prefix}conv1.weight"]) / 64)


def load(path: Path | str, *, prefix: str | None = None) -> tuple[Trunk, Match]:
    """A trunk with the weights of another project's file, in evaluation mode, and how they matched.

    Raises: FileNotFoundError; ValueError if there is no ResNet in the file, or not all of it.
    """
    tensors = read(path)
    known = prefixes(tensors, "conv1.weight")
    roots = [p for p in known if tensors[f"{p}conv1.weight"].shape[1:] == (3, 7, 7)]
    if not roots or (prefix is not None and prefix not in roots):
        raise ValueError(f"{path} has ResNets under {roots}, got prefix={prefix!r}")
    chosen = roots[0] if prefix is None else prefix
    trunk = Trunk(settings(tensors, chosen))
    state, match = select(tensors, trunk.state_dict(), prefix=chosen)
    if not match.complete:
        raise ValueError(f"{path} does not hold a whole ResNet-{trunk.settings.depth}: {match}")
    trunk.load_state_dict(state, strict=False)
    return trunk.eval(), match


def convert(path: Path | str, out: Path | str, *, prefix: str | None = None) -> Match:
    """Write another project's ResNet as a trunk of this package, whose card says where it is from."""
    trunk, match = load(path, prefix=prefix)
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    weights.save(Path(out), trunk, {"converted": Path(path).name, "sha256": sha256, "prefix": match.prefix})
    return match
