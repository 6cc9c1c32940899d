"""Checks of 03_three_phases."""

import math

import torch
import torch.nn.functional as F

from . import Mistake, compare, equal, exercise, pair, random

WRONG = {}
RIGHT = {}


@exercise
def check_dreambooth_loss(fn):
    predicted, target, n, weight = random(5, 4, 3, 3), random(5, 4, 3, 3, seed=1), 3, 0.7
    predicted.requires_grad_()
    squares = (predicted - target) ** 2
    subject, rest = squares[:n], squares[n:]
    half = len(predicted) // 2
    loss = fn(predicted, target, n, weight)
    compare(
        loss,
        subject.mean() + weight * rest.mean(),
        {
            "the subject has the first n rows, not half of the batch":
                squares[:half].mean() + weight * squares[half:].mean(),
            "this is one mean over both halves: take the mean of each, then the weight has a meaning": squares.mean(),
            "take the mean of each part over its own rows, not over all rows of the batch":
                (squares[:n].sum() + weight * squares[n:].sum()) / squares.numel(),
            "DreamBooth divides by no sum of the weights: mean + w · mean":
                (subject.mean() + weight * rest.mean()) / (1 + weight),
            "the mean of the squares, not its root": subject.mean().sqrt() + weight * rest.mean().sqrt(),
            "the weight belongs to the class pictures (rows from n on), not to the subject":
                weight * subject.mean() + rest.mean(),
            "the class pictures' half counts fully: multiply it by the weight": subject.mean() + rest.mean(),
            "the loss is the mean of the squares, not their sum: a larger picture must not learn faster":
                subject.sum() + weight * rest.sum(),
            "the class pictures' half is missing": subject.mean(),
            "square the differences: these are absolute values":
                squares[:n].sqrt().mean() + weight * squares[n:].sqrt().mean(),
        },
        "the loss",
    )
    if not getattr(loss, "requires_grad", False):
        raise Mistake("the loss is right, but nothing can learn from it: return a tensor, without .item() or .detach()")
    compare(
        fn(predicted, target, 5, weight),
        squares.mean(),
        {"without class pictures (no row from n on) the loss is the subject's alone": torch.zeros(())},
        "the loss without class pictures (the mean of no rows is nan)",
    )


def _loss(predicted, target, n, weight):
    squares = (predicted - target) ** 2
    return squares[:n].mean() + (weight * squares[n:].mean() if len(squares) > n else 0)


WRONG["dreambooth_loss"] = [
    (lambda predicted, target, n, weight: F.mse_loss(predicted, target), "one mean over both halves"),
    (lambda predicted, target, n, weight: weight * F.mse_loss(predicted[:n], target[:n])
     + F.mse_loss(predicted[n:], target[n:]), "not to the subject"),
    (lambda predicted, target, n, weight: _loss(predicted, target, n, weight) if len(predicted) > n
     else F.mse_loss(predicted, target) + F.mse_loss(predicted[n:], target[n:]), "the mean of no rows"),
    (lambda predicted, target, n, weight: ((predicted - target) ** 2)[:n].sum()
     + weight * ((predicted - target) ** 2)[n:].sum(), "not their sum"),
    (lambda predicted, target, n, weight: _loss(predicted, target, len(predicted) // 2, weight), "not half"),
    (lambda predicted, target, n, weight: _loss(predicted, target, n, weight).item(), "nothing can learn"),
    (lambda predicted, target, n, weight: _loss(predicted, target, n, weight).detach(), "nothing can learn"),
    (lambda predicted, target, n, weight: (((predicted - target) ** 2)[:n].sum()
     + weight * ((predicted - target) ** 2)[n:].sum()) / predicted.numel(), "its own rows"),
    (lambda predicted, target, n, weight: F.l1_loss(predicted[:n], target[:n])
     + weight * F.l1_loss(predicted[n:], target[n:]), "absolute values"),
    (lambda predicted, target, n, weight: F.mse_loss(predicted[:n], target[:n])
     + F.mse_loss(predicted[n:], target[n:]), "counts fully"),
    (lambda predicted, target, n, weight: _loss(predicted, target, n, weight) / (1 + weight), "no sum of the weights"),
]


def _loss_in_place(predicted, target, n, weight):
    target -= predicted
    target **= 2
    return target[:n].mean() + (weight * target[n:].mean() if n < len(target) else 0)


RIGHT["dreambooth_loss"] = [_loss_in_place]


@exercise
def check_follow(fn):
    modes, photos, rates = random(4, 3, 3), random(5, 4, 3, 3, seed=1), random(3, 3, seed=2).abs() / 3
    sigma1, trust = 0.2, 0.1
    moved, drawn = pair(fn(modes, sigma1, photos, rates, trust), "the modes and σ₁")
    away = photos.mean(0) - modes
    square = (photos - modes).square()
    compare(
        moved,
        modes + rates * away,
        {
            "the memory goes towards the photos; this goes away from them": modes - rates * away,
            "each mode goes a *share* of the way: add it to where the mode was": rates * away,
            "this is the share that is left, not the share that is gone": photos.mean(0) - rates * away,
            "with several photos the memory goes to their mean": modes + rates * (photos[0] - modes),
            "this is one memory for each photo; there is only one memory": modes + rates * (photos - modes),
            "each frequency has its own rate: multiply element by element, not as matrices": modes + rates @ away,
        },
        "the memory",
    )
    root = square.mean().sqrt()
    after = (photos - moved).square().mean().sqrt()
    compare(
        drawn,
        sigma1 + trust * (root - sigma1),
        {
            "D is the mean of the squares; σ₁ follows its root": sigma1 + trust * (square.mean() - sigma1),
            "D is the *mean* of the squared distances, not their sum": sigma1 + trust * (square.sum().sqrt() - sigma1),
            "take the mean over the photos first, then the root of it":
                sigma1 + trust * (square.mean((1, 2, 3)).sqrt().mean() - sigma1),
            "D is that of the memory before the step": sigma1 + trust * (after - sigma1),
            "D is the mean over the distances to *all* photos, not the distance to their mean":
                sigma1 + trust * (away.square().mean().sqrt() - sigma1),
            "σ₁ goes a share of the way to √D: √D − σ₁ is the way": sigma1 + trust * root,
            "this is √D itself; trust goes there slowly": root,
            "this is √D times the rate; add it to what trust was": trust * (root - sigma1),
        },
        "σ₁",
    )


def _followed(modes, sigma1, photos, rates, trust, towards=None, root=None):
    towards = photos.mean(0) if towards is None else towards
    root = (photos - modes).square().mean().sqrt() if root is None else root
    return modes + rates * (towards - modes), sigma1 + trust * (root - sigma1)


def _followed_late(modes, sigma1, photos, rates, trust):
    moved = _followed(modes, sigma1, photos, rates, trust)[0]
    return moved, _followed(moved, sigma1, photos, rates, trust)[1]


WRONG["follow"] = [
    (lambda m, s, p, r, k: _followed(m, s, p, r, k)[0], "two values"),
    (lambda m, s, p, r, k: _followed(m, s, p, r, k, towards=p[0]), "goes to their mean"),
    (lambda m, s, p, r, k: _followed(m, s, p, r, k, root=(p - m).square().mean()), "follows its root"),
    (lambda m, s, p, r, k: _followed(m, s, p, r, k, root=(p.mean(0) - m).square().mean().sqrt()), "*all* photos"),
    (_followed_late, "before the step"),
    (lambda m, s, p, r, k: (_followed(m, s, p, -r, k)[0], 0), "away from them"),
    (lambda m, s, p, r, k: (r * (p.mean(0) - m), 0), "add it to where the mode was"),
    (lambda m, s, p, r, k: (m + r @ (p.mean(0) - m), 0), "element by element"),
    (lambda m, s, p, r, k: _followed(m, s, p, r, k, root=(p - m).square().sum().sqrt()), "not their sum"),
    (lambda m, s, p, r, k: _followed(m, s, p, r, k, root=(p - m).square().mean((1, 2, 3)).sqrt().mean()),
     "then the root of it"),
    (lambda m, s, p, r, k: (_followed(m, s, p, r, k)[0], (p - m).square().mean().sqrt()), "√D itself"),
]


def _followed_in_place(modes, sigma1, photos, rates, trust):
    sigma1 += trust * ((photos - modes).square().mean().sqrt().item() - sigma1)
    modes += rates * (photos.mean(0) - modes)
    return modes, sigma1


RIGHT["follow"] = [_followed_in_place]


MASK = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def _immerkaer(
    picture, measure=torch.abs, margin=2, factor=(math.pi / 2) ** 0.5, divisor=6, mask=MASK, around=None
):
    """The estimate, or with another argument a wrong one; around: the kind of padding, if there is one."""
    h, w = picture.shape
    picture = picture[None, None]
    response = F.conv2d(F.pad(picture, (1, 1, 1, 1), mode=around) if around else picture, mask[None, None])
    return factor * measure(response).sum() / (divisor * (h - margin) * (w - margin))


@exercise
def check_immerkaer(fn):
    slope = torch.arange(9.0)[:, None] * 0.3 - torch.arange(12.0)[None] * 0.2
    picture = slope + 0.1 * random(9, 12)
    compare(
        fn(picture),
        _immerkaer(picture),
        {
            "sum the absolute values of the responses, not their squares": _immerkaer(picture, torch.square),
            "sum the *absolute* values: positive and negative responses cancel": _immerkaer(picture, lambda x: x),
            "there are (H−2)(W−2) responses, not H·W: the mask needs a neighbour on every side":
                _immerkaer(picture, margin=0),
            "√(π/2) is missing: the mean of |x| of a Gaussian is σ·√(2/π), and we want σ":
                _immerkaer(picture, factor=1),
            "√(π/2), not √(2/π): the mean of |x| is σ·√(2/π), so multiply by the inverse":
                _immerkaer(picture, factor=math.sqrt(2 / math.pi)),
            "divide by 6, the root of the sum of the squares in the mask, or the mask's gain counts as noise":
                _immerkaer(picture, divisor=1),
            "the root of the sum of the squares in the mask is 6, not 36": _immerkaer(picture, divisor=36),
            "no padding: at the border zeros from outside look like noise":
                [_immerkaer(picture, margin=margin, around="constant") for margin in (0, 2)],
            "no padding: at the border there are no neighbours, and repeated pixels are none": [
                _immerkaer(picture, margin=margin, around=kind)
                for margin in (0, 2) for kind in ("reflect", "replicate")
            ],
            "this mask is Laplace's; Immerkær's takes one Laplacian from the other, so that edges count less":
                [_immerkaer(picture, mask=LAPLACIAN, divisor=d) for d in (6, 20**0.5)],
            "the mean of the absolute values, not the standard deviation of the responses":
                [F.conv2d(picture[None, None], MASK[None, None]).std(correction=c) / 6 for c in (0, 1)],
            "divide the sum by the number of responses, (H−2)(W−2)": _immerkaer(picture) * 7 * 10,
        },
        "the estimate",
    )


WRONG["immerkaer"] = [
    (lambda picture: _immerkaer(picture, torch.square), "not their squares"),
    (lambda picture: _immerkaer(picture, margin=0), "not H·W"),
    (lambda picture: _immerkaer(picture, factor=1), "√(π/2) is missing"),
    (lambda picture: _immerkaer(F.pad(picture, (1, 1, 1, 1)), margin=4), "no padding"),
    (lambda picture: _immerkaer(F.pad(picture, (1, 1, 1, 1)), margin=2), "no padding"),
    (lambda picture: _immerkaer(picture, around="reflect"), "no padding"),
    (lambda picture: _immerkaer(picture, margin=0, around="replicate"), "no padding"),
    (lambda picture: _immerkaer(picture, lambda x: x), "*absolute*"),
    (lambda picture: _immerkaer(picture, divisor=36), "not 36"),
    (lambda picture: _immerkaer(picture, factor=math.sqrt(2 / math.pi)), "not √(2/π)"),
    (lambda picture: _immerkaer(picture, mask=LAPLACIAN), "Laplace's"),
    (lambda picture: F.conv2d(picture[None, None], MASK[None, None]).std() / 6, "not the standard deviation"),
    (lambda picture: _immerkaer(picture.float(), mask=MASK.float()), "float32"),
]
RIGHT["immerkaer"] = [
    lambda picture: (math.pi / 2) ** 0.5 / 6 * F.conv2d(picture[None, None], -MASK[None, None]).abs().mean(),
    lambda picture: (math.pi / 2) ** 0.5 / 6 * (picture.diff(n=2, dim=0).diff(n=2, dim=1)).abs().mean(),
]


@exercise
def check_gain(fn):
    eps, picture, rest = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1), 0.3 * random(3, 4, 2, 2, seed=2)
    plus, minus = 0.8 * eps + picture + rest, -0.8 * eps + picture - rest

    def along(values):
        return (values * eps).sum()

    energy = (eps * eps).sum()
    right = along(plus - minus) / 2 / energy
    compare(
        fn(plus, minus, eps),
        right,
        {
            "the remembered picture is still in it: take half the *difference* of the pair": along(plus) / energy,
            "in the sum of the pair the noise cancels, and the picture stays; take the difference":
                along(plus + minus) / 2 / energy,
            "half the difference: between ε and −ε lie two ε": along(plus - minus) / energy,
            "divide by ⟨ε, ε⟩ itself, which is not just the number of its elements":
                along(plus - minus) / 2 / eps.numel(),
            "divide by ⟨ε, ε⟩, so that a prediction that is ε has gain 1": along(plus - minus) / 2,
            "this is the size of the answer; project it on ε: ⟨½(ε̂₊ − ε̂₋), ε⟩":
                ((plus - minus).square().sum() / 4 / energy).sqrt(),
            "this is a correlation; the gain is a slope, so divide by ⟨ε, ε⟩ alone":
                along(plus - minus) / ((plus - minus).norm() * eps.norm()),
            "this is the share that is left in; the gain is the share that is found": 1 - right,
            "the slope is the other way round: ε is the variable, the prediction what depends on it":
                2 * along(plus - minus) / (plus - minus).square().sum(),
            "one gain for all: sum over everything, then divide; this is the mean of the draws' own gains":
                (((plus - minus) / 2 * eps).sum((1, 2, 3)) / (eps * eps).sum((1, 2, 3))).mean(),
        },
        "the gain",
    )


WRONG["gain"] = [
    (lambda plus, minus, eps: (plus * eps).sum() / (eps * eps).sum(), "remembered picture"),
    (lambda plus, minus, eps: ((plus - minus) * eps).sum() / (eps * eps).sum(), "two ε"),
    (lambda plus, minus, eps: ((plus + minus) / 2 * eps).sum() / (eps * eps).sum(), "picture stays"),
    (lambda plus, minus, eps: 1 - ((plus - minus) / 2 * eps).sum() / (eps * eps).sum(), "left in"),
    (lambda plus, minus, eps: (plus - minus).norm() / 2 / eps.norm(), "project it"),
    (lambda plus, minus, eps: ((plus - minus) * eps).mean() / 2, "number of its elements"),
    (lambda plus, minus, eps: F.cosine_similarity((plus - minus).flatten(), eps.flatten(), dim=0), "correlation"),
    (lambda plus, minus, eps: (((plus - minus) / 2 * eps).flatten(1).sum(1) / (eps * eps).flatten(1).sum(1)).mean(),
     "mean of the draws"),
    (lambda plus, minus, eps: ((minus - plus) / 2 * eps).sum() / (eps * eps).sum(), "the sign"),
]
RIGHT["gain"] = [lambda plus, minus, eps: plus.sub_(minus).mul_(eps).sum() / eps.square_().sum() / 2]


@exercise
def check_noise_left(fn):
    c, u, scale = torch.tensor([0.9, 0.95, 0.97]), torch.tensor([0.8, 0.97, 1.05]), 3.0
    sigmas = torch.tensor([8.0, 3.0, 1.0, 0.2])
    guided = scale * c - (scale - 1) * u
    ratio = sigmas[1:] / sigmas[:-1]

    def after(gains, ratio=ratio, start=sigmas[0]):
        return start * (1 - gains * (1 - ratio)).prod()

    compare(
        fn(c, u, scale, sigmas),
        after(guided),
        {
            "guidance is missing: the gain of what the sampler uses is s·c − (s−1)·u": after(c),
            "s·c − s·u is only what guidance adds to u": after(scale * (c - u)),
            "guidance extrapolates from u: u + s·(c − u)": after(c + scale * (c - u)),
            "c and u are exchanged": after(scale * u - (scale - 1) * c),
            "the deviation begins with σ_0, not with 1": after(guided, start=1.0),
            "each step multiplies what the step before has left: a product, not a sum":
                sigmas[0] * (1 - guided * (1 - ratio)).sum(),
            "one step takes away the share g·(1 − σ′/σ), not g": sigmas[0] * (1 - guided).prod(),
            "one step takes away the share g·(1 − σ′/σ), not g·σ′/σ": sigmas[0] * (1 - guided * ratio).prod(),
            "this is what is taken away at each step; what is left is 1 minus that":
                sigmas[0] * (guided * (1 - ratio)).prod(),
            "a step goes from σ_i to σ_{i+1}: divide the later by the earlier": after(guided, 1 / ratio),
            "one number is asked, the deviation at the end, not that after each step":
                sigmas[0] * (1 - guided * (1 - ratio)).cumprod(0),
            "with gain 1 everywhere this is right; what is missing of 1 stays": sigmas[-1],
        },
        "the noise that is left",
    )


def _left_factors(gains, sigmas):
    return 1 - gains * (1 - sigmas[1:] / sigmas[:-1])


def _left(gains, sigmas):
    return sigmas[0] * _left_factors(gains, sigmas).prod()


WRONG["noise_left"] = [
    (lambda c, u, s, sigmas: _left(c, sigmas), "guidance is missing"),
    (lambda c, u, s, sigmas: _left(c + s * (c - u), sigmas), "extrapolates from u"),
    (lambda c, u, s, sigmas: _left(s * u - (s - 1) * c, sigmas), "exchanged"),
    (lambda c, u, s, sigmas: _left(s * c - (s - 1) * u, sigmas) / sigmas[0], "begins with σ_0"),
    (lambda c, u, s, sigmas: sigmas[0] * (1 - s * c + (s - 1) * u).prod(), "not g"),
    (lambda c, u, s, sigmas: _left(s * (c - u), sigmas), "only what guidance adds"),
    (lambda c, u, s, sigmas: sigmas[0] * (1 - _left_factors(s * c - (s - 1) * u, sigmas)).prod(), "taken away"),
    (lambda c, u, s, sigmas: sigmas[0] * _left_factors(s * c - (s - 1) * u, sigmas).sum(), "not a sum"),
    (lambda c, u, s, sigmas: sigmas[0] * _left_factors(s * c - (s - 1) * u, sigmas).cumprod(0), "deviation at the end"),
]


def _left_step_by_step(c, u, scale, sigmas):
    left = sigmas[0]
    for c_i, u_i, now, after in zip(c, u, sigmas, sigmas[1:], strict=False):
        left = left + (after - now) * (u_i + scale * (c_i - u_i)) * left / now
    return left


RIGHT["noise_left"] = [_left_step_by_step]


@exercise
def check_paired_interval(fn):
    a, t975 = random(5) + 1, 2.776
    b = a - 0.1 + 0.3 * random(5, seed=1)  # differences of both signs
    mean, half = pair(fn(a, b, t975), "the mean and the half width")
    difference = a - b
    n, std = len(a), difference.std()
    if equal(mean, difference.mean() - t975 * std / n**0.5) and equal(half, difference.mean() + t975 * std / n**0.5):
        raise Mistake("these are the ends of the interval; return its mean and its half width")
    compare(
        mean,
        difference.mean(),
        {
            "the sign is wrong: a − b is asked": -difference.mean(),
            "this is the sum of the differences": difference.sum(),
            "differences of both signs must be able to cancel: no absolute values": difference.abs().mean(),
        },
        "the mean",
    )
    apart = (a.var() + b.var()).sqrt()
    compare(
        half,
        t975 * std / math.sqrt(n),
        {
            "this treats a and b as unrelated: pairs share their seed, so take the spread of the differences":
                t975 * apart / math.sqrt(n),
            "this is where one further pair may fall; the mean of n pairs is √n times as certain": t975 * std,
            "divide the standard deviation by √n, not by n": t975 * std / n,
            "divide the squares by n − 1: around their own mean, n differences spread too little":
                t975 * difference.std(correction=0) / math.sqrt(n),
            "1.96 is for many pairs; for few use the t975 given": 1.96 * std / math.sqrt(n),
            "the factor t975 is missing: this is the standard error": std / math.sqrt(n),
            "this is the whole width; half of it is asked": 2 * t975 * std / math.sqrt(n),
            "this is half of the half width: the interval is the mean ± t·s/√n": t975 * std / math.sqrt(n) / 2,
            "this is the variance; the interval needs the standard deviation": t975 * std**2 / math.sqrt(n),
        },
        "the half width",
    )
    for other, n in ((1.96, 4), (2.776, 4), (4.0, 5)):  # another quantile, another number of pairs
        half = pair(fn(a[:n], b[:n], other), "the mean and the half width")[1]
        if not equal(half, other * difference[:n].std() / math.sqrt(n)):
            raise Mistake(f"right for five pairs with t975 = 2.776, wrong for {n} with {other}: use len(a) and t975")


WRONG["paired_interval"] = [
    (lambda a, b, t975: ((a - b).mean(), t975 * ((a.var() + b.var()) / len(a)).sqrt()), "unrelated"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std()), "one further pair"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std(correction=0) / len(a) ** 0.5), "n − 1"),
    (lambda a, b, t975: ((b - a).mean(), t975 * (a - b).std() / len(a) ** 0.5), "the sign"),
    (lambda a, b, t975: (a - b).mean(), "two values"),
    (lambda a, b, t975: ((a - b).abs().mean(), t975 * (a - b).std() / len(a) ** 0.5), "no absolute values"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std() / len(a) ** 0.5 / 2), "half of the half"),
    (lambda a, b, t975: ((a - b).mean() - t975 * (a - b).std() / len(a) ** 0.5,
                         (a - b).mean() + t975 * (a - b).std() / len(a) ** 0.5), "ends of the interval"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std() / len(a)), "not by n"),
    (lambda a, b, t975: ((a - b).mean(), 1.96 * (a - b).std() / len(a) ** 0.5), "many pairs"),
    (lambda a, b, t975: ((a - b).mean(), (a - b).std() / len(a) ** 0.5), "t975 is missing"),
    (lambda a, b, t975: ((a - b).mean(), 2.776 * (a - b).std() / len(a) ** 0.5), "use len(a) and t975"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std() / 5**0.5), "use len(a) and t975"),
]
RIGHT["paired_interval"] = [
    lambda a, b, t975: (
        a.mean() - b.mean(), t975 * (((a - b - (a - b).mean()) ** 2).sum() / (len(a) - 1) / len(a)).sqrt()
    ),
]
