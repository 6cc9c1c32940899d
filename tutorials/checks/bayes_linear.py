"""Checks of 04_bayes_linear."""

import math

import torch

from . import Mistake, compare, equal, exercise, pair, random

WRONG = {}
RIGHT = {}


@exercise
def check_bayes_linear(fn):
    x, mu, sigma = random(5, 3), random(2, 3, seed=1), random(2, 3, seed=2).abs() + 0.1
    mu.requires_grad_()
    sigma.requires_grad_()
    drawn = []

    def draw(shape):
        drawn.append(random(*shape, seed=10 + len(drawn)))
        return drawn[-1].clone()

    got = fn(x, mu, sigma, draw)
    if not drawn:
        raise Mistake("ε was not drawn: call draw(shape) once")
    if len(drawn) > 1:
        raise Mistake(
            f"ε was drawn {len(drawn)} times: one draw serves all rows of the batch, or the rows see different networks"
        )
    eps = drawn[0]
    if eps.shape != mu.shape:
        raise Mistake(f"ε has shape {tuple(eps.shape)}: every weight needs its own, as μ {tuple(mu.shape)}")
    compare(
        got,
        x @ (mu + sigma * eps).T,
        {
            "σ is the standard deviation: do not square it, θ = μ + σ∘ε": x @ (mu + sigma**2 * eps).T,
            "σ is the standard deviation, not the variance: no root, θ = μ + σ∘ε": x @ (mu + sigma.sqrt() * eps).T,
            "ε was drawn but the layer computes with μ alone": x @ mu.T,
            "θ is μ + σ∘ε, not μ∘(1 + σ∘ε)": x @ (mu * (1 + sigma * eps)).T,
            "θ is μ + σ∘ε: the noise is added, not subtracted": x @ (mu - sigma * eps).T,
        },
        "y",
    )
    asked = random(5, 2, seed=4)
    for name, parameter, right in (("μ", mu, asked.T @ x), ("σ", sigma, asked.T @ x * eps)):
        gradient = None
        if got.requires_grad:
            gradient = torch.autograd.grad(got, parameter, asked, allow_unused=True, retain_graph=True)[0]
        if gradient is None:
            raise Mistake(
                f"no gradient reaches {name}: compute θ from μ and σ themselves, without .data, .detach() or no_grad"
            )
        compare(gradient, right, what=f"the gradient that reaches {name}")


WRONG["bayes_linear"] = [
    (lambda x, mu, sigma, draw: torch.stack([row @ (mu + sigma * draw(mu.shape)).T for row in x]), "drawn 5 times"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma**2 * draw(mu.shape)).T, "standard deviation"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma * draw((1,))).T, "every weight needs its own"),
    (lambda x, mu, sigma, draw: x @ mu.T, "not drawn"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma.detach() * draw(mu.shape)).T, "no gradient reaches σ"),
    (lambda x, mu, sigma, draw: x @ (mu.data + sigma * draw(mu.shape)).T, "no gradient reaches μ"),
    (lambda x, mu, sigma, draw: x @ (mu.data + sigma.data * draw(mu.shape)).T, "no gradient reaches μ"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma * torch.randn(mu.shape)).T, "not drawn"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma.sqrt() * draw(mu.shape)).T, "not the variance"),
    (lambda x, mu, sigma, draw: x @ (mu * (1 + sigma * draw(mu.shape))).T, "not μ∘(1 + σ∘ε)"),
    (lambda x, mu, sigma, draw: x @ (mu + sigma * draw(mu.shape)), "your code stopped"),
]
RIGHT["bayes_linear"] = [lambda x, mu, sigma, draw: x @ mu.T + x @ draw(mu.shape).mul_(sigma).T]


@exercise
def check_gradients(fn):
    x, grad_y, eps, again = random(5, 3), random(5, 2, seed=1), random(2, 3, seed=2), random(2, 3, seed=3)
    grad_mu, grad_sigma = pair(fn(x, grad_y, eps), "∂L/∂μ and ∂L/∂σ")
    grad_theta = grad_y.T @ x
    mean = {
        "sum over the rows of the batch: each row used the same θ, and its gradient adds up; this is the mean":
            grad_theta / 5
    }
    compare(grad_mu, grad_theta, mean | {"∂θ/∂μ is 1, so ∂L/∂μ has no ε": grad_theta * eps}, "∂L/∂μ")
    other = pair(fn(x, grad_y, again), "∂L/∂μ and ∂L/∂σ")[1]
    if equal(other, grad_sigma) and not equal(grad_sigma, grad_theta):
        raise Mistake("∂L/∂σ does not depend on the ε of the forward pass: it was drawn twice")
    compare(
        grad_sigma,
        grad_theta * eps,
        {
            "∂θ/∂σ is ε, not 1: a factor ε is missing": grad_theta,
            "this is the mean over the rows; sum": grad_theta * eps / 5,
            "∂θ/∂σ is ε, not |ε|: a weight that was pushed down must be able to say so": grad_theta * eps.abs(),
            "∂θ/∂σ is ε, not ε²": grad_theta * eps**2,
            "∂θ/∂σ is ε: multiply with it, do not divide by it": grad_theta / eps,
        },
        "∂L/∂σ",
    )


def _draws_again(x, grad_y, eps):
    grad_theta = grad_y.T @ x
    return grad_theta, grad_theta * random(2, 3, seed=4)


WRONG["gradients"] = [
    (lambda x, grad_y, eps: (grad_y.T @ x, grad_y.T @ x), "factor ε is missing"),
    (lambda x, grad_y, eps: (grad_y.T @ x / len(x), grad_y.T @ x * eps / len(x)), "sum over the rows"),
    (_draws_again, "drawn twice"),
    (lambda x, grad_y, eps: (grad_y.T @ x, grad_y.T @ x * torch.randn_like(eps)), "drew random numbers"),
    (lambda x, grad_y, eps: grad_y.T @ x, "two values"),
    (lambda x, grad_y, eps: (grad_y.T @ x * eps, grad_y.T @ x), "∂θ/∂μ is 1"),
    (lambda x, grad_y, eps: (grad_y.T @ x, grad_y.T @ x / eps), "do not divide"),
    (lambda x, grad_y, eps: (x.T @ grad_y, x.T @ grad_y * eps.T), "transposed"),
]


@exercise
def check_gaussian_kl(fn):
    mu_q, sigma_q = random(6), random(6, seed=1).abs() + 0.2
    mu_p, sigma_p = random(6, seed=2), random(6, seed=3).abs() + 0.3
    right = _kl(mu_q, sigma_q, mu_p, sigma_p)
    compare(
        fn(mu_q, sigma_q, mu_p, sigma_p),
        right.sum(),
        {
            "the logarithm is upside down: it is log(σ_p/σ_q), so that a narrow Q costs more":
                (right + 2 * torch.log(sigma_q / sigma_p)).sum(),
            "(μ_q − μ_p)² is missing: Q may also lie in another place":
                (right - (mu_q - mu_p) ** 2 / (2 * sigma_p**2)).sum(),
            "divide by 2σ_p², the variance of P, not by that of Q":
                (torch.log(sigma_p / sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_q**2) - 0.5).sum(),
            "the fraction has 2σ_p² below the line: a 2 is missing":
                (right + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2)).sum(),
            "KL has its arguments swapped: this is KL(P‖Q), the expectation must be over Q":
                _kl(mu_p, sigma_p, mu_q, sigma_q).sum(),
            "this is the mean; the KL of independent weights is the *sum* of theirs": right.mean(),
            "one number for each weight; the KL of the whole layer is their sum": right,
            "σ is the standard deviation: square it in the fraction (but not in the logarithm)": _kl(
                mu_q, sigma_q.sqrt(), mu_p, sigma_p.sqrt()
            ).sum(),
            "log of the ratio of standard deviations, not of variances": (right + torch.log(sigma_p / sigma_q)).sum(),
            "the sign is wrong: a KL divergence is never negative": -right.sum(),
            "−1/2 is missing for each weight: KL(Q‖Q) must be 0": (right + 0.5).sum(),
            "−1/2 belongs to each weight, before the sum": (right + 0.5).sum() - 0.5,
        },
        "the KL divergence",
    )


def _kl(mu_q, sigma_q, mu_p, sigma_p):
    return torch.log(sigma_p / sigma_q) + (sigma_q**2 + (mu_q - mu_p) ** 2) / (2 * sigma_p**2) - 0.5


WRONG["gaussian_kl"] = [
    (lambda mu_q, sigma_q, mu_p, sigma_p: _kl(mu_p, sigma_p, mu_q, sigma_q).sum(), "swapped"),
    (lambda *q_p: _kl(*q_p).mean(), "the *sum*"),
    (lambda *q_p: _kl(*q_p), "one number"),
    (lambda mu_q, sigma_q, mu_p, sigma_p: _kl(mu_q, sigma_q.sqrt(), mu_p, sigma_p.sqrt()).sum(), "square it"),
    (lambda mu_q, sigma_q, mu_p, sigma_p: (_kl(mu_q, sigma_q, mu_p, sigma_p) + 2 * (sigma_q / sigma_p).log()).sum(),
     "upside down"),
    (lambda *q_p: (_kl(*q_p) + 0.5).sum(), "−1/2 is missing"),
    (lambda *q_p: (_kl(*q_p) + (q_p[3] / q_p[1]).log()).sum(), "not of variances"),
    (lambda mu_q, sigma_q, mu_p, sigma_p: _kl(mu_p, sigma_q, mu_p, sigma_p).sum(), "another place"),
    (lambda mu_q, sigma_q, mu_p, sigma_p: ((sigma_p / sigma_q).log() + _kl(mu_q, sigma_q, mu_p, sigma_p) * 0
     + (sigma_q**2 + (mu_q - mu_p) ** 2) / sigma_p**2 - 0.5).sum(), "a 2 is missing"),
]
RIGHT["gaussian_kl"] = [
    lambda mu_q, sigma_q, mu_p, sigma_p: torch.distributions.kl_divergence(
        torch.distributions.Normal(mu_q, sigma_q), torch.distributions.Normal(mu_p, sigma_p)
    ).sum(),
]


@exercise
def check_negative_elbo(fn):
    y, predicted, noise, kl = random(7, 1), random(7, 1, seed=1), 0.4, torch.tensor(2.5)
    squares = (y - predicted) ** 2
    constant = 0.5 * math.log(2 * math.pi * noise**2)
    points = squares / (2 * noise**2) + constant
    compare(
        fn(y, predicted, noise, kl),
        points.sum() + kl,
        {
            "sum over the data: with the mean the KL counts n times too much": points.mean() + kl,
            "the KL is added to the loss: it is a price": points.sum() - kl,
            "divide the squared errors by 2·noise²: how bad an error is depends on the noise": squares.sum() + kl,
            "this is the mean squared error; the likelihood sums, and divides by 2·noise²": squares.mean() + kl,
            "noise is a standard deviation: square it": (squares / (2 * noise) + constant).sum() + kl,
            "the KL is missing": points.sum(),
            "the data's term is the likelihood with the sign changed, minus its logarithm": kl - points.sum(),
            "the KL counts once, not once for each point": (points + kl).sum(),
            "each squared error is divided by 2·noise²: the ½ is missing": (squares / noise**2 + constant).sum() + kl,
            "log(2π·noise²) stands with a ½": (points + constant).sum() + kl,
            "½ log(2π·noise²) is missing for each point": (squares / (2 * noise**2)).sum() + kl,
            "½ log(2π·noise²) belongs to each point, before the sum": (squares / (2 * noise**2)).sum() + constant + kl,
        },
        "the loss",
    )


def _points(y, predicted, noise):
    return (y - predicted) ** 2 / (2 * noise**2) + 0.5 * math.log(2 * math.pi * noise**2)


WRONG["negative_elbo"] = [
    (lambda y, predicted, noise, kl: _points(y, predicted, noise).mean() + kl, "n times too much"),
    (lambda y, predicted, noise, kl: _points(y, predicted, noise).sum() - kl, "price"),
    (lambda y, predicted, noise, kl: ((y - predicted) ** 2).sum() + kl, "depends on the noise"),
    (lambda y, predicted, noise, kl: _points(y, predicted * 0, noise).sum() * 0 + kl
     + ((y - predicted) ** 2 / noise**2 + 0.5 * math.log(2 * math.pi * noise**2)).sum(), "the ½ is missing"),
    (lambda y, predicted, noise, kl: ((y - predicted) ** 2 / (2 * noise**2)).sum() + kl, "missing for each point"),
    (lambda y, predicted, noise, kl: ((y - predicted) ** 2 / (2 * noise)
     + 0.5 * math.log(2 * math.pi * noise**2)).sum() + kl, "square it"),
    (lambda y, predicted, noise, kl: _points(y, predicted, noise).sum(), "KL is missing"),
    (lambda y, predicted, noise, kl: kl - _points(y, predicted, noise).sum(), "minus its logarithm"),
    (lambda y, predicted, noise, kl: (_points(y, predicted, noise) + kl).sum(), "counts once"),
]
RIGHT["negative_elbo"] = [
    lambda y, predicted, noise, kl: kl - torch.distributions.Normal(predicted, noise).log_prob(y).sum(),
]


@exercise
def check_exact_posterior(fn):
    x, y, noise, mu_p, sigma_p = random(7, 3), random(7, 1, seed=1), 0.4, random(1, 3, seed=2), 0.6
    data, prior = x.T @ x / noise**2, torch.eye(3) / sigma_p**2
    precision = data + prior
    pull = y.T @ x / noise**2 + mu_p / sigma_p**2
    mean, covariance = pair(fn(x, y, noise, mu_p, sigma_p), "the mean and the covariance")
    compare(
        covariance,
        torch.linalg.inv(precision),
        {
            "this is the precision; the covariance is its inverse": precision,
            "the prior's precision 1/σ_p² is missing": torch.linalg.inv(data),
            "precisions are 1/variance: square the noise and σ_p": [
                torch.linalg.inv(x.T @ x / noise**p + torch.eye(3) / sigma_p**q) for p, q in ((1, 1), (1, 2), (2, 1))
            ],
            "1/σ_p² stands on the diagonal alone: add it times the identity": torch.linalg.inv(data + 1 / sigma_p**2),
            "the prior's precision is 1/σ_p², not σ_p²": torch.linalg.inv(data + torch.eye(3) * sigma_p**2),
            "the data's precision is XᵀX/noise²: divide by noise²": torch.linalg.inv(x.T @ x + prior),
            "XᵀX is (d, d), one row for each weight; XXᵀ has one for each point":
                torch.linalg.inv(x @ x.T / noise**2 + torch.eye(7) / sigma_p**2),
            "these are the standard deviations or variances of single weights; return the whole matrix":
                torch.linalg.inv(precision).diag(),
            "precisions add up, not covariances": torch.linalg.inv(data) + sigma_p**2 * torch.eye(3),
        },
        "the covariance",
    )
    compare(
        mean,
        pull @ torch.linalg.inv(precision),
        {
            "this is the maximum of the likelihood, without the prior": y.T @ x @ torch.linalg.inv(x.T @ x),
            "the mean is a row (1, d), as μ_p is": (pull @ torch.linalg.inv(precision)).T,
            "this is the pull of data and prior; multiply it by the covariance": pull,
            "the data pulls with yᵀX/noise²": [
                (y.T @ x / noise**p + mu_p / sigma_p**2) @ torch.linalg.inv(precision) for p in (0, 1)
            ],
            "the prior pulls with its mean times its precision, μ_p/σ_p²": [
                (y.T @ x / noise**2 + mu_p / sigma_p**p) @ torch.linalg.inv(precision) for p in (0, 1)
            ],
            "the prior's mean is missing: it pulls with μ_p/σ_p²": y.T @ x / noise**2 @ torch.linalg.inv(precision),
        },
        "the mean",
    )


def _posterior(x, y, noise, mu_p, sigma_p):
    covariance = torch.linalg.inv(x.T @ x / noise**2 + torch.eye(x.shape[1]) / sigma_p**2)
    return (y.T @ x / noise**2 + mu_p / sigma_p**2) @ covariance, covariance


WRONG["exact_posterior"] = [
    (lambda *problem: (_posterior(*problem)[0], torch.linalg.inv(_posterior(*problem)[1])), "its inverse"),
    (lambda x, y, noise, mu_p, sigma_p: (mu_p, torch.linalg.inv(x.T @ x / noise**2)), "prior's precision"),
    (lambda x, y, noise, mu_p, sigma_p: _posterior(x, y, noise, 0 * mu_p, sigma_p), "prior's mean is missing"),
    (lambda *problem: _posterior(*problem)[0], "two values"),
    (lambda *problem: (_posterior(*problem)[0].T, _posterior(*problem)[1]), "a row (1, d)"),
    (lambda x, y, noise, mu_p, sigma_p: (mu_p, torch.linalg.inv(x.T @ x / noise**2 + 1 / sigma_p**2)), "the identity"),
    (lambda x, y, noise, mu_p, sigma_p: _posterior(x, y, noise**0.5, mu_p, sigma_p), "square the noise"),
    (lambda x, y, noise, mu_p, sigma_p: _posterior(x, y, noise, mu_p, sigma_p**0.5), "square the noise"),
    (lambda x, y, noise, mu_p, sigma_p: (
        (y.T @ x + mu_p / sigma_p**2) @ _posterior(x, y, noise, mu_p, sigma_p)[1],
        _posterior(x, y, noise, mu_p, sigma_p)[1],
    ), "yᵀX/noise²"),
    (lambda x, y, noise, mu_p, sigma_p: _posterior(x, y, noise, mu_p * sigma_p, sigma_p), "times its precision"),
]
RIGHT["exact_posterior"] = [
    lambda x, y, noise, mu_p, sigma_p: (
        mu_p + (y.T - mu_p @ x.T) @ torch.linalg.inv(x @ x.T + (noise / sigma_p) ** 2 * torch.eye(len(x))) @ x,
        _posterior(x, y, noise, mu_p, sigma_p)[1],
    ),
]
