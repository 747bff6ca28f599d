"""Errors of a frozen encoder: landmark regression and landmark matching.

python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task matching --data mafl
python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task regression --data mafl --annotations 10 --seeds 0 1 2
python -m lead_ray.evaluate runs/stage2-lead-0123abcd --task matching --data mafl --features untrained    # a floor
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from lead_ray import features, metrics, regression, shards
from lead_ray.artefacts import digest, plain, read_json, write_json
from lead_ray.errors import for_people
from lead_ray.machine import environment
from lead_ray.matching import Matching, match_pairs
from lead_ray.models import weights
from lead_ray.models.baselines import ColourPatches, untrained
from lead_ray.regression import RegressionSettings
from lead_ray.stage import pick_device

Features = Literal["learned", "untrained", "colour"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What is measured, on what."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run's folder, or a file of encoder weights."""
    task: Literal["regression", "matching"]
    data: Path
    """Prepared folder with landmarks."""
    features: Features = "learned"
    """The run's own, or a floor: the same network untrained, or raw colour patches."""
    train_split: str = "train"
    """Where regression finds its annotated images."""
    test_split: str = "test"
    """What the error is measured on."""
    limit: int | None = None
    """Only the first so many test images."""
    annotations: int | None = None
    """Annotated images for regression; all if not given."""
    copies: int = 0
    """Warped copies of each annotated image to train on in its place (DVE's limited-annotation protocol)."""
    seeds: tuple[int, ...] = (0,)
    """Repeats. Regression: which images are annotated, and the regressor's start; matching: the warps."""
    eyes: tuple[int, int] | None = None
    """Points whose distance is 100 %; if not given, 0 1 of 5 landmarks and 36 45 of 68."""
    readout: Literal["ours", "paper", "paper-limited"] = "ours"
    """How landmarks are read out. ours: as `regression` says. paper: CL's, its stop on MAFL (120 epochs).
    paper-limited: CL's for a few images in warped copies (1,000 epochs). Of `regression` these two take the
    grid, `epochs` if above 0, and paper the `epoch_steps`."""
    regression: RegressionSettings = field(default_factory=RegressionSettings)
    matching: Matching = field(default_factory=Matching)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self):
        for name, least in (("limit", 1), ("annotations", 1), ("copies", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if not self.seeds:
            raise ValueError("seeds must hold at least one number, got none")
        self.regressor()  # checks that the epochs fit the schedule

    @property
    def folder(self) -> Path:
        """Where results and cached features go: the run's folder, or beside the weights."""
        return self.run if self.run.is_dir() else self.run.with_suffix("")

    def regressor(self) -> RegressionSettings:
        """The settings that `readout` stands for."""
        given = self.regression
        if self.readout == "ours":
            return given
        if self.readout == "paper":
            return regression.paper(given.epochs or 120, epoch_steps=given.epoch_steps, grid=given.grid)
        return regression.paper_limited(given.epochs or 1000, grid=given.grid)

    def eyes_among(self, points: int) -> tuple[int, int]:
        """The points whose distance is 100 %, of so many.

        Raises: ValueError if they are not given and `points` does not tell.
        """
        usual = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS}
        if self.eyes is None and points not in usual:
            raise ValueError(f"data={self.data} has {points} landmarks: name two whose distance is 100 % with --eyes")
        return self.eyes or usual[points]

    def encoder(self) -> nn.Module:
        card = weights.read_card(self.run)
        encoders = {
            "learned": lambda: weights.load(self.run),
            "untrained": lambda: untrained(card),
            "colour": ColourPatches,
        }
        return encoders[self.features]().eval().to(pick_device(self.device))


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Measure, write the run's eval/<task>-<data>-....json, return its content; a result that exists is read."""
    manifest = shards.read_manifest(settings.data)
    path = settings.folder / "eval" / f"{_name(settings, manifest)}.json"
    if path.exists():
        return read_json(path)
    measure = {"regression": _regression, "matching": _matching}[settings.task]
    result = {
        "task": settings.task,
        "features": settings.features,
        "data": manifest.dataset,
        **measure(settings),
        "settings": plain(settings),
        "environment": environment(),
    }
    write_json(path, result)
    return result


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """What evaluate() measured, without how and where."""
    return {name: value for name, value in result.items() if name not in ("settings", "environment")}


def _name(settings: Evaluate, manifest: shards.Manifest) -> str:
    measured = {"data": manifest.fingerprint, "run": weights.fingerprint(settings.run)}
    matters = plain(settings) | measured | {"device": None}
    few = f"-{settings.annotations}" if settings.annotations else ""
    return f"{settings.task}-{manifest.dataset}-{settings.features}{few}-{digest(matters)}"


def _test_images(settings: Evaluate) -> shards.Images:
    images = shards.load(settings.data, settings.test_split)
    if images.landmarks.shape[1] == 0:
        raise ValueError(f"data={settings.data} has no landmarks: prepare it with --landmarks")
    count = settings.limit or len(images.ids)
    if count > len(images.ids):
        raise ValueError(f"limit must be at most the {len(images.ids)} images of {settings.test_split}, got {count}")
    return shards.Images(
        pixels=images.pixels[:count],
        ids=images.ids[:count],
        identity=images.identity[:count],
        landmarks=images.landmarks[:count],
        visible=images.visible[:count],
    )


def _matching(settings: Evaluate) -> dict[str, Any]:
    images = _test_images(settings)
    eyes = settings.eyes_among(images.landmarks.shape[1])
    encoder, device = settings.encoder(), pick_device(settings.device)
    even = len(images.ids) // 2 * 2
    pixels = images.pixels[:even].to(device)
    points, visible = (torch.from_numpy(marks[:even]).to(device) for marks in (images.landmarks, images.visible))
    runs = []
    for seed in settings.seeds:
        how = replace(settings.matching, seed=seed)
        runs.append(match_pairs(pixels, points, encoder, how, eyes=eyes, visible=visible).summary())
    means = {name: fmean(run[name] for run in runs) for name in runs[0]}
    return {"pairs": even // 2, **means, "errors": [run["cl_diff_error"] for run in runs], "runs": runs}


def _regression(settings: Evaluate) -> dict[str, Any]:
    train, test = shards.load(settings.data, settings.train_split), _test_images(settings)
    eyes = settings.eyes_among(test.landmarks.shape[1])
    encoder, device = settings.encoder(), pick_device(settings.device)
    test_blocks = _cached(settings, encoder, test, settings.test_split, device)
    truth, visible = features.normalised_landmarks(test).to(device), torch.from_numpy(test.visible).to(device)
    everyone = features.normalised_landmarks(train)
    errors, floors = [], []
    for seed in settings.seeds:
        generator = torch.Generator().manual_seed(seed)
        count = settings.annotations or len(train.ids)
        chosen = regression.annotations(count, len(train.ids), seed)
        points, seen = everyone[chosen], torch.from_numpy(train.visible)[chosen]
        if settings.copies:
            pixels, copied = regression.warped_copies(
                train.pixels[chosen], torch.from_numpy(train.landmarks)[chosen], settings.copies, generator
            )
            blocks = features.extract(encoder, pixels.to(device), cropped=True)
            points, seen = copied, seen.repeat_interleave(settings.copies, dim=0)
        elif settings.annotations:
            blocks = features.extract(encoder, train.pixels[chosen].to(device))
        else:
            blocks = [b[chosen.to(device)] for b in _cached(settings, encoder, train, settings.train_split, device)]
        points, seen = points.to(device), seen.to(device)
        fitted = regression.fit(blocks, points, settings.regressor(), generator, visible=seen)
        errors.append(regression.evaluate(fitted.predict(test_blocks), truth, eyes=eyes, visible=visible).mean)
        mean_face = regression.mean_face(points, len(truth), visible=seen)
        floors.append(regression.evaluate(mean_face, truth, eyes=eyes, visible=visible).mean)
    return {
        "images": len(test.ids),
        "annotations": settings.annotations or len(train.ids),
        "error": fmean(errors),
        "error_std": stdev(errors) if len(errors) > 1 else None,
        "errors": errors,
        "mean_face": fmean(floors),
        "mean_faces": floors,
    }


def _cached(
    settings: Evaluate, encoder: nn.Module, images: shards.Images, split: str, device: torch.device
) -> list[Tensor]:
    measured = {
        "data": shards.read_manifest(settings.data).fingerprint,
        "run": weights.fingerprint(settings.run),
        "split": split,
        "images": len(images.ids),
    }
    key = digest(measured | {"features": settings.features})
    path = settings.folder / "features" / f"{split}-{settings.features}-{key}.safetensors"
    return features.cached(path, encoder, images.pixels.to(device))


def main(arguments: list[str] | None = None) -> None:
    with for_people("evaluate"):
        result = evaluate(tyro.cli(Evaluate, args=arguments, description=__doc__))
    for name, value in numbers(result).items():
        print(f"{name:24} {value:8.3f}" if isinstance(value, float) else f"{name:24} {value}")


if __name__ == "__main__":
    main()
