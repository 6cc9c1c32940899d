"""Measures of drawn pictures of the bundled world: fidelity, prompt fidelity, noise, diversity.

Follows: the paper's App. G, with networks of this world's size in place of Dino, Clip and Lpips (for photographs see
`photo_metrics.py`).

    fidelity          cosine to the training pictures in `fidelity.Eye`: mean over all of them, as the paper has it, and to
                      the nearest, which memorisation raises                                     (Dino, Clip-I; −1 … 1)
    prompt fidelity   share of pictures whose subject, colour and background a classifier judges as asked    (Clip-T; 0 … 1)
    noise             high-frequency energy of the calmest 60 % of the pixels above what clean drawings of the same
                      background have there, so that neither texture nor outlines count           (10⁻³, values in −1 … 1)
    immerkaer         a no-reference estimate of the noise's standard deviation (Immerkær 1996); texture counts in it
    diversity         1 − mean cosine between pictures of one prompt                                       (Lpips; 0 … 2)

Pictures are (B, 3, 64, 64) in [-1, 1]. Each measure is one number for each picture, unless it says otherwise.

But: fidelity goes by colours: the dog in other colours counts no more than any other drawing. Blotches so strong (0.3 and
more) that the classifier mistakes the background make noise too small. Immerkær's estimate does not see blotches. What is
spotted raises noise without being damaged: the tutorials' dog by about a half.

    python -m minibnn.metrics        what each measure sees and what it is blind to; rewrites assets/clean.json
"""

import argparse
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..files.store import read_json, write_json
from ..options.parsing import run
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from . import eye as eye
from . import scenes as world
from .classifier import ATTRIBUTES, Classifier, random_scenes, reconstruct
from .eye import blotches, blur, white_noise

ASSETS = Path(__file__).parents[1] / "assets"
CALM = 0.6  # share of the pixels, the calmest, whose energy is noise rather than outline


@torch.no_grad()
def features(images):
    """Unit vectors (B, 128) of the fidelity network."""
    return torch.cat([F.normalize(eye.load()(part), dim=1) for part in images.split(64)])


def fidelity(images, training):
    """Cosine of each picture (B) to the training pictures (n): (mean over all n, the nearest), each (B,).

    Give the training pictures as the VAE decodes them: what it cannot draw at all is no fault of the UNet.
    """
    cosine = features(images) @ features(training).T
    return cosine.mean(1), cosine.max(1).values


def diversity(images):
    """1 − mean cosine over all pairs of different pictures (B ≥ 2, of one prompt): a number."""
    cosine = features(images) @ features(images).T
    n = len(images)
    return 1 - ((cosine.sum() - cosine.trace()) / (n * (n - 1))).item()


@cache
def classifier():
    """The shipped classifier of subject, colour and background, in evaluation mode."""
    return eye.shipped(Classifier(), ASSETS / "classifier.safetensors")


@torch.no_grad()
def judge(images):
    """What is on each picture: {"subject", "colour", "background": list of B words}."""
    logits = [classifier()(part) for part in images.split(64)]
    return {name: [words[i] for part in logits for i in part[name].argmax(1)] for name, words in ATTRIBUTES.items()}


def prompt_fidelity(images, wanted):
    """Is each picture what was asked? wanted: B dicts such as {"subject": "dog", "background": "snow"}.

    -> {attribute: list of B: True, False, or None where nothing was asked}.
    """
    seen = judge(images)
    return {
        name: [None if name not in want else want[name] == word for want, word in zip(wanted, seen[name], strict=True)]
        for name in ATTRIBUTES
    }


def calm_energy(images):
    """Energy of what a blur of 3 pixels takes away, in the calmest 60 % of the pixels: (B,).

    Its two bands are ranked apart: fine grain (blur of 1 pixel), and blotches a few pixels wide (from 1 to 3 pixels).
    """
    soft = blur(images, 1.0)
    bands = (images - soft, soft - blur(images, 3.0))
    energies = [band.square().mean(1).flatten(1).sort(1).values for band in bands]
    return sum(e[:, : int(CALM * e.shape[1])].mean(1) for e in energies)


@cache
def _clean():
    return read_json(eye.asset(ASSETS / "clean.json"))["calm_energy"]


def noise(images):
    """`calm_energy` above that of clean drawings of the same background (as the classifier judges it), × 1000: (B,)."""
    expected = torch.tensor([_clean()[background] for background in judge(images)["background"]])
    return 1000 * (calm_energy(images) - expected)


def immerkaer(images):
    """σ = √(π/2) · Σ|x ∗ N| / (6 (W−2) (H−2)), averaged over colours: (B,); N annihilates planes.   (Immerkær 1996, eq. 4)"""
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=images.dtype)
    b, c, h, w = images.shape
    response = F.conv2d(images.reshape(b * c, 1, h, w), mask[None, None])
    return math.sqrt(math.pi / 2) * response.abs().sum((1, 2, 3)).view(b, c).mean(1) / (6 * (w - 2) * (h - 2))


# --- command: validate ------------------------------------------------------------------------------------------------


def clean_drawings(sd, each, seed):
    """`each` drawings of every background, random otherwise, through the VAE: (10·each, 3, 64, 64), background by background."""
    rng, drawn = np.random.default_rng(seed), []
    for background in world.BACKGROUNDS:
        for _ in range(each):
            words = (str(rng.choice(world.SUBJECTS)), str(rng.choice(list(world.COLOURS))), background)
            drawn.append(world.draw(world.pose(world.Scene(*words), rng)))
    return reconstruct(sd, to_tensor(drawn))


def dogs(background, count, seed, main=None, accent=None):
    """New pictures of the tutorials' dog on one background: (count, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    scene = world.Scene("dog", "blue", background, spotted=True)
    return to_tensor([world.draw(world.pose(scene, rng), main, accent) for _ in range(count)])


def validate(options):
    sd = StableDiffusion.load("tiny")
    energies = calm_energy(clean_drawings(sd, 40, 11)).view(len(world.BACKGROUNDS), -1).mean(1)
    values = {name: float(f"{e:.4g}") for name, e in zip(world.BACKGROUNDS, energies.tolist(), strict=True)}
    write_json(options.out, {"command": "python -m minibnn.metrics", "calm_energy": values})
    _clean.cache_clear()

    training = reconstruct(sd, to_tensor([world.draw(scene) for scene in world.dog_scenes()]))
    same = torch.cat([dogs(b, 8, 21) for b in world.BACKGROUNDS])
    other = torch.cat([dogs(b, 8, 21, (200, 180, 60), (60, 40, 160)) for b in world.BACKGROUNDS])
    rest = to_tensor([world.draw(s) for s in random_scenes(160, 22)])
    generator = torch.Generator().manual_seed(0)
    rows = {
        "the training pictures, decoded": training,
        "the dog elsewhere": same,
        "… through the VAE": reconstruct(sd, same),
        "the dog in other colours": other,
        "other drawings": rest,
        "other drawings through the VAE": reconstruct(sd, rest),
    }
    through = rows["… through the VAE"]
    for amount in (1.0, 2.0):
        rows[f"… blurred by {amount:g} pixels"] = blur(through, amount)
    for amount in (0.02, 0.05, 0.1, 0.2):
        rows[f"… + white noise of {amount}"] = white_noise(through, amount, generator).clamp(-1, 1)
    for amount in (0.05, 0.1, 0.2, 0.4):
        rows[f"… + blotches of {amount}"] = blotches(through, amount, generator).clamp(-1, 1)
    print(f"{'pictures':34s} fidelity nearest  noise ± one picture  Immerkær  diversity  dog  background")
    for name, images in rows.items():
        mean, nearest = fidelity(images, training)
        grain, seen = noise(images), judge(images)
        asked = [b for b in world.BACKGROUNDS for _ in range(8)]
        right = sum(a == b for a, b in zip(asked, seen["background"], strict=False)) / 80 if len(images) == 80 else math.nan
        dog = seen["subject"].count("dog") / len(images)
        print(
            f"{name:34s} {mean.mean():7.3f} {nearest.mean():7.3f} {grain.mean():7.2f} ± {grain.std():5.2f}"
            f"      {immerkaer(images).mean():7.4f}   {diversity(images):7.3f}  {dog:5.0%}  {right:5.0%}"
        )


def main():
    parser = argparse.ArgumentParser(prog="python -m minibnn.metrics", description="Show what each measure sees.")
    parser.add_argument("--out", type=Path, default=ASSETS / "clean.json", help="where the clean level goes [assets/clean.json]")
    run(validate, parser.parse_args())


if __name__ == "__main__":
    main()
