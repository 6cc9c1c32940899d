"""Measures of pictures of the bundled world: fidelity, prompt fidelity, noise, diversity.

Follows: the paper's App. G, with small networks of this world in place of Dino, Clip and Lpips, which measure
photographs (`minibnn/photo/measures.py`).

    fidelity          The cosine to the training pictures in the features of `eye.Eye`, −1 … 1 (Dino, Clip-I): the mean
                      over all of them, as in the paper, and that of the nearest, which memorisation raises.
    prompt fidelity   The share of the pictures on which a classifier recognises what was asked for, 0 … 1 (Clip-T).
    noise             The high-frequency energy of the calmest 60 % of the pixels, in 10⁻³, minus that of clean drawings
                      with the same background. So neither outlines nor the background's texture count.
    immerkaer         The standard deviation of the noise, estimated from the picture alone (Immerkær 1996).
    diversity         1 minus the mean cosine between pictures of one prompt, 0 … 2 (Lpips).

Pictures are (B, 3, 64, 64) in [-1, 1].

But: fidelity goes by colours: it rates the dog in other colours as low as any other subject. Noise is too small where
blotches are so strong (0.3 and more) that the classifier takes the background for another one. A subject with spots has
more noise although nothing is wrong with the picture: the tutorials' dog has 0.5 more. Immerkær's estimate counts
texture as noise, and does not see blotches.

    python -m minibnn world-measures        shows what each measure sees, and writes assets/clean.json again
"""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from ..devices import choose_threads, threads_kept
from ..files.store import ASSETS, read_json, write_json
from ..files.weights import read_tensors
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from . import scenes as world
from .classifier import ATTRIBUTES, Classifier, random_scenes, reconstruct, words_seen
from .damage import blotches, blur, white_noise
from .eye import bundled_eye

CALM = 0.6  # the share of the pixels, the calmest, whose energy is noise and not outline


@torch.no_grad()
def features(images):
    """The features of the bundled eye as unit vectors: (B, 128)."""
    return torch.cat([F.normalize(bundled_eye()(part), dim=1) for part in images.split(64)])


def fidelity(images, training):
    """Cosine of each of B pictures to n training pictures: (the mean over all n, that of the nearest), each (B,).

    Pass the training pictures as the VAE decodes them: the UNet cannot be better than the decoder.
    """
    cosine = features(images) @ features(training).T
    return cosine.mean(1), cosine.max(1).values


def diversity(images):
    """1 minus the mean cosine over all pairs of different pictures of one prompt, B ≥ 2: a number."""
    cosine = features(images) @ features(images).T
    n = len(images)
    return 1 - ((cosine.sum() - cosine.trace()) / (n * (n - 1))).item()


@cache
def classifier():
    """The classifier that comes with minibnn, in evaluation mode. Raises WeightsError if its file is missing."""
    network = Classifier()
    network.load_state_dict(read_tensors(ASSETS / "classifier.safetensors"))
    return network.eval().requires_grad_(False)


def recognise(images):
    """What the classifier sees on each picture: {"subject", "colour", "background": list of B words}."""
    return words_seen(classifier(), images)


def prompt_fidelity(images, wanted):
    """Does each picture show what was asked for? wanted: B dicts such as {"subject": "dog", "background": "snow"}.

    Returns {attribute: list of B values: True, False, or None where nothing was asked for}.
    """
    seen = recognise(images)
    return {
        name: [None if name not in want else want[name] == word for want, word in zip(wanted, seen[name], strict=True)]
        for name in ATTRIBUTES
    }


def calm_energy(images):
    """The energy of what a blur of 3 pixels removes, in the calmest 60 % of the pixels: (B,).

    Two bands are ranked separately: fine grain (removed by a blur of 1 pixel), and blotches a few pixels wide.
    """
    soft = blur(images, 1.0)
    bands = (images - soft, soft - blur(images, 3.0))
    energies = [band.square().mean(1).flatten(1).sort(1).values for band in bands]
    return sum(e[:, : int(CALM * e.shape[1])].mean(1) for e in energies)


@cache
def _clean():
    return read_json(ASSETS / "clean.json")["calm_energy"]


def noise(images):
    """1000 × (`calm_energy` − that of clean drawings with the background that the classifier recognises): (B,)."""
    expected = torch.tensor([_clean()[background] for background in recognise(images)["background"]])
    return 1000 * (calm_energy(images) - expected)


def immerkaer(images):
    """σ = √(π/2) · Σ|x ∗ N| / (6 (W−2) (H−2)), the mean over the colours: (B,).   (Immerkær 1996, eq. 4)

    The mask N gives 0 on planes.
    """
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=images.dtype)
    b, c, h, w = images.shape
    response = F.conv2d(images.reshape(b * c, 1, h, w), mask[None, None])
    return math.sqrt(math.pi / 2) * response.abs().sum((1, 2, 3)).view(b, c).mean(1) / (6 * (w - 2) * (h - 2))


# --- command ----------------------------------------------------------------------------------------------------------


def clean_drawings(sd, each, seed):
    """`each` random drawings with every background in turn, through the VAE: (10·each, 3, 64, 64)."""
    rng, drawn = np.random.default_rng(seed), []
    for background in world.BACKGROUNDS:
        for _ in range(each):
            words = (str(rng.choice(world.SUBJECTS)), str(rng.choice(list(world.COLOURS))), background)
            drawn.append(world.draw(world.pose(world.Scene(*words), rng)))
    return reconstruct(sd, to_tensor(drawn))


def dogs(background, count, seed, main=None, accent=None):
    """New pictures of the tutorials' dog on one background, in its own or in other colours: (count, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    scene = world.Scene("dog", "blue", background, spotted=True)
    return to_tensor([world.draw(world.pose(scene, rng), main, accent) for _ in range(count)])


@threads_kept()
def validate(options):
    """Print all measures of damaged pictures; write the energy of clean drawings if MeasuresOptions.out is given."""
    sd = StableDiffusion.load("tiny")
    choose_threads("cpu", sd.unet)
    energies = calm_energy(clean_drawings(sd, 40, 11)).view(len(world.BACKGROUNDS), -1).mean(1)
    values = {name: float(f"{e:.4g}") for name, e in zip(world.BACKGROUNDS, energies.tolist(), strict=True)}
    if options.out:
        command = "python -m minibnn world-measures --out minibnn/assets/clean.json"
        write_json(options.out, {"command": command, "calm_energy": values})
        _clean.cache_clear()

    training = reconstruct(sd, to_tensor([world.draw(scene) for scene in world.dog_scenes()]))
    same = torch.cat([dogs(b, 8, 21) for b in world.BACKGROUNDS])
    other = torch.cat([dogs(b, 8, 21, (200, 180, 60), (60, 40, 160)) for b in world.BACKGROUNDS])
    rest = to_tensor([world.draw(s) for s in random_scenes(160, 22)])
    decoded = reconstruct(sd, same)
    rows = {
        "the training pictures, decoded": training, "the dog elsewhere": same, "… through the VAE": decoded,
        "the dog in other colours": other, "other drawings": rest,
        "other drawings through the VAE": reconstruct(sd, rest),
    }
    rows |= {f"… blurred by {sigma:g} pixels": blur(decoded, sigma) for sigma in (1.0, 2.0)}
    generator = torch.Generator().manual_seed(0)
    amounts = {"white noise": (white_noise, 0.02, 0.05, 0.1, 0.2), "blotches": (blotches, 0.05, 0.1, 0.2, 0.4)}
    for name, (damage, *levels) in amounts.items():
        rows |= {f"… + {name} of {level}": damage(decoded, level, generator).clamp(-1, 1) for level in levels}
    print(f"{'pictures':34s} fidelity nearest  noise ± one picture  Immerkær  diversity  dog")
    for name, images in rows.items():
        mean, nearest = fidelity(images, training)
        grain, dog = noise(images), recognise(images)["subject"].count("dog") / len(images)
        print(
            f"{name:34s} {mean.mean():7.3f} {nearest.mean():7.3f} {grain.mean():7.2f} ± {grain.std():5.2f}"
            f"      {immerkaer(images).mean():7.4f}   {diversity(images):7.3f}  {dog:5.0%}"
        )
