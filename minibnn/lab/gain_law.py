"""The gain law: how much noise a sampler leaves in a picture, from the gains of the prediction that it follows.

Take a denoiser that is linear around one remembered picture m, with the gain g_t (`gains.py` measures it in networks):

    ε̂(x_t) = g_t·(x_t − √ᾱ_t m)/√(1−ᾱ_t)

Put into the DDIM step (`schedule.ddim_step`), it takes the deviation δ = x_t − √ᾱ_t m to

    δ′ = f·δ + σ_η·z,   f = (1 − g_t)·√(ᾱ′/ᾱ_t) + g_t·√(1−ᾱ′−σ_η²)/√(1−ᾱ_t),   σ_η² = η²·(1−ᾱ′)/(1−ᾱ_t)·(1−ᾱ_t/ᾱ′)

with ᾱ′ of the next time and fresh noise z. From x_T ~ N(0, 1) the sample is √ᾱ_0 m plus what is left of δ. Its noise,
the standard deviation of each element, is √V after the last step, where V = 1 at the start and

    V′ = f²·V + σ_η²

Seen at the scale x_t/√ᾱ_t, whose noise is σ = √((1−ᾱ)/ᾱ), all of this is simple.

**η = 0.** f = 1 − g·(1 − σ′/σ). A perfect gain, 1, shrinks the noise exactly as σ shrinks; whatever is missing stays
for ever: in small steps a constant gain leaves σ_0·(σ_T/σ_0)^(1−g), and a changing one σ_0·exp(∫(1−g) d ln σ). For SD
σ falls by a factor of 500, so that g = 0.8 leaves 3.5 times the noise of g = 1. More steps do not help, and no later
step repairs it. In a large step a gain above 1 can leave noise too: f changes its sign beyond g = 1/(1 − σ′/σ).

**η = 1.** f = 1 − g·(1 − σ′²/σ²): the deviation shrinks twice as fast, and fresh noise of the right size takes its
place. Too much noise is forgotten: V tends to σ²/(2g − 1), which is 1.29 times the standard deviation at g = 0.8.
This is why ancestral sampling repairs what guidance spoils, as long as g > 1/2. (In general: `steady_noise`.)

**Eq. 2 of the Bayes paper** (`eq2.py`) is such a denoiser, m = x′ and g_t = 1 − √ᾱ_t k_t, a deficit at every time if
σ₁ > 0. In small steps the law then leaves √(σ₁² + σ_0²): samples of Eq. 2 are x′ with noise of σ₁. With guidance,
g = s·c − (s−1)·u can have such a deficit though neither c nor u has: all that it takes is u > c.

**Guidance with a base model's unconditional prediction** ("Unconditional Priors Matter", `neighbours/guidance.py`)
takes u from the model before fine-tuning, where it has not risen: g = s·c − (s−1)·u_base. That mends g < 1.

**Directions.** A linear denoiser may have another gain in each direction of x, and the law holds in each by itself.
Two have next to no part in a training loss: the mean colour, and the strength of the noise, ε itself (`colour_of` and
`strength_of` in `gains.py`). Of a starting noise that is s times too strong a sample keeps (s − 1)·Πf. In
`experiments/stage/starts.py` that predicts the noise of single pictures where the mean gain, of 1, does not.

But: a network is linear only near x′, and the mean gain predicts the noise of the mean direction, which is less
than the mean noise. Noise that has become stronger than x_t should have at its time is outside of what was measured. A
model that knows more than one picture leaves deviations that are variety and not noise: compare with the same model
without guidance, as the monitor does. And guidance strengthens the texture of the remembered picture too, which a
measure of noise in single pictures cannot tell from noise: `noise_between` can.
"""

import math

import numpy as np
import torch

from .. import schedule
from ..world.measures import immerkaer


def log_sigma(abar_t):
    """ln σ of σ = √((1−ᾱ)/ᾱ), the noise of x_t/√ᾱ_t; float64. abar_t: a number or a tensor."""
    abar_t = torch.as_tensor(abar_t, dtype=torch.float64)
    return ((1 - abar_t) / abar_t).log() / 2


def step_factor(gain, abar_t, abar_prev, eta=0.0):
    """f = (1−g)·√(ᾱ′/ᾱ) + g·√(1−ᾱ′−σ_η²)/√(1−ᾱ), by which a DDIM step multiplies the deviation from √ᾱ m."""
    sigma = schedule.ddim_sigma(abar_t, abar_prev, eta)
    return (1 - gain) * (abar_prev / abar_t) ** 0.5 + gain * ((1 - abar_prev - sigma**2) / (1 - abar_t)) ** 0.5


def noise_left(gains, times, abar, eta=0.0):
    """The noise in the sample of `schedule.sample_ddim(model, x_T, times, abar, eta)`: a standard deviation ≥ 0.

    V′ = f²·V + σ_η² from V = 1. gains: one for each of the falling `times`; abar: (1000,). Perfect gains of 1 leave
    about √(1−ᾱ_0), 0.029 for SD, because SD's last step ends at ᾱ_0.
    """
    variance, abar = 1.0, abar.double().tolist()  # Python's numbers are several times as fast as tensors of one element
    steps = schedule.pairs(times, abar, abar[0])
    for gain, (_, abar_t, abar_prev) in zip(gains, steps, strict=True):
        factor = step_factor(float(gain), abar_t, abar_prev, eta)
        variance = factor**2 * variance + schedule.ddim_sigma(abar_t, abar_prev, eta) ** 2
    return variance**0.5


def surplus_left(gains, times, abar):
    """Πf of DDIM with η = 0: what a surplus of 1 in the starting noise has become. Negative where it has turned.

    Its size is `noise_left`; the sign tells whether two contributions to one sample add up or cancel.
    """
    abar = abar.double().tolist()
    steps = schedule.pairs(times, abar, abar[0])
    return math.prod(step_factor(float(g), *step[1:]) for g, step in zip(gains, steps, strict=True))


def noise_left_by_pndm(gains, times, abar):
    """The same for `schedule.sample_pndm`: it has no such formula, but is linear, and so 1 is sent through it."""
    gain_at, abar = dict(zip(times.tolist(), map(float, gains), strict=True)), abar.double()
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    model = lambda x, t: gain_at[t] * x / (1 - abar[t]).sqrt()  # noqa: E731
    return abs(schedule.sample_pndm(model, start, times, abar).item())


def interpolated(measured_at, gains, abar, times):
    """Gains measured at some times -> one for each of `times`, as a list: linear in ln σ, constant beyond the ends."""
    places = log_sigma(abar).numpy()
    order = np.argsort(measured_at)
    known = np.asarray(measured_at)[order], np.asarray(gains, dtype=float)[order]
    return np.interp(places[times], places[known[0]], known[1]).tolist()


def predicted_noise(measured_at, gains, abar, steps=50, eta=0.0, sampler="ddim"):
    """The noise that a sampler with so many steps leaves, from gains measured at a few times: a standard deviation.

    In units of the latents, or of the pictures where the network works on pixels. measured_at: whole numbers 0 … 999;
    gains: the mean gain at each, for instance `mean(found.guided(7.5))` of `gains.py`; abar: (1000,), on the CPU;
    sampler: "ddim" (with η = `eta`) or "pndm".
    """
    times = schedule.timesteps(steps)
    at_each = interpolated(measured_at, gains, abar, times)
    return noise_left_by_pndm(at_each, times, abar) if sampler == "pndm" else noise_left(at_each, times, abar, eta)


def noise_between(images):
    """The measured counterpart of `predicted_noise`: the noise in which pictures differ that were drawn alike.

    images: (n, C, H, W), n ≥ 2, of one prompt and different starting noise; pictures or latents. Immerkær's estimate of
    their deviations from their mean, without the texture that they share; a standard deviation.
    """
    n = len(images)
    deviations = (images - images.mean(0)) * (n / (n - 1)) ** 0.5
    return immerkaer(deviations).mean().item()


# --- in small steps ---------------------------------------------------------------------------------------------------


def steady_noise(gain, eta=1.0):
    """To how many σ the noise tends in many small steps with η > 0: η/√(g·(1+η²) − 1), and inf for g ≤ 1/(1+η²).

    With V = Var(x_t/√ᾱ_t) and l = −ln σ the recursion becomes dV/dl = −2g(1+η²)·V + 2η²·σ², which is solved by
    V = η²σ²/(g(1+η²) − 1). At g = 1 this is σ² for every η.
    """
    spare = gain * (1 + eta**2) - 1
    return eta / math.sqrt(spare) if spare > 0 else math.inf
