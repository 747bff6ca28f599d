"""The 3-D face behind the synthetic images: who it is, how it is seen, where its points lie.

Canonical coordinates: 1 unit = 1 pixel of a 178x218 image at scale 1, origin midway between the eyes,
x right, y down, z towards the viewer. The surface is a height field z(x, y) (`relief`); every feature is a
curve on it, and landmarks are points of those same curves, so that drawing and landmarks cannot disagree.
"""

from dataclasses import dataclass

import numpy as np

SKINS = np.array(
    [[240, 204, 180], [232, 188, 158], [222, 174, 140], [205, 156, 120], [176, 124, 90], [140, 94, 66], [98, 64, 46]]
)
HAIRS = np.array(
    [
        [30, 24, 22],
        [54, 36, 26],
        [88, 56, 34],
        [128, 84, 48],
        [176, 132, 78],
        [214, 178, 118],
        [150, 66, 34],
        [172, 170, 168],
    ]
)
IRISES = np.array([[70, 44, 26], [104, 70, 36], [86, 104, 62], [74, 112, 150], [112, 128, 138]])
HAIR_STYLES = ("bald", "short", "side", "fringe", "curly", "long", "long_fringe", "bob")
EYE_LEVEL = -2.0  # y where the face is widest and jaw and crown meet
CROWN = -64.0  # y of the top of the skull


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What stays with a person in every image.

    Units: lengths canonical, colours RGB 0-255; beard, freckles, makeup and their like 0-1.
    """

    width: float
    chin: float
    jaw: float
    depth: float
    eye_x: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    brow_y: float
    brow_thickness: float
    brow_arch: float
    nose_y: float
    nose_width: float
    nose_height: float
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    ear: float
    cheeks: float
    skin: tuple[float, ...]
    hair: tuple[float, ...]
    iris: tuple[float, ...]
    lips: tuple[float, ...]
    hair_style: str
    hair_volume: float
    hairline: float
    parting: float
    beard: float
    moustache: float
    freckles: float
    wrinkles: float
    glasses: str
    makeup: float
    texture: int


@dataclass(frozen=True, kw_only=True)
class Nuisance:
    """What changes from image to image; angles in radians, expression 0-1 unless stated."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: tuple[float, float]
    mouth_open: float
    smile: float
    closure: float
    gaze: tuple[float, float]
    brow_raise: float
    light: tuple[float, float, float]
    ambient: float
    intensity: float
    tint: tuple[float, ...]
    blur: float
    noise: float
    quality: int
    scene: int


def _colour(values) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def draw_identity(*, seed: int, identity: int) -> Identity:
    """One person, a pure function of (seed, identity)."""
    random = np.random.default_rng([seed, identity, 1])
    u = iter(random.random(64).tolist())

    def between(low, high) -> float:
        return low + (high - low) * (next(u) + next(u)) / 2

    def spread(low, high) -> float:
        return low + (high - low) * next(u)

    feminine = next(u)
    woman = feminine > 0.5
    tone = next(u) ** 1.3 * (len(SKINS) - 1.001)
    skin = SKINS[int(tone)] * (1 - tone % 1) + SKINS[int(tone) + 1] * (tone % 1) + 8 * (next(u) - 0.5)
    dark = tone > 3.2
    hair = HAIRS[int(next(u) * (3 if dark else 8))] * spread(0.85, 1.1)
    styles = (
        ("long", "long_fringe", "bob", "curly", "side", "long")
        if woman
        else ("short", "side", "fringe", "curly", "bald", "short")
    )
    style = styles[int(next(u) * len(styles))]
    red = np.array([196, 70, 84]) if woman else np.array([178, 98, 92])
    mix = spread(0.35, 0.85) if woman else spread(0.25, 0.5)
    nose_y = spread(20, 26)
    mouth_y = nose_y + spread(14, 18)
    glasses = next(u)
    bearded = next(u)
    return Identity(
        width=spread(37.5, 42) if woman else spread(39, 45),
        chin=mouth_y + spread(18, 23) + (0 if woman else 1.5),
        jaw=spread(1.9, 2.4) if woman else spread(2.1, 3.0),
        depth=spread(41, 48),
        eye_x=spread(18.2, 21.4),
        eye_width=spread(8.0, 9.8),
        eye_height=spread(3.7, 5.4),
        eye_tilt=spread(-1.3, 1.3),
        brow_y=-spread(9.5, 13),
        brow_thickness=spread(0.9, 2.0) if woman else spread(1.4, 3.0),
        brow_arch=spread(0.5, 3.6),
        nose_y=nose_y,
        nose_width=spread(6.0, 9.6),
        nose_height=spread(11, 18),
        mouth_y=mouth_y,
        mouth_width=between(11.0, 17.0),
        upper_lip=spread(2.2, 4.4),
        lower_lip=spread(3.0, 5.6),
        ear=spread(0.8, 1.25),
        cheeks=spread(0.5, 4.0),
        skin=_colour(skin),
        hair=_colour(hair),
        iris=_colour(IRISES[0 if dark else int(next(u) * len(IRISES))]),
        lips=_colour(skin * (1 - mix) * 0.9 + red * mix),
        hair_style=style,
        hair_volume=spread(0.04, 0.15),
        hairline=spread(-43, -33),
        parting=spread(-0.6, 0.6),
        beard=0.0 if woman or bearded < 0.5 else spread(0.3, 1.0),
        moustache=0.0 if woman or bearded < 0.4 else spread(0.3, 1.0),
        freckles=max(0.0, spread(-1.0, 1.0)),
        wrinkles=max(0.0, spread(-1.0, 1.0)),
        glasses="none" if glasses > 0.24 else ("round", "square", "dark")[int(glasses / 0.0801)],
        makeup=spread(0.2, 1.0) if woman else 0.0,
        texture=int(next(u) * 2**31),
    )


def draw_nuisance(*, seed: int, identity: int, index: int) -> Nuisance:
    """One way of seeing a person, a pure function of (seed, identity, index).

    Looser than CelebA's alignment, about as AFLW's boxes: the place of a part says little about where it is in
    another image.
    """
    random = np.random.default_rng([seed, identity, index, 2])
    bell = np.clip(random.standard_normal(8), -2.3, 2.3).tolist()
    u = iter(random.random(40).tolist())
    smiling, speaking, closing = next(u), next(u), next(u)
    light = np.array([2.2 * next(u) - 1.1, -0.2 - 0.8 * next(u), 0.9])
    light /= np.linalg.norm(light)
    warm = 0.07 * bell[6]
    return Nuisance(
        yaw=float(np.radians(17.3 * bell[0])),
        pitch=float(np.radians(8.6 * bell[1])),
        roll=float(np.radians(8.5 * bell[2])),
        scale=0.72 + 0.3 * next(u),
        shift=(26 * next(u) - 13, 26 * next(u) - 13),
        mouth_open=max(0.0, (speaking - 0.45) / 0.55) ** 1.5,
        smile=float(np.clip(1.6 * smiling - 0.4, 0, 1)),
        closure=0.25 * next(u) if closing < 0.9 else 1 - 0.2 * next(u),
        gaze=(2 * next(u) - 1, next(u) - 0.5),
        brow_raise=float(np.clip(0.45 * bell[3], -0.6, 1)),
        light=_colour(light),
        ambient=0.4 + 0.34 * next(u),
        intensity=0.74 + 0.36 * next(u),
        tint=(1 + warm, 1.0, 1 - warm),
        blur=max(0.0, 1.9 * next(u) - 0.8),
        noise=7 * next(u) ** 2,
        quality=int(60 + 38 * next(u)),
        scene=int(next(u) * 2**31),
    )


def _bump(offset, width):
    return np.exp(-((offset / width) ** 2))


def relief(x: np.ndarray, y: np.ndarray, who: Identity, how: Nuisance) -> np.ndarray:
    """Depth z(x, y) of the face's surface; same shape as x and y."""
    side = np.abs(x)
    across = np.minimum(side / who.width, 1.0)
    above = np.clip((-y - 8) / (-CROWN - 8), 0, 1)
    z = who.depth * (1 - across**2) ** 0.45 * np.sqrt(1.04 - above**2)
    z = z * (1 - 0.1 * (np.maximum(y, 0) / 60) ** 2)
    eye = _bump(side - who.eye_x, 8.5) * _bump(y, 6.5)
    z = z - 4.2 * eye + 2.8 * _bump(side - who.eye_x, 5.5) * _bump(y, 4.2)
    z = z + 2.6 * _bump(side - 14, 13) * _bump(y - who.brow_y + 1, 4.5)
    along = np.clip((y + 9) / (who.nose_y + 9), 0, 1)
    ridge = who.nose_height * along**1.25 * _bump(x, 3.3 + 0.36 * who.nose_width * along)
    wings = 4.2 * _bump(side - 0.72 * who.nose_width, 2.6) * _bump(y - who.nose_y - 1.2, 3.2)
    z = z + ridge * _bump(np.maximum(y - who.nose_y, 0), 3.4) + wings
    z = z + (1.5 + who.cheeks * 0.8 + 2.0 * how.smile) * _bump(side - 22, 9) * _bump(y - 17, 9)
    z = z + 3.0 * _bump(x, 0.8 * who.mouth_width) * _bump(y - who.mouth_y, 6)
    return z + 3.2 * _bump(x, 9) * _bump(y - who.chin + 7, 6)


def jaw_line(who: Identity, how: Nuisance, x: np.ndarray) -> np.ndarray:
    """y of the jaw's edge below x in [-width, width]: a superellipse that the open mouth lengthens."""
    depth = who.chin + 5.0 * how.mouth_open - EYE_LEVEL
    return EYE_LEVEL + depth * np.maximum(1 - np.abs(x / who.width) ** who.jaw, 0) ** (1 / who.jaw)


def curves(who: Identity, how: Nuisance) -> dict[str, np.ndarray]:
    """Every drawn line of the face as canonical (x, y) [n, 2], left to right."""
    turn = np.linspace(-np.pi / 2, np.pi / 2, 17)
    x = who.width * np.sign(turn) * np.abs(np.sin(turn)) ** (2 / who.jaw)
    lines = {"jaw": np.stack([x, jaw_line(who, how, x)], 1)}
    t = np.linspace(0, 1, 13)
    arch = np.sin(np.pi * t) ** 0.75
    height = who.eye_height * (1 - how.closure) * (1 + 0.25 * max(how.brow_raise, 0)) + 0.12
    height *= 1 - 0.25 * how.smile
    for name, sign in (("left", -1), ("right", 1)):
        x = sign * who.eye_x + who.eye_width * (2 * t - 1)
        tilt = -who.eye_tilt * sign * (2 * t - 1)
        lines[f"{name}_upper_lid"] = np.stack([x, tilt - height * arch + 0.8 * how.closure * arch], 1)
        lines[f"{name}_lower_lid"] = np.stack([x, tilt + (0.62 * who.eye_height - 0.8 * how.smile) * arch], 1)
        lines[f"{name}_crease"] = np.stack([x, tilt - (0.9 * who.eye_height + 1.9) * arch], 1)
        out = t if sign > 0 else 1 - t  # 0 at the inner end, 1 at the outer
        x = sign * (who.eye_x - 10.5 + 22 * out)
        rise = who.brow_arch * np.sin(np.pi * np.clip(out * 0.85, 0, 1)) - 1.6 * out**2
        lift = 3.4 * how.brow_raise * (0.7 + 0.3 * out)
        lines[f"{name}_brow"] = np.stack([x, who.brow_y + 1.4 - rise - lift], 1)
    nose_x = 0.85 * who.nose_width * np.array([-1, -0.5, 0, 0.5, 1])
    base = who.nose_y + np.array([3.0, 4.4, 5.2, 4.4, 3.0])
    lines["bridge"] = np.stack([np.zeros(4), np.linspace(-2, who.nose_y, 4)], 1)
    lines["nostrils"] = np.stack([nose_x * (1 + 0.08 * how.smile), base], 1)
    width = who.mouth_width * (1 + 0.22 * how.smile - 0.12 * how.mouth_open)
    corner = -3.4 * how.smile * (2 * t - 1) ** 2 + 0.7 * how.smile
    bow = arch * (1 - 0.28 * _bump(t - 0.5, 0.09))
    lip_up, lip_low = who.upper_lip * (1 - 0.25 * how.smile), who.lower_lip * (1 - 0.2 * how.smile)
    gap_up, gap_low = 2.2 * how.mouth_open + 1.3 * how.smile, 8.0 * how.mouth_open + 1.5 * how.smile
    x, middle = width * (2 * t - 1), who.mouth_y + corner
    lines["lip_top"] = np.stack([x, middle - gap_up * arch - lip_up * bow], 1)
    lines["lip_bottom"] = np.stack([x, middle + gap_low * arch + lip_low * arch], 1)
    lines["mouth_top"] = np.stack([0.9 * x, middle - gap_up * arch + 0.12 * corner], 1)
    lines["mouth_bottom"] = np.stack([0.9 * x, middle + gap_low * arch + 0.12 * corner + 0.2], 1)
    return lines


def landmarks(lines: dict[str, np.ndarray]) -> np.ndarray:
    """The 68 iBUG points out of the (possibly projected) curves: [68, d]."""

    def eye(name):
        upper, lower = lines[f"{name}_upper_lid"], lines[f"{name}_lower_lid"]
        return [upper[[0, 4, 8, 12]], lower[[8, 4]]]

    return np.concatenate([
        lines["jaw"], lines["left_brow"][::3], lines["right_brow"][::3], lines["bridge"], lines["nostrils"],
        *eye("left"), *eye("right"),
        lines["lip_top"][::2], lines["lip_bottom"][-3:0:-2],
        lines["mouth_top"][::3], lines["mouth_bottom"][-4:0:-3],
    ])  # fmt: skip
