"""The paper's Eq. 1-2 as code: what a network predicts that has learned one picture, or a few.

Follows: "Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and Mitigating with Bayesian Neural
Networks", §3.2-3.3, App. A, B and F. `python -m minibnn` lists the commands that look into models with it.

A network fine-tuned on one picture x′ is modelled as if it had learned x_0 ~ N(x′, σ₁²), so that x_0 and
x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε are jointly Gaussian. For a set I_θ of pictures it is the same around the nearest one.

    here              paper
    abar_t            α_t            ᾱ_t of DDPM
    picture           x′, x*         a latent that the network has learned, with the standard deviation σ₁ around it
    pictures          I_θ            several of them, (n, C, H, W)
    sigma1            σ₁             a number ≥ 0, or inf; or (B,)
    gain              -              k_t = √ᾱ_t σ₁² / (ᾱ_t σ₁² + 1 − ᾱ_t), the factor in δ_t, 0 ≤ k_t ≤ 1/√ᾱ_t

Every function takes ᾱ as a number in (0, 1) or as a tensor (B,), one for each picture; the pictures are (B, C, H, W).

But: the paper prints the variance in Eq. 1 without its factor σ₁². `posterior_variance` has it, as App. A derives.
"""

import torch

from ..schedule import eps_from_x0, per_sample


def gain(abar_t, sigma1):
    """k_t = √ᾱ_t σ₁² / (ᾱ_t σ₁² + 1 − ᾱ_t), float64. It is 0 for σ₁ = 0 and 1/√ᾱ_t for σ₁ = inf.   (in Eq. 1)"""
    abar_t, sigma1 = torch.as_tensor(abar_t, dtype=torch.float64), torch.as_tensor(sigma1, dtype=torch.float64)
    return abar_t.sqrt() / (abar_t + (1 - abar_t) / sigma1**2)  # both halves are divided by σ₁², so that inf works


def delta(x, picture, abar_t, sigma1):
    """δ_t(x_t, x′) = k_t (x_t − √ᾱ_t x′): the difference between the predicted and the learned picture.   (Eq. 1)"""
    return per_sample(gain(abar_t, sigma1), x) * (x - per_sample(abar_t, x).sqrt() * picture)


def predict_x0(x, picture, abar_t, sigma1):
    """x̂_0 = x′ + δ_t(x_t, x′), the mean and the mode of P_θ(x_0 | x_t).   (Eq. 2)"""
    return picture + delta(x, picture, abar_t, sigma1)


def posterior_variance(abar_t, sigma1):
    """The variance of each element of x_0 given x_t: σ₁² (1−ᾱ_t) / (ᾱ_t σ₁² + 1 − ᾱ_t), float64.   (Eq. 1, with σ₁²)"""
    abar_t, sigma1 = torch.as_tensor(abar_t, dtype=torch.float64), torch.as_tensor(sigma1, dtype=torch.float64)
    return 1 / (1 / sigma1**2 + abar_t / (1 - abar_t))  # the precisions of prior and observation add


def expected_loss(abar_t, sigma1):
    """ᾱ_t k_t²: the diffusion loss per element that Eq. 2's network has on its own picture, 0 … 1, float64."""
    return torch.as_tensor(abar_t, dtype=torch.float64) * gain(abar_t, sigma1) ** 2


def sigma1_of(gain_t, abar_t):
    """`gain` solved for σ₁, float64: σ₁² = k(1−ᾱ)/(√ᾱ − ᾱk). It is 0 for k ≤ 0 and inf for k ≥ 1/√ᾱ_t."""
    abar_t = torch.as_tensor(abar_t, dtype=torch.float64)
    share = (torch.as_tensor(gain_t, dtype=torch.float64) * abar_t.sqrt()).clamp(0, 1)
    return (share / (1 - share) * (1 - abar_t) / abar_t).sqrt()


def nearest(x, pictures, abar_t):
    """The index (B,) of the picture x* that minimises ‖δ_t(x_t, x*)‖, whose √ᾱ_t x* is nearest to x_t.   (§3.2, I_θ)"""
    scaled = per_sample(abar_t, x).sqrt() * x.new_ones(len(x), *[1] * (x.ndim - 1))  # (B, 1, 1, 1)
    distance = [(x - scaled * picture).square().flatten(1).sum(1) for picture in pictures]
    return torch.stack(distance).argmin(0)


def eps_model(pictures, abar, sigma1):
    """The network that Eq. 2 describes around the nearest picture of I_θ: model(x, t) -> ε̂.   (§3.2)

    pictures: (n, C, H, W); abar: (1000,); sigma1: a number, or (1000,) with one value for each t.
    Example: schedule.sample_ddim(eps_model(pictures, abar, 0.5), noise, schedule.timesteps(50), abar).
    """
    sigma1 = torch.as_tensor(sigma1, dtype=torch.float64).expand(len(abar))

    def model(x, t):
        return eps_from_x0(x, predict_x0(x, pictures[nearest(x, pictures, abar[t])], abar[t], sigma1[t]), abar[t])

    return model
