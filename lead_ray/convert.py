"""Landmarks from one tool's file to another's.

$ lead-ray convert CollectedData_me.csv labels.json --to own --images .
$ lead-ray convert labels.json labels.slp --to sleap
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lead_ray import formats
from lead_ray.errors import for_people

Name = Literal["own", "coco", "csv", "pts", "cvat", "label-studio", "deeplabcut", "sleap"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Read labels, write them in another format."""

    source: Annotated[Path, tyro.conf.Positional]
    """File of labels, or a folder of .pts files."""
    out: Annotated[Path, tyro.conf.Positional]
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
    known = settings.format or formats.guess(settings.source)
    labels = formats.read(known, settings.source, schema=schema, images=settings.images)
    formats.write(settings.to, labels, settings.out)
    loses = formats.FORMATS[settings.to].loses
    lost = f" (it does not hold: {loses})" if loses else ""
    return f"{len(labels.images):,} images, {len(labels.schema.names)} landmarks: {settings.out}{lost}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray convert`."""
    with for_people("convert"):
        print(convert(tyro.cli(Convert, args=arguments, prog="lead-ray convert", description=__doc__)))


if __name__ == "__main__":
    main()
