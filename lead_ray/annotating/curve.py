"""Held-out error by number of labelled images, as they came."""

import json
from pathlib import Path
from typing import Any

from lead_ray import storage


class Curve:
    """Errors that are kept with the project; begun anew when what they depend on changes: schema, model, its input."""

    def __init__(self, path: Path):
        self._path = path
        kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._schema = kept.get("schema")
        self._points: dict[int, dict[str, Any]] = {point["images"]: point for point in kept.get("points", [])}

    def add(self, schema: dict[str, Any], *, images: int, error: float, standard_error: float) -> None:
        """The error of read-outs fitted without the image that they are judged by; of so many images only the last
        counts.

        Args:
            schema: what the error depends on; other than before, what is known is dropped.
            error: % of the normaliser.
        """
        if schema != self._schema:
            self._schema, self._points = schema, {}
        self._points[images] = {"images": images, "error": error, "standard_error": standard_error}
        content = {"schema": self._schema, "points": self.points()}
        storage.write_bytes(self._path, json.dumps(content, indent=1).encode())

    def points(self) -> list[dict[str, Any]]:
        """In order of the number of images."""
        return [self._points[images] for images in sorted(self._points)]
