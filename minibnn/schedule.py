"""The noise schedule and the sampling steps, as pure functions: they keep no state, and noise is passed in.

Follows: DDPM (Ho et al. 2020), DDIM (Song et al. 2021a), velocity (Salimans & Ho 2022) and PNDM/PLMS (Liu et al. 2022),
with the settings of SD's `scheduler/scheduler_config.json`.

    here      DDPM     DDIM    the Bayes paper
    abar_t    ᾱ_t      α_t     α_t              cumulative product of 1 − β
    x0        x_0      x_0     x_0              the clean latent
    x         x_t      x_t     x_t              √ᾱ_t x_0 + √(1−ᾱ_t) ε
    eps       ε        ε       ε                standard normal noise, or its prediction ε_θ(x_t, t)
    v         -        -       -                √ᾱ_t ε − √(1−ᾱ_t) x_0

Every function takes ᾱ as a number or a tensor; a tensor of shape (B,) holds one value for each picture.
"""

import torch

from .errors import UserError

TRAIN_STEPS = 1000


def betas(start=0.00085, end=0.012, steps=TRAIN_STEPS):
    """SD's "scaled linear" β_t: evenly spaced square roots from √start to √end. (steps,), float64."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()


def alphas_cumprod(start=0.00085, end=0.012, steps=TRAIN_STEPS):
    """ᾱ_t = Π_{s≤t} (1 − β_s); (steps,), float32, computed in float64.   (DDPM eq. 4)"""
    return (1 - betas(start, end, steps)).cumprod(0).float()


def per_sample(abar, x):
    """ᾱ shaped to multiply x: a number becomes a scalar tensor, (B,) becomes (B, 1, 1, 1)."""
    if not torch.is_tensor(abar) or (abar.ndim == 0 and abar.device.type == "cpu"):
        return x.new_full((), float(abar))  # filled where x is: to copy a number there, the host would wait for the GPU
    abar = abar.to(device=x.device, dtype=x.dtype)
    return abar.reshape(-1, *[1] * (x.ndim - 1)) if abar.ndim else abar


def q_sample(x0, eps, abar_t):
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε.   (DDPM eq. 4)"""
    abar_t = per_sample(abar_t, x0)
    return abar_t.sqrt() * x0 + (1 - abar_t).sqrt() * eps


# --- conversions between what a network may predict -------------------------------------------------------------------


def x0_from_eps(x, eps, abar_t):
    """x̂_0 = (x_t − √(1−ᾱ_t)·ε) / √ᾱ_t.   (DDPM eq. 15; DDIM eq. 9)"""
    abar_t = per_sample(abar_t, x)
    return (x - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()


def eps_from_x0(x, x0, abar_t):
    """ε = (x_t − √ᾱ_t·x_0) / √(1−ᾱ_t), DDPM eq. 4 solved for ε."""
    abar_t = per_sample(abar_t, x)
    return (x - abar_t.sqrt() * x0) / (1 - abar_t).sqrt()


def with_mean(mean, noise, abar_t):
    """The noise (B, C, h, w) with √ᾱ_t·mean (C,) in place of the mean of each of its channels.

    x_T of training still has √ᾱ_T of the picture in it, since SD's schedule does not end at ᾱ = 0 (Lin et al. 2024),
    and of that the means are what a network sees best ("signal leak", Everaert et al. 2024).
    """
    own = noise.mean((2, 3), keepdim=True)
    return noise - own + abar_t**0.5 * mean.to(noise)[None, :, None, None]


def noise_strength(noise):
    """The standard deviation of noise (B, C, h, w) about the means of its channels: (B,).

    That of n white numbers is 1 ± 1/√(2n).
    """
    return (noise - noise.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()


def with_strength(noise, strength=1.0):
    """The noise (B, C, h, w), scaled about the means of its channels to this `noise_strength` in each picture."""
    mean = noise.mean((2, 3), keepdim=True)
    return mean + (noise - mean) * strength / noise_strength(noise)[:, None, None, None]


def velocity(x0, eps, abar_t):
    """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0.   (Salimans & Ho 2022, §4)"""
    abar_t = per_sample(abar_t, x0)
    return abar_t.sqrt() * eps - (1 - abar_t).sqrt() * x0


def eps_from_v(x, v, abar_t):
    """ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t.   (Salimans & Ho 2022, App. D)"""
    abar_t = per_sample(abar_t, x)
    return abar_t.sqrt() * v + (1 - abar_t).sqrt() * x


def training_noise(shape, offset, spread, generator):
    """ε of a training step: N(0, 1), plus `offset` times N(0, 1) that is one number for each channel of a picture.

    shape: (B, C, h, w). White noise hardly moves the mean of a channel, by 1/√(hw), so that its prediction has next to
    no part in the loss; an offset gives it one. Follows: "noise offset" (Guttenberg 2023) as in diffusers' scripts. In
    the same way its strength hardly varies (`noise_strength`): a `spread` multiplies it by 1 + spread·N(0, 1), one
    number for each picture.
    """
    eps = torch.randn(shape, generator=generator)
    if offset:
        eps = eps + offset * torch.randn((*shape[:2], 1, 1), generator=generator)
    return eps * (1 + spread * torch.randn((shape[0], 1, 1, 1), generator=generator)) if spread else eps


def min_snr_weight(abar_t, gamma, v_prediction):
    """The weight of a squared error at time t: min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v; shape of ᾱ_t.

    SNR = ᾱ_t / (1 − ᾱ_t). For ε late, noisy times keep the weight 1, and times of little noise get the smaller weight
    γ/SNR. For v the weight also vanishes at late times; both are the same weighting of the error in x̂_0.
    (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", §3.4)
    """
    snr = abar_t / (1 - abar_t)
    return snr.clamp(max=gamma) / (snr + 1 if v_prediction else snr)


# --- one step ---------------------------------------------------------------------------------------------------------


def posterior(x, x0, abar_t, abar_prev):
    """Mean and variance of q(x_{t−1} | x_t, x_0).   (DDPM eq. 6-7)

    μ̃_t = √ᾱ_{t−1} β_t/(1−ᾱ_t)·x_0 + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t)·x_t,   β̃_t = (1−ᾱ_{t−1})/(1−ᾱ_t)·β_t

    with α_t = ᾱ_t/ᾱ_{t−1} and β_t = 1 − α_t, so that t−1 may be any earlier time.
    """
    abar_t, abar_prev = per_sample(abar_t, x), per_sample(abar_prev, x)
    alpha = abar_t / abar_prev
    mean = (abar_prev.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - abar_prev) * x) / (1 - abar_t)
    return mean, (1 - abar_prev) / (1 - abar_t) * (1 - alpha)


def ddpm_step(x, eps, abar_t, abar_prev, noise):
    """x_{t−1} = μ̃_t(x_t, x̂_0) + √β̃_t·noise.   (DDPM Algorithm 2, with σ_t² = β̃_t)"""
    mean, variance = posterior(x, x0_from_eps(x, eps, abar_t), abar_t, abar_prev)
    return mean + variance.sqrt() * noise


def ddim_sigma(abar_t, abar_prev, eta):
    """σ_t = η √((1−ᾱ_{t−1})/(1−ᾱ_t)) √(1 − ᾱ_t/ᾱ_{t−1}).   (DDIM eq. 16)"""
    return eta * ((1 - abar_prev) / (1 - abar_t)) ** 0.5 * (1 - abar_t / abar_prev) ** 0.5


def ddim_step(x, eps, abar_t, abar_prev, eta=0.0, noise=None):
    """x_{t−1} = √ᾱ_{t−1}·x̂_0 + √(1−ᾱ_{t−1}−σ_t²)·ε + σ_t·noise.   (DDIM eq. 12)

    η = 0 is deterministic and needs no noise; η = 1 is DDPM.
    """
    abar_t, abar_prev = per_sample(abar_t, x), per_sample(abar_prev, x)
    sigma = ddim_sigma(abar_t, abar_prev, eta)
    x = abar_prev.sqrt() * x0_from_eps(x, eps, abar_t) + (1 - abar_prev - sigma**2).sqrt() * eps
    return x + sigma * noise if eta else x


def plms_eps(eps):
    """Adams-Bashforth combination of the last (at most four) predictions, the newest last.   (Liu et al. 2022, PLMS)

    Example: plms_eps([e0, e1]) == (3·e1 − e0)/2.
    """
    weights = ((1,), (-1 / 2, 3 / 2), (5 / 12, -16 / 12, 23 / 12), (-9 / 24, 37 / 24, -59 / 24, 55 / 24))
    eps = eps[-4:]
    return sum(w * e for w, e in zip(weights[len(eps) - 1], eps, strict=True))


# --- whole trajectories: model(x, t) -> ε̂, t an int -------------------------------------------------------------------


def timesteps(steps, offset=1):
    """The falling times of a sampler with that many steps, in SD's "leading" spacing. (steps,) int64.

    Example: timesteps(4) is [751, 501, 251, 1]. Between two times lie ⌊1000/steps⌋, as in diffusers. If `steps` does
    not divide 1000, sampling starts earlier than it could: with 600 steps at t = 600, where the network expects to see
    something of a picture. Raises UserError unless 1 ≤ steps ≤ 999 (1000 without the offset).
    """
    if not 1 <= steps <= TRAIN_STEPS - offset:
        raise UserError(f"steps = {steps} is outside 1..{TRAIN_STEPS - offset}")
    return torch.arange(steps).flip(0) * (TRAIN_STEPS // steps) + offset


def pairs(times, abar, final):
    """(t, ᾱ_t, ᾱ of the next, less noisy time) of each step of falling times; after the last comes `final`."""
    times = times.tolist()
    following = [*(abar[t] for t in times[1:]), final]
    return [(t, abar[t], abar_prev) for t, abar_prev in zip(times, following, strict=True)]


def sample_ddim(model, x, times, abar, eta=0.0, noise=None):
    """From noise to a latent by DDIM. SD's last step ends at ᾱ_0, not at 1.

    noise(i) returns standard normal noise in the shape of x for step i; it is needed if η > 0.
    """
    for i, (t, abar_t, abar_prev) in enumerate(pairs(times, abar, abar[0])):
        x = ddim_step(x, model(x, t), abar_t, abar_prev, eta, noise(i) if eta else None)
    return x


def sample_ddpm(model, x, times, abar, noise):
    """From noise to a latent by DDPM; the last step ends at ᾱ = 1 and adds no noise."""
    for i, (t, abar_t, abar_prev) in enumerate(pairs(times, abar, abar.new_ones(()))):
        fresh = noise(i) if i + 1 < len(times) else torch.zeros_like(x)
        x = ddpm_step(x, model(x, t), abar_t, abar_prev, fresh)
    return x


def sample_pndm(model, x, times, abar, v_prediction=False):
    """From noise to a latent by PNDM without Runge-Kutta steps (PLMS), SD's default sampler.

    Each step is a DDIM step with a combination of past predictions. The first step is done twice (Heun's method), so
    that n steps evaluate the model n + 1 times. v_prediction: for a network that predicts v. Its past predictions are
    then combined as v, as diffusers does, although `model` returns ε̂; combining them as ε̂ gives another trajectory.
    """

    def predict(x, t):
        eps = model(x, t)
        return velocity(x0_from_eps(x, eps, abar[t]), eps, abar[t]) if v_prediction else eps

    def step(x, combined, abar_t, abar_prev):
        eps = eps_from_v(x, combined, abar_t) if v_prediction else combined
        return ddim_step(x, eps, abar_t, abar_prev)

    past = []
    for i, (t, abar_t, abar_prev) in enumerate(pairs(times, abar, abar[0])):
        past = [*past[-3:], predict(x, t)]
        combined = plms_eps(past)
        if i == 0 and len(times) > 1:
            ahead = step(x, combined, abar_t, abar_prev)
            combined = (combined + predict(ahead, int(times[1]))) / 2
        x = step(x, combined, abar_t, abar_prev)
    return x
