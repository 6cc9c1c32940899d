"""Textured pictures, drawn by the project itself: bricks, grass, fur, marble … each with light, shade and fine grain.

The world of `scenes.py` is flat colour, and flat colour hides noise: a network that leaves noise in a picture is told
from one that does not only where pictures are textured. `draw(name, rng)` makes one material; the pretraining cuts
crops of it at three distances (`crop`) and tints them (`tint`), and the caption says all three.

Follows: noise with a power-law spectrum as in natural pictures (Field 1987), and occluding discs, the "dead leaves"
model of natural pictures (Lee, Mumford & Huang 2001).
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128  # pixels of a drawn material
DISTANCES = {"from afar": 1.0, "close up": 0.6, "very close": 0.35}  # side of the crop, as a share of the material's
TINTS = {"plain": None, "gray": None, "warm": (1.0, 0.75, 0.45), "cold": (0.45, 0.75, 1.0)}

# --- what the materials are made of -----------------------------------------------------------------------------------


def spectral_noise(rng, slope=1.0, stretch=(1.0, 1.0)):
    """Noise (SIDE, SIDE) in [0, 1] with the amplitude 1/fˢ; `stretch` (y, x) > 1 makes it long in that direction."""
    fy = np.fft.fftfreq(SIDE)[:, None] * stretch[0]
    fx = np.fft.rfftfreq(SIDE)[None] * stretch[1]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / SIDE) ** -slope
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) * amplitude, (SIDE, SIDE))
    low, high = np.quantile(field, (0.01, 0.99))
    return np.clip((field - low) / (high - low), 0, 1)


def ramp(field, *colours):
    """A field in [0, 1] as colours: equal steps through `colours`, each (red, green, blue) of 0 … 255."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(field, stops, channel) for channel in zip(*colours, strict=True)]
    return np.stack(channels, axis=-1) / 255


def grain(rng, picture, amount=0.05):
    """The picture with light and shade of fine grain."""
    return np.clip(picture * (1 + amount * rng.standard_normal((SIDE, SIDE, 1))), 0, 1)


def grid(angle=0.0):
    """Coordinates y and x of the pixels, each (SIDE, SIDE), turned by `angle`."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def cells(rng, count):
    """Voronoi cells: number of the nearest of `count` points, and how near the second one is (0 on the borders)."""
    points = rng.uniform(0, SIDE, (count, 2))
    y, x = grid()
    distance = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1])
    two = np.sort(np.partition(distance, 1, axis=-1)[..., :2], axis=-1)
    return distance.argmin(-1), two[..., 1] - two[..., 0]


def strokes(rng, background, colours, count, length, angle, spread):
    """Short lines of random colour, painted over each other like grass and hair; `angle` in radians from upright."""
    image = Image.fromarray((background * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(count):
        y, x = rng.uniform(-8, SIDE + 8, 2)
        turn, size = angle + spread * rng.standard_normal(), length * rng.uniform(0.5, 1.5)
        colour = colours[rng.integers(len(colours))] * rng.uniform(0.6, 1.25)
        end = (x + size * np.sin(turn), y - size * np.cos(turn))
        pen.line((x, y, *end), tuple(int(c) for c in np.clip(colour, 0, 255)), 1)
    return np.asarray(image) / 255.0


def discs(rng, background, colours, count, least, most, flat=1.0):
    """Occluding discs whose sizes follow a power law, each shaded from its upper left: the dead leaves model."""
    picture, (y, x) = background.copy(), grid()
    for _ in range(count):
        size = least * (1 - rng.random() * (1 - (least / most) ** 2)) ** -0.5
        cy, cx, turn = *rng.uniform(0, SIDE, 2), rng.uniform(0, np.pi)
        dy, dx = y - cy, x - cx
        u, v = (dy * np.cos(turn) + dx * np.sin(turn)) / flat, dx * np.cos(turn) - dy * np.sin(turn)
        inside = np.hypot(u, v) < size
        light = np.clip(1 - 0.35 * (dy + dx) / size, 0.45, 1.4)[..., None]
        colour = colours[rng.integers(len(colours))] * rng.uniform(0.8, 1.15) / 255
        picture[inside] = np.clip(colour * light[inside], 0, 1)
    return picture


# --- the materials ----------------------------------------------------------------------------------------------------


def bricks(rng):
    y, x = grid()
    row = y // 16
    column = (x + 16 * (row % 2)) // 32
    shade = rng.uniform(0.7, 1.15, (64, 64))[row.astype(int) % 64, column.astype(int) % 64]
    mortar = (y % 16 < 2.5) | ((x + 16 * (row % 2)) % 32 < 2.5)
    stone = ramp(spectral_noise(rng, 0.7), (120, 45, 30), (200, 95, 70)) * shade[..., None]
    return grain(rng, np.where(mortar[..., None], 0.75, stone))


def cobbles(rng):
    number, border = cells(rng, 60)
    shade = rng.uniform(0.4, 0.9, 60)[number] * np.clip(border / 4, 0.15, 1)
    shade = shade * (0.7 + 0.3 * spectral_noise(rng, 0.6))
    return grain(rng, ramp(shade, (15, 15, 20), (150, 145, 140), (230, 225, 215)))


def wood(rng):
    y, x = grid(0.1)
    rings = np.sin(x * 0.35 + 6 * spectral_noise(rng, 1.6, (8, 1)))
    shade = 0.5 + 0.5 * rings * spectral_noise(rng, 0.8, (8, 1))
    return grain(rng, ramp(shade, (90, 50, 20), (185, 125, 70), (225, 175, 115)))


def grass(rng):
    earth = ramp(spectral_noise(rng), (20, 45, 10), (50, 90, 25))
    blades = np.array([(70, 140, 35), (110, 170, 50), (45, 100, 30), (160, 185, 80)])
    return strokes(rng, earth, blades, 1500, 16, 0.1, 0.35)


def sand(rng):
    y, x = grid(0.5)
    ripples = 0.5 + 0.5 * np.sin(y * 0.5 + 9 * spectral_noise(rng, 1.6))
    shade = 0.6 * ripples + 0.4 * spectral_noise(rng, 0.4)
    return grain(rng, ramp(shade, (150, 115, 70), (215, 180, 125), (245, 225, 180)), 0.08)


def clouds(rng):
    return ramp(spectral_noise(rng, 1.7) ** 1.3, (50, 105, 185), (120, 165, 220), (250, 250, 252))


def water(rng):
    y, _ = grid()
    waves = np.sin(y * 0.6 + 14 * spectral_noise(rng, 1.5, (1, 3)))
    return grain(rng, ramp(0.5 + 0.5 * waves, (5, 40, 75), (25, 105, 140), (190, 230, 235)), 0.03)


def leaves(rng):
    ground = ramp(spectral_noise(rng), (40, 25, 10), (70, 45, 20))
    autumn = np.array([(190, 70, 20), (225, 140, 30), (150, 45, 25), (235, 190, 70), (110, 110, 35)])
    return grain(rng, discs(rng, ground, autumn, 350, 5, 16, 0.5))


def pebbles(rng):
    stones = np.array([(150, 145, 140), (190, 180, 170), (95, 95, 105), (205, 205, 200), (130, 105, 85)])
    return grain(rng, discs(rng, np.full((SIDE, SIDE, 3), 0.2), stones, 450, 4, 18, 0.75))


def fur(rng):
    skin = ramp(spectral_noise(rng, 1.4), (90, 55, 25), (170, 115, 65))
    hairs = np.array([(120, 75, 35), (180, 130, 80), (215, 175, 120), (80, 50, 25)])
    return strokes(rng, skin, hairs, 2200, 12, 2.4, 0.3)


def weave(rng):
    y, x = grid(0.785)
    over = (y // 8 + x // 8) % 2 == 0
    shade = np.where(over, np.sin((x % 8) / 8 * np.pi), np.sin((y % 8) / 8 * np.pi))
    shade = 0.15 + 0.7 * shade * (0.7 + 0.3 * spectral_noise(rng, 0.5))
    return grain(rng, ramp(shade, (60, 40, 15), (190, 150, 80), (240, 215, 150)))


def marble(rng):
    y, x = grid(0.4)
    veins = np.abs(np.sin(x * 0.05 + 7 * spectral_noise(rng, 1.4))) ** 0.35
    return ramp(veins * (0.85 + 0.15 * spectral_noise(rng, 0.6)), (60, 65, 80), (205, 205, 210), (250, 248, 245))


def lava(rng):
    crust = np.abs(2 * spectral_noise(rng, 1.3) - 1) ** 0.6
    return grain(rng, ramp(crust, (255, 220, 90), (235, 80, 15), (60, 15, 10), (20, 15, 15)), 0.1)


def stars(rng):
    sky = ramp(spectral_noise(rng, 1.6) ** 2, (5, 5, 20), (40, 20, 80), (150, 80, 140))
    spots = np.array([(255, 255, 255), (200, 215, 255), (255, 225, 180)])
    return discs(rng, sky, spots, 160, 0.6, 2.5)


def flowers(rng):
    picture, (y, x) = grass(rng) * 0.7, grid()
    for _ in range(45):
        (cy, cx), size, turn = rng.uniform(0, SIDE, 2), rng.uniform(6, 13), rng.uniform(0, 7)
        radius, angle = np.hypot(y - cy, x - cx), np.arctan2(y - cy, x - cx)
        petals = radius < size * (0.55 + 0.45 * np.abs(np.cos(2.5 * angle + turn)))
        colour = np.array([(235, 60, 110), (250, 205, 60), (245, 245, 250), (150, 80, 200)][rng.integers(4)]) / 255
        picture[petals] = (colour * (0.55 + 0.45 * radius / size)[..., None])[petals]
        picture[radius < size * 0.22] = (0.95, 0.8, 0.2)
    return np.clip(picture, 0, 1)


def mosaic(rng):
    y, x = grid(0.2)
    colours = np.array([(30, 70, 150), (60, 140, 190), (230, 225, 210), (200, 160, 60), (25, 120, 110)]) / 255
    stones = colours[rng.integers(5, size=(64, 64))] * rng.uniform(0.75, 1.1, (64, 64, 1))
    picture = stones[(y // 9).astype(int) % 64, (x // 9).astype(int) % 64]
    return grain(rng, np.where(((y % 9 < 1.5) | (x % 9 < 1.5))[..., None], 0.3, picture))


def bark(rng):
    ridges = np.abs(2 * spectral_noise(rng, 1.1, (5, 1)) - 1) ** 0.7
    shade = ridges * (0.6 + 0.4 * spectral_noise(rng, 0.5, (3, 1)))
    return grain(rng, ramp(shade, (25, 18, 12), (95, 75, 55), (165, 145, 120)))


def rust(rng):
    mix = spectral_noise(rng, 1.2) * 0.7 + spectral_noise(rng, 0.4) * 0.3
    return ramp(mix, (45, 70, 80), (100, 110, 105), (150, 75, 30), (205, 120, 45), (80, 35, 20))


def scales(rng):
    picture, (y, x) = np.zeros((SIDE, SIDE, 3)), grid()
    tone = rng.uniform(0.6, 1.1, (40, 40))
    for row in range(-2, 18):
        for column in range(-1, 12):
            dy, dx = y - row * 8, x - (column * 14 + 7 * (row % 2))
            radius = np.hypot(dy, dx)
            inside = (radius < 9.5) & (dy > -3)
            colour = np.array((40, 150, 130)) / 255 * tone[row + 2, column + 1]
            picture[inside] = (colour * (1.25 - radius / 11)[..., None])[inside]
    return grain(rng, np.clip(picture + 0.05, 0, 1))


def knit(rng):
    y, x = grid()
    slant = np.abs((x % 14) - 7)
    stitch = 0.5 + 0.5 * np.cos((y - slant * 0.9) / 9 * 2 * np.pi)
    shade = stitch * np.clip(slant / 2, 0.3, 1) * (0.75 + 0.25 * spectral_noise(rng, 0.4))
    return grain(rng, ramp(shade, (70, 10, 25), (185, 45, 70), (240, 150, 160)))


MATERIALS = {
    material.__name__: material
    for material in (
        bricks, cobbles, wood, grass, sand, clouds, water, leaves, pebbles, fur, weave, marble, lava, stars, flowers,
        mosaic, bark, rust, scales, knit,
    )
}


@cache
def draw(name, seed=0):
    """The material as a picture of SIDE × SIDE pixels; another seed gives another piece of it."""
    pixels = MATERIALS[name](np.random.default_rng([seed, list(MATERIALS).index(name)]))
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8))


# --- views ------------------------------------------------------------------------------------------------------------


def crop(picture, share, side, place=(0.5, 0.5)):
    """A square of `share` of the picture's shorter side at `place` (0 … 1 in y and x): (side, side, 3) in [0, 1]."""
    width, height = picture.size
    edge = share * min(width, height)
    left, top = (width - edge) * place[1], (height - edge) * place[0]
    small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge))
    return np.asarray(small, dtype=np.float32) / 255


def tint(pixels, name):
    """Pixels (…, 3) in [0, 1] in the light of `TINTS`."""
    if name == "plain":
        return pixels
    grey = pixels.mean(-1, keepdims=True)
    if name == "gray":
        return np.repeat(grey, 3, -1)
    return (0.5 * pixels + 0.5 * grey) * np.float32(TINTS[name]) + np.float32(0.08)
