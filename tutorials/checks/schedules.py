"""Checks of 01_schedules."""

import torch

from minibnn import schedule

from . import Mistake, compare, equal, exercise, pair, random

WRONG = {}
RIGHT = {}
ABAR = (1 - schedule.betas()).cumprod(0)
TIMES = torch.tensor([20, 300, 900])


def column(abar):
    return abar.reshape(-1, 1, 1, 1)


@exercise
def check_alphas_cumprod(fn):
    betas = schedule.betas()
    compare(
        fn(betas),
        ABAR,
        {
            "you multiplied the β; ᾱ is the product of 1 − β, the share of the variance that each step leaves":
                betas.cumprod(0),
            "you added where DDPM multiplies: ᾱ is a product, use cumprod": (1 - betas).cumsum(0),
            "these are the α_t = 1 − β_t of single steps; ᾱ_t is their product up to and including t": 1 - betas,
            "keep the product up to each t: cumprod, not prod": ABAR[-1],
            "1 − Σβ is the product only as long as it is near 1: multiply the 1 − β": 1 - betas.cumsum(0),
            "off by one: ᾱ_t includes β_t itself, so the first entry is 1 − β_0, not 1":
                torch.cat([torch.ones(1), ABAR[:-1]]),
        },
        "ᾱ",
        tolerance=1e-12,
    )


WRONG["alphas_cumprod"] = [
    (lambda betas: betas.cumprod(0), "multiplied the β"),
    (lambda betas: (1 - betas).cumsum(0), "use cumprod"),
    (lambda betas: 1 - betas, "single steps"),
    (lambda betas: torch.cat([torch.ones(1), (1 - betas).cumprod(0)[:-1]]), "off by one"),
    (lambda betas: (1 - betas.float()).cumprod(0), "float32"),
    (lambda betas: (1 - betas).float().cumprod(0).double(), "float32"),
    (lambda betas: (1 - betas).prod(), "not prod"),
    (lambda betas: 1 - betas.cumsum(0), "1 − Σβ"),
    (lambda betas: (1 - betas).sqrt().cumprod(0), "the root"),
]
RIGHT["alphas_cumprod"] = [lambda betas: (1 - betas).log().cumsum(0).exp()]


@exercise
def check_q_sample(fn):
    x0, eps, abar = random(3, 4, 5, 6), random(3, 4, 5, 6, seed=1), ABAR[TIMES]  # B is none of the other sizes
    a = column(abar)
    mistakes = {
        "you used ᾱ where √ᾱ belongs (and 1 − ᾱ for its root): the *variances* add up to 1, not the factors":
            a * x0 + (1 - a) * eps,
        "you used ᾱ where √ᾱ belongs, before x_0": a * x0 + (1 - a).sqrt() * eps,
        "the noise needs √(1−ᾱ), not 1 − ᾱ": a.sqrt() * x0 + (1 - a) * eps,
        "x_0 and ε are swapped: at large t (ᾱ near 0) hardly anything of x_0 may be left":
            (1 - a).sqrt() * x0 + a.sqrt() * eps,
        "1 − √ᾱ is not √(1−ᾱ)": a.sqrt() * x0 + (1 - a.sqrt()) * eps,
        "the noise is added to x_0: minus is a sign too many": a.sqrt() * x0 - (1 - a).sqrt() * eps,
        "the picture shrinks, too: √ᾱ before x_0 is missing": x0 + (1 - a).sqrt() * eps,
        "the noise is missing: √(1−ᾱ) ε": a.sqrt() * x0,
        "abar_t is ᾱ already: take no product of it": (a := column(abar.cumprod(0))).sqrt() * x0 + (1 - a).sqrt() * eps,
    }
    a = column(abar)
    try:
        got = fn(x0, eps, abar)
    except RuntimeError as error:  # NotImplementedError is one, too
        if "size of tensor" not in str(error):
            raise
        hint = "abar_t has one value for each picture: reshape (B,) to (B, 1, 1, 1) before you multiply"
        raise Mistake(f"{hint} ({error})") from None
    compare(got, a.sqrt() * x0 + (1 - a).sqrt() * eps, mistakes, "x_t")


WRONG["q_sample"] = [
    (lambda x0, eps, abar: column(abar) * x0 + (1 - column(abar)) * eps, "√ᾱ"),
    (lambda x0, eps, abar: column(abar).sqrt() * x0 + (1 - column(abar)) * eps, "√(1−ᾱ)"),
    (lambda x0, eps, abar: (1 - column(abar)).sqrt() * x0 + column(abar).sqrt() * eps, "swapped"),
    (lambda x0, eps, abar: abar.sqrt() * x0 + (1 - abar).sqrt() * eps, "(B, 1, 1, 1)"),
    (lambda x0, eps, abar: abar[:, None].sqrt() * x0 + (1 - abar[:, None]).sqrt() * eps, "(B, 1, 1, 1)"),
    (lambda x0, eps, abar: column(abar).sqrt() * x0 - (1 - column(abar)).sqrt() * eps, "a sign too many"),
    (lambda x0, eps, abar: column(abar).sqrt() * x0 + (1 - column(abar).sqrt()) * eps, "1 − √ᾱ is not"),
    (lambda x0, eps, abar: schedule.q_sample(x0, torch.randn_like(x0), abar), "drew random numbers"),
    (lambda x0, eps, abar: schedule.q_sample(x0.float(), eps.float(), abar.float()), "float32"),
    (lambda x0, eps, abar: x0 + (1 - column(abar)).sqrt() * eps, "before x_0 is missing"),
    (lambda x0, eps, abar: schedule.q_sample(x0, eps, abar.cumprod(0)), "ᾱ already"),
    (lambda x0, eps, abar: abar @ x0, "your code stopped"),
]


def _noised_in_place(x0, eps, abar):
    x0 *= column(abar).sqrt()
    eps *= (1 - column(abar)).sqrt()
    return x0 + eps


RIGHT["q_sample"] = [_noised_in_place]


@exercise
def check_posterior(fn):
    x, x0, now, before = random(5), random(5, seed=1), ABAR[700], ABAR[650]
    mean, variance = pair(fn(x, x0, now, before), "the mean and the variance")
    alpha = now / before
    beta = 1 - alpha
    right_mean, right_variance = schedule.posterior(x, x0, now, before)
    if equal(mean, right_variance):
        raise Mistake("return the mean first, then the variance")
    precision = 1 / beta + 1 / (1 - before)  # with 1/β_t in the place of α_t/β_t
    prior = before.sqrt() / (1 - before) * x0
    swapped = (now.sqrt() * (1 - before) * x0 + before.sqrt() * beta * x) / (1 - now)
    compare(
        mean,
        right_mean,
        {
            "x_t and x_0 are swapped in the mean": schedule.posterior(x0, x, now, before)[0],
            "each Gaussian's mean is weighted with its own precision, not with the other's": swapped,
            "the means are weighted with precisions; divide by their sum, 1/β̃_t, too":
                before.sqrt() / (1 - before) * x0 + alpha.sqrt() / beta * x,
            "x_t says that x_{t−1} is about x_t/√α_t, with the precision α_t/β_t: √α_t is missing":
                (before.sqrt() * beta * x0 + (1 - before) * x) / (1 - now),
            "the likelihood read as a statement about x_{t−1} has the precision α_t/β_t, not 1/β_t": [
                (prior + x / (alpha.sqrt() * beta)) / precision,
                (prior + alpha.sqrt() / beta * x) / precision,
                (prior + x / beta) / precision,
                (prior + x / (alpha.sqrt() * beta)) / (alpha / beta + 1 / (1 - before)),
            ],
            "α_t is ᾱ_t / ᾱ_{t−1}, a number below 1; you divided the other way round":
                (before.sqrt() * (1 - 1 / alpha) * x0 + (1 / alpha).sqrt() * (1 - before) * x) / (1 - now),
            "you took α_t = ᾱ_t; it is the ratio ᾱ_t / ᾱ_{t−1}": [
                (before.sqrt() * (1 - now) * x0 + now.sqrt() * (1 - before) * x) / (1 - now),
                (prior + now.sqrt() / (1 - now) * x) / (now / (1 - now) + 1 / (1 - before)),
            ],
            "√ᾱ_t stands before x_0, but it is √ᾱ_{t−1}: the mean is that of the earlier, cleaner time": (
                now.sqrt() * beta * x0 + alpha.sqrt() * (1 - before) * x
            )
            / (1 - now),
        },
        "the mean",
    )
    compare(
        variance,
        right_variance,
        {
            "this is the standard deviation; return the variance": right_variance.sqrt(),
            "this is the precision; the variance is its inverse": 1 / right_variance,
            "this is the variance of the picture's prior alone; x_t adds its own precision": 1 - before,
            "this is β_t, the variance of q(x_t | x_{t−1}); knowing x_0 makes it smaller by (1−ᾱ_{t−1})/(1−ᾱ_t)": beta,
            "the fraction is upside down: (1−ᾱ_{t−1}) is above, the variance must be smaller than β_t":
                (1 - now) / (1 - before) * beta,
            "the likelihood read as a statement about x_{t−1} has the precision α_t/β_t, not 1/β_t": 1 / precision,
            "1/β_t is a precision of x_t, not of x_{t−1}, and this leaves out the prior": 1 / beta,
        },
        "the variance",
    )


def _posterior_with(variance):
    return lambda x, x0, now, before: (schedule.posterior(x, x0, now, before)[0], variance(now, before))


WRONG["posterior"] = [
    (lambda x, x0, now, before: schedule.posterior(x0, x, now, before), "swapped"),
    (lambda x, x0, now, before: schedule.posterior(x, x0, now, before)[0], "two values"),
    (lambda x, x0, now, before: schedule.posterior(x, x0, now, before)[::-1], "the mean first"),
    (_posterior_with(lambda now, before: (1 - now) / ((1 - before) * (1 - now / before))), "its inverse"),
    (_posterior_with(lambda now, before: 1 - now / before), "this is β_t"),
    (_posterior_with(lambda now, before: ((1 - before) / (1 - now) * (1 - now / before)).sqrt()), "standard deviation"),
    (_posterior_with(lambda now, before: 1 / (1 / (1 - now / before) + 1 / (1 - before))), "not 1/β_t"),
    (lambda x, x0, now, before: _bayes(x, x0, before, 1 - now / before, now / before, 1 / (1 - now / before)),
     "not 1/β_t"),
    (lambda x, x0, now, before: _bayes(x, x0, before, 1 - now, now, now / (1 - now)), "you took α_t = ᾱ_t"),
    (lambda x, x0, now, before: _bayes(x, x0, before, 1 - now / before, 1.0, 1 / (1 - now / before)), "not 1/β_t"),
    (lambda x, x0, now, before: schedule.posterior(x.float(), x0.float(), now.float(), before.float()), "float32"),
]


def _bayes(x, x0, before, beta, alpha, likelihood):
    """The product of the prior and of a likelihood with mean x/√α and the given precision; `beta` is not used."""
    prior = 1 / (1 - before)
    mean = (prior * before.sqrt() * x0 + likelihood * x / torch.as_tensor(alpha).sqrt()) / (prior + likelihood)
    return mean, 1 / (prior + likelihood)


RIGHT["posterior"] = [
    lambda x, x0, now, before: _bayes(x, x0, before, None, now / before, now / before / (1 - now / before)),
]


@exercise
def check_ddim_step(fn):
    x, eps, now, before = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), ABAR[700], ABAR[650]
    x0 = schedule.x0_from_eps(x, eps, now)
    direction = (1 - before).sqrt() * eps
    compare(
        fn(x, eps, now, before),
        before.sqrt() * x0 + direction,
        {
            "the second term is missing: after x̂_0 the noise ε is put back, as much as the earlier time has":
                before.sqrt() * x0,
            "the noise is put back with √(1−ᾱ_t); at the earlier time there is less, √(1−ᾱ_{t−1})": before.sqrt() * x0
            + (1 - now).sqrt() * eps,
            "√ᾱ_t stands before x̂_0: then the step stays at time t": now.sqrt() * x0 + direction,
            "you used x_t where the estimate x̂_0 belongs": before.sqrt() * x + direction,
            "the noise is put back with a plus": before.sqrt() * x0 - direction,
            "the noise that is in x_t is √(1−ᾱ_t) ε̂: subtract it, do not add it, to find x̂_0":
                before.sqrt() * schedule.x0_from_eps(x, -eps, now) + direction,
            "the noise needs √(1−ᾱ_{t−1}), not 1 − ᾱ_{t−1}": before.sqrt() * x0 + (1 - before) * eps,
            "x̂_0 must be divided by √ᾱ_t": before.sqrt() * (x - (1 - now).sqrt() * eps) + direction,
            "x̂_0 is divided by √ᾱ_t once; here √ᾱ_t was applied twice": (before / now).sqrt() * x0 + direction,
            "x̂_0 is multiplied by √ᾱ_{t−1} once; here it was applied twice": before * x0 + direction,
            "in x̂_0 the noise has the factor √(1−ᾱ_t), not 1 − ᾱ_t":
                before.sqrt() * (x - (1 - now) * eps) / now.sqrt() + direction,
            "abar_t and abar_prev are swapped: x̂_0 is found at time t, and noised to the earlier time":
                now.sqrt() * (x - (1 - before).sqrt() * eps) / before.sqrt() + (1 - now).sqrt() * eps,
            "in x̂_0 stands the ᾱ of x_t's own time, ᾱ_t":
                before.sqrt() * (x - (1 - before).sqrt() * eps) / before.sqrt() + direction,
        },
        "x_{t−1}",
    )


WRONG["ddim_step"] = [
    (lambda x, eps, now, before: before.sqrt() * schedule.x0_from_eps(x, eps, now), "second term is missing"),
    (lambda x, eps, now, before: before.sqrt() * x + (1 - before).sqrt() * eps, "x̂_0 belongs"),
    (lambda x, eps, now, before: before.sqrt() * schedule.x0_from_eps(x, eps, now) + (1 - now).sqrt() * eps,
     "there is less"),
    (lambda x, eps, now, before: before.sqrt() * schedule.x0_from_eps(x, -eps, now) + (1 - before).sqrt() * eps,
     "do not add it"),
    (lambda x, eps, now, before: before.sqrt() * (x - (1 - now).sqrt() * eps) / now + (1 - before).sqrt() * eps,
     "√ᾱ_t was applied twice"),
    (lambda x, eps, now, before: before * schedule.x0_from_eps(x, eps, now) + (1 - before).sqrt() * eps,
     "√ᾱ_{t−1} once"),
    (lambda x, eps, now, before: now.sqrt() * schedule.x0_from_eps(x, eps, before) + (1 - now).sqrt() * eps, "swapped"),
    (lambda x, eps, now, before: before.sqrt() * schedule.x0_from_eps(x, eps, now)
     + (1 - before).sqrt() * torch.randn_like(eps), "drew random numbers"),
]


@exercise
def check_gaussian_eps(fn):
    x, abar, mean, std = random(50), ABAR[400], 0.7, 0.2
    total = abar * std**2 + 1 - abar
    right = (1 - abar).sqrt() * (x - abar.sqrt() * mean) / total
    compare(
        fn(x, abar, mean, std),
        right,
        {
            "this is the estimate of x_0, not of ε": mean + abar.sqrt() * std**2 / total * (x - abar.sqrt() * mean),
            "the covariance of ε and x_t is missing: a factor √(1−ᾱ)": (x - abar.sqrt() * mean) / total,
            "the spread enters as its variance, std²":
                (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std + 1 - abar),
            "the mean is forgotten: what counts is how far x_t lies from its own mean, √ᾱ·mean":
                (1 - abar).sqrt() * x / total,
            "this is the covariance times the deviation; divide by the variance of x_t":
                (1 - abar).sqrt() * (x - abar.sqrt() * mean),
            "the covariance of ε and x_t is √(1−ᾱ), not 1 − ᾱ": (1 - abar) * (x - abar.sqrt() * mean) / total,
            "this has the covariance of x_0 and x_t, √ᾱ·std²; ε and x_t have √(1−ᾱ)":
                abar.sqrt() * std**2 * (x - abar.sqrt() * mean) / total,
            "Var(x_t): x_0 has the factor √ᾱ, so its variance has ᾱ": [
                (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar.sqrt() * std**2 + 1 - abar),
                (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (std**2 + 1 - abar),
            ],
            "the sign is wrong: where x_t lies above its mean, the noise was probably positive": -right,
            "Var(x_t) lacks the noise, 1 − ᾱ": (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2),
            "the mean of x_t is √ᾱ·mean, not mean": (1 - abar).sqrt() * (x - mean) / total,
            "this is the best ε only if every picture is the mean (std = 0): x_t also varies because x_0 does": (
                x - abar.sqrt() * mean
            )
            / (1 - abar).sqrt(),
            "divide by the *variance* of x_t, not by its standard deviation": (1 - abar).sqrt()
            * (x - abar.sqrt() * mean)
            / total.sqrt(),
        },
        "ε̂",
    )


WRONG["gaussian_eps"] = [
    (lambda x, abar, mean, std: (x - abar.sqrt() * mean) / (1 - abar).sqrt(), "std = 0"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (x - mean) / (abar * std**2 + 1 - abar), "√ᾱ·mean"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std + 1 - abar), "std²"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * x / (abar * std**2 + 1 - abar), "forgotten"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (abar.sqrt() * mean - x) / (abar * std**2 + 1 - abar), "the sign"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (x - abar.sqrt() * mean), "divide by the variance"),
    (lambda x, abar, mean, std: (1 - abar) * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar), "not 1 − ᾱ"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar).sqrt(),
     "not by its standard deviation"),
    (lambda x, abar, mean, std: abar.sqrt() * std**2 * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar),
     "covariance of x_0 and x_t"),
    (lambda x, abar, mean, std: (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (std**2 + 1 - abar), "has ᾱ"),
]
