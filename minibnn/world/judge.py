"""A judge of few-shot subjects: which subject, coat and background does a drawing show?

The coat is one of the world's colours, "spotted" as the few-shot subjects are (teal with white spots and magenta
parts), or "other". A blue dog without spots, or a spotted one in other colours, is thus not taken for the subject.
The judge is trained on fresh drawings alone: it never sees a picture that a network has drawn.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ..pictures import to_tensor
from . import scenes as world
from .classifier import ATTRIBUTES, Classifier, blur_and_noise, fit_on_world, random_scenes, words_seen

COATS = (*world.COLOURS, "spotted", "other")
JUDGED = {"subject": ATTRIBUTES["subject"], "coat": COATS, "background": ATTRIBUTES["background"]}


def dress(scene, rng):
    """A scene's picture, and its coat: every third animal is spotted as the few-shot subjects are, others differ.

    A fifth of all scenes are decoys: spots in random colours, or teal without spots.
    """
    animal, chance = scene.subject in world.ANIMALS, rng.random()
    if animal and chance < 0.33:
        return world.draw(replace(scene, spotted=True)), "spotted"
    if chance > 0.8:
        main, accent = (tuple(int(c) for c in rng.integers(10, 250, 3)) for _ in range(2))
        plain = not animal or rng.random() < 0.5
        colours = (world.TEAL, None) if plain else (main, accent)
        return world.draw(replace(scene, spotted=not plain), *colours), "other"
    return world.draw(scene), scene.colour


def dressed(scenes, seed):
    """Pictures of the scenes (B, 3, 64, 64) in [-1, 1], and what they show: {attribute: (B,) int64}."""
    rng = np.random.default_rng(seed)
    pictures, coats = zip(*(dress(scene, rng) for scene in scenes), strict=True)
    shown = {"subject": [s.subject for s in scenes], "coat": coats, "background": [s.background for s in scenes]}
    return to_tensor(pictures), {
        name: torch.tensor([JUDGED[name].index(word) for word in words]) for name, words in shown.items()
    }


def train_judge(path, steps=1500, batch=48):
    """The judge, trained or read from `path`. Raises UserError as `fit_on_world`."""

    def loss_of(judge, scenes, generator):
        images, target = dressed(scenes, generator.initial_seed())
        logits = judge(blur_and_noise(images, generator))
        return sum(F.cross_entropy(logits[name], target[name]) for name in JUDGED)

    return fit_on_world(partial(Classifier, JUDGED), path, steps, batch, 12, 2e-3, loss_of)


def judged(judge, images):
    """What the judge sees on each picture: {"subject", "coat", "background": list of B words}."""
    return words_seen(judge, images, JUDGED)


def validated(judge, count=400, seed=13):
    """On new drawings: {attribute: share named rightly}, and the same of the spotted animals in every place.

    Returns ({"subject", "coat", "background": share}, share of few-shot subjects for which all three are right).
    """
    scenes = random_scenes(count, seed)
    images, target = dressed(scenes, seed)
    seen = judged(judge, images)
    right = {
        name: float(np.mean([JUDGED[name][i] == word for i, word in zip(target[name], seen[name], strict=True)]))
        for name in JUDGED
    }
    rng = np.random.default_rng([seed, 1])
    few = [world.pose(world.Scene(a, "blue", b, spotted=True), rng) for a in world.ANIMALS for b in world.BACKGROUNDS]
    seen = judged(judge, to_tensor([world.draw(scene) for scene in few]))
    whole = [
        (scene.subject, "spotted", scene.background) == words
        for scene, words in zip(few, zip(*seen.values(), strict=True), strict=True)
    ]
    return right, float(np.mean(whole))
