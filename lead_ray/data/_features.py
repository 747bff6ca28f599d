"""Draws eyes, brows, nostrils, lips and glasses over the splatted head, along the projected curves."""

import numpy as np
from PIL import Image, ImageDraw

from lead_ray.data._face import Identity, Nuisance
from lead_ray.data._paint import HEIGHT, WIDTH, Pose, flat, tone


def _eye(canvas, upper, lower, iris, who: Identity, how: Nuisance, scale: float) -> None:
    """One eye from its projected lids [n, 2] and its iris centre [2]."""
    rim = np.concatenate([upper, lower[::-1]])
    low = np.floor(2 * rim.min(0)).astype(int) - 2
    size = np.maximum(np.ceil(2 * rim.max(0)).astype(int) + 3 - low, 3)
    tile = Image.new("RGB", tuple(size.tolist()), (236, 232, 228))
    mask = Image.new("L", tile.size, 0)
    draw = ImageDraw.Draw(tile)

    def local(points):
        return (2 * points + 0.5 - low).ravel().tolist()

    radius = 2 * 4.1 * scale
    x, y = local(iris)
    for size, colour in ((1.0, tone(who.iris, 0.55)), (0.8, tone(who.iris, 1.15)), (0.42, (14, 12, 12))):
        reach = size * radius
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    glint = x + how.light[0] * radius * 0.5, y - 0.42 * radius
    draw.ellipse((glint[0] - 1.6, glint[1] - 1.6, glint[0] + 1.2, glint[1] + 1.2), fill=(255, 255, 255))
    draw.line(local(upper + np.array([0, 0.7 * scale])), fill=(120, 104, 98), width=max(1, round(2 * scale)))
    ImageDraw.Draw(mask).polygon(local(rim), fill=255)
    canvas.paste(tile, tuple(low.tolist()), mask)


def features(
    canvas,
    lines: dict[str, np.ndarray],
    extra: dict[str, np.ndarray],
    who: Identity,
    how: Nuisance,
    view: Pose,
    random: np.random.Generator,
) -> None:
    """Draw on the canvas [2 H, 2 W]; lines are the face's curves in image pixels."""
    draw = ImageDraw.Draw(canvas)
    scale = view.scale
    for name in ("left", "right"):
        upper, lower = lines[f"{name}_upper_lid"], lines[f"{name}_lower_lid"]
        lid = np.concatenate([lines[f"{name}_crease"], lower[::-1]])
        tint = np.array(who.skin) * (0.86 - 0.25 * who.makeup * (who.texture % 3) / 2)
        draw.polygon(flat(lid), fill=tone(tint, 1.0))
        draw.line(flat(lines[f"{name}_crease"]), fill=tone(who.skin, 0.55), width=2)
        _eye(canvas, upper, lower, extra[f"{name}_iris"], who, how, scale)
        draw.line(flat(lower), fill=tone(who.skin, 0.6), width=2)
        draw.line(flat(upper), fill=(28, 20, 18), width=3 + round(2 * who.makeup))
        brow = lines[f"{name}_brow"]
        taper = np.array([0.55, 0.75, 0.9, 1, 1, 1, 1, 1, 1, 1, 0.9, 0.7, 0.4])[:, None]
        taper = taper if name == "right" else taper[::-1]
        up = view.rotation[:2, 1] * scale * who.brow_thickness * taper
        draw.polygon(flat(np.concatenate([brow - up, (brow + up)[::-1]])), fill=tone(who.hair, 0.62))
        place, lean = random.integers(0, 13, 9), np.stack([random.uniform(-1.5, 1.5, 9), np.zeros(9)], 1)
        hairs = np.stack([brow[place] + 1.25 * up[place], brow[place] - 1.25 * up[place] + lean], 1)
        for stroke in hairs:
            draw.line(flat(stroke), fill=tone(who.hair, 0.45), width=1)
    base = lines["nostrils"]
    draw.line(flat(base), fill=tone(who.skin, 0.66), width=2)
    for wing in ("left_wing", "right_wing"):
        draw.line(flat(extra[wing]), fill=tone(who.skin, 0.62), width=2)
    for at in (base[1] * 0.85 + base[0] * 0.15, base[3] * 0.85 + base[4] * 0.15):
        x, y = 2 * at + 0.5
        wide, high = 0.42 * who.nose_width * scale, (1.9 - 4 * min(0.2, max(-0.25, how.pitch))) * scale
        draw.ellipse((x - wide, y - high - 1, x + wide, y + high - 1), fill=tone(who.skin, 0.28))
    top, bottom, inner_top, inner_bottom = (
        lines[name] for name in ("lip_top", "lip_bottom", "mouth_top", "mouth_bottom")
    )
    hole = np.concatenate([inner_top, inner_bottom[::-1]])
    draw.polygon(flat(hole), fill=(52, 18, 20))
    gap = float(np.linalg.norm(inner_bottom[6] - inner_top[6])) / scale
    if gap > 1.2:
        depth = min(1.0, 4.2 / gap)
        teeth = inner_top + depth * (inner_bottom - inner_top)
        draw.polygon(flat(np.concatenate([inner_top, teeth[::-1]])), fill=(232, 226, 214))
        for place in range(2, 11):
            draw.line(flat(np.stack([inner_top[place], teeth[place]])), fill=(206, 198, 188), width=1)
    if gap > 5.5:
        tongue = inner_bottom[3:10]
        raised = tongue + 0.34 * (inner_top[3:10] - tongue) * np.sin(np.linspace(0, np.pi, 7))[:, None]
        draw.polygon(flat(np.concatenate([tongue, raised[::-1]])), fill=(178, 82, 84))
    draw.polygon(flat(np.concatenate([top, inner_top[::-1]])), fill=tone(who.lips, 0.84))
    draw.polygon(flat(np.concatenate([inner_bottom, bottom[::-1]])), fill=tone(who.lips, 1.02))
    draw.line(flat(inner_top), fill=tone(who.lips, 0.5), width=2)
    shine = (0.5 * inner_bottom + 0.5 * bottom)[4:9]
    draw.line(flat(shine), fill=tone(who.lips, 1.22), width=2)
    draw.line(flat(bottom[3:10] + np.array([0, 1.4 * scale])), fill=tone(who.skin, 0.74), width=2)
    if who.glasses != "none":
        _glasses(canvas, extra, who)


def _glasses(canvas, extra: dict[str, np.ndarray], who: Identity) -> None:
    draw = ImageDraw.Draw(canvas)
    frame = tone(((34, 28, 28), (92, 58, 36), (150, 140, 130))[who.texture % 3], 1.0)
    for name in ("left_lens", "right_lens"):
        lens = flat(extra[name])
        if who.glasses == "dark":
            mask = Image.new("L", (2 * WIDTH, 2 * HEIGHT), 0)
            ImageDraw.Draw(mask).polygon(lens, fill=170)
            canvas.paste((26, 24, 28), (0, 0), mask)
        draw.line(lens + lens[:4], fill=frame, width=4)
    for name in ("lens_bridge", "left_temple", "right_temple"):
        draw.line(flat(extra[name]), fill=frame, width=4)


def extra_curves(who: Identity, how: Nuisance) -> dict[str, np.ndarray]:
    """Drawn lines that carry no landmark: canonical [n, 3], the last column a lift off the surface."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    power = 0.5 if who.glasses == "square" else 0.9
    ring = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power,
        ],
        1,
    )
    found = {"lens_bridge": np.array([[-7.0, -1, 8], [0, -3, 6], [7, -1, 8]])}
    for name, sign in (("left", -1), ("right", 1)):
        gaze = [sign * who.eye_x + 2.6 * how.gaze[0], 1.4 * how.gaze[1] - 0.3, 0]
        found[f"{name}_iris"] = np.array([gaze])
        lens = ring * [13.5, 9.5] + [sign * (who.eye_x + 0.5), 1.5]
        found[f"{name}_lens"] = np.concatenate([lens, np.full((24, 1), 7.0)], 1)
        ends = [[sign * (who.eye_x + 13.5), 0, 7], [sign * who.width * 0.995, 1, 1.0]]
        found[f"{name}_temple"] = np.array(ends)
        turn = np.linspace(-2.0, 1.4, 7)
        wing_x = sign * who.nose_width * (0.75 + 0.28 * np.cos(turn))
        found[f"{name}_wing"] = np.stack([wing_x, who.nose_y + 0.6 + 3.1 * np.sin(turn), 0 * turn], 1)
    return found
