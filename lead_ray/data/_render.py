"""One synthetic face: pixels, landmarks and what can be seen of them, from three numbers.

Points are (x, y) pixels of the 178x218 image, pixel centres at integers, "left" as seen in the image.
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from lead_ray.data import _backdrop, _face, _features, _paint
from lead_ray.data._face import Identity, Nuisance, draw_identity, draw_nuisance


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


def on_surface(flat: np.ndarray, who: Identity, how: Nuisance) -> np.ndarray:
    return np.concatenate([flat, _face.relief(flat[:, 0], flat[:, 1], who, how)[:, None]], 1)


def unoccluded(points: np.ndarray, view: _paint.Pose, who: Identity, how: Nuisance) -> np.ndarray:
    """Whether the face's own surface leaves canonical points [n, 3] in view: a march to the camera."""
    towards = view.rotation.T @ np.array([0.0, 0.0, 1.0])
    steps = np.arange(3.0, 40.0, 3.0)[:, None, None] * towards
    x, y, z = np.moveaxis(points + steps, -1, 0)
    inside = (np.abs(x) < who.width) & (y > _face.CROWN) & (y < who.chin)
    return ~(inside & (_face.relief(x, y, who, how) > z + 1.0)).any(0)


def pose(*, seed: int, identity: int, index: int):
    """Person, nuisance, every drawn curve in 3-D {name: [n, 3]}, and the camera."""
    who = draw_identity(seed=seed, identity=identity)
    how = draw_nuisance(seed=seed, identity=identity, index=index)
    lines, extra = _face.curves(who, how), _features.extra_curves(who, how)
    flat = np.concatenate([*lines.values(), *(line[:, :2] for line in extra.values())])
    solid = on_surface(flat, who, how)
    lift = np.concatenate([line[:, 2] for line in extra.values()])
    solid[-len(lift) :, 2] += lift
    ends = np.cumsum([len(line) for line in (*lines.values(), *extra.values())])[:-1]
    spatial = dict(zip((*lines, *extra), np.split(solid, ends), strict=True))
    return who, how, spatial, _paint.pose(how, _face.landmarks(spatial))


def scene(*, seed: int, identity: int, index: int) -> tuple[bytes, dict]:
    """The JPEG file of `render`'s pixels, and the other fields of its Face."""
    who, how, spatial, view = pose(seed=seed, identity=identity, index=index)
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
    visible = unoccluded(points, view, who, how) & in_image
    eyes = visible[36:42].sum() > 3, visible[42:48].sum() > 3
    return encoded.getvalue(), {
        "landmarks_5": five_points(landmarks).astype(np.float32),
        "landmarks_68": landmarks.astype(np.float32),
        "visible_5": np.array([*eyes, visible[30], visible[48], visible[54]]),
        "visible_68": visible,
        "box": np.concatenate([low, high - low]).astype(np.float32),
        "identity": identity,
    }


def render(*, seed: int, identity: int, index: int) -> Face:
    """Draw one face: a pure function of its three numbers.

    (seed, identity) fix the person, index the pose, expression, light, scene and camera.
    Range: yaw within 40, pitch 20, roll 15 degrees; all 68 points inside CelebA's 96-pixel crop.
    """
    encoded, labels = scene(seed=seed, identity=identity, index=index)
    return Face(pixels=np.asarray(Image.open(io.BytesIO(encoded))), **labels)
