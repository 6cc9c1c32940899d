"""Checks of 02_corruption_equations."""

import math
from itertools import product

import torch

from . import Mistake, compare, exercise, random

WRONG = {}
RIGHT = {}


@exercise
def check_joint_covariance(fn):
    a, s = torch.tensor(0.7), 0.6
    v, root = s**2, a.sqrt()

    def matrix(corner, cross, last):
        return torch.stack([torch.stack([torch.as_tensor(corner), cross]), torch.stack([cross, last])])

    last, cross = a * v + 1 - a, root * v
    corner = torch.tensor(v)
    compare(
        fn(a, s),
        matrix(corner, cross, last),
        {
            "Var(x_t) lacks the noise: √(1−ᾱ) ε adds 1 − ᾱ": matrix(corner, cross, a * v),
            "Var(x_t): the factor √ᾱ is squared, too: ᾱσ₁²": matrix(corner, cross, root * v + 1 - a),
            "Var(x_t): the noise has the factor √(1−ᾱ), so its variance is 1 − ᾱ":
                matrix(corner, cross, a * v + (1 - a).sqrt()),
            "Cov(x_0, x_t) is negative here, but x_t contains +√ᾱ x_0": matrix(corner, -cross, last),
            "Cov(x_0, x_t): x_t contains √ᾱ x_0, not ᾱ x_0": matrix(corner, a * v, last),
            "x_0 and x_t are not independent: x_t contains √ᾱ x_0": matrix(corner, 0 * cross, last),
            "σ₁ is a standard deviation: variances have σ₁²": [
                matrix(torch.tensor(p), root * q, a * r + 1 - a)
                for p, q, r in product((s, v), repeat=3) if (p, q, r) != (v, v, v)
            ],
            "Var(x_t): √ᾱ squared is ᾱ, not ᾱ²": matrix(corner, cross, a**2 * v + 1 - a),
            "this is the correlation; the covariance has the variances on its diagonal":
                matrix(torch.ones(()), cross / (v * last).sqrt(), torch.ones(())),
            "the diagonal has variances, not standard deviations": matrix(torch.tensor(s), cross, last.sqrt()),
            "x_0 stands first: [[Var x_0, Cov], [Cov, Var x_t]]": matrix(last, cross, corner),
        },
        "the covariance",
    )


def _covariance(a, v, cross, noise):
    return torch.tensor([[v, cross], [cross, float(a) * v + noise]], dtype=torch.float64)


WRONG["joint_covariance"] = [
    (lambda a, s: _covariance(a, s**2, a.sqrt() * s**2, 0.0), "lacks the noise"),
    (lambda a, s: _covariance(a, s**2, -a.sqrt() * s**2, 1 - float(a)), "negative"),
    (lambda a, s: _covariance(a, s, a.sqrt() * s, 1 - float(a)), "standard deviation"),
    (lambda a, s: _covariance(a, s**2, a.sqrt() * s, 1 - float(a)), "σ₁ is a standard deviation"),
    (lambda a, s: _covariance(a, s**2, a * s**2, 1 - float(a)), "not ᾱ x_0"),
    (lambda a, s: _covariance(a**2, s**2, a.sqrt() * s**2, 1 - float(a)), "not ᾱ²"),
    (lambda a, s: _covariance(a, s**2, a.sqrt() * s**2, math.sqrt(1 - float(a))), "its variance is 1 − ᾱ"),
    (lambda a, s: _covariance(a, s**2, a.sqrt() * s**2, 1 - float(a)).flip(0, 1), "x_0 stands first"),
]
RIGHT["joint_covariance"] = [lambda a, s: [[s**2, a.sqrt() * s**2], [a.sqrt() * s**2, a * s**2 + 1 - a]]]


@exercise
def check_predict_x0(fn):
    x, picture, a, s = random(2, 3), random(2, 3, seed=1), torch.tensor(0.7), 0.6
    root, v = a.sqrt(), s**2
    total, rest = a * v + 1 - a, x - root * picture
    right = picture + root * v / total * rest
    compare(
        fn(x, picture, a, s),
        right,
        {
            "this is δ_t alone: x̂_0 = x′ + δ_t": right - picture,
            "x_t is compared with √ᾱ x′, its mean, not with x′": picture + root * v / total * (x - picture),
            "the slope is Cov(x_0, x_t)/Var(x_t), and Cov(x_0, x_t) = √ᾱσ₁²: a √ᾱ is missing":
                picture + v / total * rest,
            "the slope is Cov(x_0, x_t)/Var(x_t), and Cov(x_0, x_t) = √ᾱσ₁², not ᾱσ₁²": picture + a * v / total * rest,
            "σ₁ is a standard deviation: square it": picture + root * s / (a * s + 1 - a) * rest,
            "square σ₁ above and below the line":
                [picture + root * s / total * rest, picture + root * v / (a * s + 1 - a) * rest],
            "subtract the mean of x_t, √ᾱ x′, before you multiply with the slope": picture + root * v / total * x,
            "begin at the mean of x_0, x′, not at that of x_t, √ᾱ x′": root * picture + root * v / total * rest,
            "δ_t has the wrong sign: x_0 deviates from x′ to the same side as x_t": right - 2 * root * v / total * rest,
            "Var(x_t) lacks the noise, 1 − ᾱ: this is x_t/√ᾱ, the limit of σ₁ = ∞": x / root,
            "this is the mean of x_0 for σ₁ = 0; with σ₁ > 0 part of x_t's deviation is the picture's own": picture,
            "the slope is upside down: Cov(x_0, x_t)/Var(x_t), for x_t is what is known":
                picture + total / (root * v) * rest,
            "the slope is Cov(x_0, x_t)/Var(x_t), not Cov(x_0, x_t)/Var(x_0)": picture + root * rest,
        },
        "x̂_0",
    )


def _x0(x, picture, a, s):
    return picture + a.sqrt() * s**2 / (a * s**2 + 1 - a) * (x - a.sqrt() * picture)


WRONG["predict_x0"] = [
    (lambda x, p, a, s: _x0(x, p, a, s) - p, "δ_t alone"),
    (lambda x, p, a, s: p + a.sqrt() * s**2 / (a * s**2 + 1 - a) * (x - p), "its mean"),
    (lambda x, p, a, s: _x0(x, p, a, s**0.5), "square it"),
    (lambda x, p, a, s: p + s**2 / (a * s**2 + 1 - a) * (x - a.sqrt() * p), "√ᾱ is missing"),
    (lambda x, p, a, s: p + (a * s**2 + 1 - a) / (a.sqrt() * s**2) * (x - a.sqrt() * p), "upside down"),
    (lambda x, p, a, s: p + a.sqrt() * s / (a * s**2 + 1 - a) * (x - a.sqrt() * p), "above and below"),
    (lambda x, p, a, s: p + a.sqrt() * s**2 / (a * s**2 + 1 - a) * x, "subtract the mean"),
    (lambda x, p, a, s: p + a * s**2 / (a * s**2 + 1 - a) * (x - a.sqrt() * p), "not ᾱσ₁²"),
    (lambda x, p, a, s: p + a.sqrt() * (x - a.sqrt() * p), "not Cov(x_0, x_t)/Var(x_0)"),
]


def _x0_in_place(x, picture, a, s):
    x -= a.sqrt() * picture
    x *= a.sqrt() * s**2 / (a * s**2 + 1 - a)
    return picture.add_(x)


RIGHT["predict_x0"] = [_x0_in_place]


@exercise
def check_posterior_variance(fn):
    a, s = torch.tensor(0.7), 0.6
    v, root = s**2, a.sqrt()
    total = a * v + 1 - a
    compare(
        fn(a, s),
        v * (1 - a) / total,
        {
            "this is what Eq. 1 prints; its factor σ₁² is missing: try σ₁ = 0, where the variance must be 0":
                (1 - a) / total,
            "this is the standard deviation": (v * (1 - a) / total).sqrt(),
            "this is the precision; the variance is its inverse": total / (v * (1 - a)),
            "this is Var(x_0) before anything is known of x_t: knowing x_t must make it smaller": torch.tensor(v),
            "subtract Cov²/Var(x_t), not Cov/Var(x_t)": v - a.sqrt() * v / total,
            "σ₁ is a standard deviation: square it, wherever it stands": [
                s * (1 - a) / (a * s + 1 - a), s * (1 - a) / total, v * (1 - a) / (a * s + 1 - a), s - a * v**2 / total,
                s - a * s**2 / total, v - a * s**2 / (a * s + 1 - a), v - a * v**2 / (a * s + 1 - a),
            ],
            "Cov = √ᾱσ₁², so Cov² = ᾱσ₁⁴": [v - a * v / total, v - root * v**2 / total, v - a**2 * v**2 / total],
            "this is the limit σ₁ = ∞": (1 - a) / a,
            "this is what x_t tells about x_0, Cov²/Var(x_t); what is left is Var(x_0) minus that": a * v**2 / total,
            "x_0 is what is asked: this is the variance of x_t given x_0": 1 - a,
        },
        "the variance",
    )


WRONG["posterior_variance"] = [
    (lambda a, s: (1 - a) / (a * s**2 + 1 - a), "what Eq. 1 prints"),
    (lambda a, s: 1 / s**2 + a / (1 - a), "precision"),
    (lambda a, s: s**2 - a.sqrt() * s**2 / (a * s**2 + 1 - a), "Cov²"),
    (lambda a, s: s * (1 - a) / (a * s + 1 - a), "σ₁ is a standard deviation"),
    (lambda a, s: s * (1 - a) / (a * s**2 + 1 - a), "σ₁ is a standard deviation"),
    (lambda a, s: s**2 * (1 - a) / (a * s + 1 - a), "σ₁ is a standard deviation"),
    (lambda a, s: s**2 - a * s**2 / (a * s**2 + 1 - a), "ᾱσ₁⁴"),
    (lambda a, s: (s**2 * (1 - a) / (a * s**2 + 1 - a)).sqrt(), "this is the standard deviation"),
    (lambda a, s: torch.tensor(s**2), "before anything is known"),
]
RIGHT["posterior_variance"] = [
    lambda a, s: s**2 - a * s**4 / (a * s**2 + 1 - a),
    lambda a, s: 1 / (1 / s**2 + a / (1 - a)),
]


def _cosines(x, pictures):
    return torch.nn.functional.cosine_similarity(x[:, None], pictures[None], dim=2)


@exercise
def check_predict_eps(fn):
    pictures, a, s = random(3, 4), torch.tensor(0.3), 0.8
    long = pictures[pictures.norm(dim=1).argmax()]  # its direction is that of the last row, but others are nearer
    x = torch.stack([1.2 * pictures[0], 0.4 * pictures[1] + 0.1, 0.7 * pictures[2] - 0.2, -pictures[0], 0.1 * long])
    root = a.sqrt()

    def eps_around(own):
        return (x - root * _x0(x, own, a, s)) / (1 - a).sqrt()

    def closest(scale):
        return pictures[torch.cdist(x, scale * pictures).argmin(1)]

    star = closest(root)
    right = eps_around(star)
    unscaled, farthest = eps_around(closest(1.0)), eps_around(pictures[torch.cdist(x, root * pictures).argmax(1)])
    compare(
        fn(x, pictures, a, s),
        right,
        {
            "x* must minimise δ_t: compare x_t with √ᾱ x*, not with x* itself": unscaled,
            "this is x̂_0; turn it into ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ)": _x0(x, star, a, s),
            "this uses the mean of the pictures; Eq. 2 is around the nearest one":
                eps_around(pictures.mean(0).expand(5, -1)),
            "this takes the farthest picture": farthest,
            "this takes the picture in the most similar direction (cosine); δ_t is smallest for the least *distance*":
                eps_around(pictures[_cosines(x, pictures).argmax(1)]),
            "this is the noise if x* were the answer; δ_t is missing from x̂_0": (x - root * star) / (1 - a).sqrt(),
            "ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ): the root in the denominator is missing": right / (1 - a).sqrt(),
            "what is left, x_t − √ᾱ x̂_0, is √(1−ᾱ) ε̂: divide by √(1−ᾱ)": right * (1 - a).sqrt(),
            "ε̂ = (x_t − √ᾱ x̂_0)/√(1−ᾱ): x̂_0 has the factor √ᾱ": (x - _x0(x, star, a, s)) / (1 - a).sqrt(),
            "every row of x has its own nearest picture":
                eps_around(pictures[((x - root * pictures[:, None]) ** 2).sum((1, 2)).argmin()].expand(5, -1)),
        },
        "ε̂",
    )


def _eps(x, own, a, s):
    return (x - a.sqrt() * _x0(x, own, a, s)) / (1 - a).sqrt()


WRONG["predict_eps"] = [
    (lambda x, p, a, s: _eps(x, p[torch.cdist(x, p).argmin(1)], a, s), "√ᾱ x*"),
    (lambda x, p, a, s: _eps(x, p.mean(0).expand(len(x), -1), a, s), "the mean of the pictures"),
    (lambda x, p, a, s: _x0(x, p[torch.cdist(x, a.sqrt() * p).argmin(1)], a, s), "turn it into ε̂"),
    (lambda x, p, a, s: _eps(x, p[_cosines(x, p).argmax(1)], a, s), "most similar direction"),
    (lambda x, p, a, s: _eps(x, p[((x - a.sqrt() * p[:, None]) ** 2).sum((1, 2)).argmin()].expand(len(x), -1), a, s),
     "every row"),
    (lambda x, p, a, s: _eps(x, p[torch.cdist(x, a.sqrt() * p).argmax(1)], a, s), "farthest"),
    (lambda x, p, a, s: (x - a.sqrt() * p[torch.cdist(x, a.sqrt() * p).argmin(1)]) / (1 - a).sqrt(), "δ_t is missing"),
    (lambda x, p, a, s: x - a.sqrt() * _x0(x, p[torch.cdist(x, a.sqrt() * p).argmin(1)], a, s), "divide by √(1−ᾱ)"),
]
RIGHT["predict_eps"] = [
    lambda x, p, a, s: torch.stack([_eps(r, p[(r / a.sqrt() - p).norm(dim=1).argmin()], a, s) for r in x]),
]


@exercise
def check_sigma1_of(fn):
    eps, a = random(5, 7), torch.tensor(0.4)
    predicted = 0.45 * eps + 0.3 * random(5, 7, seed=1) - 0.2
    error = eps - predicted

    def solve(share):
        return (share / (1 - share) * (1 - a) / a).sqrt()

    share = (error * eps).sum() / (eps * eps).sum()
    compare(
        fn(eps, predicted, a),
        solve(share),
        {
            "this reads σ₁ from the size of the error; least squares projects it: ⟨ε − ε̂, ε⟩/⟨ε, ε⟩":
                [solve(((error * error).sum() / (eps * eps).sum()) ** power) for power in (0.5, 1)],
            "the error is ε − ε̂; the other way round the share is negative, and σ₁ is 0": torch.zeros(()),
            "either this takes the share that was *removed*, ⟨ε̂, ε⟩/⟨ε, ε⟩, and not what is left, or it solves with "
            "(1−g)/g in the place of g/(1−g)":
                solve((predicted * eps).sum() / (eps * eps).sum()),
            "this is σ₁², a variance": solve(share) ** 2,
            "this is the share √ᾱ k_t; solve it for σ₁": share,
            "this is k_t; solve it for σ₁": share / a.sqrt(),
            "the share is √ᾱ k_t = ᾱσ₁²/(ᾱσ₁² + 1−ᾱ): solving it leaves the factor (1−ᾱ)/ᾱ":
                (share / (1 - share)).sqrt(),
            "the factor is (1−ᾱ)/ᾱ, not its inverse": (share / (1 - share) * a / (1 - a)).sqrt(),
            "the regression is the other way round: ε is the variable, the error what depends on it":
                solve((error * eps).sum() / (error * error).sum()),
            "one σ₁ for all draws: sum over everything, then divide; this is the mean of the draws' own shares":
                solve(((error * eps).sum(1) / (eps * eps).sum(1)).mean()),
        },
        "σ₁",
    )
    try:
        of_negative = float(fn(eps, 1.1 * eps, a))
    except ValueError:  # math.sqrt's
        of_negative = math.nan
    if of_negative != 0:
        raise Mistake(
            "noise in the data can make the share negative: σ₁ is 0 then (clamp the share at 0), neither the root of a "
            f"negative number nor that of its absolute value; yours is {of_negative:.3g}"
        )


def _square(share, a):
    return share / (1 - share) * (1 - a) / a


def _solve(share, a):
    return _square(share, a).clamp(min=0).sqrt()


WRONG["sigma1_of"] = [
    (lambda e, p, a: _solve((((e - p) ** 2).sum() / (e**2).sum()).sqrt(), a), "from the size"),
    (lambda e, p, a: _solve((p * e).sum() / (e * e).sum(), a), "what is left"),
    (lambda e, p, a: ((e - p) * e).sum() / (e * e).sum(), "solve it"),
    (lambda e, p, a: math.sqrt(_square(((e - p) * e).sum() / (e * e).sum(), a)), "share negative"),
    (lambda e, p, a: _square(((e - p) * e).sum() / (e * e).sum(), a).abs().sqrt(), "absolute value"),
    (lambda e, p, a: (1 - (p * e).sum() / (e * e).sum()).div((p * e).sum() / (e * e).sum()).mul((1 - a) / a).sqrt(),
     "share negative"),
    (lambda e, p, a: _solve((((e - p) ** 2).sum() / (e**2).sum()), a), "from the size"),
    (lambda e, p, a: _solve(((p - e) * e).sum() / (e * e).sum(), a), "the other way round"),
    (lambda e, p, a: _solve((((e - p) * e).sum(1) / (e * e).sum(1)).mean(), a), "one σ₁ for all draws"),
    (lambda e, p, a: _square(((e - p) * e).sum() / (e * e).sum(), a).clamp(min=0), "a variance"),
    (lambda e, p, a: _solve(((e - p) * e).sum() / (e * e).sum(), a) * a / (1 - a), "not its inverse"),
]
RIGHT["sigma1_of"] = [lambda e, p, a: _solve(1 - (p * e).mean() / (e * e).mean(), a)]


@exercise
def check_memory_loss(fn):
    share, distance, a = torch.tensor([0.0, 0.2, 0.7, 1.0]), 0.6, torch.tensor(0.4)
    wrong = (1 - share) ** 2 * distance
    compare(
        fn(share, distance, a),
        share**2 + a / (1 - a) * wrong,
        {
            "the wrong memory costs, too: (1−g)(m − x′) of it stays in x̂_0": share**2,
            "trust costs, too: it lets the share g of the noise through": a / (1 - a) * wrong,
            "this is the error of x̂_0 in part; in ε̂ it is larger by the factor ᾱ/(1−ᾱ)": share**2 + wrong,
            "the factor is ᾱ/(1−ᾱ), not its inverse": share**2 + (1 - a) / a * wrong,
            "the errors' squares add up, since ε and m − x′ know nothing of each other; so square g":
                share + a / (1 - a) * wrong,
            "D is a mean square already: do not square it": share**2 + a / (1 - a) * (1 - share) ** 2 * distance**2,
            "the share of the memory that stays is 1 − g: with full trust (g = 1) it does not matter":
                share**2 + a / (1 - a) * share**2 * distance,
            "1 − g is squared, too": share**2 + a / (1 - a) * (1 - share) * distance,
            "this is the error of x̂_0; in ε̂ it is larger by the factor ᾱ/(1−ᾱ)": (1 - a) / a * share**2 + wrong,
            "ᾱ/(1−ᾱ) stands before the memory's term alone: in ε̂ the share g of the noise is g": a / (1 - a)
            * (share**2 + wrong),
            "the errors are squared, so their factor is ᾱ/(1−ᾱ), not its root": share**2 + (a / (1 - a)).sqrt() * wrong,
            "the errors of memory and noise do not cancel: their squares add up":
                (share - (a / (1 - a) * wrong).sqrt()) ** 2,
        },
        "the loss",
    )


WRONG["memory_loss"] = [
    (lambda g, d, a: g**2, "wrong memory costs"),
    (lambda g, d, a: g**2 + (1 - g) ** 2 * d, "in part"),
    (lambda g, d, a: (1 - a) / a * g**2 + (1 - g) ** 2 * d, "error of x̂_0; in ε̂"),
    (lambda g, d, a: g**2 + a / (1 - a) * (1 - g) ** 2 * d**2, "mean square already"),
    (lambda g, d, a: -(g**2) - a / (1 - a) * (1 - g) ** 2 * d, "the sign"),
    (lambda g, d, a: a / (1 - a) * (g**2 + (1 - g) ** 2 * d), "memory's term alone"),
    (lambda g, d, a: g**2 + a / (1 - a) * (1 - g) * d, "1 − g is squared"),
    (lambda g, d, a: g**2 + a / (1 - a) * g**2 * d, "stays is 1 − g"),
    (lambda g, d, a: g + a / (1 - a) * (1 - g) ** 2 * d, "so square g"),
    (lambda g, d, a: a / (1 - a) * (1 - g) ** 2 * d, "trust costs"),
]
