"""Procedural faces with true landmarks, in CelebA's aligned folder layout.

Faces drawn with numpy and Pillow stand in for CelebA where no photograph may or can be had: tests,
first runs, studies of what a part-aware network must cope with. Points are (x, y) pixels of the 178x218
image, pixel centres at integers, "left" as seen in the image.
"""

import io
import json
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lead_ray.data import _backdrop, _face, _features, _paint
from lead_ray.data._face import Identity, Nuisance, draw_identity, draw_nuisance

FORMAT_VERSION = 1
POINTS_5 = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")


@dataclass(frozen=True, kw_only=True)
class Face:
    """One synthetic image with everything that is known about it.

    Shapes: pixels uint8 [218, 178, 3] RGB; landmarks_5 float32 [5, 2] in CelebA's order; landmarks_68 float32
      [68, 2] in iBUG's order; visible_5, visible_68 bool (not self-occluded and inside the image);
      box float32 [4] = x, y, width, height of the head.
    Units: pixels of the image, pixel centres at integers.
    """

    pixels: np.ndarray
    landmarks_5: np.ndarray
    landmarks_68: np.ndarray
    visible_5: np.ndarray
    visible_68: np.ndarray
    box: np.ndarray
    identity: int


def five_points(points: np.ndarray) -> np.ndarray:
    """CelebA's five points [5, 2] from iBUG's 68 [68, 2]: eye contours' means, nose tip, mouth corners."""
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])


def _solid(flat: np.ndarray, who: Identity, how: Nuisance) -> np.ndarray:
    return np.concatenate([flat, _face.relief(flat[:, 0], flat[:, 1], who, how)[:, None]], 1)


def _unoccluded(points: np.ndarray, view: _paint.Pose, who: Identity, how: Nuisance) -> np.ndarray:
    """Whether the face's own surface leaves canonical points [n, 3] in view: a march to the camera."""
    towards = view.rotation.T @ np.array([0.0, 0.0, 1.0])
    steps = np.arange(3.0, 40.0, 3.0)[:, None, None] * towards
    x, y, z = np.moveaxis(points + steps, -1, 0)
    inside = (np.abs(x) < who.width) & (y > _face.CROWN) & (y < who.chin)
    return ~(inside & (_face.relief(x, y, who, how) > z + 1.0)).any(0)


def _pose(*, seed: int, identity: int, index: int):
    """Person, nuisance, every drawn curve in 3-D {name: [n, 3]}, and the camera."""
    who = draw_identity(seed=seed, identity=identity)
    how = draw_nuisance(seed=seed, identity=identity, index=index)
    lines, extra = _face.curves(who, how), _features.extra_curves(who, how)
    flat = np.concatenate([*lines.values(), *(line[:, :2] for line in extra.values())])
    solid = _solid(flat, who, how)
    lift = np.concatenate([line[:, 2] for line in extra.values()])
    solid[-len(lift):, 2] += lift
    ends = np.cumsum([len(line) for line in (*lines.values(), *extra.values())])[:-1]
    spatial = dict(zip((*lines, *extra), np.split(solid, ends), strict=True))
    return who, how, spatial, _paint.pose(how, _face.landmarks(spatial))


def _scene(*, seed: int, identity: int, index: int) -> tuple[bytes, dict]:
    """The JPEG file of `render`'s pixels, and the other fields of its Face."""
    who, how, spatial, view = _pose(seed=seed, identity=identity, index=index)
    drawn = {name: view(line) for name, line in spatial.items()}

    random = np.random.default_rng(how.scene)
    canvas = _backdrop.background(how, random)
    _backdrop.body(canvas, who, how, view, random)
    albedo, shade = _paint.surface(who, how, view)
    columns, rows = (np.flatnonzero(shade.any(axis)) for axis in (0, 1))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    double = tuple((2 * (high - low)).tolist())
    head = Image.fromarray((shade[window] > 0) * np.uint8(255)).resize(double, Image.BILINEAR)
    skin = Image.fromarray(albedo[window]).resize(double, Image.NEAREST)
    canvas.paste(skin, tuple((2 * low).tolist()), head)
    _features.features(canvas, drawn, drawn, who, how, view, random)
    picture = np.ascontiguousarray(np.moveaxis(np.asarray(canvas.reduce(2)), 2, 0), np.float32)
    picture[:, *window] *= np.where(shade[window] > 0, shade[window], 1.0)
    picture *= np.array(how.tint, np.float32)[:, None, None]
    row, column = random.integers(0, 512 - _paint.HEIGHT), random.integers(0, 512 - _paint.WIDTH)
    picture += how.noise * _paint.GRAIN[row : row + _paint.HEIGHT, column : column + _paint.WIDTH]
    planes = np.clip(picture, 0, 255).astype(np.uint8)
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    if how.blur > 0.15:
        image = image.filter(ImageFilter.BoxBlur(how.blur))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=how.quality)

    points = _face.landmarks(spatial)
    landmarks = view(points)
    limit = np.array([_paint.WIDTH - 1, _paint.HEIGHT - 1])
    in_image = ((landmarks >= 0) & (landmarks <= limit)).all(1)
    visible = _unoccluded(points, view, who, how) & in_image
    eyes = visible[36:42].sum() > 3, visible[42:48].sum() > 3
    return encoded.getvalue(), dict(
        landmarks_5=five_points(landmarks).astype(np.float32), landmarks_68=landmarks.astype(np.float32),
        visible_5=np.array([*eyes, visible[30], visible[48], visible[54]]), visible_68=visible,
        box=np.concatenate([low, high - low]).astype(np.float32), identity=identity,
    )


def render(*, seed: int, identity: int, index: int) -> Face:
    """Draw one face: a pure function of its three numbers.

    (seed, identity) fix the person, index the pose, expression, light, scene and camera.
    Range: yaw within 40, pitch 20, roll 15 degrees; all 68 points inside CelebA's 96-pixel crop.
    """
    encoded, labels = _scene(seed=seed, identity=identity, index=index)
    return Face(pixels=np.asarray(Image.open(io.BytesIO(encoded))), **labels)


def _store(task: tuple[int, int, int], *, folder: Path, seed: int) -> dict:
    number, identity, index = task
    encoded, labels = _scene(seed=seed, identity=identity, index=index)
    (folder / f"{number:06d}.jpg").write_bytes(encoded)
    return labels


def _partitions(identities: int, val_share: float, test_share: float) -> np.ndarray:
    """CelebA's partition (0 train, 1 val, 2 test) of every identity: whole identities, never split."""
    val, test = round(identities * val_share), round(identities * test_share)
    val, test = max(val, int(val_share > 0)), max(test, int(test_share > 0))
    if val + test >= identities:
        raise ValueError(
            f"identities={identities} leaves none for training with val_share={val_share}, "
            f"test_share={test_share}: give at least {val + test + 1} identities or smaller shares")
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
            + "): delete that folder or write to another one")
    if (root / "Anno").exists() and not (root / "synthetic.part.json").exists():
        raise FileExistsError(f"{root} holds a data set that is not synthetic: write to another folder")
    return False


def write(
    root: Path, *, images: int, identities: int, seed: int, val_share: float = 0.1, test_share: float = 0.1,
    mafl_train: int, mafl_test: int, workers: int = 1,
) -> Path:
    """Write `images` faces of `identities` people as CelebA's aligned layout; returns root.

    The settings go to ROOT/synthetic.json last, so that its presence means "complete": a second call with the
    same settings does nothing, an interrupted folder is drawn again. Images read back as `render`'s pixels.
    Identities (1-based) are dealt to the partitions whole; images to identities in turn.
    Lists: as CelebA's, coordinates with two decimals; list_landmarks_68.txt adds 68 visibilities (0 | 1).
    Raises: ValueError for impossible sizes; FileExistsError if root holds anything else.
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
        "format_version": FORMAT_VERSION, "images": images, "identities": identities, "seed": seed,
        "val_share": val_share, "test_share": test_share, "mafl_train": mafl_train, "mafl_test": mafl_test,
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
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            faces = pool.map(store, tasks, chunksize=32)
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
            str(len(rows)), axes(POINTS_5),
            *(f"{name} {numbers(face['landmarks_5'])}" for name, face in rows)],
        "Anno/list_landmarks_68.txt": [
            str(len(rows)), axes(range(68)) + "".join(f" visible_{point}" for point in range(68)),
            *(f"{name} {numbers(face['landmarks_68'])} {integers(face['visible_68'])}"
              for name, face in rows)],
        "Anno/list_bbox_celeba.txt": [
            str(len(rows)), "image_id x_1 y_1 width height",
            *(f"{name} {integers(face['box'])}" for name, face in rows)],
        "Anno/identity_CelebA.txt": [f"{name} {face['identity']}" for name, face in rows],
        "Eval/list_eval_partition.txt": [
            f"{name} {part}" for name, part in zip(names, partition, strict=True)],
        "MAFL/training.txt": mafl_train,
        "MAFL/testing.txt": mafl_test,
    }
    for name, lines in lists.items():
        (root / name).write_text("".join(f"{line}\n" for line in lines))
