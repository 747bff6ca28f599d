"""Boxes of objects from a CSV or a COCO file."""

from pathlib import Path

from lead_ray.formats import coco, jsons
from lead_ray.formats.table import BOX, number, records
from lead_ray.landmarks.framing import Box

SHORT = ("x", "y", "width", "height")


def read(path: Path) -> dict[str, list[Box]]:
    """Boxes x, y, width, height in pixels of every file, in the file's order; an image may have several.

    A CSV has columns file and box_x, box_y, box_width, box_height, or x, y, width, height; a row a box, or none. COCO's
    are the annotations' "bbox", but for those that formats.coco put around points for want of one.
    Raises: FileNotFoundError; ValueError naming what is wrong.
    """
    if not path.exists():
        raise FileNotFoundError(f"boxes={str(path)!r} does not exist")
    found: dict[str, list[Box]] = {}
    for file, box in _of_csv(path) if path.suffix.lower() == ".csv" else _of_coco(path):
        found.setdefault(file, []).append(box)
    return found


def _of_csv(path: Path) -> list[tuple[str, Box]]:
    columns, rows = records(path)
    names = next((names for names in (BOX, SHORT) if {"file", *names} <= set(columns)), None)
    if names is None:
        raise ValueError(f"{path}: needs columns file, {', '.join(SHORT)} (or {', '.join(BOX)}), has {columns}")
    found = [
        (row["file"], tuple(number(where, row[name]) for name in names))
        for where, row in rows
        if any(row[name] for name in names)
    ]
    if not found:
        raise ValueError(f"{path}: no row has a box; leave --boxes away, or say where the objects are")
    return found


def _of_coco(path: Path) -> list[tuple[str, Box]]:
    content, found = jsons.load(path), []
    names = {image.get("id"): image for _, image in jsons.entries(str(path), content, "images")}
    for where, entry in jsons.entries(str(path), content, "annotations"):
        if entry.get("image_id") not in names:
            raise ValueError(f"{where}: image_id {entry.get('image_id')!r} is not among the images")
        if entry.get("bbox") is None or coco.is_of_points(entry):
            continue
        file = jsons.field(where, names[entry["image_id"]], "file_name", str)
        found.append((file, tuple(jsons.numbers(where, entry, "bbox", 4))))
    if not found:
        raise ValueError(
            f"{path}: no annotation has a box of its own; leave --boxes away, or say where the objects are"
        )
    return found
