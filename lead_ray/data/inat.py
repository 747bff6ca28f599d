"""iNaturalist 2017's birds, class Aves, without landmarks (Van Horn et al., CVPR 2018): pretraining for CUB.

Official layout: `train_val_images/Aves/<species>/*.jpg` and `train2017.json`, which lists the training images of
all classes. CL and LEAD take 100,000 of the birds, named in CL's inat_aves_100K.txt.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from lead_ray.data.celeba import find
from lead_ray.data.crops import Crop
from lead_ray.data.rows import Record


@dataclass(frozen=True, kw_only=True)
class INatAves:
    """iNaturalist 2017's birds for pretraining: split "train"."""

    name: ClassVar[str] = "inat-aves"
    raw: Path
    """Folder with train_val_images/ and train2017.json."""
    listing: Path | None = None
    """File with a path a line that ends in <species>/<image>.jpg, such as CL's list of 100,000; None: all bird
    images of train2017.json."""

    @property
    def crop(self) -> Crop:
        """All of the photograph, squashed to a square (CL, data_loaders_animal)."""
        return Crop(kind="whole")

    def records(self) -> Iterator[Record]:
        folder = find(self.raw, "train_val_images/Aves", "Aves")
        names = self._annotated() if self.listing is None else self._listed(self.listing)
        for name in names:
            yield Record(image_id=name, path=folder / name, split="train")

    def _listed(self, listing: Path) -> list[str]:
        if not listing.exists():
            raise FileNotFoundError(f"listing={str(listing)!r} does not exist")
        lines = listing.read_text(encoding="utf-8").splitlines()  # species have blanks in their names
        return [_short(f"{listing}, line {n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]

    def _annotated(self) -> list[str]:
        file = find(self.raw, "train2017.json")
        try:
            images = json.loads(file.read_text(encoding="utf-8"))["images"]
            paths = [image["file_name"] for image in images]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is not a list of images, each with a file_name ({error!r})") from None
        return [_short(str(file), path) for path in paths if "Aves" in PurePosixPath(path).parts]


def _short(where: str, path: str) -> str:
    """<species>/<image>."""
    parts = PurePosixPath(path).parts[-2:]
    if len(parts) < 2:
        raise ValueError(f"{where}: expected a path that ends in <species>/<image>.jpg, got {path!r}")
    return "/".join(parts)
