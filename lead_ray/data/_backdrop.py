"""Draws what lies behind the face: a cluttered scene, hair falling, skull, clothes, neck, ears."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lead_ray.data._face import Identity, Nuisance
from lead_ray.data._paint import HEIGHT, WIDTH, Pose, flat, tone


def background(how: Nuisance, random: np.random.Generator) -> Image.Image:
    """A blurred, cluttered scene [2 H, 2 W]."""
    vivid, bright = random.uniform(0.1, 0.8), random.uniform(0.35, 1.1)

    def colours(*shape: int) -> np.ndarray:
        raw = random.uniform(0, 255, (*shape, 3))
        return np.clip(bright * (vivid * raw + (1 - vivid) * raw.mean(-1, keepdims=True)), 0, 255)

    base, kind = colours(1), random.integers(0, 6)
    patches = colours(int(random.integers(2, 7)), int(random.integers(2, 6)))
    few = base + random.uniform(0.1, 0.8) * (patches - base)
    image = Image.fromarray(few.astype(np.uint8)).resize(
        (WIDTH, HEIGHT), Image.BILINEAR if random.random() < 0.75 else Image.NEAREST
    )
    draw = ImageDraw.Draw(image)
    for colour in colours(int(random.integers(0, 12))).astype(int).tolist():
        left, top = random.uniform(-30, WIDTH), random.uniform(-30, HEIGHT)
        wide, high = random.uniform(4, 60, 2)
        if kind == 0:
            draw.ellipse((left, top, left + wide, top + wide), fill=tuple(colour))
        elif kind in (1, 2):
            draw.rectangle((left, top, left + wide, top + high), fill=tuple(colour))
        elif kind == 3:
            ends = (left, -5, left + 4 * wide - 120, HEIGHT + 5)
            draw.line(ends, fill=tuple(colour), width=int(high / 4) + 1)
        elif kind == 4:
            draw.polygon(random.uniform(-20, 230, 6).tolist(), fill=tuple(colour))
    if random.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(random.uniform(0.5, 5)))
    return image.resize((2 * WIDTH, 2 * HEIGHT), Image.NEAREST)


def body(canvas, who: Identity, how: Nuisance, view: Pose, random: np.random.Generator) -> None:
    """What lies behind the face: hair falling, skull, neck, shoulders, ears."""
    draw = ImageDraw.Draw(canvas)
    lit = how.intensity * 0.95
    angle = np.linspace(0, 2 * np.pi, 40)[:, None]

    def ring(centre, radii):
        around = np.concatenate([radii[0] * np.cos(angle), radii[1] * np.sin(angle), 0 * angle], 1)
        return np.array(centre) + around

    swell = 1 + who.hair_volume
    long = who.hair_style in ("long", "long_fringe", "bob")
    if long:
        fall = 125.0 if who.hair_style != "bob" else who.chin + 4
        t = np.linspace(0, 1, 14)
        reach = who.width * swell * (1.03 + (0.2 + 1.4 * who.hair_volume) * np.sin(np.pi * t**0.8))
        edge = reach * (1 + 0.03 * np.sin(t * 17 + who.parting * 9)) * (np.minimum(1, 0.6 + 4 * t))
        y = -46 + (fall + 46) * t
        back = np.full(14, -14.0)
        left, right = np.stack([-edge, y, back], 1), np.stack([edge, y, back], 1)[::-1]
        draw.polygon(flat(view(np.concatenate([left, right]))), fill=tone(who.hair, 0.7 * lit))
        ends = np.linspace(-1, 1, 44) + random.uniform(-0.03, 0.03, 44)
        wave = 1.6 * np.sin(9 * t + random.uniform(0, 6.3, (44, 1)))
        strands = np.stack(np.broadcast_arrays(np.clip(ends, -1, 1)[:, None] * edge + wave, y, back), -1)
        for strand, shade in zip(view(strands), random.uniform(0.55, 1.0, 44).tolist(), strict=True):
            draw.line(flat(strand), fill=tone(who.hair, shade * lit), width=2)
    neck = view(np.array([[0.0, who.chin - 14, 2.0]]))[0]
    scale, lean = view.scale, 8 * np.sin(how.roll)
    wide = scale * ((0.56 if long else 0.64) * who.width)
    foot = np.array([89 + 0.35 * (neck[0] - 89) + lean, neck[1] + 44 * scale])

    def cloth() -> np.ndarray:
        raw = random.uniform(10, 250, 3)
        return how.intensity * (0.45 * raw + 0.55 * raw.mean())

    def shape(*corners: tuple) -> list[float]:
        return flat(foot + np.array(corners) * [wide, scale])

    shirt, jacket = cloth(), cloth()
    half = [(1.05, -9), (2.6, 12), (3.7, 28), (4.2, 150)]
    draw.polygon(shape(*half, *[(-across, down) for across, down in half[::-1]]), fill=tone(shirt, 1.0))
    if random.random() < 0.5:
        for offset in np.arange(-4, 4, random.uniform(0.25, 0.6)).tolist():
            draw.line(shape((offset, 100), (offset * 0.85, 4 * abs(offset))), fill=tone(jacket, 1.0), width=2)
    if random.random() < 0.45:
        for sign in (-1, 1):
            draw.polygon(
                shape(
                    (sign * 4.3, 150),
                    (sign * 3.7, 27),
                    (sign * 2.5, 10),
                    (sign * 1.1, -10),
                    (sign * 1.5, 14),
                    (sign * 0.3, 70),
                    (sign * 0.3, 150),
                ),
                fill=tone(jacket, 0.8),
            )
            lapel = shape((sign * 1.1, -10), (sign * 1.5, 14), (sign * 0.3, 70))
            draw.line(lapel, fill=tone(jacket, 0.5), width=3)
    plunge = random.uniform(2, 34)
    throat = flat(neck + np.array([[-wide, 0], [wide, 0]])) + shape(
        (1, -14), (1.12, -6), (0.5, plunge * 0.7), (0, plunge), (-0.5, plunge * 0.7), (-1.12, -6), (-1, -14)
    )
    draw.polygon(throat, fill=tone(who.skin, 0.84 * lit))
    shadowed = 1 if how.light[0] < 0 else -1  # the side away from the light
    shadow = flat(neck + shadowed * np.array([[wide, 0], [0.45 * wide, 0]]))
    draw.polygon(shadow + shape((shadowed * 0.7, -8), (shadowed, -12)), fill=tone(who.skin, 0.7 * lit))
    for sign in (-1, 1):
        draw.line(shape((sign * 0.72, -22), (sign * 0.12, plunge * 0.3)), width=2, fill=tone(who.skin, 0.74 * lit))
    for drop, shade in ((25, 0.66), (21, 0.54)):
        under = ring((0, who.chin - 12, 6), (0.56 * who.width, drop))
        draw.polygon(flat(view(under)), fill=tone(who.skin, shade * lit))
    skull = who.skin if who.hair_style == "bald" else who.hair
    for depth, shrink in ((-34, 0.92), (-16, 1.0)):
        cap = ring((0, -19, depth), (who.width * (swell + 0.02) * shrink, 47 * swell * shrink))
        draw.polygon(flat(view(cap)), fill=tone(skull, (0.72 + 0.006 * depth) * lit + 0.08))
    if who.hair_style not in ("curly", "bald"):
        arc, part = np.linspace(-1.5, 0.8, 8), random.uniform(-0.98, 0.98, (24, 1))
        combed = np.stack(
            np.broadcast_arrays(who.width * swell * part * np.cos(arc), -19 + 46 * swell * np.sin(arc), -14.0), -1
        )
        for strand, shade in zip(view(combed), random.uniform(0.5, 0.95, 24).tolist(), strict=True):
            draw.line(flat(strand), fill=tone(who.hair, shade * lit), width=2)
    if who.hair_style == "curly":
        spin, size = random.uniform(-0.4, np.pi + 0.4, 40), random.uniform(3, 9, 40)
        around = who.width * swell * np.cos(spin), -20 - 44 * swell * np.sin(spin), np.full(40, -8.0)
        for (x, y), radius in zip((2 * view(np.stack(around, 1))).tolist(), (2 * size).tolist(), strict=True):
            curl = tone(who.hair, lit * (0.5 + 0.04 * radius))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=curl)
    if not long:
        for sign in (-1, 1):
            ear = ring((sign * (who.width + 1.5), 7, -5), (5.0 * who.ear, 11 * who.ear))
            draw.polygon(flat(view(ear)), fill=tone(who.skin, 0.92 * lit))
            inner = ring((sign * (who.width + 2), 7, -5), (2.6 * who.ear, 7 * who.ear))
            draw.polygon(flat(view(inner)), fill=tone(who.skin, 0.66 * lit))
