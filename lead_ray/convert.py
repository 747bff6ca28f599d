"""Landmarks from one tool's file to another's.

$ lead-ray convert CollectedData_me.csv labels.json --to own --images .
$ lead-ray convert labels.json labels.slp --to sleap

What `lead-ray fit --labels` reads, too. Points are (x, y) in pixels of the image as a viewer shows it; the centre
of its first pixel is (0, 0). A point's mark is 0 missing, 1 occluded (hidden, but placed) or 2 visible, as in COCO.

csv: a row an image, in any order of columns; `file` and each landmark's NAME_x and NAME_y are needed, in pixels. A
point whose x and y are empty is missing. NAME_mark is missing, occluded or visible, or their number; without it what is
placed is visible. width and height are the image's: without them, --images says where it is. box_x, box_y, box_width
and box_height say where the object is, NAME_confidence how sure a model was.

    file,beak_x,beak_y,beak_mark,tail_x,tail_y,tail_mark
    a.jpg,31.5,40,occluded,,,missing

own: this package's JSON. `size` is width and height, a missing point null; `box` (x, y, width, height) and `confidence`
may follow the marks; `category`, `skeleton` and `normaliser` (numbers of landmarks, from 0) the colours.

    {"schema": {"names": ["beak", "tail"], "colours": ["#e03030", "#3050e0"]},
     "images": [{"file": "a.jpg", "size": [80, 60],
                 "points": [[31.5, 40], null], "marks": [1, 0]}]}

coco: `annotations` with `keypoints` [x, y, mark, ...]. pts: a folder with a STEM.pts for every image STEM, 300-W's,
whose first pixel is (1, 1). deeplabcut: CollectedData's three header rows. cvat, label-studio, sleap: as these tools
write them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lead_ray import formats
from lead_ray.errors import for_people
from lead_ray.usage import parsed

Name = Literal["own", "coco", "csv", "pts", "cvat", "label-studio", "deeplabcut", "sleap"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Read labels, write them in another format."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """File of labels, or a folder of .pts files."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File to write; for pts a folder."""
    to: Name
    """Format to write."""
    format: Name | None = None
    """Format of the source; None: what its name and beginning say."""
    images: Path | None = None
    """Folder of the images, for formats that do not state their sizes."""
    schema: Path | None = None
    """Labels in this package's own format, whose names, colours and skeleton are taken."""


def convert(settings: Convert) -> str:
    """Convert; returns what to tell a person."""
    schema = formats.read("own", settings.schema).schema if settings.schema else None
    if settings.out.exists() and settings.out.samefile(settings.source):
        raise ValueError(f"out={str(settings.out)!r} is the source itself, which would be lost: name another file")
    known = settings.format or formats.guess(settings.source)
    labels = formats.read(known, settings.source, schema=schema, images=settings.images)
    formats.write(settings.to, labels, settings.out)
    loses = formats.FORMATS[settings.to].loses
    lost = f" (it does not hold: {loses})" if loses else ""
    return f"{len(labels.images):,} images, {len(labels.schema.names)} landmarks: {settings.out}{lost}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray convert`."""
    with for_people("convert"):
        print(convert(parsed(Convert, arguments, __doc__, "lead-ray convert")))


if __name__ == "__main__":
    main()
