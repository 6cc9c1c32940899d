"""How the subjects and the backgrounds of the world are drawn.

`SUBJECTS[name](pen, main, accent, spotted)` draws a subject from polygons and ellipses, in two RGB colours. It is drawn
four times as large and then averaged (`scenes.draw`). `background(name, rng)` is a formula over the 64 × 64 pixels.
"""

import math

import numpy as np
from PIL import ImageDraw

SIZE = 64  # pixels
SUPERSAMPLE = 4  # subjects are drawn four times as large, then averaged
BLACK, WHITE, GOLD = (24, 22, 26), (250, 250, 250), (250, 206, 60)


def shade(colour, factor):
    """The RGB colour made darker by a factor below 1 (0 is black), lighter by a factor above 1 (2 is white)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)
    return tuple(round(c + (255 - c) * (factor - 1)) for c in colour)


class Pen:
    """A pen that draws in the subject's own coordinates: [-1, 1]², y downwards, for a subject that looks right."""

    def __init__(self, image, scene):
        self.canvas = ImageDraw.Draw(image)
        c, s = math.cos(math.radians(scene.tilt)), math.sin(math.radians(scene.tilt))
        self.matrix = np.array([[c, -s], [s, c]]) * [-1 if scene.mirror else 1, 1] * (scene.size * SUPERSAMPLE)
        self.centre = np.array([scene.x, scene.y]) * SUPERSAMPLE

    def polygon(self, points, colour):
        """Fill the polygon through the (x, y) points."""
        points = np.asarray(points) @ self.matrix.T + self.centre
        self.canvas.polygon([tuple(p) for p in points], fill=colour)

    def ellipse(self, x, y, rx, ry, colour, angle=0.0):
        """Fill the ellipse with the half axes rx and ry, turned by `angle` degrees."""
        a = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        u, v = rx * np.cos(a), ry * np.sin(a)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        self.polygon(np.stack([x + c * u - s * v, y + s * u + c * v], axis=1), colour)

    def box(self, x0, y0, x1, y1, colour):
        """Fill the rectangle with these corners."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def spots(self, places):
        """Fill white circles, given as (x, y, radius)."""
        for x, y, r in places:
            self.ellipse(x, y, r, r, WHITE)


# --- subjects: (pen, main colour, second colour, spotted) -------------------------------------------------------------


def _dog(pen, main, accent, spotted):
    pen.polygon([(-0.7, -0.15), (-1.0, -0.6), (-0.88, -0.68), (-0.5, -0.2)], accent)  # tail
    for x in (-0.62, -0.36, 0.22, 0.46):
        pen.box(x - 0.1, 0.2, x + 0.1, 0.9, accent if spotted else shade(main, 0.86))
    pen.ellipse(-0.08, 0.1, 0.72, 0.36, main)
    pen.ellipse(0.6, -0.45, 0.36, 0.33, main)  # head
    pen.ellipse(0.86, -0.36, 0.2, 0.16, shade(main, 1.25))  # muzzle
    pen.ellipse(1.0, -0.42, 0.075, 0.07, BLACK)
    pen.ellipse(0.38, -0.42, 0.13, 0.32, accent, 12)  # ear
    pen.ellipse(0.68, -0.54, 0.075, 0.085, BLACK)
    if spotted:
        pen.spots([(-0.45, 0.02, 0.12), (-0.12, 0.2, 0.13), (0.18, -0.02, 0.12), (-0.2, -0.1, 0.08), (0.42, 0.2, 0.09)])
        pen.polygon([(0.3, -0.16), (0.66, -0.08), (0.62, 0.04), (0.26, -0.03)], GOLD)  # collar


def _cat(pen, main, accent, spotted):
    pen.polygon([(0.5, 0.8), (0.95, 0.7), (1.0, 0.1), (0.86, 0.1), (0.8, 0.55), (0.45, 0.6)], accent)  # tail
    pen.ellipse(0, 0.42, 0.56, 0.54, main)
    pen.ellipse(0, 0.52, 0.27, 0.34, shade(main, 1.45))
    for side in (-1, 1):
        pen.polygon([(side * 0.5, -0.5), (side * 0.52, -1.0), (side * 0.1, -0.78)], accent)
    pen.ellipse(0, -0.4, 0.54, 0.44, main)
    for side in (-1, 1):
        pen.ellipse(side * 0.21, -0.46, 0.11, 0.12, GOLD)
        pen.ellipse(side * 0.21, -0.46, 0.045, 0.11, BLACK)
    pen.polygon([(-0.07, -0.25), (0.07, -0.25), (0, -0.16)], (236, 110, 130))
    if spotted:
        pen.spots([(-0.36, 0.3, 0.1), (0.38, 0.4, 0.11), (-0.3, 0.62, 0.09), (0, -0.72, 0.09)])


def _bird(pen, main, accent, spotted):
    for x in (-0.12, 0.12):
        pen.box(x - 0.04, 0.45, x + 0.04, 0.92, (232, 140, 30))
    pen.polygon([(-0.55, 0.05), (-1.0, -0.2), (-1.0, 0.25), (-0.5, 0.3)], accent)
    pen.ellipse(-0.05, 0.15, 0.62, 0.42, main)
    pen.ellipse(0.48, -0.38, 0.33, 0.32, main)
    pen.polygon([(0.76, -0.48), (1.06, -0.34), (0.76, -0.24)], (236, 140, 24))
    pen.ellipse(-0.14, 0.12, 0.4, 0.22, accent, 14)
    pen.ellipse(0.54, -0.45, 0.075, 0.085, BLACK)
    if spotted:
        pen.spots([(0.25, 0.3, 0.1), (-0.3, 0.1, 0.08), (0.02, 0.16, 0.09), (0.4, -0.15, 0.07)])


def _fish(pen, main, accent, spotted):
    pen.polygon([(-0.45, 0), (-1.0, -0.5), (-0.86, 0), (-1.0, 0.5)], accent)
    pen.polygon([(-0.3, -0.3), (0.1, -0.78), (0.4, -0.28)], accent)
    pen.ellipse(0.15, 0, 0.75, 0.46, main)
    pen.polygon([(0.1, 0.1), (-0.22, 0.36), (-0.12, 0.02)], accent)
    pen.ellipse(0.55, -0.13, 0.14, 0.14, WHITE)
    pen.ellipse(0.58, -0.13, 0.07, 0.075, BLACK)
    pen.polygon([(0.88, 0.1), (0.66, 0.16), (0.84, 0.2)], accent)
    if spotted:
        pen.spots([(0.2, -0.22, 0.1), (0.3, 0.2, 0.1), (-0.2, -0.1, 0.09), (-0.05, 0.28, 0.07)])


def _car(pen, main, accent, _):
    pen.polygon([(-0.56, -0.05), (-0.36, -0.56), (0.34, -0.56), (0.6, -0.05)], accent)
    pen.polygon([(-0.43, -0.08), (-0.28, -0.45), (-0.04, -0.45), (-0.04, -0.08)], (190, 226, 244))  # windows
    pen.polygon([(0.06, -0.08), (0.06, -0.45), (0.28, -0.45), (0.45, -0.08)], (190, 226, 244))
    pen.polygon([(-1, 0.42), (-0.98, 0.0), (-0.86, -0.1), (0.8, -0.1), (0.98, 0.08), (1, 0.42)], main)
    pen.ellipse(0.92, 0.1, 0.08, 0.09, GOLD)
    for x in (-0.56, 0.56):
        pen.ellipse(x, 0.42, 0.25, 0.25, BLACK)
        pen.ellipse(x, 0.42, 0.11, 0.11, (190, 190, 196))


def _boat(pen, main, accent, _):
    pen.box(-0.06, -1.0, 0.04, 0.4, (96, 62, 36))
    pen.polygon([(-0.1, -0.92), (-0.1, 0.25), (-0.82, 0.25)], WHITE)
    pen.polygon([(0.1, -0.8), (0.1, 0.25), (0.66, 0.25)], shade(main, 1.55))
    pen.polygon([(-1, 0.36), (1, 0.36), (0.66, 0.86), (-0.7, 0.86)], main)
    pen.polygon([(-1, 0.36), (1, 0.36), (0.93, 0.48), (-0.94, 0.48)], accent)


def _house(pen, main, accent, _):
    pen.box(-0.72, -0.1, 0.72, 0.9, main)
    pen.polygon([(-0.95, -0.08), (0, -0.92), (0.95, -0.08)], accent)
    pen.box(-0.16, 0.32, 0.16, 0.9, BLACK)
    for x in (-0.46, 0.46):
        pen.box(x - 0.16, 0.12, x + 0.16, 0.42, (252, 232, 140))


def _tree(pen, main, accent, _):
    pen.polygon([(-0.12, 0.1), (0.12, 0.1), (0.18, 0.95), (-0.18, 0.95)], (106, 68, 40))
    pen.ellipse(-0.34, 0.02, 0.42, 0.4, accent)
    pen.ellipse(0.36, -0.02, 0.42, 0.42, main)
    pen.ellipse(0, -0.42, 0.54, 0.5, main)
    pen.ellipse(-0.15, -0.55, 0.2, 0.17, shade(main, 1.3))


def _flower(pen, main, accent, _):
    pen.box(-0.05, 0.1, 0.05, 0.98, (36, 118, 48))
    pen.ellipse(0.26, 0.66, 0.26, 0.11, (48, 146, 60), -32)
    for i in range(6):
        a = math.radians(60 * i + 15)
        pen.ellipse(0.42 * math.cos(a), -0.32 + 0.42 * math.sin(a), 0.28, 0.28, main if i % 2 else accent)
    pen.ellipse(0, -0.32, 0.25, 0.25, (86, 52, 26))


def _mug(pen, main, accent, _):
    pen.ellipse(0.62, 0.1, 0.36, 0.4, accent)
    pen.ellipse(0.6, 0.1, 0.19, 0.22, (222, 222, 222))
    pen.box(-0.68, -0.56, 0.56, 0.7, main)
    pen.ellipse(-0.06, 0.7, 0.62, 0.17, main)
    pen.ellipse(-0.06, -0.56, 0.62, 0.19, shade(main, 1.35))
    pen.ellipse(-0.06, -0.54, 0.5, 0.13, (74, 44, 26))
    pen.box(-0.52, -0.2, -0.38, 0.5, shade(main, 1.35))


def _star(pen, main, accent, _):
    for colour, outer in ((accent, 1.0), (main, 0.8)):
        angles = np.radians(np.arange(10) * 36 - 90)
        radius = np.where(np.arange(10) % 2, 0.42, 1.0) * outer
        pen.polygon(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1), colour)
    pen.ellipse(0, 0, 0.2, 0.2, shade(main, 1.5))


def _heart(pen, main, accent, _):
    a = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x, y = 16 * np.sin(a) ** 3, -(13 * np.cos(a) - 5 * np.cos(2 * a) - 2 * np.cos(3 * a) - np.cos(4 * a))
    pen.polygon(np.stack([x, y], axis=1) / 17, accent)
    pen.polygon(np.stack([x, y], axis=1) / 20.5, main)
    pen.ellipse(-0.38, -0.36, 0.16, 0.13, shade(main, 1.6), -35)


SUBJECTS = {
    "dog": _dog, "cat": _cat, "bird": _bird, "fish": _fish, "car": _car, "boat": _boat, "house": _house,
    "tree": _tree, "flower": _flower, "mug": _mug, "star": _star, "heart": _heart,
}


# --- backgrounds ------------------------------------------------------------------------------------------------------

Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(float) + 0.5


def background(kind, rng):
    """A texture, (64, 64, 3) floats in about [0, 1], whose tint and details come from `rng` (numpy Generator)."""
    tint = 1 + rng.uniform(-0.06, 0.06, 3)
    return BACKGROUNDS[kind](rng) * tint


def _gradient(top, bottom):
    top, bottom = np.array(top) / 255, np.array(bottom) / 255
    return top + (bottom - top) * (Y / SIZE)[..., None]


def _grass(rng):
    blades = np.sin(X * 1.57 + 2 * np.sin(Y * 0.4)) * np.sin(Y * 0.9 + rng.uniform(0, 6.28))
    return _gradient((128, 206, 84), (44, 124, 48)) + 0.06 * blades[..., None]


def _beach(rng):
    dunes = np.sin(Y * 0.75 + 1.6 * np.sin(X * 0.1 + rng.uniform(0, 6.28)))
    return _gradient((252, 222, 160), (214, 166, 96)) + 0.045 * dunes[..., None]


def _snow(rng):
    sky = _gradient((176, 196, 214), (222, 234, 244))
    hill = rng.uniform(34, 44) + 4 * np.sin(X * 0.1 + rng.uniform(0, 6.28))
    return np.where((hill < Y)[..., None], np.array([0.95, 0.97, 1.0]) - 0.0015 * (Y - hill)[..., None], sky)


def _water(rng):
    waves = np.sin(Y * 0.8 + 1.2 * np.sin(X * 0.22 + rng.uniform(0, 6.28)))
    return _gradient((64, 172, 204), (14, 60, 136)) + 0.07 * waves[..., None]


def _sky(rng):
    sky = _gradient((72, 148, 226), (206, 230, 250))
    for _ in range(2):
        x, y = rng.uniform(8, 56), rng.uniform(6, 20)
        cloud = np.exp(-(((X - x) / 11) ** 2 + ((Y - y) / 4) ** 2))[..., None]
        sky = sky + (1 - sky) * 0.85 * cloud
    return sky


def _night(rng):
    night = _gradient((14, 14, 48), (50, 38, 92))
    for x, y in zip(rng.uniform(2, 62, 10), rng.uniform(2, 40, 10), strict=True):
        night = night + 0.85 * np.exp(-((X - x) ** 2 + (Y - y) ** 2) / 0.7)[..., None]
    return night


def _brick(rng):
    y = Y + 8 * rng.integers(2)
    row = (y // 8).astype(int)
    x = X + 8 * (row % 2)
    mortar = ((y % 8) < 1.4) | ((x % 16) < 1.4)
    bricks = np.array([176, 74, 58]) / 255 * (1 + 0.07 * np.sin(2.1 * row + 1.3 * (x // 16)))[..., None]
    return np.where(mortar[..., None], np.array([212, 196, 184]) / 255, bricks)


def _wood(rng):
    plank = (X // 16).astype(int)
    grain = np.sin(X * 1.2 + 1.5 * np.sin(Y * 0.12 + plank * 2.3 + rng.uniform(0, 6.28)))
    wood = np.array([190, 124, 70]) / 255 * (1 + 0.09 * np.sin(plank * 1.9) + 0.08 * grain)[..., None]
    return np.where(((X % 16) < 1.2)[..., None], np.array([110, 66, 36]) / 255, wood)


def _tiles(rng):
    odd = ((X // 10.667).astype(int) + (Y // 10.667).astype(int) + rng.integers(2)) % 2
    return np.where(odd[..., None] == 1, np.array([136, 140, 150]) / 255, np.array([214, 216, 222]) / 255)


def _fabric(rng):
    stripes = 0.5 + 0.5 * np.tanh(4 * np.sin((X + Y) * 2 * math.pi / 16 + rng.uniform(0, 6.28)))
    pink, pale = np.array([246, 150, 178]) / 255, np.array([254, 226, 226]) / 255
    return pale + (pink - pale) * stripes[..., None]


BACKGROUNDS = {
    "grass": _grass, "beach": _beach, "snow": _snow, "water": _water, "sky": _sky, "night": _night,
    "brick": _brick, "wood": _wood, "tiles": _tiles, "fabric": _fabric,
}
