"""300-W: a folder with one STEM.pts for every image STEM.jpg, .png, ...; the first pixel's centre is (1, 1).

    version: 1
    n_points: 68
    {
    30.50 24.75
    ...
    }

A missing point is written as `nan nan`; an occluded one as any other.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    written: dict[str, str] = {}
    for image in images:
        name = f"{PurePosixPath(image.file).with_suffix('')}.pts"
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise ValueError(f"{image.file!r} lies outside its folder: .pts files would, too")
        if name in written:
            raise ValueError(f"{image.file!r} and {written[name]!r} would share {name}: .pts files are named by stem")
        written[name] = image.file
        places = ["nan nan" if np.isnan(x) else f"{x + 1} {y + 1}" for x, y in image.points]
        with atomic(path / name) as temporary:
            temporary.write_text("\n".join(["version: 1", f"n_points: {len(places)}", "{", *places, "}", ""]))
    path.mkdir(parents=True, exist_ok=True)


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    if size_of.folder is None:
        size_of = Sizes(path if path.is_dir() else path.parent)
    files = sorted(path.rglob("*.pts")) if path.is_dir() else [path]
    images, root = [], path if path.is_dir() else path.parent
    for file in files:
        points = _points(file)
        if images and len(points) != len(images[0].points):
            raise ValueError(f"{file}: {len(points)} points, other files have {len(images[0].points)}")
        name = size_of.named(file.relative_to(root).with_suffix("").as_posix())
        marks = np.where(np.isfinite(points).all(1), Mark.VISIBLE, Mark.MISSING).astype(np.uint8)
        images.append(LabelledImage(file=name, size=size_of(name), points=points, marks=marks))
    if not images:
        raise ValueError(f"{path}: holds no .pts file")
    count = len(images[0].points)
    if schema is None or len(schema.names) != count:
        names = tuple(f"point {place}" for place in range(1, count + 1))
        schema = Schema(names=names, colours=palette(count))
    return Labels(schema=schema, images=tuple(images))


def _points(file: Path) -> np.ndarray:
    text = file.read_text(encoding="utf-8", errors="replace")
    head, brace, rest = text.partition("{")
    body, closing, _ = rest.partition("}")
    try:
        stated = int(head.partition("n_points:")[2].split()[0])
        points = np.array([[float(value) for value in line.split()] for line in body.strip().splitlines()])
    except (ValueError, IndexError):
        raise ValueError(f"{file}: n_points, then a line 'x y' of each point in braces, are wanted") from None
    if not brace or not closing or points.shape != (stated, 2):
        raise ValueError(f"{file}: n_points says {stated}, the braces hold {list(points.shape)} numbers")
    return (points - 1).astype(np.float32)
