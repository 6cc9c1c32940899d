"""The gain of a noise prediction: how much of the noise in x_t the network finds there.

At x_t = √ᾱ_t x′ + √(1−ᾱ_t) ε around a training picture x′, the gain g_t is the slope of the predicted on the true
noise. With g_t = 1 all of the noise is found and a sampler takes it out; with g_t < 1 some of it stays (`gain_law.py`
says how much). Guidance works on the gains as it does on the predictions:

    ε̂ = s·ε(c) − (s−1)·ε(∅),   so   g = s·c − (s−1)·u

    here         meaning
    c            the gain of the prediction with the prompt
    u            the gain of the unconditional prediction: with the empty prompt, or with the negative one
    guided(s)    the gain of what a sampler uses at guidance s

Nobody trains u in few-shot fine-tuning. Where it rises above c, guidance extrapolates to the other side of c, below 1.

Eq. 2 of the Bayes paper describes a network with g_t = 1 − √ᾱ_t k_t ≤ 1 (`eq2.py`), and `sigma1_estimate.py` measures
its σ₁. The gain needs no such model: it exists for every network, and exceeds 1 where guidance takes away too much.

But: a gain says nothing about the part of a prediction that does not depend on ε, which is the remembered picture.
"""

import dataclasses

import torch

from ..schedule import q_sample
from .sigma1_estimate import predictor

TIMES = (20, 100, 300, 600, 900)  # about evenly spaced in the logarithm of √((1−ᾱ)/ᾱ), from 0.14 to 8.2 for SD


def guided_gain(c, u, guidance):
    """g = s·c − (s−1)·u for the guidance s, of numbers or tensors. It is c at 1, and u at 0."""
    return guidance * c - (guidance - 1) * u


@dataclasses.dataclass(frozen=True)
class Gains:
    """The gains at T times, draw by draw; the same noise for c and u, so that guided(s) is exact for each draw."""

    times: tuple  # T whole numbers, 0 … 999
    c: torch.Tensor  # (T, draws, n), float64: with the prompt, for each draw of noise and each of n pictures
    u: torch.Tensor  # (T, draws, n), float64: without

    def guided(self, guidance):
        """`guided_gain` of each draw: (T, draws, n)."""
        return guided_gain(self.c, self.u, guidance)


def mean(gains):
    """(T, draws, n) -> T numbers, the mean over draws and pictures."""
    return gains.mean((1, 2)).tolist()


def standard_error(gains):
    """(T, draws, n) -> T numbers: the standard error of `mean` for these n pictures, over other draws of noise.

    The pictures are fixed, so that differences between them do not count. inf for a single draw, which cannot tell.
    """
    if gains.shape[1] < 2:
        return [float("inf")] * len(gains)
    return (gains.var(1).mean(1) / gains[0].numel()).sqrt().tolist()


def all_of(noise):
    """All of the noise: its gain is the mean gain over all directions."""
    return noise


def colour_of(noise):
    """The mean of each channel of the noise (B, C, h, w), in its shape: in pictures, the mean colour.

    It is C of C·h·w directions, so that it has hardly a part in the mean gain, and hardly one in the training loss.
    """
    return noise.mean((2, 3), keepdim=True).expand_as(noise)


def strength_of(noise):
    """3 % of the noise: the two noises of a pair then differ in their strength alone, which is 1 and 0.94.

    A network whose first layers are normalised hardly sees how strong the noise is, and takes from t what it should
    be. Noise that is stronger than it should be is then not found, though the mean gain may be 1.
    """
    return 0.03 * noise


@torch.no_grad()
def slopes(predict_eps, latents, abar, times=TIMES, draws=4, seed=0, batch_size=16, part=all_of):
    """The gains of one predictor: (T, draws, n), float64.

    Each draw is a pair of predictions, at ε and at −ε, of which half the difference is projected on ε:

        g = ⟨½(ε̂(ε) − ε̂(−ε)), ε⟩ / ⟨ε, ε⟩

    A single ⟨ε̂, ε⟩/⟨ε, ε⟩ would carry the chance overlap of ε with the part of ε̂ that does not depend on it. In a pair
    that part cancels: for a prediction that is affine in x_t one draw is the exact answer (for a scalar gain; else the
    mean of the slopes, weighted by ε²). It is also the least-squares slope with an intercept at each position, since
    the mean of ε and −ε is 0. By Stein's lemma its expectation is √(1−ᾱ_t) times the mean of the diagonal of ∂ε̂/∂x_t,
    for every network. On the bundled model, for equally many forwards, pairs have half the standard error at t = 20.

    predict_eps(x, t): (B, C, h, w) and an int -> ε̂, of whatever predicts: `sigma1_estimate.predictor` of a model and a
    prompt, or `neighbours.guidance.unconditional_of` of a base model. latents: (n, C, h, w) of the training pictures.
    The noise depends on the seed alone. Cost: 2·T·draws·n forwards of one picture, `batch_size` at once.

    part: the part P of the noise whose gain is asked for (`all_of`, `colour_of`, `strength_of`). The pair is then ε and
    ε − 2Pε, and half the difference is projected on Pε: the gain in the directions of that part alone.
    """
    n = len(latents)
    noise = torch.randn((draws, *latents.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    noise = noise.to(latents).flatten(0, 1)  # draw by draw, all pictures
    clean = latents.repeat(draws, *[1] * (latents.ndim - 1))
    turned = noise - 2 * part(noise)
    drawn = part(noise.cpu().double())  # float64 on the CPU: Apple's GPUs have none
    energy = drawn.square().flatten(1).sum(1)
    found = []
    for t in times:
        x = torch.cat([q_sample(clean, noise, abar[t]), q_sample(clean, turned, abar[t])])
        plus, minus = torch.cat([predict_eps(part, int(t)) for part in x.split(batch_size)]).cpu().double().chunk(2)
        along = ((plus - minus) / 2 * drawn).flatten(1).sum(1)
        found.append((along / energy).reshape(draws, n))
    return torch.stack(found)


def measure(sd, latents, prompt, negative_prompt="", times=TIMES, draws=4, seed=0, batch_size=16, unconditional=None,
            part=all_of):
    """The Gains of a StableDiffusion around latents (n, 4, h, w), as `sigma1_estimate.latents_of` makes them.

    The weights are those at the posterior mean, also while a model trains; a prediction of v is converted to ε first.
    unconditional: a predictor of its own for ε(∅), such as a base model's; part: as in `slopes`. On SD v1.5 one picture
    with the defaults takes 80 forwards of one latent, as many as 40 steps of drawing one picture.
    """
    training = sd.unet.training
    sd.unet.eval()  # Bayesian layers then compute with their means
    try:
        given = (latents.to(sd.device), sd.alphas_cumprod, times, draws, seed, batch_size, part)
        conditional = slopes(predictor(sd, prompt), *given)
        return Gains(tuple(times), conditional, slopes(unconditional or predictor(sd, negative_prompt), *given))
    finally:
        sd.unet.train(training)
