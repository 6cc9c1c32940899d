"""Checks of 06_guidance."""

import torch

from . import Mistake, compare, exercise, random

WRONG, RIGHT = {}, {}


@exercise
def check_guide(fn):
    eps_u, eps_c, scale = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), 2.5
    compare(
        fn(eps_u, eps_c, scale),
        eps_u + scale * (eps_c - eps_u),
        {
            "start from the unconditional prediction, not from the conditional one": eps_c + scale * (eps_c - eps_u),
            "the direction is wrong: away from the unconditional prediction, ε_c − ε_u":
                eps_u + scale * (eps_u - eps_c),
            "the unconditional prediction has the weight 1 − w, not w − 1": scale * eps_c + (scale - 1) * eps_u,
            "this mixes with weights w and 1 − w the wrong way round": scale * eps_u + (1 - scale) * eps_c,
            "only the difference: add it to ε_u": scale * (eps_c - eps_u),
            "the weights must add up to 1, so ε_u has 1 − w: here too much of it is left": eps_u + scale * eps_c,
        },
        "ε̂",
    )


WRONG["guide"] = [
    (lambda eps_u, eps_c, scale: eps_c + scale * (eps_c - eps_u), "start from the unconditional"),
    (lambda eps_u, eps_c, scale: scale * eps_c + (scale - 1) * eps_u, "1 − w, not w − 1"),
    (lambda eps_u, eps_c, scale: eps_u + scale * (eps_u - eps_c), "direction"),
    (lambda eps_u, eps_c, scale: scale * (eps_c - eps_u), "add it to ε_u"),
    (lambda eps_u, eps_c, scale: scale * eps_u + (1 - scale) * eps_c, "wrong way round"),
    (lambda eps_u, eps_c, scale: eps_u + scale * eps_c, "add up to 1"),
]
RIGHT["guide"] = [lambda eps_u, eps_c, scale: eps_c.sub_(eps_u).mul_(scale).add_(eps_u)]  # in place


@exercise
def check_schedule_map(fn):
    abar, base = torch.linspace(0.99, 0.01, 300), torch.linspace(0.97, 0.03, 9) ** 2  # so coarse that each way shows

    def nearest(quantity):
        return (quantity(abar)[:, None] - quantity(base)[None]).abs().argmin(1)

    compare(
        fn(abar, base),
        (abar[:, None] - base[None]).abs().argmin(1),
        {
            "this maps the base's times to ours; we need the base's time for each of ours":
                (abar[:, None] - base[None]).abs().argmin(0),
            "nearest in variance 1 − ᾱ, not in its root": nearest(lambda a: (1 - a).sqrt()),
            "nearest in variance 1 − ᾱ, not in √ᾱ": nearest(torch.sqrt),
            "nearest in variance 1 − ᾱ, not in the ratio of noise and picture, √((1−ᾱ)/ᾱ)":
                nearest(lambda a: ((1 - a) / a).sqrt()),
            "nearest in variance 1 − ᾱ, not in the logarithm of the ratio of picture and noise":
                nearest(lambda a: (a / (1 - a)).log()),
            "the distance has no sign: compare absolute values": (abar[:, None] - base[None]).argmin(1),
            "these are the smallest distances; the time asked is where it is smallest: argmin, not min":
                (abar[:, None] - base[None]).abs().min(1).values,
            "this is the largest distance: argmin, not argmax": (abar[:, None] - base[None]).abs().argmax(1),
            "the times themselves are kept: look for the base's nearest variance": torch.arange(300),
            "the base's time must be nearest on both sides; this is the first that is at least as noisy":
                torch.searchsorted(1 - base, 1 - abar).clamp(max=8),
        },
        "τ",
    )


WRONG["schedule_map"] = [
    (lambda abar, base: (abar[:, None] - base[None]).abs().argmin(0), "each of ours"),
    (lambda abar, base: torch.arange(len(abar)), "the times themselves"),
    (lambda abar, base: ((1 - abar).sqrt()[:, None] - (1 - base).sqrt()[None]).abs().argmin(1), "not in its root"),
    (lambda abar, base: (abar.sqrt()[:, None] - base.sqrt()[None]).abs().argmin(1), "not in √ᾱ"),
    (lambda abar, base: ((1 / abar - 1).sqrt()[:, None] - (1 / base - 1).sqrt()[None]).abs().argmin(1), "the ratio"),
    (lambda abar, base: (abar[:, None] - base[None]).argmin(1), "absolute values"),
    (lambda abar, base: torch.searchsorted(1 - base, 1 - abar).clamp(max=len(base) - 1), "both sides"),
    (lambda abar, base: (abar[:, None] - base[None]).abs().min(1).values, "where it is smallest"),
]
RIGHT["schedule_map"] = [lambda abar, base: (abar[:, None] - base[None]).square().argmin(1)]


@exercise
def check_base_eps(fn):
    x, v = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    abar, base = torch.linspace(0.999, 0.9, 20).cumprod(0), torch.linspace(0.9995, 0.96, 50).cumprod(0)
    t, tau, asked = 12, int((abar[12] - base).abs().argmin()), []

    def network(x, time):
        asked.append((x.clone(), torch.as_tensor(time).flatten()))
        return v

    got = fn(network, x, t, torch.arange(50)[[tau] * 20], base)
    if not asked:
        raise Mistake("the base was not asked: call network(x, time)")
    seen, times = asked[0]
    if len(times) and bool((times == t).all()):
        raise Mistake("the base was asked at our time t: its own time of the same noise is tau[t]")
    if not len(times) or not bool((times == tau).all()):
        raise Mistake(f"the base was asked at {times.tolist()}, tau[t] is {tau}")
    if seen.shape != x.shape or not torch.equal(seen, x):
        raise Mistake("the base sees x as it is: neither empty nor rescaled")
    right = base[tau]
    compare(
        got,
        right.sqrt() * v + (1 - right).sqrt() * x,
        {
            "the network says v; convert it to ε": v,
            "use the base's ᾱ at τ, not at t": base[t].sqrt() * v + (1 - base[t]).sqrt() * x,
            "this is x_0 = √ᾱ·x − √(1−ᾱ)·v, not ε": right.sqrt() * x - (1 - right).sqrt() * v,
            "a plus stands between them: ε = √ᾱ·v + √(1−ᾱ)·x": right.sqrt() * v - (1 - right).sqrt() * x,
            "the factors are swapped: v has √ᾱ, x has √(1−ᾱ)": (1 - right).sqrt() * v + right.sqrt() * x,
            "the roots are missing: ε = √ᾱ·v + √(1−ᾱ)·x": right * v + (1 - right) * x,
        },
        "ε_ψ",
    )


def _base_eps(network, x, t, tau, abar_base, at=None):
    v = network(x, tau[t])
    abar = abar_base[tau[t] if at is None else at]
    return abar.sqrt() * v + (1 - abar).sqrt() * x


WRONG["base_eps"] = [
    (lambda network, x, t, tau, abar_base: network(x, t), "our time t"),
    (lambda network, x, t, tau, abar_base: network(x, tau[t]), "convert it"),
    (lambda network, x, t, tau, abar_base: _base_eps(network, x, t, tau, abar_base, t), "ᾱ at τ"),
    (lambda network, x, t, tau, abar_base: x, "not asked"),
    (lambda network, x, t, tau, abar_base: _base_eps(lambda _, time: network(0 * x, time), x, t, tau, abar_base),
     "as it is"),
    (lambda network, x, t, tau, abar_base: _base_eps(lambda _, s: network(x / 2, s), x, t, tau, abar_base), "as it is"),
    (lambda network, x, t, tau, abar_base: (1 - abar_base[tau[t]]).sqrt() * network(x, tau[t])
     + abar_base[tau[t]].sqrt() * x, "factors are swapped"),
    (lambda network, x, t, tau, abar_base: abar_base[tau[t]].sqrt() * x
     - (1 - abar_base[tau[t]]).sqrt() * network(x, tau[t]), "this is x_0"),
    (lambda network, x, t, tau, abar_base: abar_base[tau[t]] * network(x, tau[t]) + (1 - abar_base[tau[t]]) * x,
     "roots are missing"),
]
RIGHT["base_eps"] = [
    lambda network, x, t, tau, abar_base: _base_eps(
        lambda x, time: network(x, torch.full((len(x),), int(time))), x, t, tau, abar_base
    ),
]


@exercise
def check_guide_two(fn):
    eps_u, eps_1, eps_12 = (random(2, 4, 3, 3, seed=i) for i in range(3))
    compare(
        fn(eps_u, eps_1, eps_12, 1.5, 4.0),
        eps_u + 1.5 * (eps_1 - eps_u) + 4.0 * (eps_12 - eps_1),
        {
            "the second arrow begins where the first ends, at ε_1, not at ε_u":
                eps_u + 1.5 * (eps_1 - eps_u) + 4.0 * (eps_12 - eps_u),
            "the scales are swapped": eps_u + 4.0 * (eps_1 - eps_u) + 1.5 * (eps_12 - eps_1),
            "begin at ε_u": 1.5 * (eps_1 - eps_u) + 4.0 * (eps_12 - eps_1),
            "the first arrow has its own scale, scale_1": eps_1 + 4.0 * (eps_12 - eps_1),
            "the first condition's arrow is missing": eps_u + 4.0 * (eps_12 - eps_1),
            "the second arrow goes from ε_1 to ε_12, not from where the first arrow has led to ε_12":
                eps_u + 1.5 * (eps_1 - eps_u) + 4.0 * (eps_12 - eps_u - 1.5 * (eps_1 - eps_u)),
        },
        "ε̂",
    )


WRONG["guide_two"] = [
    (lambda u, one, both, a, b: u + a * (one - u) + b * (both - u), "at ε_1"),
    (lambda u, one, both, a, b: u + b * (one - u) + a * (both - one), "swapped"),
    (lambda u, one, both, a, b: u + b * (both - one), "missing"),
    (lambda u, one, both, a, b: (1 - b) * (u + a * (one - u)) + b * both, "where the first arrow has led"),
    (lambda u, one, both, a, b: a * (one - u) + b * (both - one), "begin at ε_u"),
    (lambda u, one, both, a, b: one + b * (both - one), "scale_1"),
]
RIGHT["guide_two"] = [lambda u, one, both, a, b: (1 - a) * u + (a - b) * one + b * both]
