"""Objectives of equivariance: a descriptor is to be found where its point went, and nowhere far from there.

Contrastive Landmarks' second stage (CL, Cheng et al., ICCV 2021) within one image; DVE (Thewlis et al., ICCV 2019)
between an image and its warped self, by way of another image's descriptors. LEAD compares with both (Table 6).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray import geometry
from lead_ray.augmentation.warped import dve_warper
from lead_ray.geometry import Warper
from lead_ray.models.dve import DveNetworkSettings, dve_network
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.projection import CompactEncoder, Projection, ProjectionSettings
from lead_ray.models.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class EquivarianceSettings:
    """CL's second stage on a frozen trunk; it trains with Adam 1e-3, beta1 .5, weight decay 5e-4, 32 images, 10 epochs.

    What is learned is CL's own projection, or LEAD's decoder under CL's loss (Table 6).
    """

    decoder: ProjectionSettings | FpnSettings = field(default_factory=ProjectionSettings)
    sharpness: float | None = None
    """Factor on the cosines; if not given CL's, 8 for 64 channels and 7 for more."""
    power: float = 0.5
    """Of the distance in pixels."""

    def __post_init__(self):
        if self.sharpness is not None and self.sharpness <= 0:
            raise ValueError(f"objective.sharpness must be > 0, got {self.sharpness}")
        if self.power <= 0:
            raise ValueError(f"objective.power must be > 0, got {self.power}")

    @property
    def factor(self) -> float:
        """The sharpness, or CL's."""
        return self.sharpness or (8.0 if self.decoder.dim <= 64 else 7.0)


@dataclass(frozen=True, kw_only=True)
class DveSettings:
    """DVE's exchange; it trains with Adam (amsgrad) 1e-3, a tenth of it from epoch 50, 16 images, 100 epochs.

    What is learned is one of DVE's own networks, from scratch, or LEAD's decoder on a frozen trunk under DVE's loss.
    """

    network: DveNetworkSettings | FpnSettings = field(default_factory=DveNetworkSettings)
    scale: float = 20.0
    """Length that descriptors are given; 0 leaves them as they are, as DVE's configuration of SmallNet does."""
    power: float = 0.5
    """Of the distance in pixels."""
    warper: Warper = field(default_factory=dve_warper)
    margin: int = 20
    """Pixels cropped from every side after warping."""

    def __post_init__(self):
        if self.scale < 0:
            raise ValueError(f"objective.scale must be >= 0, got {self.scale}")
        if self.power <= 0:
            raise ValueError(f"objective.power must be > 0, got {self.power}")


def cells(image: tuple[int, int], features: tuple[int, int]) -> tuple[slice, slice]:
    """The pixels (rows, columns) that a map's cells stand for: every stride-th one from 0, as in DVE and CL.

    Raises: ValueError if the image's sides (height, width) are no multiples of the map's.
    """
    if image[0] % features[0] or image[1] % features[1]:
        raise ValueError(f"views.size must be a multiple of the map's side, got {image} and a map of {features}")
    return slice(None, None, image[0] // features[0]), slice(None, None, image[1] // features[1])


def distances(start: Float[Tensor, "#b n 2"], end: Float[Tensor, "#b m 2"], *, power: float) -> Float[Tensor, "#b n m"]:
    """Distances between points, to a power, exactly 0 where they coincide."""
    return torch.cdist(start, end, compute_mode="donot_use_mm_for_euclid_dist") ** power


def expected_distance(logits: Float[Tensor, "b n m"], distance: Float[Tensor, "#b n m"]) -> Float[Tensor, ""]:
    """How far off matches are on average: mean over images and locations u of sum_v distance(u, v) softmax_v(logits).

    Range: from the mean over u of the least distance to that of the largest; no gradient reaches distances.
    Source: DVE, model/loss.py; CL, train_feature_projector.py (dense_corr_loss).
    """
    return (logits.softmax(dim=-1) * distance.detach()).sum(dim=-1).mean()


def exchange(features: Float[Tensor, "b c n"], auxiliary: Float[Tensor, "b c m"]) -> Float[Tensor, "b c n"]:
    """Every descriptor as the mixture of another image's that it matches: sum_w softmax_w(f_u . a_w) a_w.

    Lengths matter, and the mixture is not given its own back. Source: DVE, eq. 4 (dense_correlation_loss_dve).
    """
    return auxiliary @ (features.mT @ auxiliary).softmax(dim=-1).mT


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    identity = geometry.identity_grid(height=height, width=width, dtype=like.dtype, device=like.device)
    return geometry.pixels(identity, height=height, width=width)


class Equivariance(nn.Module):
    """A frozen trunk under the projection or decoder that learns; both views are images by themselves, unwarped."""

    def __init__(self, trunk: Trunk, settings: EquivarianceSettings):
        super().__init__()
        self.settings = settings
        self.trunk = trunk.requires_grad_(False)
        own = isinstance(settings.decoder, ProjectionSettings)
        self.decoder = (Projection if own else Fpn)(trunk.channels, settings.decoder)

    def train(self, mode: bool = True) -> "Equivariance":
        """The trunk stays in evaluation mode: frozen weights, frozen BatchNorm statistics."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The loss: pixels to the power, from 0 up."""
        views = torch.cat([view_a, view_b])
        with torch.no_grad():
            blocks = self.trunk(views)
        features = self.decoder(blocks)
        with torch.autocast(views.device.type, enabled=False):
            height, width = views.shape[2:]
            rows, columns = cells((height, width), tuple(features.shape[2:]))
            points = _pixels(height, width, features.float())[rows, columns].flatten(0, 1)[None]
            unit = F.normalize(features.float().flatten(2), dim=1, eps=1e-12)
            logits = (self.settings.factor * unit).mT @ unit
            return {"loss": expected_distance(logits, distances(points, points, power=self.settings.power))}

    def after_step(self, progress: float) -> None:
        """Nothing moves but what the optimiser moves."""

    def encoder(self) -> nn.Module:
        """What the stage hands on: trunk and projection or decoder."""
        if isinstance(self.decoder, Fpn):
            return DenseEncoder(self.trunk, self.decoder)
        return CompactEncoder(self.trunk, self.decoder, finer=self.decoder.settings.finer)


class Dve(nn.Module):
    """DVE's network, or LEAD's with its trunk frozen, on pairs that a warp relates.

    Args:
        trunk: needed by the FPN alone.
        group: images in a row that exchange descriptors, each with the next one: a lane's share of the batch, so that
            who exchanges with whom does not depend on the number of workers.
    """

    def __init__(self, trunk: Trunk | None, settings: DveSettings, *, group: int):
        super().__init__()
        self.settings = settings
        self.group = group
        if isinstance(settings.network, FpnSettings):
            self.network = DenseEncoder(trunk.requires_grad_(False), Fpn(trunk.channels, settings.network))
        else:
            self.network = dve_network(settings.network)

    def train(self, mode: bool = True) -> "Dve":
        """A frozen trunk stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.network, DenseEncoder):
            self.network.trunk.eval()
        return self

    def forward(
        self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"], grid: Float[Tensor, "b h w 2"]
    ) -> dict[str, Tensor]:
        """The loss, pixels to the power; grid leads from view a's pixels to normalised points of view b."""
        (features,) = self.network(torch.cat([view_a, view_b]))
        with torch.autocast(view_a.device.type, enabled=False):
            rows, columns = cells(tuple(view_a.shape[2:]), tuple(features.shape[2:]))
            descriptors = features.float().flatten(2)
            if self.settings.scale:
                descriptors = self.settings.scale * F.normalize(descriptors, dim=1, eps=1e-12)
            first, second = descriptors.chunk(2)
            logits = exchange(first, first.unflatten(0, (-1, self.group)).roll(-1, dims=1).flatten(0, 1)).mT @ second
            height, width = view_b.shape[2:]
            went = geometry.pixels(grid, height=height, width=width)[:, rows, columns].flatten(1, 2)
            points = _pixels(height, width, went)[rows, columns].flatten(0, 1)[None]
            return {"loss": expected_distance(logits, distances(went, points, power=self.settings.power))}

    def after_step(self, progress: float) -> None:
        """Nothing moves but what the optimiser moves."""

    def encoder(self) -> nn.Module:
        """What the stage hands on: the whole network."""
        return self.network
