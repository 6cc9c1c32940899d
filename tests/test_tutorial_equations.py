"""Equations that only tutorials cite, as printed, in float64, against quadrature, optimisers and polynomials' roots."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from test_tutorials import TUTORIALS, definitions

from minibnn import schedule
from minibnn.finetune import oft
from minibnn.lab import eq2, gain_law

ABAR = (1 - schedule.betas()).cumprod(0)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def schedules():
    return definitions((TUTORIALS / "01_schedules.py").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def linear():
    return definitions((TUTORIALS / "04_bayes_linear.py").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lessons():
    """{"02": the functions of lesson 02, …}"""
    return {path.name[:2]: definitions(path.read_text(encoding="utf-8")) for path in TUTORIALS.glob("0[235]_*.py")}


def average(f, count=20):
    """E f(ε) for a standard normal ε, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return sum(w * f(x) for x, w in zip(nodes, weights / weights.sum(), strict=True))


# --- 01 ---------------------------------------------------------------------------------------------------------------


def test_ddim_eq13_is_an_euler_step_in_sigma():
    """x_{t−Δt}/√ᾱ_{t−Δt} = x_t/√ᾱ_t + (√((1−ᾱ_{t−Δt})/ᾱ_{t−Δt}) − √((1−ᾱ_t)/ᾱ_t)) ε̂."""
    now, before = ABAR[700], ABAR[650]
    x, eps = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    printed = x / now.sqrt() + (((1 - before) / before).sqrt() - ((1 - now) / now).sqrt()) * eps
    torch.testing.assert_close(schedule.ddim_step(x, eps, now, before) / before.sqrt(), printed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("std", [0.05, 1.0])
def test_the_exact_denoiser_is_the_mean_of_eps_given_x(schedules, std):
    """Compared with quadrature over x_0: p(x_0) p(x_t | x_0), with ε = (x_t − √ᾱ x_0)/√(1−ᾱ)."""
    abar, x, mean = ABAR[300].item(), 0.9, 0.4

    def weight(x0):
        return stats.norm.pdf(x0, mean, std) * stats.norm.pdf(x, abar**0.5 * x0, (1 - abar) ** 0.5)

    span = (mean - 12 * std, mean + 12 * std)
    top = integrate.quad(lambda x0: weight(x0) * (x - abar**0.5 * x0) / (1 - abar) ** 0.5, *span)[0]
    got = schedules["gaussian_eps"](torch.tensor(x), ABAR[300], mean, std)
    assert got.item() == pytest.approx(top / integrate.quad(weight, *span)[0], rel=1e-8)


def test_the_slope_of_the_exact_denoiser(schedules):
    """J = ∂ε̂/∂x̄ = σ/(s²+σ²) with x̄ = x/√ᾱ and σ² = (1−ᾱ)/ᾱ, as the tutorial's text has it."""
    abar, std = ABAR[200], 0.1
    scaled = torch.tensor(0.3, requires_grad=True)
    schedules["gaussian_eps"](scaled * abar.sqrt(), abar, 1.0, std).backward()
    sigma = ((1 - abar) / abar).sqrt()
    torch.testing.assert_close(scaled.grad, sigma / (std**2 + sigma**2), rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled.grad, schedules["slope"](sigma, std), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("order", "limit"), [(1, 2), (2, 1), (3, 6 / 11), (4, 3 / 10)])
def test_stability_limits_of_adams_bashforth(order, limit):
    """y' = −y: the rule damps while every root of its polynomial lies in the unit circle; z is the step."""
    weights = [float(schedule.plms_eps([float(i == k) for i in range(order)])) for k in range(order)]  # oldest first

    def growth(z):
        polynomial = np.zeros(order + 1)
        polynomial[0], polynomial[1] = 1, -1
        polynomial[1:] += z * np.array(weights[::-1])
        return np.abs(np.roots(polynomial)).max()

    assert growth(limit * 0.999) < 1 < growth(limit * 1.001)


# --- 02, 03, 05: memory and trust, gains ------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [20, 400, 900])
def test_sigma1_squared_is_the_memorys_error(lessons, t):
    """02: the loss of x̂_0 = m + k(x_t − √ᾱ m) at x′ is g² + ᾱ/(1−ᾱ)(1−g)²D, and least where σ₁² = D."""
    a, memory, picture = ABAR[t].item(), 0.3, 1.1
    distance = (memory - picture) ** 2

    def loss(share):
        def square(eps):
            x = a**0.5 * picture + (1 - a) ** 0.5 * eps
            x0 = memory + share / a**0.5 * (x - a**0.5 * memory)
            return ((x - a**0.5 * x0) / (1 - a) ** 0.5 - eps) ** 2

        return average(square)

    for share in (0.0, 0.1, 0.9):
        assert lessons["02"]["memory_loss"](share, distance, a) == pytest.approx(loss(share), rel=1e-11)
    best = optimize.minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    assert eq2.sigma1_of(best / a**0.5, a).item() == pytest.approx(distance**0.5, rel=1e-4)


@pytest.mark.parametrize("t", [100, 700])
def test_noise_on_the_memory_adds_its_variance(lessons, t):
    """05: with the memory m + τξ the loss of 02 is least where σ₁² = D + τ²."""
    a, distance, tau = ABAR[t].item(), 0.2, 0.7

    def loss(share):
        return average(lambda xi: lessons["02"]["memory_loss"](share, (distance**0.5 + tau * xi) ** 2, a))

    best = optimize.minimize_scalar(loss, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    expected = lessons["05"]["noisy_sigma1"](distance, tau)
    assert eq2.sigma1_of(best / a**0.5, a).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("trust", "sigma"), [(0.9, 0.3), (0.5, 0.6), (0.2, 0.6), (0.0, 0.1)])
def test_noise_on_the_trust_is_a_soft_threshold(lessons, trust, sigma):
    """05: E((u + σε₁)(v + σε₂) − k_D)² is least where uv = max(0, k_D − σ²)."""

    def loss(factors):
        u, v = factors
        return average(lambda one: average(lambda two: ((u + sigma * one) * (v + sigma * two) - trust) ** 2, 4), 4)

    u, v = optimize.minimize(loss, (0.8, 0.5), method="BFGS", options={"gtol": 1e-9}).x
    assert u * v == pytest.approx(lessons["05"]["noisy_trust"](trust, sigma), abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_the_gain_law_of_lesson_03(lessons, scale):
    """It is `gain_law.noise_left` in units of x/√ᾱ, and what DDIM does with an exactly linear denoiser."""
    times = schedule.timesteps(25)
    plan = schedule.pairs(times, ABAR, ABAR[0])
    sigmas = torch.stack([((1 - a) / a).sqrt() for a in [plan[0][1], *(after for _, _, after in plan)]])
    c, u = 0.95 + 0.04 * torch.rand(2, 25, generator=torch.Generator().manual_seed(0))
    left = lessons["03"]["noise_left"](c, u, scale, sigmas) * ABAR[0].sqrt() / (1 - plan[0][1]).sqrt()
    guided = dict(zip(times.tolist(), scale * c - (scale - 1) * u, strict=True))
    drawn = schedule.sample_ddim(lambda x, t: guided[t] * x / (1 - ABAR[t]).sqrt(), torch.ones(1), times, ABAR)
    assert left.item() == pytest.approx(drawn.item(), rel=1e-11)
    assert abs(left.item()) == pytest.approx(gain_law.noise_left(guided.values(), times, ABAR), rel=1e-11)


# --- 04 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [2, 500])
def test_ddpm_eq12_weighs_the_simple_loss_of_eq14(t):
    """KL(q(x_{t−1}|x_t, x_0) ‖ p_θ) = β²/(2σ²α(1−ᾱ))·‖ε − ε̂‖² with σ² = β̃: the factor that eq. 14 leaves out."""
    x0, eps, guess = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    now, before = ABAR[t], ABAR[t - 1]
    x = schedule.q_sample(x0, eps, now)
    alpha, (mean, variance) = now / before, schedule.posterior(x, x0, now, before)
    guessed = schedule.posterior(x, schedule.x0_from_eps(x, guess, now), now, before)[0]
    kl = ((mean - guessed) ** 2).sum() / (2 * variance)
    printed = (1 - alpha) ** 2 / (2 * variance * alpha * (1 - now)) * ((eps - guess) ** 2).sum()
    torch.testing.assert_close(kl, printed, rtol=1e-9, atol=0)


def test_paper_eq3_is_minus_log_evidence_plus_kl_to_the_posterior():
    """Left and right side of Eq. 3 as printed, for one weight and one observation, by quadrature."""
    prior, noise, y = stats.norm(0.3, 0.8), 0.5, 1.1
    q = stats.norm(0.6, 0.35)
    posterior_precision = 1 / noise**2 + 1 / 0.8**2
    posterior = stats.norm((y / noise**2 + 0.3 / 0.8**2) / posterior_precision, posterior_precision**-0.5)
    evidence = stats.norm(0.3, (0.8**2 + noise**2) ** 0.5).logpdf(y)

    def average(f):
        return integrate.quad(lambda w: q.pdf(w) * f(w), 0.6 - 12 * 0.35, 0.6 + 12 * 0.35)[0]

    left = -average(lambda w: stats.norm.logpdf(y, w, noise) + prior.logpdf(w) - q.logpdf(w))
    right = -average(lambda w: stats.norm.logpdf(y, w, noise)) + average(lambda w: q.logpdf(w) - prior.logpdf(w))
    assert left == pytest.approx(right, rel=1e-9)
    assert left == pytest.approx(-evidence + average(lambda w: q.logpdf(w) - posterior.logpdf(w)), rel=1e-9)


def test_paper_eq14_averages_to_the_gradient_of_the_average():
    """E_ε[∂L/∂θ·ε] = d/dσ E[L(μ+σε)] for L(θ) = θ⁴, by Gauss-Hermite quadrature; E[L] = μ⁴ + 6μ²σ² + 3σ⁴."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    weights, mu, sigma = weights / weights.sum(), 0.7, 0.4
    by_theta = 4 * (mu + sigma * nodes) ** 3
    assert (weights * by_theta).sum() == pytest.approx(4 * mu**3 + 12 * mu * sigma**2, rel=1e-12)
    assert (weights * by_theta * nodes).sum() == pytest.approx(12 * mu**2 * sigma + 12 * sigma**3, rel=1e-12)


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, generator=generator) + 1
    y = torch.randn(9, 1, generator=generator)
    return x, y, 0.4, torch.full((1, 3), 0.2), 0.7


def test_bishop_eq3_50_and_3_51_posterior(linear):
    """As printed, m_N = S_N(S_0⁻¹ m_0 + β Φᵀ t), S_N⁻¹ = S_0⁻¹ + β Φᵀ Φ; and it maximises the joint density."""
    x, y, noise, mu_p, sigma_p = problem()
    mean, covariance = linear["exact_posterior"](x, y, noise, mu_p, sigma_p)
    s0, beta = np.eye(3) * sigma_p**2, noise**-2
    sn = np.linalg.inv(np.linalg.inv(s0) + beta * x.numpy().T @ x.numpy())
    np.testing.assert_allclose(covariance, sn, rtol=1e-12)
    mn = sn @ (np.linalg.inv(s0) @ mu_p.numpy().T + beta * x.numpy().T @ y.numpy())
    np.testing.assert_allclose(mean.T, mn, rtol=1e-12)

    def minus_log_joint(w):
        misfit = ((y.numpy()[:, 0] - x.numpy() @ w) ** 2).sum() / (2 * noise**2)
        return misfit + ((w - 0.2) ** 2).sum() / (2 * sigma_p**2)

    np.testing.assert_allclose(mean[0], optimize.minimize(minus_log_joint, np.zeros(3)).x, atol=1e-5)


def closed_elbo(x, y, noise, mu, sigma, price):
    """E_Q[−log P(D|θ)] + price without sampling; constants left out."""
    misfit = ((y.T - mu @ x.T) ** 2).sum() + ((x**2) @ (sigma**2).T).sum()
    return misfit / (2 * noise**2) + price


def test_bishop_eq10_12_to_10_15_mean_field_optimum(linear):
    """Eq. 3 is stationary at the exact mean and σ_i² = 1/Λ_ii, and nowhere near it lower."""
    x, y, noise, mu_p, sigma_p = problem()
    mean, covariance = linear["exact_posterior"](x, y, noise, mu_p, sigma_p)
    mu = mean.clone().requires_grad_()
    sigma = torch.linalg.inv(covariance).diag()[None].rsqrt().requires_grad_()
    prior = torch.full((1, 3), sigma_p)

    def loss(mu, sigma):
        return closed_elbo(x, y, noise, mu, sigma, linear["gaussian_kl"](mu, sigma, mu_p, prior))

    gradients = torch.autograd.grad(loss(mu, sigma), (mu, sigma))
    assert max(g.abs().max().item() for g in gradients) < 1e-9
    assert loss(mu, sigma) < min(loss(mu, 1.01 * sigma), loss(mu, sigma / 1.01), loss(mu + 0.01, sigma))


@pytest.mark.parametrize(("a", "d"), [(0.3, 0.0), (40.0, 0.9)])
def test_eq3_and_algorithm1_best_sigma(linear, a, d):
    """The tutorial's formulas agree with a minimiser of a·σ²/2 + KL in either direction."""
    sigma_p, one = 0.8, torch.ones(1)

    def best(price):
        result = optimize.minimize_scalar(
            lambda s: a * s**2 / 2 + price(s).item(), bounds=(1e-3, 3), method="bounded", options={"xatol": 1e-10}
        )
        return result.x

    kl = linear["gaussian_kl"]
    of_eq3 = best(lambda s: kl(d * one, s * one, 0 * one, sigma_p * one))
    of_algorithm1 = best(lambda s: kl(0 * one, sigma_p * one, d * one, s * one))
    assert linear["eq3_sigma"](a, sigma_p) == pytest.approx(of_eq3, rel=1e-5)
    assert linear["algorithm1_sigma"](a, sigma_p, d) == pytest.approx(of_algorithm1, rel=1e-5)


# --- 11 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters():
    return definitions((TUTORIALS / "11_lora_and_oft.py").read_text())


def test_lora_eq3_as_in_the_tutorial(adapters):
    x, weight, down, up = torch.randn(4, 6), torch.randn(5, 6), torch.randn(3, 6), torch.randn(5, 3)
    torch.testing.assert_close(
        adapters["lora"](x, weight, down, up, 2.0), x @ (weight + 2 / 3 * up @ down).T, rtol=1e-12, atol=1e-12
    )
    a, b = adapters["for_diffusers"](down, up, 2.0)
    torch.testing.assert_close(b @ a, 2 / 3 * up @ down, rtol=1e-12, atol=1e-12)


def test_app_d_cayley_as_in_the_tutorial(adapters):
    """Eigenvalues (1 + iλ)/(1 − iλ) where S has iλ; orthogonal; the code's formula is the printed one."""
    q, eye = torch.randn(7, 7), torch.eye(7)
    s = 0.5 * (q - q.T)
    r = adapters["cayley"](q)
    torch.testing.assert_close(r, (eye + s) @ torch.linalg.inv(eye - s), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(r.T @ r, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(oft.cayley(q), r, rtol=1e-10, atol=1e-12)
    values = torch.linalg.eigvals(s)
    expected = (1 + values) / (1 - values)
    assert (torch.linalg.eigvals(r)[:, None] - expected).abs().min(0).values.max() < 1e-10
    torch.testing.assert_close(expected.abs(), torch.ones(7))


def test_app_d_weight_std_as_in_the_tutorial(adapters):
    """It agrees with 200,000 draws of B; and a sum of r products of normals has an excess kurtosis of 6/r."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(3, 5, generator=generator)
    b = 0.2 * torch.randn(200_000, 3, generator=generator)
    torch.testing.assert_close(adapters["weight_std"](down, 0.2, 6.0), (2 * b @ down).std(0), rtol=0.01, atol=0)
    for rank in (1, 2, 4):
        one, other = torch.randn(2, 2_000_000, rank, generator=generator)
        assert stats.kurtosis((one * other).sum(1).numpy()) == pytest.approx(6 / rank, rel=0.1)
