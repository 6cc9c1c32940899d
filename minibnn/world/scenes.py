"""A small world of captioned drawings: what the bundled model is trained on.

12 subjects × 8 colours × 10 backgrounds, 64 × 64 pixels, anti-aliased, at random places, sizes, tilts and either way
round, with captions such as "a red car on the beach". Every drawing is fixed by its seed.

Held out from pretraining: some combinations (`is_held_out`), and the whole family of two-coloured spotted animals
(`Scene.spotted`), to which the few-shot subject of the tutorials, the dog of `tutorials/dog/`, belongs.

    python -m minibnn.world --out sheet.png           a sheet of random drawings
    python -m minibnn.world --dog tutorials/dog       the six pictures of the dog
    python -m minibnn.world --pairs pairs --count 40  drawings with exact sketches and captions, for minibnn.bps
"""

from ..options.commands import WorldOptions
from ..options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(WorldOptions, "minibnn.world")
    answer_ctrl_c_while_importing()

import itertools
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files.store import write_text, write_whole
from . import drawing
from .drawing import SIZE, SUPERSAMPLE, background

COLOURS = {
    "red": (214, 40, 40), "orange": (242, 128, 24), "yellow": (240, 208, 32), "green": (40, 156, 60),
    "blue": (36, 84, 220), "purple": (140, 52, 190), "brown": (118, 72, 36), "white": (240, 240, 236),
}  # fmt: skip
BACKGROUNDS = {
    "grass": "on the grass", "beach": "on the beach", "snow": "in the snow", "water": "on the water",
    "sky": "under a blue sky", "night": "at night", "brick": "in front of a brick wall",
    "wood": "on a wooden floor", "tiles": "on a tiled floor", "fabric": "on pink fabric",
}  # fmt: skip
ANIMALS = ("dog", "cat", "bird", "fish")
SUBJECTS = tuple(drawing.SUBJECTS)
TEAL, MAGENTA = (24, 178, 170), (222, 36, 140)


@dataclass(frozen=True)
class Scene:
    """Everything about one drawing. x, y: centre and size: half the subject's extent, in pixels; tilt in degrees."""

    subject: str
    colour: str
    background: str
    x: float = 32.0
    y: float = 34.0
    size: float = 20.0
    tilt: float = 0.0
    mirror: bool = False
    spotted: bool = False
    seed: int = 0  # of the background's details


def is_held_out(scene):
    """True for the one combination in twenty, and for the spotted animals, that pretraining never sees."""
    code = 7 * SUBJECTS.index(scene.subject) + 3 * list(COLOURS).index(scene.colour)
    return scene.spotted or (code + list(BACKGROUNDS).index(scene.background)) % 20 == 0


def caption(scene):
    """"a red car on the beach"; spotted subjects have no colour word."""
    colour = "" if scene.spotted else scene.colour + " "
    return article(f"{colour}{scene.subject} {BACKGROUNDS[scene.background]}")


def article(words):
    """"orange cat" -> "an orange cat"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


@cache
def combinations(held_out=False):
    """All (subject, colour, background), either those of pretraining or those held out from it."""
    every = itertools.product(SUBJECTS, COLOURS, BACKGROUNDS)
    return [combination for combination in every if is_held_out(Scene(*combination)) == held_out]


def pose(scene, rng):
    """The scene at a random place, size, tilt, way round and with random background details, all from `rng`."""
    return replace(
        scene,
        x=32 + rng.uniform(-7, 7),
        y=34 + rng.uniform(-6, 6),
        size=rng.uniform(17, 23),
        tilt=rng.uniform(-12, 12),
        mirror=bool(rng.integers(2)),
        seed=int(rng.integers(2**31)),
    )


def random_scene(rng, held_out=False):
    """A random scene of pretraining, or of the held-out combinations; `rng`: a numpy Generator."""
    choices = combinations(held_out)
    return pose(Scene(*choices[rng.integers(len(choices))]), rng)


def draw(scene, main=None, accent=None):
    """The picture of a scene: a 64 × 64 RGB PIL image. main, accent: RGB values instead of the scene's own colours."""
    ground = background(scene.background, np.random.default_rng(scene.seed))
    image = Image.fromarray((ground.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.resize((SIZE * SUPERSAMPLE,) * 2, Image.Resampling.NEAREST)
    main = main or (TEAL if scene.spotted else COLOURS[scene.colour])
    accent = accent or (MAGENTA if scene.spotted else drawing.shade(main, 0.72))
    drawing.SUBJECTS[scene.subject](drawing.Pen(image, scene), main, accent, scene.spotted)
    return image.reduce(SUPERSAMPLE)


def subject_mask(scene, picture):
    """Which pixels the subject covers: (64, 64) float32, 0 or 1, from the drawing and its bare background."""
    ground = background(scene.background, np.random.default_rng(scene.seed)).clip(0, 1) * 255
    return (np.abs(np.asarray(picture) - ground).max(axis=2) > 2).astype(np.float32)


def outline(mask):
    """Sketch of a mask (H, W): its pixels with a neighbour (of four) outside, 0 or 1, float32."""
    inside = np.pad(mask, 1)
    core = np.minimum.reduce([inside[:-2, 1:-1], inside[2:, 1:-1], inside[1:-1, :-2], inside[1:-1, 2:]])
    return mask * (1 - core)


def write_pairs(folder, count, seed, kind):
    """`count` drawings NAME.png with NAME.hint.png, a "sketch" or a "mask" of the subject, and NAME.txt, the caption."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        scene = random_scene(rng)
        picture = draw(scene)
        hint = subject_mask(scene, picture)
        if kind == "sketch":
            hint = outline(hint)
        save(picture, Path(folder) / f"{i:03d}.png")
        save(Image.fromarray((hint * 255).astype(np.uint8)), Path(folder) / f"{i:03d}.hint.png")
        write_text(Path(folder) / f"{i:03d}.txt", caption(scene) + "\n")


# --- command ----------------------------------------------------------------------------------------------------------

DOG_BACKGROUNDS = ("grass", "brick", "sky", "wood", "beach", "tiles")


def dog_scenes():
    """The six pictures of the few-shot subject: the same peculiar dog, six backgrounds."""
    rng = np.random.default_rng(2024)
    for place in DOG_BACKGROUNDS:
        scene = pose(Scene("dog", "blue", place, spotted=True), rng)
        yield replace(scene, size=max(scene.size, 20.0))


def save(picture, path):
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))


def main(options):
    """Write what WorldOptions names. Raises UserError."""
    if not (options.out or options.dog or options.pairs):
        raise UserError("nothing to draw: give --out PNG, --dog DIR or --pairs DIR")
    if options.out and Path(options.out).suffix.lower() != ".png":
        raise UserError(f"--out {options.out}: the name must end with .png")
    if options.pairs:
        write_pairs(options.pairs, options.count, options.seed, options.hint)
    if options.dog:
        for i, scene in enumerate(dog_scenes()):
            save(draw(scene), Path(options.dog) / f"{i:02d}.png")
    if options.out:
        rng = np.random.default_rng(options.seed)
        pictures = [draw(random_scene(rng)) for _ in range(66)] + [draw(s) for s in dog_scenes()]
        sheet = Image.new("RGB", (12 * (SIZE + 4) - 4, 6 * (SIZE + 4) - 4), "white")
        for i, picture in enumerate(pictures):
            sheet.paste(picture, ((i % 12) * (SIZE + 4), (i // 12) * (SIZE + 4)))
        save(sheet, options.out)


if __name__ == "__main__":
    run(main, OPTIONS)
