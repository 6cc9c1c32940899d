"""Checks of 09_bps."""

import torch
import torch.nn.functional as F

from . import Mistake, compare, equal, exercise, random

WRONG, RIGHT = {}, {}


def _steering(z, y, abar, a, noise, power=0.5, sign=-1.0, root=True, variance=None):
    variance = (1 - abar) * a**2 + noise**2 if variance is None else variance
    inner = abar**0.5 if root else 1.0
    return sign * (1 - abar) ** power * inner * a * (y - inner * a * z) / variance


@exercise
def check_steering_term(fn):
    z, y, abar, a, noise = random(6), random(6, seed=1), 0.6, 1.3, 0.4
    right = _steering(z, y, abar, a, noise)
    compare(
        fn(z, y, abar, a, noise),
        right,
        {
            "the sign: ε points away from the data, the gradient of log p towards it, so M = −√(1−ᾱ)·∇": -right,
            "this is the gradient of log p(y | z_t) itself; ε is −√(1−ᾱ) times a gradient": -right / (1 - abar) ** 0.5,
            "y given z_t is less certain than y given z_0: its variance is a²(1−ᾱ) + noise²": _steering(
                z, y, abar, a, noise, variance=torch.tensor(noise**2)
            ),
            "the mean of z_0 given z_t is √ᾱ z_t, not z_t": _steering(z, y, abar, a, noise, root=False),
            "the factor is √(1−ᾱ), not 1 − ᾱ": _steering(z, y, abar, a, noise, power=1.0),
            "noise is a standard deviation: square it":
                _steering(z, y, abar, a, noise, variance=(1 - abar) * a**2 + noise),
            "the inner derivative is missing: d(√ᾱ a z)/dz = √ᾱ a": right / (abar**0.5 * a),
            "of the inner derivative √ᾱ a the factor a is missing": right / a,
            "of the inner derivative √ᾱ a the factor √ᾱ is missing": right / abar**0.5,
            "a scales z_0: its variance enters with a², not with a":
                _steering(z, y, abar, a, noise, variance=a * (1 - abar) + noise**2),
        },
        "M",
    )


WRONG["steering_term"] = [
    (lambda z, y, abar, a, noise: -_steering(z, y, abar, a, noise), "sign"),
    (lambda z, y, abar, a, noise: -_steering(z, y, abar, a, noise) / (1 - abar) ** 0.5, "log p(y | z_t) itself"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise, variance=torch.tensor(noise**2)), "less certain"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise) / (abar**0.5 * a), "inner derivative is missing"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise) / a, "the factor a"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise) / abar**0.5, "the factor √ᾱ"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise, variance=a * (1 - abar) + noise**2), "with a², not"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise, root=False), "not z_t"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise, variance=(1 - abar) * a**2 + noise), "square it"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise, power=1.0), "not 1 − ᾱ"),
    (lambda z, y, abar, a, noise: _steering(z, y, abar, a, noise) * (1 - abar) ** -0.5, "a constant factor"),
]


@exercise
def check_pixels_to_channels(fn):
    hint, factor = random(2, 3, 8, 12), 4
    tiles = hint.unflatten(3, (3, 4)).unflatten(2, (2, 4))  # (B, C, h, f, w, f)
    compare(
        fn(hint, factor),
        F.pixel_unshuffle(hint, factor),
        {
            "within a channel, first the rows of a tile, then its columns: you swapped the two":
                tiles.permute(0, 1, 5, 3, 2, 4).flatten(1, 3),
            "each colour keeps its f² pixels together: the colour comes before the place in the tile":
                tiles.permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
            "that is a mean over each tile: the sketch's lines would be gone": F.avg_pool2d(hint, factor),
            "a reshape alone tears the tiles apart: split H and W into (places, factor), permute, then flatten":
                hint.reshape(2, 48, 2, 3),
        },
        "the rearranged hint",
    )
    for factor in (2, 3):
        hint = random(1, 2, 2 * factor, 3 * factor)
        if not equal(fn(hint, factor), F.pixel_unshuffle(hint, factor)):
            raise Mistake(f"right for the factor 4, wrong for {factor}: use factor")


WRONG["pixels_to_channels"] = [
    (lambda hint, f: hint.unflatten(3, (-1, f)).unflatten(2, (-1, f)).permute(0, 1, 5, 3, 2, 4).flatten(1, 3),
     "swapped"),
    (lambda hint, f: hint.unflatten(3, (-1, f)).unflatten(2, (-1, f)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
     "colour comes before"),
    (lambda hint, f: F.avg_pool2d(hint, f), "mean"),
    (lambda hint, f: hint, "shape"),
    (lambda hint, f: hint.reshape(len(hint), -1, hint.shape[2] // f, hint.shape[3] // f), "reshape alone"),
    (lambda hint, f: F.pixel_unshuffle(hint, 4) if hint.shape[2] % 4 == 0 else hint, "use factor"),
    (lambda hint, f: hint[:, :, ::f, ::f], "shape"),
]
RIGHT["pixels_to_channels"] = [F.pixel_unshuffle]


def _blocks():
    return [lambda h: h + torch.tanh(h), lambda h: 0.5 * h**2, lambda h: torch.sin(h) - h]


def _run(blocks, features, h, place):
    for block, feature in zip(blocks, features, strict=True):
        feature = 0 if feature is None or place == "none" else feature
        h = block(h + feature) if place == "before" else block(h) + feature
    return h


@exercise
def check_run_steered(fn):
    blocks, h = _blocks(), random(2, 3)
    features = [random(2, 3, seed=1), None, random(2, 3, seed=2)]
    at_end = _run(blocks, [None] * 3, h, "none") + features[0] + features[2]
    compare(
        fn(blocks, features, h),
        _run(blocks, features, h, "after"),
        {
            "the feature is added to the *output* of the block, not to its input": _run(blocks, features, h, "before"),
            "all features are added at the very end: then the later blocks cannot answer to them": at_end,
            "the features are not used": _run(blocks, features, h, "none"),
            "the blocks run in their order, the first block first": _run(blocks[::-1], features[::-1], h, "after"),
            "None means: nothing is added here; the block still runs": _skipping(blocks, features, h),
        },
        "the result",
    )


def _skipping(blocks, features, h):
    for block, feature in zip(blocks, features, strict=True):
        if feature is not None:
            h = block(h) + feature
    return h


WRONG["run_steered"] = [
    (lambda blocks, features, h: _run(blocks, features, h, "before"), "*output*"),
    (lambda blocks, features, h: _run(blocks, [None] * 3, h, "none") + features[0] + features[2], "very end"),
    (_skipping, "still runs"),
    (lambda blocks, features, h: [b(h) + f if f else b(h) for b, f in zip(blocks, features, strict=True)], "`is None`"),
    (lambda blocks, features, h: _run(blocks, features, h, "none"), "not used"),
    (lambda blocks, features, h: _run(blocks[::-1], features[::-1], h, "after"), "the first block first"),
]


@exercise
def check_guided_eps(fn):
    def eps(prompt, hint):
        """A network whose answer depends on both, and not as a sum."""
        prompts = {"": 0.3, "a dog": 1.1}
        return prompts[prompt] * base + (0 if hint is None else (1 + prompts[prompt]) * torch.tanh(hint))

    base, hint, w = random(2, 3), random(2, 3, seed=1), 3.0
    empty, full = eps("", hint), eps("a dog", hint)
    compare(
        fn(eps, "a dog", hint, w),
        empty + w * (full - empty),
        {
            "the hint is missing in the unconditional prediction: BPS keeps it in both, guidance is on the text alone":
                eps("", None)
            + w * (full - eps("", None)),
            "the factors add up to more than 1: ε(∅) + w·(ε(c) − ε(∅))": empty + w * full,
            "1 + w is another convention; here w = 1 is no guidance": empty + (1 + w) * (full - empty),
            "this is guidance on the hint: leave out the prompt, not the hint":
                eps("a dog", None) + w * (full - eps("a dog", None)),
            "this is the prediction without guidance, w = 1": full,
            "the roles are swapped: go from the empty prompt towards the prompt": full + w * (empty - full),
        },
        "ε̂",
    )


WRONG["guided_eps"] = [
    (lambda eps, prompt, hint, w: eps("", None) + w * (eps(prompt, hint) - eps("", None)), "hint is missing"),
    (lambda eps, prompt, hint, w: eps("", hint) + (1 + w) * (eps(prompt, hint) - eps("", hint)), "another convention"),
    (lambda eps, prompt, hint, w: eps(prompt, hint) + w * (eps("", hint) - eps(prompt, hint)), "swapped"),
    (lambda eps, prompt, hint, w: eps("", hint) + w * eps(prompt, hint), "more than 1"),
    (lambda eps, prompt, hint, w: eps(prompt, None) + w * (eps(prompt, hint) - eps(prompt, None)), "on the hint"),
    (lambda eps, prompt, hint, w: eps(prompt, hint), "without guidance"),
]
