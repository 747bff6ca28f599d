"""The camera, and the lit head: a fine grid of surface points splatted onto the image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from lead_ray.data import _face
from lead_ray.data._face import Identity, Nuisance

WIDTH, HEIGHT = 178, 218
FRAME = (29.0, 59.0, 149.0, 180.5)  # where all 68 points must lie: CelebA's 96-pixel crop, less a margin
COLUMNS, ROWS, FINER = 46, 46, 3  # surface grid, and how much finer it is splatted
PIVOT = 30.0  # depth of the point that stays in place as the head turns: just behind the eyes
FOCAL = 620.0


def _noise_bank() -> tuple[np.ndarray, np.ndarray]:
    grain = np.random.default_rng(20220402).standard_normal((512, 512)).astype(np.float32)
    coarse = np.random.default_rng(20220403).random((64, 64)).astype(np.float32)
    return grain, np.asarray(Image.fromarray(coarse).resize((512, 512), Image.BICUBIC))


def _cubic(coarse: int) -> np.ndarray:
    """Upsampling matrix [FINER coarse, coarse]: cubic, through the grid's points and ends."""
    at = np.linspace(0, coarse - 1, FINER * coarse)
    weights = np.zeros((len(at), coarse), np.float32)
    for tap in range(-1, 3):
        index = np.floor(at).astype(int) + tap
        gap = np.abs(at - index)
        near = 1.5 * gap**3 - 2.5 * gap**2 + 1
        far = -0.5 * gap**3 + 2.5 * gap**2 - 4 * gap + 2
        column = np.clip(index, 0, coarse - 1)
        weights[np.arange(len(at)), column] += np.where(gap <= 1, near, far * (gap < 2))
    return weights


GRAIN, CLOUDS = _noise_bank()
_STRIP = Image.fromarray(np.ascontiguousarray(GRAIN[:, :24]))
STRANDS = np.asarray(_STRIP.resize((512, 512), Image.BICUBIC))
BLUSH = np.array([0.0, 0.2, 0.16], np.float32)[:, None, None]
UP_COLUMNS, UP_ROWS = _cubic(COLUMNS), _cubic(ROWS)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Weak-perspective camera: canonical 3-D points -> image pixels."""

    rotation: np.ndarray
    scale: float
    centre: np.ndarray

    def turned(self, points: np.ndarray) -> np.ndarray:
        """Rotated, unscaled points [..., 3]; z towards the viewer."""
        return (points - [0, 0, PIVOT]) @ self.rotation.T

    def __call__(self, points: np.ndarray) -> np.ndarray:
        turned = self.turned(points)
        return turned[..., :2] * (self.scale * FOCAL / (FOCAL - turned[..., 2:])) + self.centre


def pose(how: Nuisance, points: np.ndarray) -> Pose:
    """The camera of an image, moved and shrunk so far as needed to keep `points` [n, 3] in FRAME."""
    cos, sin = np.cos, np.sin
    yaw = np.array([[cos(how.yaw), 0, sin(how.yaw)], [0, 1, 0], [-sin(how.yaw), 0, cos(how.yaw)]])
    pitch = np.array([[1, 0, 0], [0, cos(how.pitch), sin(how.pitch)], [0, -sin(how.pitch), cos(how.pitch)]])
    roll = np.array([[cos(how.roll), -sin(how.roll), 0], [sin(how.roll), cos(how.roll), 0], [0, 0, 1]])
    view = Pose(rotation=roll @ pitch @ yaw, scale=how.scale, centre=np.zeros(2))
    low, high = view(points).min(0), view(points).max(0)
    frame_low, frame_high = np.array(FRAME[:2]), np.array(FRAME[2:])
    fit = min(1.0, float(((frame_high - frame_low) / (high - low)).min()))
    centre = np.clip(np.array([89, 109]) + how.shift, frame_low - low * fit, frame_high - high * fit)
    return Pose(rotation=view.rotation, scale=how.scale * fit, centre=centre)


def _up(*grids: np.ndarray) -> np.ndarray:
    """Surface grids [COLUMNS, ROWS] each -> float32 [n, FINER COLUMNS, FINER ROWS]."""
    return UP_COLUMNS @ (np.stack(grids).astype(np.float32) @ UP_ROWS.T)


def hairline(who: Identity, across: np.ndarray) -> np.ndarray:
    """y of the hair's lower edge over the face at across = sin(angle) in [-1, 1]."""
    side = np.abs(across)
    style = who.hair_style
    if style == "bald":
        return np.full_like(across, -90.0)
    y = who.hairline + 16 * side**2.5 + 26 * np.maximum(side - 0.86, 0) / 0.14
    if style in ("fringe", "long_fringe"):
        y = np.maximum(y, -19 + 5 * np.sin(9 * across + who.parting * 9) * 0.6 + 4 * side)
    if style == "side":
        y = np.maximum(y, -44 + 22 * np.abs(across - who.parting * 1.3) ** 0.9)
    if style in ("long", "long_fringe", "bob"):
        y = y + 45 * np.maximum(side - 0.82, 0) / 0.18
    if style in ("long", "bob"):
        y = np.maximum(y, who.hairline - 6 + 15 * np.abs(across - 0.5 * who.parting) ** 1.1)
    if style == "curly":
        y = y + 3.5 * np.sin(17 * across)
    return y


def surface(who: Identity, how: Nuisance, view: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The lit head splatted: albedo uint8 [H, W, 3] and shade float32 [H, W] (0 where there is no head)."""
    turn = np.linspace(-np.pi / 2, np.pi / 2, COLUMNS)[:, None]
    down = np.linspace(0, 1, ROWS)[None]
    x, level = who.width * np.sin(turn), _face.EYE_LEVEL
    top = level + (_face.CROWN - level) * np.maximum(np.cos(turn), 0) ** 0.9
    y = top + (_face.jaw_line(who, how, x) - top) * down
    x = np.broadcast_to(x, y.shape)
    z = _face.relief(x, y, who, how)
    line = hairline(who, x / who.width)
    hair = np.clip((line - y) / 9 + 0.3, 0, 1)
    swell = 1 + who.hair_volume * hair
    solid = np.stack([x * swell, level + (y - level) * swell, z * (0.4 + 0.6 * swell)], -1)
    turned = view.turned(solid)
    normal = np.cross(np.gradient(turned, axis=0), np.gradient(turned, axis=1))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
    light = np.array(how.light)
    lambert = np.maximum(normal @ light, 0)
    half = light + np.array([0, 0, 1])
    gloss = np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 22
    facing = np.clip(normal[..., 2], 0, 1)
    shade = how.ambient * (0.62 + 0.38 * facing) + (1.04 - how.ambient) * lambert + 0.1 * gloss
    pixels = view(solid)

    colour = _albedo(who, how, x, y, line)
    across, down, fine_shade = _up(pixels[..., 0], pixels[..., 1], shade * how.intensity)
    packed = np.empty((*across.shape, 4), np.uint8)
    packed[..., :3] = np.moveaxis(np.clip(colour, 0, 255, out=colour), 0, 2)
    packed[..., 3] = np.clip(fine_shade * 130, 1, 255)
    words = packed.view(np.uint32)[..., 0]
    columns = np.clip(np.rint(across), 1, WIDTH - 2).astype(np.int32)
    rows = np.clip(np.rint(down), 0, HEIGHT - 2).astype(np.int32)
    index = rows * WIDTH + columns
    step = 1
    if how.yaw > 0:  # painter's order: the far side first, so that nose and cheek hide what lies behind
        index, words, step = index[::-1], words[::-1], -1
    canvas = np.zeros(HEIGHT * WIDTH, np.uint32)
    # Each column also covers its neighbours ahead and below, which are painted next: few pinholes.
    canvas[np.concatenate([index + step, index + WIDTH, index], 1)] = np.concatenate([words, words, words], 1)
    holes = np.flatnonzero((canvas[1:-1] == 0) & (canvas[:-2] != 0) & (canvas[2:] != 0)) + 1
    canvas[holes] = canvas[holes - 1]
    lit = canvas.view(np.uint8).reshape(HEIGHT, WIDTH, 4)
    return lit[..., :3], lit[..., 3].astype(np.float32) / 130


def _albedo(who: Identity, how: Nuisance, x, y, line) -> np.ndarray:
    """Unlit colours [3, ...] of skin, beard and hair on the fine grid, from the coarse x, y, hair line."""
    grain_x, grain_y = who.texture % 300, who.texture // 300 % 300
    size = (slice(grain_x, grain_x + COLUMNS * FINER), slice(grain_y, grain_y + ROWS * FINER))
    pores, clouds = GRAIN[size], CLOUDS[size] - 0.5
    strands = STRANDS[size]
    bump, side = _face._bump, np.abs(x)
    blush = 0.5 * bump(side - 23, 10) * bump(y - 18, 9) + 0.35 * bump(x, 7) * bump(y - who.nose_y, 6)
    socket = bump(side - who.eye_x, 10) * bump(y + 3, 5.5) * (0.08 + 0.24 * who.makeup)
    folds = bump(side - 13 - 0.28 * (y - who.nose_y), 2.4) * bump(y - who.mouth_y + 8, 8)
    crease = (0.07 + 0.2 * who.wrinkles) * (0.4 + how.smile) * folds
    forehead = 0.16 * who.wrinkles * np.maximum(np.sin(y * 1.1), 0) * bump(y + 24, 9) * (0.5 + max(how.brow_raise, 0))
    mouth = bump(side, 1.25 * who.mouth_width) * bump(y - who.mouth_y - 1, 6)
    growth = who.beard * np.clip((y - who.nose_y - 4 + 0.006 * (30 - side) ** 2) / 9, 0, 1) * (1 - mouth)
    lip_hair = who.moustache * bump(x, 0.95 * who.mouth_width) * bump(y - who.mouth_y + 6.5, 3.2)
    above, blushes, dark, beard, spots = _up(
        line - y, blush, 1 - socket - crease - forehead, np.maximum(growth, lip_hair), who.freckles * bump(y - 12, 16)
    )
    stubble = np.clip(beard * (0.72 + 0.35 * pores), 0, 0.92)
    cover = np.clip(0.5 * above + 0.9 * strands, 0, 1)
    dark = dark + 0.02 * pores + 0.06 * clouds - 0.2 * spots * np.clip(pores - 1.5, 0, 1)
    skin, tuft = (np.array(colour, np.float32)[:, None, None] for colour in (who.skin, who.hair))
    colour = skin * dark * (1 - np.clip(blushes, 0, 1) * BLUSH)
    colour += (tuft * 0.8 - colour) * stubble
    if who.hair_style == "curly":
        lock = 0.9 + 0.7 * clouds + 0.1 * pores
    else:
        lock = 0.95 + 0.2 * strands + 0.05 * pores + 0.3 * clouds
    colour += (tuft * lock - colour) * cover
    return colour


def tone(colour, factor: float) -> tuple[int, ...]:
    """Colour times factor as a Pillow fill."""
    return tuple(int(min(255, max(0, value * factor))) for value in colour)


def flat(points: np.ndarray) -> list[float]:
    """Image pixels [n, 2] -> Pillow coordinates on the canvas, where pixel p covers 2 p and 2 p + 1."""
    return (2 * points + 0.5).ravel().tolist()
