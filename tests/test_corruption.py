"""Eq. 1-2 of the paper, as printed and against exact conditioning, and σ₁ found again where it is known; float64."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from minibnn import StableDiffusion
from minibnn import schedule as s
from minibnn.lab import eq2, sigma1_estimate

ABAR = (1 - s.betas()).cumprod(0)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
CASES = [(20, 0.3), (100, 4.8), (500, 1.7), (999, 0.05)]
INF = float("inf")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def x0_of_numbers(x, picture, a, sigma1):
    """`predict_x0` of numbers, as a number."""
    x, picture = (torch.tensor(value, dtype=torch.float64) for value in (x, picture))
    return eq2.predict_x0(x, picture, a, sigma1).item()


def condition(mean, covariance, value):
    """Mean and covariance of the first half of a joint Gaussian, given the second half."""
    d = len(mean) // 2
    weights = np.linalg.solve(covariance[d:, d:], covariance[d:, :d]).T
    return mean[:d] + weights @ (value - mean[d:]), covariance[:d, :d] - weights @ covariance[d:, :d]


# --- Eq. 1-2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "sigma1"), CASES)
def test_paper_eq1_eq2_as_printed(t, sigma1):
    x, picture, a = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=1), ABAR[t]
    printed = a.sqrt() * sigma1**2 / (a * sigma1**2 + (1 - a)) * (x - a.sqrt() * picture)
    torch.testing.assert_close(eq2.delta(x, picture, a, sigma1), printed, **EXACT)
    torch.testing.assert_close(eq2.predict_x0(x, picture, a, sigma1), picture + printed, **EXACT)


@pytest.mark.parametrize(("t", "sigma1"), CASES)
def test_paper_eq1_eq2_against_conditioning_the_joint_gaussian(t, sigma1):
    """x_0 and x_t are linear in x_0 and ε; their covariance comes from that map, and conditioning by solving."""
    d, a = 3, ABAR[t].item()
    picture, x = random(d), random(d, seed=1)
    make = np.block([[np.eye(d), np.zeros((d, d))], [a**0.5 * np.eye(d), (1 - a) ** 0.5 * np.eye(d)]])
    joint = make @ np.diag([sigma1**2] * d + [1.0] * d) @ make.T
    mean, covariance = condition(np.concatenate([picture, a**0.5 * picture]), joint, x.numpy())
    np.testing.assert_allclose(eq2.predict_x0(x, picture, a, sigma1).numpy(), mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(eq2.posterior_variance(a, sigma1).item() * np.eye(d), covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("t", "sigma1"), CASES)
def test_paper_eq1_variance_lacks_sigma1_squared(t, sigma1):
    """Bayes' rule by quadrature: the variance is the printed one times σ₁²."""
    a, picture, x = ABAR[t].item(), 0.7, -0.3
    mean = x0_of_numbers(x, picture, a, sigma1)
    variance = eq2.posterior_variance(a, sigma1).item()

    def density(x0):
        return stats.norm.pdf(x0, picture, sigma1) * stats.norm.pdf(x, a**0.5 * x0, (1 - a) ** 0.5)

    around = [mean - 12 * variance**0.5, mean + 12 * variance**0.5]
    settings = {"epsabs": 0, "epsrel": 1e-11}
    mass = integrate.quad(density, *around, **settings)[0]
    assert integrate.quad(lambda y: y * density(y) / mass, *around, **settings)[0] == pytest.approx(mean, rel=1e-8)
    found = integrate.quad(lambda y: (y - mean) ** 2 * density(y) / mass, *around, **settings)[0]
    printed = (1 - a) / (a * sigma1**2 + (1 - a))
    assert found == pytest.approx(variance, rel=1e-8)
    assert found == pytest.approx(printed * sigma1**2, rel=1e-8)
    assert abs(found / printed - 1) > 0.5


def test_the_variance_is_also_tweedies():
    """Cov(x_0 | x_t) = (1−ᾱ)/√ᾱ ∂x̂_0/∂x_t for any Gaussian denoiser: a second witness for the factor σ₁²."""
    x, picture, a = random(4), random(4, seed=1), ABAR[300]
    jacobian = torch.autograd.functional.jacobian(lambda x: eq2.predict_x0(x, picture, a, 0.6), x)
    expected = eq2.posterior_variance(a, 0.6) * torch.eye(4).double()
    torch.testing.assert_close((1 - a) / a.sqrt() * jacobian, expected, **EXACT)


@pytest.mark.parametrize("t", [0, 100, 999])
def test_limits_of_sigma1(t):
    """§3.2: σ₁ = 0 repeats x′ whatever comes in; σ₁ = ∞ only rescales x_t and keeps all its noise."""
    x, picture, a = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1), ABAR[t]
    torch.testing.assert_close(eq2.predict_x0(x, picture, a, 0), picture, rtol=0, atol=0)
    torch.testing.assert_close(eq2.delta(x, picture, a, INF), x / a.sqrt() - picture, **EXACT)
    torch.testing.assert_close(eq2.predict_x0(x, picture, a, INF), x / a.sqrt(), **EXACT)
    assert eq2.posterior_variance(a, 0) == 0
    torch.testing.assert_close(eq2.posterior_variance(a, INF), (1 - a) / a, **EXACT)
    torch.testing.assert_close(eq2.predict_x0(x, picture, a, 1e-9), picture, rtol=0, atol=1e-13)
    torch.testing.assert_close(eq2.predict_x0(x, picture, a, 1e9), x / a.sqrt(), rtol=1e-12, atol=1e-11)


def test_times_and_sigmas_of_a_batch():
    x, picture = random(3, 4, 2, 5), random(3, 4, 2, 5, seed=1)
    t, sigma1 = torch.tensor([3, 400, 999]), torch.tensor([0.1, 2.0, 0.7])
    together = eq2.predict_x0(x, picture, ABAR[t], sigma1)
    for b in range(3):
        torch.testing.assert_close(together[b], eq2.predict_x0(x[b], picture[b], ABAR[t[b]], sigma1[b]), **EXACT)


# --- App. A, step by step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "sigma1"), CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_paper_eq5_to_eq12(t, sigma1, sign):
    a, v, picture, x0, x = ABAR[t].item(), sigma1**2, 0.7, 1.1, -0.3
    root = a**0.5
    cov = sign * root * v
    joint = np.array([[v, cov], [cov, a * v + 1 - a]])  # Eq. 10, Eq. 5 with its c
    determinant = v * (a * v + 1 - a) - cov**2
    inverse = np.array([[a * v + 1 - a, -cov], [-cov, v]]) / determinant  # Eq. 7
    np.testing.assert_allclose(inverse @ joint, np.eye(2), atol=1e-9)
    (_, l12), (_, l22) = inverse
    assert 1 / l22 == pytest.approx(1 - a, rel=1e-9)  # Eq. 9, which Eq. 6 asks for: both signs of c give it

    swap = joint[::-1, ::-1]  # x_t first, to condition on x_0
    mean, variance = condition(np.array([root * picture, picture]), swap, np.array([x0]))
    assert variance[0, 0] == pytest.approx(1 - a, rel=1e-9)
    eq8 = (l22 * root * picture + l12 * x0 - l12 * picture) / l22
    mended = (l22 * root * picture - l12 * x0 + l12 * picture) / l22
    assert mean[0] == pytest.approx(mended, rel=1e-9)
    assert abs(eq8 - mended) > 1e-3 * abs(x0 - picture)  # the printed λ12 has the wrong sign, which does no harm at x′
    if sign == 1:  # only this sign is x_t = √ᾱ x_0 + √(1−ᾱ) ε for every x_0, not for x′ alone
        assert mean[0] == pytest.approx(root * x0, rel=1e-9)
    else:
        assert abs(mean[0] - root * x0) > 1e-3

    mean, variance = condition(np.array([picture, root * picture]), joint, np.array([x]))
    eq11 = picture + sign * root * v * (x - root * picture) / (a * v + (1 - a))
    assert mean[0] == pytest.approx(eq11, rel=1e-9)
    assert variance[0, 0] == pytest.approx(v * (1 - a) / (a * v + 1 - a), rel=1e-6)
    if sign == 1:  # Eq. 12
        assert x0_of_numbers(x, picture, a, sigma1) == pytest.approx(eq11, rel=1e-12)


# --- App. B, F and §3.3 -----------------------------------------------------------------------------------------------


def test_paper_app_b_the_loss_bounds_the_error():
    """Eq. 2's network has the loss ᾱ k² on its own picture, so the loss and δ_t vanish together."""
    picture, noise = random(1, 4, 3, 3), random(500, 4, 3, 3, seed=1)
    for t, sigma1 in CASES:
        a = ABAR[t]
        x = s.q_sample(picture, noise, a)
        eps = eq2.eps_model(picture, ABAR, sigma1)(x, t)
        loss = (eps - noise).square().mean() / noise.square().mean()
        torch.testing.assert_close(loss, eq2.expected_loss(a, sigma1), rtol=1e-9, atol=0)
        size = eq2.delta(x, picture, a, sigma1).square().mean() / noise.square().mean()
        torch.testing.assert_close(size, (1 - a) / a * loss, rtol=1e-9, atol=0)
    losses = torch.stack([eq2.expected_loss(ABAR[100], sigma1) for sigma1 in (0, 1e-3, 0.1, 0.5, 4.8, INF)])
    assert losses[0] == 0 and losses[-1].item() == pytest.approx(1) and (losses.diff() > 0).all()


def test_paper_sec_3_3_no_sigma1_gives_2_65():
    """σ₁ = 4.8 at t = 100 leaves 1.107 ‖δ′‖²; even σ₁ = ∞ leaves no more than 1/ᾱ_100 = 1.118."""
    assert ABAR[100].item() == pytest.approx(0.8942, abs=1e-4)
    base, local = random(2, 4, 6, 6), torch.zeros(2, 4, 6, 6).double()
    local[:, :, 1:3, 2:5] = random(2, 4, 2, 3, seed=1)
    picture = random(1, 4, 6, 6, seed=2)
    for sigma1, expected in ((4.8, 1.107), (INF, 1.118)):
        moved = eq2.delta(base + local, picture, ABAR[100], sigma1) - eq2.delta(base, picture, ABAR[100], sigma1)
        assert (moved.square().sum() / local.square().sum()).item() == pytest.approx(expected, abs=5e-4)
    assert eq2.expected_loss(ABAR[100], 4.8).item() == pytest.approx(0.990, abs=5e-4)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.4, 1.3])
def test_paper_app_f_scaled_pictures_stay_scaled(k):
    picture, a, sigma1 = random(1, 4, 3, 3), ABAR[100], 0.4
    scale = 1 + a.sqrt() * sigma1**2 / (a * sigma1**2 + (1 - a)) * (k - a.sqrt())
    torch.testing.assert_close(eq2.predict_x0(k * picture, picture, a, sigma1), scale * picture, **EXACT)


# --- a set of pictures, and drawing -----------------------------------------------------------------------------------


def test_nearest_minimises_the_error_term():
    pictures, x = random(5, 4, 2, 3), 0.3 * random(7, 4, 2, 3, seed=1)
    for t in (0, 400, 999):
        errors = torch.stack([eq2.delta(x, p, ABAR[t], 0.9).flatten(1).norm(dim=1) for p in pictures])
        assert torch.equal(eq2.nearest(x, pictures, ABAR[t]), errors.argmin(0))
        x0 = eq2.predict_x0(x, pictures[errors.argmin(0)], ABAR[t], 0.9)
        eps = eq2.eps_model(pictures, ABAR, 0.9)(x, t)
        torch.testing.assert_close(eps, s.eps_from_x0(x, x0, ABAR[t]), **EXACT)
    t = torch.tensor([0, 100, 300, 500, 700, 900, 999])
    each = torch.cat([eq2.nearest(x[b : b + 1], pictures, ABAR[t[b]]) for b in range(7)])
    assert torch.equal(eq2.nearest(x, pictures, ABAR[t]), each)


@pytest.mark.parametrize("sigma1", [0.0, 0.2, 1.0, 4.8, INF])
def test_drawing_follows_the_closed_form(sigma1):
    """Along DDIM's ODE (x_t − √ᾱ x′)/√(ᾱσ₁² + 1−ᾱ) is constant: what is drawn is x′ + σ₁ × the starting noise."""
    picture, x = random(1, 4, 3, 3), random(3, 4, 3, 3, seed=1)
    got = s.sample_ddim(eq2.eps_model(picture, ABAR, sigma1), x, s.timesteps(999), ABAR)

    def spread(a):  # divided by σ₁ where that is infinite
        return (a * sigma1**2 + 1 - a).sqrt() if sigma1 < 99 else a.sqrt()

    first, last = ABAR[999], ABAR[0]
    expected = last.sqrt() * picture + spread(last) / spread(first) * (x - first.sqrt() * picture)
    error = (got - expected).square().mean().sqrt() / max(spread(last).item(), 0.03)
    assert error < 0.05


def test_drawing_from_a_set_without_sigma1_gives_its_pictures():
    pictures = random(4, 4, 3, 3)
    got = s.sample_ddim(eq2.eps_model(pictures, ABAR, 0), random(9, 4, 3, 3, seed=1), s.timesteps(50), ABAR)
    closest = torch.cdist(got.flatten(1), pictures.flatten(1)).min(1)
    assert closest.values.max() < 0.3 and len(set(closest.indices.tolist())) > 1


# --- σ₁ measured ------------------------------------------------------------------------------------------------------


def test_sigma1_of_solves_gain():
    for t, sigma1 in [*CASES, (100, 0.0), (100, INF)]:
        found = eq2.sigma1_of(eq2.gain(ABAR[t], sigma1), ABAR[t]).item()
        assert found == pytest.approx(sigma1, rel=1e-9, abs=0)
    assert eq2.sigma1_of(-0.1, 0.5) == 0 and eq2.sigma1_of(1.5, 0.5) == INF


def test_estimate_finds_a_network_fitted_to_draws():
    """Linear networks trained by least squares on the diffusion loss over draws of N(x′, 0.35²): no formula of ours."""
    sigma1, ts, picture = 0.35, [50, 100, 400, 800], random(1, 2, 2, 3)
    fitted = {}
    for t in ts:
        noise = random(40_000, 12, seed=t)
        x = s.q_sample(picture.reshape(1, 12) + sigma1 * random(40_000, 12, seed=t + 1), noise, ABAR[t])
        rows = torch.cat([x, torch.ones(len(x), 1).double()], 1)
        fitted[t] = torch.linalg.lstsq(rows, noise).solution

    def predict_eps(x, t):
        rows = torch.cat([x.flatten(1), x.new_ones(len(x), 1)], 1)
        return (rows @ fitted[t]).reshape(x.shape)

    found = sigma1_estimate.estimate_sigma1(predict_eps, picture, ABAR, ts, draws=200)
    np.testing.assert_allclose(found.sigma1, sigma1, rtol=0.04)
    assert found.mean == pytest.approx(sigma1, rel=0.02)
    np.testing.assert_allclose(found.loss, [eq2.expected_loss(ABAR[t], sigma1) for t in ts], rtol=0.2)


def test_estimate_on_eq2_is_exact_and_explains_the_whole_loss():
    pictures, ts = 3 * random(3, 4, 4, 4), [20, 100, 300]
    network = eq2.eps_model(pictures, ABAR, 0.8)
    found = sigma1_estimate.estimate_sigma1(network, pictures, ABAR, ts, draws=3, batch_size=4)
    np.testing.assert_allclose([found.sigma1, found.low, found.high, found.from_loss], 0.8, rtol=1e-6)
    np.testing.assert_allclose([found.explained, found.own], 1, rtol=1e-6)
    assert found.t == ts and found.mean == pytest.approx(0.8)
    json.dumps(dataclasses.asdict(found))


def test_own_is_the_share_of_draws_near_their_picture():
    """At t = 900 two pictures that differ by little are told apart by chance alone; at t = 20 always."""
    picture = random(1, 4, 8, 8)
    pictures = torch.cat([picture, picture + 0.05 * random(1, 4, 8, 8, seed=1)]).double()
    found = sigma1_estimate.estimate_sigma1(eq2.eps_model(pictures, ABAR, 0.5), pictures, ABAR, [20, 900], draws=64)
    assert found.own[0] > 0.95 and 0.35 < found.own[1] < 0.65


def uneven(variances, picture):
    """The exact denoiser of N(x′, diag(variances)), and its mean gain: the trace that Stein's lemma speaks of."""

    def predict_eps(x, t):
        a = ABAR[t]
        rest = x - a.sqrt() * picture
        return s.eps_from_x0(x, picture + a.sqrt() * variances / (a * variances + 1 - a) * rest, a)

    return predict_eps, lambda t: (ABAR[t].sqrt() * variances / (ABAR[t] * variances + 1 - ABAR[t])).mean()


@pytest.mark.parametrize(("level", "fewest", "most"), [(0.95, 176, 199), (0.5, 76, 124)])
def test_intervals_cover(level, fewest, most):
    """An uneven Gaussian's gain varies from draw to draw: intervals must hold its mean in about `level` of 200 trials.

    fewest, most: binomial(200, level − 2 %), 3.3 standard deviations either way, for the bootstrap of 32 draws is a
    little narrow.
    """
    variances, picture, ts = random(1, 3, 4, 4).exp().square(), random(1, 3, 4, 4, seed=1), [100, 700]
    predict_eps, true_gain = uneven(variances, picture)
    truth = [eq2.sigma1_of(true_gain(t), ABAR[t]).item() for t in ts]
    hits = mean_hits = 0
    for seed in range(200):
        found = sigma1_estimate.estimate_sigma1(predict_eps, picture, ABAR, ts, seed=seed, level=level, resamples=300)
        hits += found.low[0] <= truth[0] <= found.high[0]
        mean_hits += found.mean_low <= np.mean(truth) <= found.mean_high
        assert found.explained[0] < 1 and found.sigma1[0] < found.from_loss[0]
    assert fewest <= hits <= most and fewest <= mean_hits <= most


def test_an_uneven_gaussian_has_another_sigma1_at_each_t():
    """σ₁,t of one well-trained network rises with t unless all directions are alike: its constancy is an assumption."""
    variances = torch.tensor([4.0, 1.0, 0.01, 0.01]).double().reshape(1, 4, 1, 1)
    picture = random(1, 4, 1, 1)
    predict_eps, _ = uneven(variances, picture)
    found = sigma1_estimate.estimate_sigma1(predict_eps, picture, ABAR, [20, 100, 400, 999], draws=4000, resamples=2)
    assert all(np.diff(found.sigma1) > 0.05)
    assert found.sigma1[-1] == pytest.approx(variances.mean().sqrt().item(), rel=0.1)


def test_estimate_is_paired_and_independent_of_batches():
    sd = StableDiffusion.load("tiny")
    latents = random(2, 4, 8, 8).float()
    predict_eps = sigma1_estimate.predictor(sd, "a red car")
    given = (predict_eps, latents, sd.alphas_cumprod, [100, 700], 2)
    first, second = (sigma1_estimate.estimate_sigma1(*given, batch_size=size) for size in (3, 64))
    np.testing.assert_allclose(first.gain, second.gain, rtol=1e-4)
    other = sigma1_estimate.estimate_sigma1(*given, seed=1)
    assert other.gain != second.gain
    x, times = random(2, 4, 8, 8, seed=3).float(), torch.tensor([700, 700])
    with torch.no_grad():
        wanted = sd.unet(x, times, sd.encode_prompts(["a red car"] * 2))
        torch.testing.assert_close(predict_eps(x, 700), wanted, rtol=1e-4, atol=1e-4)
    for low, middle, high in zip(second.low, second.sigma1, second.high, strict=True):
        assert low < middle < high
    with pytest.raises(ValueError, match="draws = 1"):
        sigma1_estimate.estimate_sigma1(predict_eps, latents, sd.alphas_cumprod, draws=1)


def test_a_network_that_predicts_nothing_has_infinite_sigma1():
    picture = random(1, 4, 2, 2)
    found = sigma1_estimate.estimate_sigma1(lambda x, t: 0 * x, picture, ABAR, [100], draws=3)
    assert found.sigma1 == [INF] and found.mean == INF and found.loss[0] == pytest.approx(1, abs=0.6)
    perfect = sigma1_estimate.estimate_sigma1(eq2.eps_model(picture, ABAR, 0), picture, ABAR, [100], draws=3)
    assert perfect.sigma1[0] < 1e-6 and perfect.loss[0] < 1e-12
