"""Landmarks of your images.

$ lead-ray predict photos --model bird-model --out birds.json                  # COCO keypoints
$ lead-ray predict photos --model bird-model --out birds.csv --overlays drawn  # a row an image; pictures to look at
$ lead-ray predict photos --model bird-model --out birds.csv --workers 16      # millions, through Ray Data
$ lead-ray predict photos --model bird-model --out birds.csv --outliers 20     # and name those most worth correcting
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lead_ray import formats
from lead_ray.artefacts import atomic
from lead_ray.bulk import Item, Parts, find, predict_parts, write_bad
from lead_ray.data.crops import BadImage
from lead_ray.errors import for_people
from lead_ray.landmarks import boxes
from lead_ray.landmarks import model as landmark_model
from lead_ray.landmarks.labels import LabelledImage, Schema
from lead_ray.progress import phase
from lead_ray.reporting import overlays
from lead_ray.usage import parsed

BY_SUFFIX = {".csv": "csv", ".json": "coco", ".xml": "cvat", ".slp": "sleap", "": "pts"}
SHOWN = 3  # bad images that are named on the screen


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Find a model's landmarks in images, each with the probability that it is right."""

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder, searched with everything below it, or one image."""
    model: Path
    """Landmark model that `lead-ray fit` wrote."""
    out: Path
    """File of landmarks: .json is COCO keypoints, .csv a row an image, .xml CVAT, .slp SLEAP; no suffix: a folder of
    .pts files."""
    format: Literal["own", "coco", "csv", "pts", "cvat", "label-studio", "deeplabcut", "sleap"] | None = None
    """What `out` is written as, where its suffix does not tell."""
    boxes: Path | None = None
    """Where the objects are: a CSV (file, x, y, width, height) or a COCO file. Only images listed there are read."""
    overlays: Path | None = None
    """Folder for pictures with the landmarks drawn in."""
    outliers: int = 0
    """Name so many images whose landmarks are the least certain: what to correct next."""
    workers: int = 0
    """Ray Data workers; 0: this process, without Ray."""

    def __post_init__(self):
        for name in ("outliers", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.format is None and self.out.suffix.lower() not in BY_SUFFIX:
            raise ValueError(
                f"out={self.out.name!r}: which format? Name it with --format, one of {list(formats.FORMATS)}"
            )

    @property
    def written_as(self) -> str:
        return self.format or BY_SUFFIX[self.out.suffix.lower()]

    def beside(self, name: str) -> Path:
        """A neighbour of `out`."""
        return self.out.with_name(f"{self.out.name}.{name}")


def predict(settings: Predict) -> int:
    """Write what was asked for; returns how many images could not be used, which are listed in OUT.bad.csv.

    Raises: FileNotFoundError, ValueError for a wrong setting or file; a bad image is none as long as another is good.
    """
    card = landmark_model.load(settings.model).card
    if card.trained["boxed"] and settings.boxes is None:
        print("this model learned from objects in boxes: say with --boxes where they are in these images")
    root, files = find(settings.images)
    items = [Item(file, None) for file in files]
    if settings.boxes is not None:
        listed = boxes.read(settings.boxes)
        items = [Item(file, box) for file, some in listed.items() for box in some]
    folder = settings.beside("parts")
    done = bad = 0
    results = predict_parts(settings.model, root, items, folder, workers=settings.workers)
    with phase("finding landmarks", len(items)) as shown, closing(results):
        for part in results:
            done, bad = done + part.images, bad + part.bad
            shown.update(done, f"{bad} of them unusable" if bad else "")
    parts = Parts(folder)
    formats.stream(settings.written_as, card.schema, parts, settings.out)
    unusable = write_bad(settings.beside("bad.csv"), parts.bad())
    if settings.overlays is not None:
        draw_all(root, card.schema, parts, settings.overlays)
    print(f"{len(items) - unusable:,} objects in {settings.out}; confidence: {card.confidence}")
    for file, reason in islice(parts.bad(), SHOWN):
        print(f"could not be used: {file!r} {reason}")
    if unusable > SHOWN:
        print(f"... and {unusable - SHOWN:,} more, all in {settings.beside('bad.csv')}")
    if settings.outliers:
        print("least certain, most worth correcting:")
        for image, sure in least_certain(parts, settings.outliers):
            print(f"{sure:.2f}  {image.file!r}")
    shutil.rmtree(folder)
    if unusable == len(items):
        raise ValueError(f"no image could be used: the reasons are in {settings.beside('bad.csv')}")
    return unusable


def draw_all(root: Path, schema: Schema, found: Iterator[LabelledImage] | Parts, folder: Path) -> None:
    """Overlays of all objects: FOLDER/FILE.jpg, and FILE.2.jpg of an image's second object."""
    seen: dict[str, int] = {}
    for image in found:
        seen[image.file] = seen.get(image.file, 0) + 1
        number = f".{seen[image.file]}" if seen[image.file] > 1 else ""
        try:
            photograph = landmark_model.upright(root / image.file)
        except BadImage:  # it could be read a moment ago
            continue
        with atomic(folder / f"{image.file}{number}.jpg") as temporary:
            overlays.draw(photograph, schema, image).save(temporary, "jpeg", quality=90)


def least_certain(found: Parts | Sequence[LabelledImage], count: int) -> list[tuple[LabelledImage, float]]:
    """The objects of lowest mean confidence over the landmarks that were placed, the lowest first."""
    sure = ((image, float(image.confidence[image.marks > 0].mean())) for image in found if (image.marks > 0).any())
    worst: list[tuple[LabelledImage, float]] = []
    for pair in sure:  # never more than `count` in memory
        worst = sorted([*worst, pair], key=lambda each: each[1])[:count]
    return worst


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray predict`."""
    with for_people("predict"):
        predict(parsed(Predict, arguments, __doc__, "lead-ray predict"))


if __name__ == "__main__":
    main()
