"""Tiny folders in the exact layouts that the public data sets have, and ways to spoil them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from lead_ray.data.folder import Folder
from lead_ray.prepare import prepare

FACE = np.array([[68, 111], [109, 112], [89, 132], [72, 151], [105, 151]])
HEADER = " ".join(
    f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"
)


def picture(path: Path, width: int, height: int, *, seed: int = 0) -> Path:
    """A smooth random photograph; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def replace_line(path: Path, number: int, line: str) -> None:
    """Spoil one line of a list; lines count from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, lines)


def celeba(root: Path, *, images: int = 20, wild: bool = False) -> Path:
    """Partitions by number % 5: 0-2 train, 3 val, 4 test. MAFL's test: images 2 and 5; its training: 7, 1."""
    names = [f"{number:06d}.jpg" for number in range(1, images + 1)]
    folder = "img_celeba" if wild else "img_align_celeba"
    for seed, name in enumerate(names):
        picture(root / "Img" / folder / name, *((240, 300) if wild else (178, 218)), seed=seed)
    points = [" ".join(map(str, (FACE + seed % 3).ravel())) for seed in range(images)]
    rows = [f"{name}  {row}" for name, row in zip(names, points, strict=True)]
    suffix = "" if wild else "_align"
    write_lines(root / f"Anno/list_landmarks{suffix}_celeba.txt", [str(images), HEADER, *rows])
    if wild:
        boxes = [f"{name}    50  80  80  100" for name in names]
        write_lines(root / "Anno/list_bbox_celeba.txt", [str(images), "image_id x_1 y_1 width height", *boxes])
    write_lines(root / "Anno/identity_CelebA.txt", [f"{name} {seed // 2}" for seed, name in enumerate(names)])
    parts = [f"{name} {(0, 0, 0, 1, 2)[number % 5]}" for number, name in enumerate(names, start=1)]
    write_lines(root / "Eval/list_eval_partition.txt", parts)
    write_lines(root / "MAFL/training.txt", ["000007.jpg", "000001.jpg"])
    write_lines(root / "MAFL/testing.txt", ["000005.jpg", "000002.jpg"])
    return root


def mtfl(root: Path, *, testing: int = 6) -> Path:
    """Three training images, two with the original's backslashes; odd testing images have close eyes."""
    x, y = [52.0, 91.0, 73.0, 68.0, 92.0], [58.0, 47.0, 76.0, 101.0, 93.0]
    names = ["lfw_5590\\A_0001.jpg", "lfw_5590\\B_0001.jpg", "net_7876\\7_0_0.jpg"]
    write_lines(root / "training.txt", [f" {name} {_mtfl(x, y)}" for name in names])
    tests = [f"AFLW/{number:04d}-image.jpg" for number in range(testing)]
    near = [x[0], x[0] + 5, *x[2:]]
    lines = [f"{name} {_mtfl(near if number % 2 else x, y)}" for number, name in enumerate(tests)]
    write_lines(root / "testing.txt", lines)
    for seed, name in enumerate([*names, *tests]):
        picture(root / name.replace("\\", "/"), 150, 150, seed=seed)
    return root


def _mtfl(x: list[float], y: list[float]) -> str:
    return " ".join(map(str, [*x, *y])) + " 1 2 2 3"


def coco(path: Path, names: list[str], **changes) -> Path:
    """A COCO keypoints file, one annotation of two points an image; `changes` go to the last."""
    triples = [number for point in range(2) for number in (20.0 + point, 30.0, 2)]
    images = [{"id": ordinal, "file_name": name, "width": 60, "height": 80} for ordinal, name in enumerate(names)]
    annotations = [
        {"id": ordinal, "image_id": ordinal, "category_id": 1, "keypoints": triples, "bbox": [10, 20, 30, 20]}
        for ordinal in range(len(names))
    ]
    annotations[-1] |= changes
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1}]}))
    return path


def prepared_pictures(root: Path) -> Path:
    """Forty prepared images of 40 x 40 pixels: five in each lane."""
    for seed in range(40):
        picture(root / f"raw/{seed:02}.png", 44, 40, seed=seed)
    prepare(Folder(raw=root / "raw"), root / "shards", workers=0, size=40, encoding="png", progress=False)
    return root / "shards"
