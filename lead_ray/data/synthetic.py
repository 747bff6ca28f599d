"""Procedural faces with true landmarks, in CelebA's aligned folder layout; and their reader.

Faces drawn with numpy and Pillow stand in for CelebA where no photograph may or can be had: tests,
first runs, studies of what a part-aware network must cope with.
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from lead_ray.data._render import Face, five_points, render, scene
from lead_ray.data.celeba import ALIGNED, CelebA
from lead_ray.data.rows import Crop, Record

__all__ = ["Face", "Synthetic", "five_points", "render", "write"]

FORMAT_VERSION = 1
POINTS_5 = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Synthetic faces: drawn into `raw` unless they are there, then read as CelebA is.

    Splits: "train", everyone in the training partition; "test", other people. Both have five landmarks.
    """

    name: ClassVar[str] = "synthetic"
    raw: Path
    """Folder that receives the drawn faces."""
    images: int = 2000
    identities: int = 500
    seed: int = 0
    test_share: float = 0.2
    """Share of the identities that are kept for testing."""
    draw_workers: int = field(default=1, metadata={"matters": False})
    """Processes that draw."""

    @property
    def crop(self) -> Crop:
        return ALIGNED

    def records(self) -> Iterator[Record]:
        write(
            self.raw, images=self.images, identities=self.identities, seed=self.seed, val_share=0.0,
            test_share=self.test_share, mafl_train=0, mafl_test=0, workers=self.draw_workers,
        )  # fmt: skip
        for split in ("train", "test"):
            for record in CelebA(raw=self.raw, partitions=(split,), include_mafl_test=True).records():
                yield replace(record, split=split)


def _store(task: tuple[int, int, int], *, folder: Path, seed: int) -> dict:
    number, identity, index = task
    encoded, labels = scene(seed=seed, identity=identity, index=index)
    (folder / f"{number:06d}.jpg").write_bytes(encoded)
    return labels


def _partitions(identities: int, val_share: float, test_share: float) -> np.ndarray:
    """CelebA's partition (0 train, 1 val, 2 test) of every identity: whole identities, never split."""
    val, test = round(identities * val_share), round(identities * test_share)
    val, test = max(val, int(val_share > 0)), max(test, int(test_share > 0))
    if val + test >= identities:
        raise ValueError(
            f"identities={identities} leaves none for training with val_share={val_share}, "
            f"test_share={test_share}: give at least {val + test + 1} identities or smaller shares"
        )
    return np.repeat([0, 1, 2], [identities - val - test, val, test])


def _settled(root: Path, settings: dict) -> bool:
    """Whether ROOT holds this very set already; raises FileExistsError if it holds another."""
    stamp = root / "synthetic.json"
    if stamp.exists():
        found = json.loads(stamp.read_text())
        if found == settings:
            return True
        differing = sorted(key for key in found.keys() | settings if found.get(key) != settings.get(key))
        raise FileExistsError(
            f"{root} holds synthetic faces made with other settings ("
            + ", ".join(f"{key}={found.get(key)!r}, now {settings.get(key)!r}" for key in differing)
            + "): delete that folder or write to another one"
        )
    if (root / "Anno").exists() and not (root / "synthetic.part.json").exists():
        raise FileExistsError(f"{root} holds a data set that is not synthetic: write to another folder")
    return False


def write(
    root: Path,
    *,
    images: int,
    identities: int,
    seed: int,
    val_share: float = 0.1,
    test_share: float = 0.1,
    mafl_train: int,
    mafl_test: int,
    workers: int = 1,
) -> Path:
    """Write `images` faces of `identities` people as CelebA's aligned layout; returns root.

    The settings go to ROOT/synthetic.json last, so that its presence means "complete": a second call with the
    same settings does nothing, an interrupted folder is drawn again. Images read back as `render`'s pixels.
    Identities (1-based) are dealt to the partitions whole; images to identities in turn.
    Lists: as CelebA's, coordinates with two decimals; list_landmarks_68.txt adds 68 visibilities (0 | 1).
    Raises: ValueError for impossible sizes; FileExistsError if root holds anything else; BrokenProcessPool
      if a drawing process dies.
    """
    for name, value in (("images", images), ("identities", identities), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    if images < identities:
        raise ValueError(f"images={images} must be >= identities={identities}, so that everyone appears")
    partition_of = _partitions(identities, val_share, test_share)
    tasks = [(number + 1, number % identities + 1, number // identities) for number in range(images)]
    partition = np.array([partition_of[identity - 1] for _, identity, _ in tasks])
    names = [f"{number:06d}.jpg" for number, _, _ in tasks]
    training = [name for name, part in zip(names, partition, strict=True) if part == 0]
    testing = [name for name, part in zip(names, partition, strict=True) if part == 2]
    for name, wanted, pool in (("mafl_train", mafl_train, training), ("mafl_test", mafl_test, testing)):
        if not 0 <= wanted <= len(pool):
            raise ValueError(f"{name} must be in 0..{len(pool)}, the images of its partition, got {wanted}")
    root = Path(root)
    settings = {
        "format_version": FORMAT_VERSION,
        "images": images,
        "identities": identities,
        "seed": seed,
        "val_share": val_share,
        "test_share": test_share,
        "mafl_train": mafl_train,
        "mafl_test": mafl_test,
    }
    if _settled(root, settings):
        return root
    folder = root / "Img" / "img_align_celeba"
    for part in (folder, root / "Anno", root / "Eval", root / "MAFL"):
        part.mkdir(parents=True, exist_ok=True)
    unfinished = root / "synthetic.part.json"
    unfinished.write_text(json.dumps(settings))
    for stale in folder.glob("*.jpg"):
        stale.unlink()
    store = partial(_store, folder=folder, seed=seed)
    if workers == 1:
        faces = [store(task) for task in tasks]
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:  # unlike Pool, it notices when a child dies
            faces = list(pool.map(store, tasks, chunksize=32))
    _write_lists(root, names, faces, partition, training[:mafl_train], testing[:mafl_test])
    unfinished.write_text(json.dumps(settings, indent=1))
    unfinished.rename(root / "synthetic.json")
    return root


def _write_lists(root: Path, names, faces: list[dict], partition, mafl_train, mafl_test) -> None:
    def numbers(values) -> str:
        return " ".join(f"{value:.2f}" for value in np.ravel(values))

    def integers(values) -> str:
        return " ".join(str(int(value)) for value in values)

    def axes(labels) -> str:
        return " ".join(f"{label}_{axis}" for label in labels for axis in "xy")

    rows = list(zip(names, faces, strict=True))
    lists = {
        "Anno/list_landmarks_align_celeba.txt": [
            str(len(rows)),
            axes(POINTS_5),
            *(f"{name} {numbers(face['landmarks_5'])}" for name, face in rows),
        ],
        "Anno/list_landmarks_68.txt": [
            str(len(rows)),
            axes(range(68)) + "".join(f" visible_{point}" for point in range(68)),
            *(f"{name} {numbers(face['landmarks_68'])} {integers(face['visible_68'])}" for name, face in rows),
        ],
        "Anno/list_bbox_celeba.txt": [
            str(len(rows)),
            "image_id x_1 y_1 width height",
            *(f"{name} {integers(face['box'])}" for name, face in rows),
        ],
        "Anno/identity_CelebA.txt": [f"{name} {face['identity']}" for name, face in rows],
        "Eval/list_eval_partition.txt": [f"{name} {part}" for name, part in zip(names, partition, strict=True)],
        "MAFL/training.txt": mafl_train,
        "MAFL/testing.txt": mafl_test,
    }
    for name, lines in lists.items():
        (root / name).write_text("".join(f"{line}\n" for line in lines))
