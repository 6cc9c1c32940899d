"""A small world of captioned drawings, on which the bundled model is trained.

There are 12 subjects, 8 colours and 10 backgrounds. A drawing has 64 × 64 pixels; the subject's place, size, tilt and
direction are random. Its caption is, for example, "a red car on the beach". A seed fixes every drawing.

Two things are held out from pretraining: one combination in twenty (`is_held_out`), and the two-coloured spotted
animals (`Scene.spotted`) in teal and magenta. The few-shot subject of the tutorials, the dog of `tutorials/dog/`, is
one of them. The UNet of `tiny` has seen no spotted animals at all, that of `tiny-v2` some in other colours.

    python -m minibnn world --out sheet.png           a sheet of random drawings
    python -m minibnn world --dog tutorials/dog       the six pictures of the dog, four with captions
    python -m minibnn world --pairs pairs --count 40  drawings with exact sketches and captions
"""

import itertools
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files.store import write_text
from ..pictures import grid, save_png
from . import drawing
from .drawing import SIZE, SUPERSAMPLE, background

COLOURS = {
    "red": (214, 40, 40), "orange": (242, 128, 24), "yellow": (240, 208, 32), "green": (40, 156, 60),
    "blue": (36, 84, 220), "purple": (140, 52, 190), "brown": (118, 72, 36), "white": (240, 240, 236),
}
BACKGROUNDS = {
    "grass": "on the grass", "beach": "on the beach", "snow": "in the snow", "water": "on the water",
    "sky": "under a blue sky", "night": "at night", "brick": "in front of a brick wall",
    "wood": "on a wooden floor", "tiles": "on a tiled floor", "fabric": "on pink fabric",
}
ANIMALS = ("dog", "cat", "bird", "fish")
SUBJECTS = tuple(drawing.SUBJECTS)
TEAL, MAGENTA = (24, 178, 170), (222, 36, 140)
CAPTIONED = 4  # of the six pictures of a few-shot subject
DOG_BACKGROUNDS = ("grass", "brick", "sky", "wood", "beach", "tiles")


@dataclass(frozen=True)
class Scene:
    """Everything about one drawing. The centre (x, y) and the size, half the subject's extent, are in pixels."""

    subject: str
    colour: str
    background: str
    x: float = 32.0
    y: float = 34.0
    size: float = 20.0
    tilt: float = 0.0  # in degrees
    mirror: bool = False
    spotted: bool = False
    seed: int = 0  # fixes the details of the background


def is_held_out(scene):
    """True for one combination in twenty, which pretraining never sees, and for animals with spots.

    Of those it sees none in the few-shot subjects' colours.
    """
    code = 7 * SUBJECTS.index(scene.subject) + 3 * list(COLOURS).index(scene.colour)
    return scene.spotted or (code + list(BACKGROUNDS).index(scene.background)) % 20 == 0


def caption(scene):
    """The caption, such as "a red car on the beach"; spotted subjects have no colour word."""
    colour = "" if scene.spotted else scene.colour + " "
    return article(f"{colour}{scene.subject} {BACKGROUNDS[scene.background]}")


def article(words):
    """Put "a" or "an" in front of the words."""
    return ("an " if words[0] in "aeiou" else "a ") + words


@cache
def combinations(held_out=False):
    """All (subject, colour, background), either those of pretraining or those held out from it."""
    every = itertools.product(SUBJECTS, COLOURS, BACKGROUNDS)
    return [combination for combination in every if is_held_out(Scene(*combination)) == held_out]


def pose(scene, rng):
    """The same scene with a random place, size, tilt, direction and background details, all drawn from `rng`."""
    return replace(
        scene, x=32 + rng.uniform(-7, 7), y=34 + rng.uniform(-6, 6), size=rng.uniform(17, 23),
        tilt=rng.uniform(-12, 12), mirror=bool(rng.integers(2)), seed=int(rng.integers(2**31)),
    )


def random_scene(rng, held_out=False):
    """A random scene of pretraining, or of the held-out combinations. rng: a numpy Generator."""
    choices = combinations(held_out)
    return pose(Scene(*choices[rng.integers(len(choices))]), rng)


def _ground(scene):
    """The background of a scene: (64, 64, 3) floats in [0, 1]."""
    return background(scene.background, np.random.default_rng(scene.seed)).clip(0, 1)


def draw(scene, main=None, accent=None):
    """The drawing of a scene, a 64 × 64 RGB PIL image. main, accent: RGB values instead of the scene's own colours."""
    image = Image.fromarray((_ground(scene) * 255 + 0.5).astype(np.uint8))
    image = image.resize((SIZE * SUPERSAMPLE,) * 2, Image.Resampling.NEAREST)
    main = main or (TEAL if scene.spotted else COLOURS[scene.colour])
    accent = accent or (MAGENTA if scene.spotted else drawing.shade(main, 0.72))
    drawing.SUBJECTS[scene.subject](drawing.Pen(image, scene), main, accent, scene.spotted)
    return image.reduce(SUPERSAMPLE)


def subject_mask(scene, picture):
    """The pixels that the subject covers: (64, 64) float32, 1 where the drawing differs from its background, else 0."""
    return (np.abs(np.asarray(picture) - _ground(scene) * 255).max(axis=2) > 2).astype(np.float32)


def outline(mask):
    """The sketch of a mask (H, W): its pixels that have one of their four neighbours outside, float32 of 0 and 1."""
    inside = np.pad(mask, 1)
    core = np.minimum.reduce([inside[:-2, 1:-1], inside[2:, 1:-1], inside[1:-1, :-2], inside[1:-1, 2:]])
    return mask * (1 - core)


def animal_scenes(kind):
    """The six scenes of a few-shot subject: the same spotted animal, one of ANIMALS, on six backgrounds."""
    rng = np.random.default_rng(2024)
    for place in DOG_BACKGROUNDS:
        scene = pose(Scene(kind, "blue", place, spotted=True), rng)
        yield replace(scene, size=max(scene.size, 20.0))


def dog_scenes():
    """The six scenes of the tutorials' subject, the dog of `tutorials/dog/`."""
    return animal_scenes("dog")


def write_subject(folder, animal="dog", captioned=CAPTIONED):
    """The six drawings of a few-shot subject as PNG files; the first `captioned` have one that names the place.

    With the other two the model learns the subject without a place, and with the four that a place can change.
    """
    for i, scene in enumerate(animal_scenes(animal)):
        save_png(draw(scene), Path(folder) / f"{i:02d}.png")
        if i < captioned:
            write_text(Path(folder) / f"{i:02d}.txt", f"a photo of a sks {animal} {BACKGROUNDS[scene.background]}\n")


# --- command ----------------------------------------------------------------------------------------------------------


def write_pairs(folder, count, seed, kind):
    """Write drawings NAME.png, hints NAME.hint.png (a "sketch" or a "mask" of the subject) and captions NAME.txt."""
    rng, folder = np.random.default_rng(seed), Path(folder)
    for i in range(count):
        scene = random_scene(rng)
        picture = draw(scene)
        mask = subject_mask(scene, picture)
        hint = outline(mask) if kind == "sketch" else mask
        save_png(picture, folder / f"{i:03d}.png")
        save_png(Image.fromarray((hint * 255).astype(np.uint8)), folder / f"{i:03d}.hint.png")
        write_text(folder / f"{i:03d}.txt", caption(scene) + "\n")


def make_drawings(options):
    """Write what WorldOptions asks for. Raises UserError."""
    if not (options.out or options.dog or options.pairs):
        raise UserError("nothing to draw: give --out PNG, --dog DIR or --pairs DIR")
    if options.out and Path(options.out).suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: the name must end with .png")
    if options.out and Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out {options.out} exists: name another file or pass --overwrite")
    dogs = [draw(scene) for scene in dog_scenes()]
    if options.pairs:
        write_pairs(options.pairs, options.count, options.seed, options.hint)
    if options.dog:
        write_subject(options.dog)
    if options.out:
        rng = np.random.default_rng(options.seed)
        save_png(grid([draw(random_scene(rng)) for _ in range(66)] + dogs, 12), options.out)
    print("drawn: " + ", ".join(str(path) for path in (options.pairs, options.dog, options.out) if path))
