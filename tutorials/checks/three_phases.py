"""Checks of 03_three_phases."""

import math

import torch
import torch.nn.functional as F

from . import compare, exercise, pair, random

WRONG = {}


@exercise
def check_dreambooth_loss(fn):
    predicted, target, n, weight = random(5, 4, 3, 3), random(5, 4, 3, 3, seed=1), 2, 0.7
    squares = (predicted - target) ** 2
    subject, rest = squares[:n], squares[n:]
    compare(
        fn(predicted, target, n, weight),
        subject.mean() + weight * rest.mean(),
        {
            "this is one mean over both halves: take the mean of each, then the weight has a meaning": squares.mean(),
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
]


@exercise
def check_fidelity(fn):
    features = 0.2 + random(5, 7) * torch.tensor([[1.0], [2], [3], [0.5], [4]])
    training = 0.1 + random(3, 7, seed=1) * torch.tensor([[3.0], [1], [2]])
    a, b = F.normalize(features, dim=1), F.normalize(training, dim=1)
    cosine = a @ b.T
    compare(
        fn(features, training),
        cosine.mean(1),
        {
            "this is the cosine with the *mean* training picture; the mean of the cosines is asked":
                F.cosine_similarity(features, training.mean(0)[None]),
            "these are inner products: divide by the lengths of both vectors": (features @ training.T).mean(1),
            "the training pictures' vectors are not divided by their lengths": (a @ training.T).mean(1),
            "the drawn pictures' vectors are not divided by their lengths": (features @ b.T).mean(1),
            "this is the nearest training picture; fidelity is the mean over all of them": cosine.max(1).values,
            "average over the training pictures only: one number for each drawn picture": cosine.mean(),
            "the mean runs over the drawn pictures; it must run over the training pictures": cosine.mean(0),
        },
        "the fidelity",
    )


WRONG["fidelity"] = [
    (lambda features, training: F.cosine_similarity(features, training.mean(0)[None]), "*mean* training picture"),
    (lambda features, training: (features @ training.T).mean(1), "lengths of both"),
    (lambda features, training: (F.normalize(features, dim=1) @ F.normalize(training, dim=1).T).max(1).values,
     "nearest"),
]


def _immerkaer(picture, measure=torch.abs, margin=2, factor=(math.pi / 2) ** 0.5, divisor=6):
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=picture.dtype)
    response = F.conv2d(picture[None, None], mask[None, None])
    h, w = picture.shape
    return factor * measure(response).sum() / (divisor * (h - margin) * (w - margin))


@exercise
def check_immerkaer(fn):
    slope = torch.arange(9.0)[:, None] * 0.3 - torch.arange(12.0)[None] * 0.2
    picture = slope + 0.1 * random(9, 12)
    padded = F.pad(picture, (1, 1, 1, 1))
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
            "no padding: at the border zeros from outside look like noise": _immerkaer(padded),
        },
        "the estimate",
    )


WRONG["immerkaer"] = [
    (lambda picture: _immerkaer(picture, torch.square), "not their squares"),
    (lambda picture: _immerkaer(picture, margin=0), "not H·W"),
    (lambda picture: _immerkaer(picture, factor=1), "√(π/2) is missing"),
    (lambda picture: _immerkaer(F.pad(picture, (1, 1, 1, 1))), "no padding"),
]


@exercise
def check_paired_interval(fn):
    a, t975 = random(4) + 1, 3.182
    b = a - 0.3 + 0.1 * random(4, seed=1)
    mean, half = pair(fn(a, b, t975), "the mean and the half width")
    difference = a - b
    n, std = len(a), difference.std()
    compare(
        mean,
        difference.mean(),
        {
            "the sign is wrong: a − b is asked": -difference.mean(),
            "this is the sum of the differences": difference.sum(),
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
            "this is the variance; the interval needs the standard deviation": t975 * std**2 / math.sqrt(n),
        },
        "the half width",
    )


WRONG["paired_interval"] = [
    (lambda a, b, t975: ((a - b).mean(), t975 * ((a.var() + b.var()) / len(a)).sqrt()), "unrelated"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std()), "one further pair"),
    (lambda a, b, t975: ((a - b).mean(), t975 * (a - b).std(correction=0) / len(a) ** 0.5), "n − 1"),
    (lambda a, b, t975: ((b - a).mean(), t975 * (a - b).std() / len(a) ** 0.5), "the sign"),
    (lambda a, b, t975: (a - b).mean(), "two values"),
]
