"""Labels in the formats that other tools read, in the project's folder."""

from pathlib import Path

from lead_ray import formats
from lead_ray.annotating.project import Project

FILES = {
    "own": "labels.json",
    "coco": "coco.json",
    "csv": "labels.csv",
    "pts": "pts",
    "cvat": "cvat.xml",
    "label-studio": "label-studio.json",
    "deeplabcut": "CollectedData_lead_ray.csv",
    "sleap": "labels.slp",
}
EXPORTS = [{"name": name, "title": formats.FORMATS[name].title, "loses": formats.FORMATS[name].loses} for name in FILES]
"""For the page's menu."""


def export(project: Project, format: str) -> Path:
    """Write all labels; returns the file, or for "pts" the folder.

    Raises: ValueError if there is nothing to write, or no such format.
    """
    if format not in FILES:
        raise ValueError(f"format must be one of {', '.join(FILES)}, got {format!r}")
    labels = project.labels()
    if not labels.images:
        raise ValueError("nothing is labelled yet: place a point first")
    path = project.path / "exports" / FILES[format]
    path.parent.mkdir(exist_ok=True)
    formats.write(format, labels, path)
    return path
