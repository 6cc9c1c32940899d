"""Checks of 05_the_cure."""

import inspect
import math

import torch

from . import Mistake, compare, equal, exercise, pair, random

WRONG = {}
RIGHT = {}


@exercise
def check_noisy_sigma1(fn):
    for distance, tau in ((0.3, 0.4), (0.05, 1.5)):
        compare(
            fn(distance, tau),
            math.sqrt(distance + tau**2),
            {
                "this is σ₁²; its root is asked": distance + tau**2,
                "this is the best σ₁ without noise: the average of (m + τξ − x′)² is larger than D":
                    math.sqrt(distance),
                "τ is a standard deviation: variances add up": math.sqrt(distance + tau),
                "standard deviations do not add up, their squares do": math.sqrt(distance) + tau,
                "D is a mean square already": math.sqrt(distance**2 + tau**2),
                "noise on the memory makes it worse, not better": math.sqrt(abs(distance - tau**2)),
            },
            "σ₁",
        )
    compare(fn(0.0, 0.3), 0.3, what="σ₁ of a memory that is exactly the photo")


WRONG["noisy_sigma1"] = [
    (lambda d, tau: d + tau**2, "its root is asked"),
    (lambda d, tau: math.sqrt(d), "without noise"),
    (lambda d, tau: math.sqrt(d) + tau, "do not add up"),
    (lambda d, tau: math.sqrt(d + tau), "variances add up"),
    (lambda d, tau: math.sqrt(d**2 + tau**2), "mean square already"),
    (lambda d, tau: math.sqrt(abs(d - tau**2)), "makes it worse"),
]
RIGHT["noisy_sigma1"] = [lambda d, tau: torch.tensor(d + tau**2).sqrt()]


@exercise
def check_noisy_trust(fn):
    trust, sigma = 0.7, 0.3
    compare(
        fn(trust, sigma),
        trust - sigma**2,
        {
            "the noise costs something: Var(k) depends on u and v": trust,
            "Var(k) = σ²(u²+v²) + σ⁴ has u² + v² ≥ 2uv: half the derivative of 2σ²·uv is σ², not 2σ²":
                trust - 2 * sigma**2,
            "σ is a standard deviation: the price has σ²": trust - sigma,
            "this shrinks k by a factor, as a price on its square would; here the price is 2σ²·uv, linear in it":
                trust / (1 + sigma**2),
            "this would be the law if only one factor were noisy and the other 1": trust / (1 + 2 * sigma**2),
            "the product uv is asked, and its law is linear in k_D and σ²; this is a law of the single factors":
                (math.sqrt(trust) - sigma) ** 2,
            "the price lowers the product: k_D minus, not plus": trust + sigma**2,
            "E of the product is uv itself: no σ² is added to the mean": trust + 2 * sigma**2,
            "σ⁴ does not depend on u and v: it moves nothing": trust - sigma**2 - sigma**4,
        },
        "the product uv",
    )
    compare(
        fn(0.05, 0.5),
        0.0,
        {"for k_D < σ² the best product is 0: a negative one has a larger error and the same price": 0.05 - 0.25,
         "below the threshold the product is 0, not its absolute value": 0.2},
        "the product uv for k_D = 0.05, σ = 0.5",
    )


WRONG["noisy_trust"] = [
    (lambda k, s: k - s**2, "negative one"),
    (lambda k, s: max(0.0, k - s), "the price has σ²"),
    (lambda k, s: max(0.0, k - 2 * s**2), "not 2σ²"),
    (lambda k, s: abs(k - s**2), "absolute value"),
    (lambda k, s: k, "costs something"),
    (lambda k, s: k / (1 + s**2), "by a factor"),
    (lambda k, s: k + s**2, "minus, not plus"),
    (lambda k, s: max(0.0, k - s**2 - s**4), "σ⁴ does not depend"),
    (lambda k, s: max(0.0, k / (1 + 2 * s**2)), "only one factor"),
    (lambda k, s: max(0.0, math.sqrt(k) - s) ** 2, "law of the single factors"),
]
RIGHT["noisy_trust"] = [lambda k, s: torch.tensor(k - s**2).clamp(min=0)]


@exercise
def check_sampled_weight(fn):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(987)  # a state that no answer leaves behind by chance
        _check_sampled_weight(fn)


def _check_sampled_weight(fn):
    mu, sigma, grad, seed = random(3, 4), random(3, 4, seed=1).abs() + 0.1, random(3, 4, seed=2), 7
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    theta, backward = pair(fn(mu, sigma, seed), "θ and the function backward")
    if not torch.equal(before, torch.get_rng_state()):
        raise Mistake(
            "the global generator was used or seeded: make one of your own, torch.Generator().manual_seed(seed)"
        )
    compare(
        theta,
        mu + sigma * eps,
        {
            "σ is the standard deviation: do not square it, θ = μ + σ∘ε": mu + sigma**2 * eps,
            "this is μ alone: add σ∘ε": mu,
            "the noise is added: μ + σ∘ε": mu - sigma * eps,
            "ε is normal, torch.randn, not uniform, torch.rand":
                mu + sigma * torch.rand(mu.shape, generator=torch.Generator().manual_seed(seed)),
            "the noise is added to μ, not to 1: θ = μ + σ∘ε": mu * (1 + sigma * eps),
            "σ is the standard deviation: no root, θ = μ + σ∘ε": mu + sigma.sqrt() * eps,
            "every weight needs an ε of its own":
                mu + sigma * torch.randn(1, generator=torch.Generator().manual_seed(seed)),
        },
        "θ",
    )
    if not callable(backward):
        raise Mistake("the second value is a function: backward(grad_theta) -> (∂L/∂μ, ∂L/∂σ)")
    if any(equal(value, kept) for value in _kept_by(backward) for kept in (eps, sigma * eps, theta)):
        raise Mistake("backward keeps ε: keep the seed, and draw ε again from it")
    for _ in range(2):  # in training it is called once, but twice must give the same
        grad_mu, grad_sigma = pair(backward(grad.clone()), "∂L/∂μ and ∂L/∂σ")
        compare(grad_mu, grad, {"∂θ/∂μ is 1, so ∂L/∂μ has no ε": grad * eps}, "∂L/∂μ")
        compare(
            grad_sigma,
            grad * eps,
            {
                "∂θ/∂σ is ε: a factor ε is missing": grad,
                "∂θ/∂σ is ε; σ∘ε would be the derivative for log σ": grad * sigma * eps,
                "∂θ/∂σ is ε, not σ: θ = μ + σ∘ε is linear in σ, with the slope ε": grad * sigma,
                "∂θ/∂σ is ε: do not divide by σ": grad * eps / sigma,
                "this is the derivative for the variance σ²; for σ it is ε": grad * eps / (2 * sigma),
                "∂θ/∂σ is ε, with its sign": grad * eps.abs(),
            },
            "∂L/∂σ (was ε drawn from another seed than in the forward pass? it must be the same ε)",
        )
    if not torch.equal(before, torch.get_rng_state()):
        raise Mistake("backward seeds or uses the global generator: make one of your own there, too")
    again = pair(fn(mu, sigma, seed), "θ and the function backward")[0]
    compare(again, theta, what="θ of a second call with the same seed (it must be the same θ)")


def _kept_by(function):
    """The tensors that a function closes over or has as defaults."""
    values = [*inspect.getclosurevars(function).nonlocals.values(), *(getattr(function, "__defaults__", None) or ())]
    return [value for value in values if torch.is_tensor(value)]


def _sampled(mu, sigma, seed, later=0):
    def eps(s):
        return torch.randn(mu.shape, generator=torch.Generator().manual_seed(s))

    return mu + sigma * eps(seed), lambda grad: (grad, grad * eps(seed + later))


def _with_slope(mu, sigma, seed, slope):
    """The right θ, and a backward that takes slope(ε) for ∂θ/∂σ."""
    def backward(grad):
        return grad, grad * slope(torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed)))

    return _sampled(mu, sigma, seed)[0], backward


def _global_generator(mu, sigma, seed):
    torch.manual_seed(seed)
    return mu + sigma * torch.randn(mu.shape), lambda grad: (grad, grad * torch.randn(mu.shape))


def _keeps_the_noise(mu, sigma, seed):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(seed))
    return mu + sigma * eps, lambda grad: (grad, grad * eps)


def _seeds_when_going_back(mu, sigma, seed):
    def backward(grad):
        torch.manual_seed(seed)
        return grad, grad * torch.randn(mu.shape)

    return _sampled(mu, sigma, seed)[0], backward


WRONG["sampled_weight"] = [
    (_global_generator, "global generator"),
    (lambda mu, sigma, seed: _sampled(mu, sigma**2, seed), "do not square it"),
    (lambda mu, sigma, seed: _sampled(mu, sigma, seed, later=1), "the same ε"),
    (lambda mu, sigma, seed: _sampled(mu, sigma, seed)[0], "two values"),
    (_keeps_the_noise, "keep the seed"),
    (_seeds_when_going_back, "there, too"),
    (lambda mu, sigma, seed: _with_slope(mu, sigma, seed, lambda eps: sigma), "not σ"),
    (lambda mu, sigma, seed: _with_slope(mu, sigma, seed, lambda eps: sigma * eps), "for log σ"),
    (lambda mu, sigma, seed: _with_slope(mu, sigma, seed, lambda eps: eps / sigma), "do not divide by σ"),
    (lambda mu, sigma, seed: _with_slope(mu, sigma, seed, lambda eps: eps / sigma / 2), "for the variance"),
    (lambda mu, sigma, seed: _with_slope(mu, sigma, seed, torch.ones_like), "a factor ε is missing"),
    (lambda mu, sigma, seed: (mu + sigma * torch.rand(mu.shape, generator=torch.Generator().manual_seed(seed)), None),
     "not uniform"),
]


def _sampled_in_place(mu, sigma, seed):
    shape = mu.shape

    def eps():
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return mu.add_(sigma.mul_(eps())), lambda grad: (grad.clone(), grad.mul_(eps()))


RIGHT["sampled_weight"] = [_sampled_in_place]


@exercise
def check_noisy_loss(fn):
    loss, sigma, curvature = torch.tensor(0.8), random(3, 4).abs() + 0.1, random(3, 4, seed=1)
    terms = sigma**2 * curvature
    compare(
        fn(loss, sigma, curvature),
        loss + 0.5 * terms.sum(),
        {
            "the ½ of Taylor's second term is missing": loss + terms.sum(),
            "E[(σε)²] is the variance σ², not σ": loss + 0.5 * (sigma * curvature).sum(),
            "sum over the weights, not their mean: every weight's noise adds to the loss": loss + 0.5 * terms.mean(),
            "the loss at μ is missing": 0.5 * terms.sum(),
            "a positive curvature makes the loss larger: plus, not minus": loss - 0.5 * terms.sum(),
            "one number is asked: add the terms up": loss + 0.5 * terms,
            "each weight's variance meets its own curvature: multiply first, then add up":
                loss + 0.5 * (sigma**2).sum() * curvature.sum(),
            "the curvature is the second derivative already, not its square":
                loss + 0.5 * (sigma * curvature).square().sum(),
        },
        "the expected loss",
    )


WRONG["noisy_loss"] = [
    (lambda loss, sigma, curvature: loss + (sigma**2 * curvature).sum(), "½"),
    (lambda loss, sigma, curvature: loss + 0.5 * (sigma * curvature).sum(), "not σ"),
    (lambda loss, sigma, curvature: loss + 0.5 * (sigma**2 * curvature).mean(), "not their mean"),
    (lambda loss, sigma, curvature: loss - 0.5 * (sigma**2 * curvature).sum(), "minus"),
    (lambda loss, sigma, curvature: 0.5 * (sigma**2 * curvature).sum(), "the loss at μ is missing"),
    (lambda loss, sigma, curvature: loss + 0.5 * sigma**2 * curvature, "one number"),
    (lambda loss, sigma, curvature: loss + 0.5 * (sigma**2).sum() * curvature.sum(), "its own curvature"),
    (lambda loss, sigma, curvature: loss + 0.5 * (sigma**2 * curvature**2).sum(), "not its square"),
]


@exercise
def check_posterior_mean(fn):
    state = {"a.weight": random(2, 3), "a.weight_sigma": random(2, 3, seed=1).abs(), "a.bias": random(2, seed=2),
             "a.bias_sigma": random(2, seed=3).abs(), "norm.weight": random(4, seed=4)}
    given = {name: value.clone() for name, value in state.items()}
    got = fn(state)
    if got is None:
        raise Mistake("the result is None: is there a `return`?")
    if not isinstance(got, dict):
        raise Mistake(f"return a dictionary {{name: tensor}}, not a {type(got).__name__}")
    if state.keys() != given.keys():
        raise Mistake("the dictionary that was given has changed: make a new one")
    if left := [name for name in got if name.endswith("_sigma")]:
        raise Mistake(f"{left[0]} is still there: an ordinary network has no σ, and nobody could load the file")
    if missing := {"a.weight", "a.bias", "norm.weight"} - got.keys():
        raise Mistake(f"{min(missing)} is missing: keep all that is not a σ, also of layers that are not random")
    if extra := got.keys() - given.keys():
        raise Mistake(f"{min(extra)} is a new name: keep the names of the ordinary network")
    for name, value in got.items():
        if name != "norm.weight" and torch.equal(value, given[f"{name}_sigma"]):
            raise Mistake(f"under {name} you saved its σ: leave the entries that end in _sigma out, do not rename them")
        if name != "norm.weight" and not torch.equal(value, given[name]):
            raise Mistake(f"{name} is not μ: what is saved is the mean, not a sample μ + σ∘ε")
        compare(value, given[name], what=name)


def _sample(state):
    means = {name: value for name, value in state.items() if not name.endswith("_sigma")}
    return {
        name: mu + state.get(f"{name}_sigma", 0.0) * random(*mu.shape, seed=9) for name, mu in means.items()
    }


WRONG["posterior_mean"] = [
    (lambda state: dict(state), "still there"),
    (_sample, "not a sample"),
    (lambda state: {name: value for name, value in state.items() if f"{name}_sigma" in state},
     "norm.weight is missing"),
    (lambda state: {name.replace("_sigma", ""): value for name, value in state.items()}, "you saved its σ"),
    (lambda state: {name[2:]: value for name, value in state.items() if name in ("a.weight", "a.bias")}, "is missing"),
]


@exercise
def check_verdict(fn):
    cases = (
        (0.1, 0.3, 0.2, "present", "the whole interval lies above 0: the effect is there, whether large or small"),
        (0.01, 0.05, 0.2, "present",
         "an effect that is surely above 0 is present, even if it is smaller than the margin: ask this first"),
        (-0.1, 0.1, 0.2, "absent",
         "even the upper end is below the margin: an effect that matters is ruled out, although 0 is not"),
        (-0.3, -0.1, 0.2, "absent", "the whole interval lies below 0: an improvement is ruled out"),
        (-0.1, 0.5, 0.2, "undecided",
         "the interval holds 0 *and* effects that matter: nothing was shown. "
         "That no effect was proven is not a proof of no effect"),
        (-9.0, 9.0, 0.2, "undecided", "an interval that holds everything shows nothing: not significant is not absent"),
        (-0.1, 0.15, 0.1, "undecided",
         "the mean is below the margin, but the upper end of the interval is what must be"),
    )
    for low, high, margin, right, why in cases:
        got = fn(low, high, margin)
        if got is None:
            raise Mistake("the result is None: is there a `return`?")
        if got not in ("present", "absent", "undecided"):
            raise Mistake(f'{got!r} is not one of "present", "absent", "undecided"')
        if got != right:
            raise Mistake(f'low {low}, high {high}, margin {margin} is "{right}", not "{got}": {why}')


WRONG["verdict"] = [
    (lambda low, high, margin: "present" if low > 0 else "absent", "not a proof of no effect"),
    (lambda low, high, margin: "absent" if high < margin else "present" if low > 0 else "undecided", "ask this first"),
    (lambda low, high, margin: "present" if low > 0 else "absent" if (low + high) / 2 < margin / 2 else "undecided",
     "not absent"),
    (lambda low, high, margin: "present" if low > margin else "absent" if high < margin else "undecided",
     "lies above 0"),
    (lambda low, high, margin: "present" if low > 0 else "absent" if high < 0 else "undecided", "ruled out"),
]
