"""The gain law: its formulas against the samplers themselves, run with a linear denoiser in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate

from minibnn import schedule
from minibnn.lab import eq2, gain_law
from minibnn.sample import guide
from minibnn.world.measures import immerkaer

ABAR = schedule.alphas_cumprod().double()
PROFILES = {
    "perfect": lambda t: 1.0,
    "too small": lambda t: 0.8,
    "too large": lambda t: 1.6,
    "none": lambda t: 0.0,
    "small where there is little noise": lambda t: 1 - 0.5 * math.exp(-t / 150),
    "large, then small": lambda t: 0.7 + t / 1000,
}
profiles = pytest.mark.parametrize("gain", PROFILES.values(), ids=PROFILES)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(gain, memory=0.0):
    return lambda x, t: gain(t) * (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt()


def sigma(t):
    return gain_law.log_sigma(ABAR[t]).exp().item()


# --- the formulas are the samplers ------------------------------------------------------------------------------------


@profiles
@pytest.mark.parametrize("n", [10, 100])
def test_a_deterministic_sample_is_the_memory_and_the_product_of_the_factors(gain, n):
    memory, x, times = normal(2, 3, 5, 4, seed=1), normal(2, 3, 5, 4), schedule.timesteps(n)
    sample = schedule.sample_ddim(linear(gain, memory), x, times, ABAR)
    product = math.prod(
        gain_law.step_factor(gain(t), a, b).item() for t, a, b in schedule.pairs(times, ABAR, ABAR[0])
    )
    expected = ABAR[0].sqrt() * memory + product * (x - ABAR[times[0]].sqrt() * memory)
    torch.testing.assert_close(sample, expected, rtol=1e-10, atol=1e-10)
    assert gain_law.noise_left([gain(int(t)) for t in times], times, ABAR) == pytest.approx(abs(product), rel=1e-12)


@pytest.mark.parametrize(("gain", "sign"), [(0.8, 1), (1.3, -1)])
def test_a_surplus_that_has_turned_is_negative(gain, sign):
    """A large step with a gain above 1 overshoots: the sample then has less of what its start had too much of."""
    times, x = schedule.timesteps(20), normal(1, 1, 2, 2)
    left = gain_law.surplus_left([gain] * 20, times, ABAR)
    torch.testing.assert_close(schedule.sample_ddim(linear(lambda t: gain), x, times, ABAR), left * x)
    assert left * sign > 0 and gain_law.noise_left([gain] * 20, times, ABAR) == pytest.approx(abs(left))


@profiles
@pytest.mark.parametrize("n", [10, 33, 100])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_left_is_that_of_the_sampler(gain, n, eta):
    """Exactly: the sampler is linear in its n + 1 noises, so that the first element of a batch sees the first noise
    alone, and so on; the variance is the sum of the squares."""
    times, unit = schedule.timesteps(n), torch.eye(n + 1, dtype=torch.float64).reshape(n + 1, n + 1, 1, 1, 1)
    found = schedule.sample_ddim(linear(gain), unit[0], times, ABAR, eta, lambda i: unit[i + 1])
    expected = found.square().sum().sqrt().item()
    assert gain_law.noise_left([gain(int(t)) for t in times], times, ABAR, eta) == pytest.approx(expected, rel=1e-10)


def test_noise_left_in_many_samples():
    """The same by drawing, so that the step from variances to samples is seen too."""
    times, generator = schedule.timesteps(20), torch.Generator().manual_seed(0)
    noise = lambda _: torch.randn(1, 1, 500, 500, generator=generator, dtype=torch.float64)  # noqa: E731
    sample = schedule.sample_ddim(linear(lambda t: 0.8, 0.5), noise(0), times, ABAR, 1.0, noise)
    assert sample.std().item() == pytest.approx(gain_law.noise_left([0.8] * 20, times, ABAR, 1.0), rel=5e-3)


@profiles
def test_pndm_leaves_what_it_leaves(gain):
    memory, x, times = normal(1, 2, 3, 4, seed=1), normal(1, 2, 3, 4), schedule.timesteps(25)
    other = schedule.sample_pndm(linear(gain, memory), x + 1, times, ABAR)  # affine in x: the difference is the factor
    sample = schedule.sample_pndm(linear(gain, memory), x, times, ABAR)
    expected = (other - sample).abs().mean().item()
    found = gain_law.noise_left_by_pndm([gain(int(t)) for t in times], times, ABAR)
    assert found == pytest.approx(expected, rel=1e-9)


# --- what the formulas say --------------------------------------------------------------------------------------------


def test_the_factors_at_the_scale_of_sigma():
    """f·√(ᾱ/ᾱ′) is 1 − g(1 − σ′/σ) for η = 0, and 1 − g(1 − σ′²/σ²) for η = 1."""
    for t, s in ((981, 961), (401, 381), (21, 1)):
        a, b, ratio = ABAR[t], ABAR[s], sigma(s) / sigma(t)
        for g in (0.6, 1.0, 1.3):
            for eta, expected in ((0.0, 1 - g * (1 - ratio)), (1.0, 1 - g * (1 - ratio**2))):
                found = gain_law.step_factor(g, a, b, eta) * (a / b).sqrt()
                assert found.item() == pytest.approx(expected, rel=1e-12)


def test_perfect_gains_leave_the_noise_of_the_last_time():
    times = schedule.timesteps(50)
    for eta in (0.0, 1.0):
        left = gain_law.noise_left([1.0] * 50, times, ABAR, eta)
        assert left == pytest.approx((1 - ABAR[0]).sqrt().item(), rel=0.01) and left == pytest.approx(0.029, abs=5e-4)


def test_sd_s_noise_falls_by_a_factor_of_500_so_that_a_deficit_of_a_fifth_leaves_three_and_a_half_times_the_noise():
    assert sigma(999) / sigma(0) == pytest.approx(500, rel=0.01)
    assert (sigma(0) / sigma(999)) ** 0.8 * 500 == pytest.approx(3.5, abs=0.05)
    assert gain_law.steady_noise(0.8) == pytest.approx(1.29, abs=0.005)


@pytest.mark.parametrize("gain", [0.7, 0.8, 0.95, 1.0, 1.2])
def test_in_small_steps(gain):
    """The recursion itself, on 20,000 even steps of ln σ from 100 to 0.001: against the closed forms."""
    sigmas = np.geomspace(100, 1e-3, 20_001)
    abar = (1 / (1 + sigmas**2)).tolist()
    for eta in (0.0, 0.9, 1.0):
        variance = 1.0 - abar[0]
        for a, b in itertools.pairwise(abar):
            variance = gain_law.step_factor(gain, a, b, eta) ** 2 * variance + schedule.ddim_sigma(a, b, eta) ** 2
        noise = math.sqrt(variance / abar[-1])  # of x/√ᾱ
        if eta:
            assert noise == pytest.approx(gain_law.steady_noise(gain, eta) * sigmas[-1], rel=3e-3)
        else:
            assert noise == pytest.approx((1e-3 / 100) ** gain * 100, rel=3e-3)


def test_a_changing_gain_in_small_steps_is_the_integral_of_its_deficit():
    """√ᾱ_0 σ_0 exp(∫(1−g) d ln σ) of the noise at the start."""
    gain = PROFILES["small where there is little noise"]
    places = gain_law.log_sigma(ABAR).numpy()
    deficit = integrate.trapezoid([1 - gain(t) for t in range(1000)], places)
    expected = math.sqrt(ABAR[0]) * math.exp(places[0] + deficit) / math.sqrt(1 - ABAR[999])
    times = schedule.timesteps(999)
    assert gain_law.noise_left([gain(int(t)) for t in times], times, ABAR) == pytest.approx(expected, rel=0.1)


def test_below_one_half_even_ancestral_sampling_does_not_forget():
    assert gain_law.steady_noise(0.5) == gain_law.steady_noise(0.3) == math.inf
    assert gain_law.steady_noise(0.5, eta=0.0) == math.inf
    assert all(gain_law.steady_noise(1.0, eta) == pytest.approx(1.0) for eta in (0.2, 1.0))


def test_a_large_step_with_a_gain_above_one_overshoots():
    ratio = sigma(1) / sigma(51)
    limit = 1 / (1 - ratio)
    assert gain_law.step_factor(limit, ABAR[51], ABAR[1]).item() == pytest.approx(0, abs=1e-12)
    assert gain_law.step_factor(limit + 0.1, ABAR[51], ABAR[1]) < 0


# --- its relatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma1", [0.0, 0.1, 1.0])
def test_eq_2_leaves_sigma_1(sigma1):
    """Samples of Eq. 2's network, drawn in small steps from x_T of its own, are x′ with a noise of √(σ₁² + σ_0²)."""
    times, picture = schedule.timesteps(500), normal(1, 1, 1, 1, seed=3)
    gains = [1 - (ABAR[t].sqrt() * eq2.gain(ABAR[t], sigma1)).item() for t in times.tolist()]
    left = gain_law.noise_left(gains, times, ABAR)
    x = normal(500, 1, 1, 1)
    sample = schedule.sample_ddim(eq2.eps_model(picture, ABAR, sigma1), x, times, ABAR)
    assert sample.std().item() == pytest.approx(left * x.std().item(), rel=1e-9)
    # N(0, 1) is not quite where x_T of Eq. 2 lies: its variance there is ᾱσ₁² + 1 − ᾱ
    right_start = math.sqrt(ABAR[times[0]] * sigma1**2 + 1 - ABAR[times[0]])
    expected = math.sqrt(ABAR[0]) * math.sqrt(sigma1**2 + sigma(0) ** 2) / right_start
    assert left == pytest.approx(expected, rel=0.03)


def test_guidance_leaves_noise_where_neither_prediction_does():
    """u > c, both within a hundredth or two of 1: guidance leaves 4 times the noise of none, ancestral 1.4 times."""
    times, c, u = schedule.timesteps(50), linear(lambda t: 0.99), linear(lambda t: 1.02)
    x = normal(1, 4, 40, 40)
    noise = {s: schedule.sample_ddim(lambda x, t, s=s: guide(u(x, t), c(x, t), s), x, times, ABAR).std().item()
             for s in (0, 1, 7.5)}
    for s, found in noise.items():
        guided = s * 0.99 - (s - 1) * 1.02
        assert found == pytest.approx(x.std().item() * gain_law.noise_left([guided] * 50, times, ABAR), rel=1e-9)
    assert noise[7.5] / noise[1] == pytest.approx(4.0, abs=0.1) and max(noise[0], noise[1]) < 0.035
    ancestral = [gain_law.noise_left([g] * 50, times, ABAR, eta=1.0) for g in (7.5 * 0.99 - 6.5 * 1.02, 0.99)]
    assert ancestral[0] / ancestral[1] == pytest.approx(1.4, abs=0.1)


def test_noise_between_pictures_is_that_of_the_samples_and_not_their_texture():
    """Samples of a linear denoiser that remembers a texture a hundred times as strong as the noise it leaves."""
    memory, times = 5 * normal(1, 3, 64, 64, seed=8), schedule.timesteps(20)
    sample = schedule.sample_ddim(linear(lambda t: 0.9, memory), normal(6, 3, 64, 64), times, ABAR)
    left = gain_law.noise_left([0.9] * 20, times, ABAR)
    assert gain_law.noise_between(sample) == pytest.approx(left, rel=0.02)
    assert gain_law.noise_between(sample[:2]) == pytest.approx(left, rel=0.03)
    assert immerkaer(sample).mean() > 50 * left


# --- from a few measured gains ----------------------------------------------------------------------------------------


def test_predicted_noise_of_gains_measured_at_a_few_times():
    slope = lambda t: 0.8 + 0.05 * gain_law.log_sigma(ABAR[t]).item()  # noqa: E731
    known = (900, 20, 300)  # in any order
    for n, eta in ((10, 0.0), (50, 0.0), (50, 1.0)):
        times = schedule.timesteps(n)
        expected = [slope(min(max(int(t), 20), 900)) for t in times]  # linear in ln σ, constant beyond the ends
        found = gain_law.predicted_noise(known, [slope(t) for t in known], ABAR.float(), n, eta)
        assert found == pytest.approx(gain_law.noise_left(expected, times, ABAR, eta), rel=1e-5)
    pndm = gain_law.predicted_noise((500,), [0.9], ABAR, 50, sampler="pndm")
    assert pndm == gain_law.noise_left_by_pndm([0.9] * 50, schedule.timesteps(50), ABAR)


def test_predicted_noise_of_a_network_that_is_linear():
    """From measuring to predicting to drawing, all of it: gains measured in a guided pair of denoisers of unlike gains
    predict the noise of the samples that this pair draws."""
    from minibnn.lab import gains

    memory = normal(4, 24, 24, seed=5)
    c, u = (linear(lambda t, a=a: a + t / 20000, memory) for a in (0.97, 1.0))
    found = gains.Gains(gains.TIMES, *(gains.slopes(p, memory[None], ABAR, draws=1) for p in (c, u)))
    x, times = normal(8, 4, 24, 24), schedule.timesteps(50)
    sample = schedule.sample_ddim(lambda x, t: guide(u(x, t), c(x, t), 7.5), x, times, ABAR)
    predicted = gain_law.predicted_noise(found.times, gains.mean(found.guided(7.5)), ABAR, 50)
    assert predicted > 0.05 and predicted == pytest.approx(sample.var(0).mean().sqrt().item(), rel=0.02)
