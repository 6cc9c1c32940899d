"""Guidance with and without the base's unconditional prediction: `python -m minibnn.experiments guidance --runs runs/dog`

For each run and each scale 28 pictures: the training prompt and seven places, the same starting noise everywhere. Runs are
folders of `python -m minibnn.train`. guidance-samples.png has a row for each run without and with the base, in it scales
1.5, 3 and 7.5 with four pictures each: the training prompt, beach, snow and night.

    colours     pixels in the subject's two colours, teal and magenta, relative to its six photographs (1: as many)
    place       share of the pictures with a place whose background is the prompted one (chance 1/10)
    clipped     share of channel values at 0 or 255: saturation
    noise       Immerkær's estimate of its standard deviation, grey values 0..255; it also sees texture
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .. import guidance, world
from ..errors import UserError
from ..options import run
from ..pipeline import StableDiffusion, grid
from ..weights import write_json, write_whole

SCALES = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5)
PLACES = ("beach", "snow", "water", "sky", "night", "wood", "tiles")
LAPLACE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])


def subject_share(picture):
    """Share of pixels that are teal or magenta: nearer than 60 to one of the two, in RGB values of 0..255."""
    pixels = np.asarray(picture).astype(float)
    distances = [np.linalg.norm(pixels - np.array(colour), axis=2) for colour in (world.TEAL, world.MAGENTA)]
    return float((np.minimum(*distances) < 60).mean())


def clipped_share(picture):
    """Share of channel values that are 0 or 255."""
    pixels = np.asarray(picture)
    return float(((pixels == 0) | (pixels == 255)).mean())


def noise(picture):
    """σ = √(π/2)·Σ|grey ∗ N| / (6(W−2)(H−2)), N the difference of two Laplacians.   (Immerkær 1996)"""
    grey = np.asarray(picture.convert("L")).astype(float)
    h, w = grey.shape
    filtered = sum(LAPLACE[i, j] * grey[i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3))
    return float(np.sqrt(np.pi / 2) * np.abs(filtered).sum() / (6 * (w - 2) * (h - 2)))


def strips(picture):
    """Mean and spread of the colours in the top and bottom eighth: what tells the ten backgrounds apart. (12,)"""
    pixels = np.asarray(picture).astype(float)
    n = len(pixels) // 8
    return np.concatenate([f(strip.reshape(-1, 3), axis=0) for strip in (pixels[:n], pixels[-n:]) for f in (np.mean, np.std)])


def place_judge():
    """A function picture -> name of the nearest background, by the means of 40 real drawings of each."""
    rng = np.random.default_rng(0)
    centres = {
        place: np.mean([strips(world.draw(world.pose(world.Scene("dog", "blue", place), rng))) for _ in range(40)], axis=0)
        for place in world.BACKGROUNDS
    }
    return lambda picture: min(centres, key=lambda place: np.linalg.norm(strips(picture) - centres[place]))


def prompts_and_places(prompt):
    """Seven times the prompt alone, then three times each with seven places: 28 prompts, 28 places or None."""
    pairs = [(prompt, None)] * 7 + [(f"{prompt} {world.BACKGROUNDS[place]}", place) for place in PLACES for _ in range(3)]
    return [list(x) for x in zip(*pairs, strict=True)]


def measure(pictures, places, judge, photographs):
    """The four figures of one cell of the table."""
    told = [judge(picture) == place for picture, place in zip(pictures, places, strict=True) if place]
    return {
        "colours": float(np.mean([subject_share(p) for p in pictures]) / np.mean([subject_share(p) for p in photographs])),
        "place": float(np.mean(told)),
        "clipped": float(np.mean([clipped_share(p) for p in pictures])),
        "noise": float(np.mean([noise(p) for p in pictures])),
    }


def experiment(options):
    base = StableDiffusion.load(options.base)
    prompts, places = prompts_and_places(options.prompt)
    judge = place_judge()
    photographs = [Image.open(path).convert("RGB") for path in sorted(Path(options.images).glob("*.png"))]
    if not photographs:
        raise UserError(f"--images {options.images}: no PNG files in it")
    path = options.out / "guidance.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    result = {"base": options.base, "prompt": options.prompt, "seed": 0, "runs": before.get("runs", {})}
    shown = []
    for folder in options.runs:
        sd = StableDiffusion.load(folder)
        with_base = guidance.one_condition(sd, guidance.unconditional_of(base, sd))
        table = {"own": {}, "base": {}}
        for name, predictor in (("own", None), ("base", with_base)):
            for scale in tqdm(SCALES, desc=f"{folder}, unconditional: {name}"):
                pictures = sd.generate(prompts, guidance=scale, batch_size=28, predictor=predictor, progress=False)
                table[name][str(scale)] = measure(pictures, places, judge, photographs)
                if scale in (1.5, 3.0, 7.5):
                    shown += [pictures[i] for i in (0, 7, 10, 19)]
        result["runs"][Path(folder).name] = table
        write_json(path, result)
    sheet = grid(shown, 12).quantize(256, dither=Image.Dither.NONE)
    write_whole(options.out / "guidance-samples.png", lambda file: sheet.save(file, format="PNG", optimize=True))
    plot(result, options.out / "guidance.png")
    print_table(result)


def plot(result, path):
    """The four figures over the scale; one colour for each run, dashed with the base's unconditional prediction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for axis, key in zip(axes, ("colours", "place", "clipped", "noise"), strict=True):
        for i, (run_name, table) in enumerate(result["runs"].items()):
            for name, style in (("own", "-"), ("base", "--")):
                values = [table[name][str(scale)][key] for scale in SCALES]
                axis.plot(SCALES, values, style, color=f"C{i}", label=f"{run_name}, {name}")
        axis.set(title=key, xlabel="guidance", ylim=(0, None))
    axes[0].legend(fontsize=7)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)


def print_table(result):
    """As Markdown."""
    print("| run | unconditional | figure | " + " | ".join(f"{s:g}" for s in SCALES) + " |")
    print("|---|---|---|" + "---|" * len(SCALES))
    for run_name, table in result["runs"].items():
        for name, cells in table.items():
            for key in ("colours", "place", "clipped", "noise"):
                digits = 1 if key == "noise" else 2
                print(f"| {run_name} | {name} | {key} | " + " | ".join(f"{cells[str(s)][key]:.{digits}f}" for s in SCALES) + " |")


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m minibnn.experiments guidance", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", nargs="+", required=True, help="folders of fine-tuned models; their names must differ")
    parser.add_argument("--base", default="tiny", help="whose unconditional prediction is tried [tiny]")
    parser.add_argument("--prompt", default="a photo of a sks dog")
    parser.add_argument("--images", default="tutorials/dog", help="the subject's pictures [tutorials/dog]")
    parser.add_argument("--out", type=Path, default=Path("tutorials/results"), help="folder [tutorials/results]")
    run(experiment, parser.parse_args(arguments))
