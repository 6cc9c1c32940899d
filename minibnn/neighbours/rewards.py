"""Rewards: plain functions of pictures and their prompts, (list of n PIL pictures, list of n strings) -> n numbers.

Those of the picture world read the pixels, so that they need no network and can be checked against the world's own
scenes. For photographs `--reward clip:FOLDER` is the CLIP score: the cosine of picture and prompt in openai/clip-vit-*;
`--reward aesthetic:FOLDER` is what LAION's aesthetic predictor v2 says of the picture alone, about 1..10.
A reward of your own is a function in a file: `--reward mine.py:beauty`.
"""

import runpy
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from ..photo import loading, measures


def _red(picture):
    """Which pixels are the world's red, lit or in shade: (H, W) bool."""
    r, g, b = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    return (r - np.maximum(g, b) > 80) & (np.abs(g - b) < 60)


def _on_grass(picture):
    """True if the outermost sixteenth of the picture is green nearly everywhere."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    margin = max(1, min(pixels.shape[:2]) // 16)
    edge = np.ones(pixels.shape[:2], bool)
    edge[margin:-margin, margin:-margin] = False
    r, g, b = pixels[edge].T
    return (g - np.maximum(r, b) > 25).mean() > 0.9


def red_thing_on_grass(pictures, prompts):
    """1 if something red (2 % of the pixels or more) is on the grass, else 0."""
    return [float(_on_grass(picture) and _red(picture).mean() > 0.02) for picture in pictures]


def redness(pictures, prompts):
    """Share of red pixels, 0..1."""
    return [_red(picture).mean() for picture in pictures]


# --- finding and calling one ------------------------------------------------------------------------------------------


def clip_score(folder, device="cpu"):
    """The CLIP score as a reward, −1 … 1. folder: a CLIPModel with its processor and vocabulary. Raises UserError."""
    clip = loading.load_clip(folder, device)

    def score(pictures, prompts):
        return measures.clip_t(measures.clip_pictures(pictures, clip), measures.clip_prompts(prompts, clip))

    return score


def aesthetic(folder, device="cpu"):
    """LAION's aesthetic score as a reward, about 1..10. folder: CLIP ViT-L/14, with the head. Raises UserError."""
    head, clip = loading.load_aesthetic_head(folder), loading.load_clip(folder, device)
    if clip.model.config.projection_dim != head.layers["0"].in_features:
        raise UserError(f"{folder} holds a CLIP of another size than ViT-L/14, on which the aesthetic head was trained")

    @torch.no_grad()
    def score(pictures, prompts):
        return head(measures.clip_pictures(pictures, clip))

    return score


NETWORKS = {"clip": clip_score, "aesthetic": aesthetic}  # rewards whose networks come from a folder


def load_reward(name, device="cpu"):
    """A function of this file by its name, "clip:FOLDER", "aesthetic:FOLDER" or "file.py:function". Raises UserError.

    device: where CLIP computes.
    """
    kind, _, folder = name.partition(":")
    if kind in NETWORKS and folder:
        try:
            return NETWORKS[kind](folder, device)
        except UserError as error:
            raise UserError(f"--reward {name}: {error}") from None
    own = {function.__name__: function for function in (red_thing_on_grass, redness)}
    if ":" not in name:
        if name not in own:
            raise UserError(f"--reward {name} is not one of {', '.join(own)}; clip:FOLDER; aesthetic:FOLDER; "
                            "your own: file.py:function")
        return own[name]
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"--reward {name}: no file {path}")
    try:
        found = runpy.run_path(path).get(function)
    except (Exception, SystemExit) as error:
        raise UserError(f"--reward {name}: {path} fails: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"--reward {name}: there is no function {function} in {path}")
    return found


def rewards_of(reward, pictures, prompts):
    """Rewards of n pictures: (n,) float64. Raises UserError if the function fails or does not give n finite numbers."""
    name = f"reward {getattr(reward, '__name__', reward)}"
    try:
        rewards = torch.as_tensor(reward(pictures, prompts), dtype=torch.float64).detach().cpu()
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} fails: {type(error).__name__}: {error}") from error
    n = len(pictures)
    if rewards.shape != (n,):
        raise UserError(f"{name} gave shape {tuple(rewards.shape)} for {n} pictures, not ({n},)")
    bad = (~rewards.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        first, count = bad[0], len(bad)
        raise UserError(f"{name} is {rewards[first]} for {count} of {n} pictures, first for {prompts[first]!r}")
    return rewards
