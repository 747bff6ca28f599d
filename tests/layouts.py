"""Tiny folders in the exact layouts that the public data sets have, ways to spoil them, and the small real sets."""

import io
import json
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lead_ray.data.crops import Crop
from lead_ray.data.folder import Folder
from lead_ray.data.rows import Reader, Record, render
from lead_ray.prepare import main, prepare

SHARED = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.exists(), reason="the small real data sets are not here")

FACE = np.array([[68, 111], [109, 112], [89, 132], [72, 151], [105, 151]])
HEADER = " ".join(
    f"{part}_{axis}" for part in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"
)


def ids(reader: Reader, split: str = "train") -> list[str]:
    """The images of a split."""
    return [record.image_id for record in reader.records() if record.split == split]


def rendered(record: Record, crop: Crop) -> tuple[np.ndarray, dict]:
    """Pixels of the stored image, and its row."""
    row = render(record, crop, encoding="png")
    return np.asarray(Image.open(io.BytesIO(row["image"]))), row


def counts(*words: str) -> dict[str, tuple[int, int]]:
    """Images and landmarks of each split that `lead-ray prepare` makes; twice, the second time as the manifest says."""
    out = Path("-".join([words[2], words[0], *words[3:]]))
    main([*words, "--out", str(out), "--workers", "0"])
    manifest = json.loads((out / "manifest.json").read_text())
    main([*shlex.split(manifest["command"])[2:], "--out", str(out), "--workers", "0"])  # it does nothing
    return {name: (split["count"], split["landmarks"]) for name, split in manifest["splits"].items()}


def unpacked(name: str, count: int, folder: Path) -> Path:
    """A small real set with the annotations of all of its images and the pixels of some."""
    (folder / name).mkdir()
    with tarfile.open(SHARED / name / "images.tar") as tar:
        members = tar.getmembers()
        pictures = [member for member in members if not member.name.endswith(".pts")]
        wanted = pictures[:: len(pictures) // count] + [member for member in members if member.name.endswith(".pts")]
        tar.extractall(folder / name, members=wanted, filter="data")
    for file in (SHARED / name).iterdir():
        if file.name != "images.tar":
            (folder / name / file.name).symlink_to(file)
    return folder / name


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


def aflw_m(root: Path) -> Path:
    """Two crops of set 1 and one of set 2 for training, MTFL's six testing images."""
    mtfl(root / "MTFL")
    heading = ["image_file", "crop_file", "face_id", "set", *(f"{axis}{point}" for point in range(5) for axis in "xy")]
    points = ",".join(map(str, range(31, 41)))
    rows = [f"image{n}.jpg,cropped/{n}.jpg,{n},{1 if n < 2 else 2},{points}" for n in range(3)]
    write_lines(root / "aflw_cropped/facedata_cropped.csv", [",".join(heading), *rows])
    for seed in range(3):
        picture(root / f"aflw_cropped/cropped/{seed}.jpg", 150, 150, seed=seed)
    return root


def aflw_r(root: Path, *, released: bool = False, **changes) -> Path:
    """Three training crops and four names in the test list, one of them twice; `changes` go to the test file.

    released: laid out as lmdis-rep gave it out, else as DVE reads it.
    """
    lists, folder = ("aflw_data/", "aflw_images") if released else ("", "output")
    for split, names in {"train": ["a.jpg", "b.jpg", "c.jpg"], "test": ["d.jpg", "e.jpg", "d.jpg", "f.jpg"]}.items():
        write_lines(root / f"{lists}aflw_{split}_images.txt", names)
        for seed, name in enumerate(names):
            picture(root / folder / name, 80, 100, seed=seed)
        points = np.tile([[30.0, 20], [31, 60], [50, 40], [70, 25], [71, 55]], (len(names), 1, 1))  # y, x
        content = {"gt": points, "hw": np.tile([100.0, 80], (len(names), 1))}
        matlab(root / f"{lists}aflw_{split}_keypoints.mat", content | (changes if split == "test" else {}))
    return root


def matlab(path: Path, content: dict) -> Path:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)
    return path


W300_FACE = np.stack([101 + np.arange(68) * 103 / 67, 61 + np.arange(68) ** 2 % 130], 1).round(3)
"""68 points, x from 101 to 204, y from 61 to 190."""


def pts(path: Path, points: np.ndarray) -> Path:
    lines = ["version: 1", f"n_points:  {len(points)}", "{", *(f"{x} {y}" for x, y in points.tolist()), "}"]
    write_lines(path, lines)
    return path


def w300(root: Path) -> Path:
    """One face in each source, two in afw; ibug with its blank, and with a file that is none of its own."""
    files = ("afw/2.jpg", "afw/1.jpg", "helen/trainset/1.jpg", "lfpw/trainset/image_0001.png")
    files += ("helen/testset/1.jpg", "lfpw/testset/image_0001.png", "ibug/image_092 _01.jpg", "ibug/134212_1.jpg")
    for seed, name in enumerate(files):
        picture(root / name, 320, 240, seed=seed)
        pts((root / name).with_suffix(".pts"), W300_FACE)
    return root


def w300_boxes(root: Path, *, box: tuple[float, ...] = (101, 61, 204, 190), field: str = "bb_ground_truth") -> Path:
    """The official boxes, a MATLAB file for each source."""
    for file in root.glob("**/*.pts"):
        folder = file.parent
        names = sorted(path.name for path in folder.iterdir() if path.suffix != ".pts")
        cells = np.empty((1, len(names)), object)
        for column, name in enumerate(names):
            cells[0, column] = {"imgName": name.replace(" ", ""), field: np.array(box, float)}
        source = folder.relative_to(root).as_posix().replace("/", "_")
        matlab(root / f"Bounding Boxes/bounding_boxes_{source}.mat", {"bounding_boxes": cells})
    return root


def w300_cropped(root: Path) -> Path:
    for seed, (name, listing) in enumerate({"lfpw/1.jpg": "train.txt", "helen/2.jpg": "test_common.txt"}.items()):
        picture(root / name, 160, 160, seed=seed)
        pts((root / name).with_suffix(".pts"), W300_FACE / 2)
        write_lines(root / listing, [name])
    return root


def cub(root: Path) -> Path:
    """Two images of each of species 1, 14 and 170, the first of each in training; part 3 is hidden in all."""
    species = {1: "001.Black_footed_Albatross", 14: "014.Indigo_Bunting", 170: "170.Mourning_Warbler"}
    names = [f"{folder}/{folder[4:]}_{n}.jpg" for folder in species.values() for n in range(2)]
    for seed, name in enumerate(names):
        picture(root / "images" / name, 200, 100, seed=seed)
    numbered = list(enumerate(names, start=1))
    labels = [f"{image} {number}" for image, number in enumerate([n for n in species for _ in range(2)], start=1)]
    places = ["0.0 0.0 0" if part == 3 else f"{10.0 * part} {5.0 * part} 1" for part in range(1, 16)]
    parts = [f"{image} {part} {place}" for image, _ in numbered for part, place in enumerate(places, start=1)]
    lists = {
        "classes.txt": [f"{number} {folder}" for number, folder in species.items()],
        "images.txt": [f"{image} {name}" for image, name in numbered],
        "image_class_labels.txt": labels,
        "train_test_split.txt": [f"{image} {image % 2}" for image, _ in numbered],
        "bounding_boxes.txt": [f"{image} 20.0 10.0 100.0 50.0" for image, _ in numbered],
        "parts/part_locs.txt": parts,
    }
    for file, lines in lists.items():
        write_lines(root / file, lines)
    return root


def inat(root: Path) -> Path:
    """Three birds and a plant."""
    names = ["Aves/Vireo griseus/b.jpg", "Aves/Vireo griseus/a.jpg", "Aves/Ardea alba/c.jpg", "Plantae/Rosa/d.jpg"]
    paths = [f"train_val_images/{name}" for name in names]
    for seed, path in enumerate(paths):
        picture(root / path, 120, 90, seed=seed)
    images = [{"id": ordinal, "file_name": path} for ordinal, path in enumerate(paths)]
    (root / "train2017.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return root
