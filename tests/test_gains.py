"""The gains of a noise prediction: against denoisers whose gain is known, and by hand on a network."""

import dataclasses

import pytest
import torch

from minibnn import StableDiffusion, schedule
from minibnn.finetune import bayes
from minibnn.lab import eq2, gains, sigma1_estimate

ABAR = schedule.alphas_cumprod().double()
TIMES = (1, 20, 300, 999)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(gain, memory, constant=0.0):
    """predict(x, t) = g_t·(x − √ᾱ_t m)/√(1−ᾱ_t) + constant: a denoiser with the gain g_t, a function of t."""
    return lambda x, t: gain(t) * (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt() + constant


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 5, 7)])
def test_a_linear_denoiser_has_its_gain_from_a_single_draw(shape):
    """Whatever it remembers, right or wrong, and whatever it adds that does not depend on the noise."""
    pictures = normal(*shape, seed=1)
    gain = lambda t: 0.4 + t / 1000  # noqa: E731
    predict = linear(gain, memory=normal(*shape[1:], seed=2), constant=normal(*shape[1:], seed=3))
    found = gains.slopes(predict, pictures, ABAR, TIMES, draws=1)
    assert found.shape == (4, 1, shape[0]) and found.dtype == torch.float64
    expected = torch.tensor([gain(t) for t in TIMES], dtype=torch.float64)[:, None, None].expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_a_gain_for_each_position_is_their_mean():
    """ε̂ = G(x − √ᾱ m)/√(1−ᾱ) with a diagonal G: the mean of the diagonal, within the standard error that is told."""
    diagonal = normal(4, 8, 8, seed=4) * 0.3 + 0.8
    found = gains.slopes(linear(lambda t: diagonal, 0.0), normal(2, 4, 8, 8), ABAR, (300,), draws=200, seed=7)
    error = gains.standard_error(found)[0]
    assert error == pytest.approx((2 * diagonal.var() / 256 / 400).sqrt().item(), rel=0.2)  # var of Σ g ε² / Σ ε²
    assert abs(gains.mean(found)[0] - diagonal.mean().item()) < 3 * error


def test_the_network_of_eq_2_has_the_gain_one_minus_sqrt_abar_k():
    """Eq. 2 as a gain: x̂_0 = x′ + k_t (x_t − √ᾱ_t x′) is a prediction of the noise with the gain 1 − √ᾱ_t k_t."""
    picture = normal(1, 4, 6, 6)
    for sigma1 in (0.0, 0.3, 4.8):
        found = gains.slopes(eq2.eps_model(picture, ABAR, sigma1), picture, ABAR, TIMES, draws=1)
        expected = [1 - (ABAR[t].sqrt() * eq2.gain(ABAR[t], sigma1)).item() for t in TIMES]
        assert gains.mean(found) == pytest.approx(expected, rel=1e-9)


def test_stein_the_gain_of_a_curved_denoiser_is_its_mean_slope():
    """ε̂ = tanh(a·ε) is no line; E⟨ε̂, ε⟩/d = a·E[1 − tanh²(a·ε)], here by quadrature."""
    a, grid = 0.7, torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2) / (2 * torch.pi) ** 0.5
    expected = torch.trapezoid(a * (1 - (a * grid).tanh().square()) * density, grid).item()
    memory = normal(4, 32, 32)
    predict = lambda x, t: (a * (x - ABAR[t].sqrt() * memory) / (1 - ABAR[t]).sqrt()).tanh()  # noqa: E731
    found = gains.slopes(predict, memory[None], ABAR, (100,), draws=64)
    assert gains.mean(found)[0] == pytest.approx(expected, abs=4 * gains.standard_error(found)[0])
    assert gains.standard_error(found)[0] < 2e-3 * expected


def test_guidance_works_on_gains_as_on_predictions():
    """g = s·c − (s−1)·u, against the slopes of the guided prediction itself."""
    pictures, memory = normal(2, 4, 5, 5), normal(4, 5, 5, seed=1)
    c = linear(lambda t: 0.97, memory)
    u = lambda x, t: linear(lambda t: 1.02, 2 * memory)(x, t) + 0.1 * x.tanh()  # noqa: E731
    found = gains.Gains(TIMES, *(gains.slopes(p, pictures, ABAR, TIMES) for p in (c, u)))
    for s in (0.0, 1.0, 3.0, 7.5):
        guided = gains.slopes(lambda x, t: s * c(x, t) - (s - 1) * u(x, t), pictures, ABAR, TIMES)  # noqa: B023
        torch.testing.assert_close(found.guided(s), guided, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.guided(1), found.c) and torch.equal(found.guided(0), found.u)


def test_standard_errors():
    values = torch.tensor([[[1.0, 5.0], [2.0, 9.0], [3.0, 7.0]]], dtype=torch.float64)  # one time, 3 draws, 2 pictures
    # the variances over draws are 1 and 4, so that the mean of six has the variance (1/3 + 4/3)/4
    assert gains.standard_error(values) == pytest.approx([(5 / 12) ** 0.5])
    assert gains.mean(values) == [4.5] and gains.standard_error(values[:, :1]) == [float("inf")]


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(micro):
    return StableDiffusion.load(micro)


def test_a_network_measured_by_hand(model):
    latents = normal(2, 4, 8, 8).float()
    found = gains.measure(model, latents, "a red car", "a dog", times=(100, 600), draws=2, seed=5, batch_size=3)
    noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for values, prompt in ((found.c, "a red car"), (found.u, "a dog")):
        for i, t in enumerate((100, 600)):
            for draw in range(2):
                for picture in range(2):
                    eps, (a, b) = noise[draw, picture], (ABAR[t].sqrt().item(), (1 - ABAR[t]).sqrt().item())
                    x = torch.stack([a * latents[picture] + b * eps, a * latents[picture] - b * eps])
                    with torch.no_grad():
                        out = model.unet(x, torch.tensor([t, t]), model.encode_prompts([prompt] * 2))
                    expected = ((out[0] - out[1]) / 2 * eps).sum() / eps.square().sum()
                    assert values[i, draw, picture].item() == pytest.approx(expected.item(), abs=2e-6)
    assert not torch.allclose(found.c, found.u)


def test_a_prediction_of_v_is_converted_first(model, monkeypatch):
    """A network that predicts v = √ᾱ ε̂ − √(1−ᾱ) x̂_0 of a linear denoiser has that denoiser's gain."""
    picture = normal(1, 4, 8, 8, seed=6).float()

    def velocity(x, t, context):
        abar = ABAR[t].float()[:, None, None, None]
        eps = 0.9 * (x - abar.sqrt() * picture) / (1 - abar).sqrt()
        return abar.sqrt() * eps - (1 - abar).sqrt() * (x - (1 - abar).sqrt() * eps) / abar.sqrt()

    model.configs["scheduler"]["prediction_type"] = "v_prediction"
    monkeypatch.setattr(model.unet, "forward", velocity)
    found = gains.measure(model, picture, "a car", times=(20, 300), draws=1)
    assert gains.mean(found.c) == pytest.approx([0.9, 0.9], abs=1e-4)


def test_random_weights_are_at_their_mean_even_in_training(model):
    latents = normal(1, 4, 8, 8).float()
    before = gains.measure(model, latents, "a car", draws=1)
    bayes.bayesianize(model.unet, "all", sigma=0.1)
    model.unet.train()
    after = gains.measure(model, latents, "a car", draws=1)
    assert model.unet.training
    assert torch.equal(before.c, after.c) and torch.equal(before.u, after.u)


def test_the_gain_is_what_sigma1_is_read_from(model):
    """σ₁'s estimate and the gain are two readings of the same slope: √ᾱ_t k_t = 1 − g_t, up to the noise of each."""
    latents = normal(1, 4, 8, 8, seed=8).float()
    predict = sigma1_estimate.predictor(model, "a car")
    k = sigma1_estimate.estimate_sigma1(predict, latents, model.alphas_cumprod, (300,), 64, resamples=2).gain[0]
    found = gains.slopes(predict, latents, model.alphas_cumprod, (300,), draws=64)
    assert 1 - ABAR[300].sqrt().item() * k == pytest.approx(gains.mean(found)[0], abs=0.01)


def test_another_unconditional_prediction(model):
    latents = normal(1, 4, 8, 8).float()
    own = gains.measure(model, latents, "a car", draws=1)
    zero = gains.measure(model, latents, "a car", draws=1, unconditional=lambda x, t: torch.zeros_like(x))
    assert torch.equal(own.c, zero.c) and not zero.u.any()
    assert dataclasses.astuple(own)[0] == gains.TIMES
