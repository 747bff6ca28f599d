"""A landmark model from a trained encoder and a few annotated images.

$ lead-ray fit runs/stage2-... --images photos --labels labels.json --out bird-model
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from lead_ray import formats
from lead_ray.artefacts import atomic
from lead_ray.errors import for_people
from lead_ray.landmarks import fitting
from lead_ray.landmarks.labels import Schema
from lead_ray.landmarks.model import LandmarkModel
from lead_ray.reporting.reliability import figure
from lead_ray.usage import parsed

KEPT = {"card.json", "encoder.safetensors", "readout.safetensors", "reliability.png"}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit landmarks to annotated images, measure them, and keep all of it in one folder."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A finished run's folder, or a file of encoder weights."""
    images: Path
    """Folder of the images."""
    labels: Path
    """Annotations in any of the formats that `lead-ray convert --help` shows."""
    out: Path
    """Folder of the model."""
    side: int | None = None
    """Side in pixels of what the network is shown; None: what it was trained for. 128 or 160 tell finer."""
    normaliser: tuple[str, str] | None = None
    """Two landmarks whose distance is 100 % in errors, and sets what counts as near: the eyes of faces, say. None: the
    labels' own, and without it the box or picture."""
    box_factor: float = 1.1
    """Side of what is shown over the longer side of the box, where annotations have boxes."""
    seed: int = 0
    """Of which annotated images each member of the ensemble leaves out."""


def run(settings: Fit) -> LandmarkModel:
    """Fit, save with a picture of the reliability, and say what was measured."""
    refuse_to_mix(settings.out)
    labels = formats.read(formats.guess(settings.labels), settings.labels, images=settings.images)
    if settings.normaliser is not None:
        labels = replace(labels, schema=normalised_by(labels.schema, settings.normaliser))
    choice = {"side": settings.side, "box_factor": settings.box_factor, "seed": settings.seed}
    model = fitting.fit(settings.run, labels, settings.images, **choice)
    model.save(settings.out)
    reliability = model.card.measured.get("reliability")
    if reliability:
        with atomic(settings.out / "reliability.png") as temporary:
            figure(reliability, model.card.confidence).savefig(temporary, format="png", dpi=150)
    return model


def refuse_to_mix(out: Path) -> None:
    """Raises: ValueError if that is a file, or a folder that holds something else than a landmark model or a part."""
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - KEPT):
        raise ValueError(f"out={str(out)!r} is there and holds no landmark model: name a new folder, or a model's")


def normalised_by(schema: Schema, names: tuple[str, str]) -> Schema:
    """Raises: ValueError for a landmark that is not in the schema, or twice the same."""
    if unknown := [name for name in names if name not in schema.names]:
        raise ValueError(f"normaliser names {unknown[0]!r}, the landmarks are {', '.join(schema.names)}")
    first, second = (schema.names.index(name) for name in names)
    return replace(schema, normaliser=(first, second))


def report(model: LandmarkModel) -> str:
    """The card in a few lines."""
    card, measured = model.card, model.card.measured
    images = "annotated image" if card.trained["images"] == 1 else "annotated images"
    lines = [f"{card.schema.category}: {sum(card.placed)} landmarks from {card.trained['images']} {images}"]
    if measured["error"] is None:
        lines.append(measured["why"])
    else:
        doubt = f" ± {measured['standard_error']:.1f}" if measured["standard_error"] is not None else ""
        lines.append(f"error in images not seen: {measured['error']:.1f}{doubt} {measured['unit']} ({measured['how']})")
        known = {name: error for name, error in measured["by_landmark"].items() if error is not None}
        worst = max(known, key=known.__getitem__)
        lines.append(f"hardest: {worst}, {known[worst]:.1f}")
        file, error = measured["worst_image"]
        lines.append(f"least like the others: {file}, {error:.1f}; are its labels right?")
    lines.append(f"confidence: {card.confidence}")
    if card.schema.normaliser is None:
        lines.append(
            "no two landmarks give the scale, so error and confidence count in shares of the box or picture, beside "
            "which a landmark's error is small: name two with --normaliser (landmarks: "
            f"{', '.join(card.schema.names)}), and fit again"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray fit`."""
    with for_people("fit"):
        settings = parsed(Fit, arguments, __doc__, "lead-ray fit")
        print(f"{report(run(settings))}\nsaved in {settings.out}")


if __name__ == "__main__":
    main()
