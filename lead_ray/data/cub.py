"""CUB-200-2011: photographs of 200 species of birds, 15 parts each (Wah et al., Caltech 2011).

Official layout: `images/`, `images.txt`, `classes.txt`, `image_class_labels.txt`, `train_test_split.txt`,
`bounding_boxes.txt`, `parts/part_locs.txt`. CL and LEAD use 35 species of songbirds, the superfamily Passeroidea,
in a split of their own of 1,241, 382 and 383 images, whose lists CL's repository holds
(cvl-umass/contrast-landmark, datasets/CUB_200_2011/split). No rule for that split is known, only the lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import numpy as np

from lead_ray.data.celeba import find, table
from lead_ray.data.crops import Crop
from lead_ray.data.rows import Record

PARTS = 15
PASSEROIDEA = (
    *(14, 15, 16, 17, 20, 21, 34, 35, 47, 48, 54, 55, 56, 57, 76, 99, 109, 113, 114, 115, 116, 117, 139),
    *range(158, 169),
    170,
)
"""Numbers in classes.txt of the 35 species that occur in CL's lists: buntings, finches, sparrows, warblers, ..."""


@dataclass(frozen=True, kw_only=True)
class Cub:
    """CUB-200-2011: "train" and "test", with CL's lists "val" too; PCK over the visible parts is its error."""

    name: ClassVar[str] = "cub"
    raw: Path
    """The unpacked folder CUB_200_2011."""
    species: tuple[int, ...] | Literal["passeroidea", "all"] = "passeroidea"
    """passeroidea: the 35 of CL and LEAD; all: whatever the folder has; or numbers of classes.txt."""
    lists: Path | None = None
    """Folder with CL's train.txt, val.txt and test.txt, which name the images and so the species; None: the
    official training and test images of `species`, which is not the paper's split."""

    def __post_init__(self):
        if self.lists is not None and self.species != "passeroidea":
            raise ValueError(f"lists name the images themselves: leave species out, got {self.species}")

    @property
    def crop(self) -> Crop:
        """All of the photograph, squashed into evaluation's centre crop: 96 of 136 pixels (CL, data_loaders_animal)."""
        return Crop(kind="whole", exact_centres=False, margin=20)

    def records(self) -> Iterator[Record]:
        names = {image: name for _, (image, name) in table(find(self.raw, "images.txt"), columns=2)}
        boxes, parts = _boxes(find(self.raw, "bounding_boxes.txt")), _parts(find(self.raw, "parts/part_locs.txt"))
        folder = find(self.raw, "images")
        for image, split in self._official(names) if self.lists is None else self._listed(self.lists, names):
            for values, file in ((boxes, "bounding_boxes.txt"), (parts, "parts/part_locs.txt")):
                if image not in values:
                    raise ValueError(f"{self.raw / file} has no row for image {image}, {names[image]}")
            places = parts[image]
            if missing := sorted(set(range(1, PARTS + 1)) - places.keys()):
                raise ValueError(f"{self.raw / 'parts/part_locs.txt'}: image {image} has no parts {missing}")
            located = np.array([places[part] for part in range(1, PARTS + 1)], np.float32)
            yield Record(
                image_id=names[image],
                path=folder / names[image],
                split=split,
                box=boxes[image],
                landmarks=located[:, :2].copy(),
                visible=located[:, 2] == 1,
            )

    def _official(self, names: dict[str, str]) -> Iterator[tuple[str, str]]:
        known = {number for _, (number, _) in table(find(self.raw, "classes.txt"), columns=2)}
        chosen = PASSEROIDEA if self.species == "passeroidea" else self.species
        wanted = known if chosen == "all" else {str(number) for number in chosen}
        if strangers := sorted(wanted - known, key=int):
            raise ValueError(
                f"{self.raw / 'classes.txt'} has no species {', '.join(strangers)}: give --species numbers that it "
                "has, or --species all"
            )
        labels = dict(words for _, words in table(find(self.raw, "image_class_labels.txt"), columns=2))
        listing = find(self.raw, "train_test_split.txt")
        for number, (image, training) in table(listing, columns=2):
            if image not in names or image not in labels or training not in ("0", "1"):
                raise ValueError(
                    f"{listing}, line {number}: expected an image of images.txt and image_class_labels.txt, then 0 "
                    f"or 1, got {image} {training}"
                )
            if labels[image] in wanted:
                yield image, "train" if training == "1" else "test"

    def _listed(self, lists: Path, names: dict[str, str]) -> Iterator[tuple[str, str]]:
        known = {name: image for image, name in names.items()}
        for split in ("train", "val", "test"):
            listing = lists / f"{split}.txt"
            if not listing.exists():
                raise FileNotFoundError(f"lists={str(lists)!r} has no {listing.name}")
            for number, (path,) in table(listing, columns=1):
                name = "/".join(PurePosixPath(path).parts[-2:])  # the lists have their author's folder before it
                if name not in known:
                    raise ValueError(f"{listing}, line {number}: {name} is not in {self.raw / 'images.txt'}")
                yield known[name], split


def _boxes(listing: Path) -> dict[str, tuple[float, ...]]:
    return {image: _numbers(listing, number, words) for number, (image, *words) in table(listing, columns=5)}


def _parts(listing: Path) -> dict[str, dict[int, tuple[float, ...]]]:
    """Image -> part -> x, y, visible."""
    places: dict[str, dict[int, tuple[float, ...]]] = {}
    for number, (image, part, *words) in table(listing, columns=5):
        if not part.isdecimal() or not 1 <= int(part) <= PARTS or int(part) in places.get(image, {}):
            raise ValueError(f"{listing}, line {number}: expected each part 1..{PARTS} of an image once, got {part}")
        places.setdefault(image, {})[int(part)] = _numbers(listing, number, words)
    return places


def _numbers(listing: Path, number: int, words: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise ValueError(f"{listing}, line {number}: {error}") from None
