"""The corruption laboratory: the paper's Eq. 1-2 as code, and σ₁ measured in any network.

Follows: "Exploring Diffusion Models' Corruption Stage in Few-Shot Fine-tuning and Mitigating with Bayesian Neural
Networks", §3.2-3.3, App. A, B and F. `python -m minibnn.corruption` lists commands that look into models with it.

A network fine-tuned on one picture x′ is modelled as if it had learned x_0 ~ N(x′, σ₁²), so that x_0 and
x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε are jointly Gaussian; with a set I_θ of pictures, as the same around the nearest one.

    here              paper
    abar_t            α_t            ᾱ_t of DDPM
    picture           x′, x*         a latent that the network has learned, σ₁ around it
    pictures          I_θ            several of them, (n, C, H, W)
    sigma1            σ₁             a number ≥ 0, or inf; or (B,)
    gain              -              k_t = √ᾱ_t σ₁² / (ᾱ_t σ₁² + 1 − ᾱ_t), the factor in δ_t, 0 ≤ k_t ≤ 1/√ᾱ_t

Every function takes ᾱ as a number in (0, 1) or a tensor of shape (B,), as `schedule` does.

But: Eq. 1's variance is printed without its factor σ₁²; `posterior_variance` is what App. A's derivation gives.
"""

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    import sys

    from ..options.parsing import answer_ctrl_c_while_importing
    from ..options.probes import choose

    COMMAND, OPTIONS = choose(sys.argv[1:])
    answer_ctrl_c_while_importing()


import torch

from ..schedule import _over, eps_from_x0

# --- the model --------------------------------------------------------------------------------------------------------


def gain(abar_t, sigma1):
    """k_t = √ᾱ_t σ₁² / (ᾱ_t σ₁² + 1 − ᾱ_t), float64: 0 for σ₁ = 0, 1/√ᾱ_t for σ₁ = inf.   (in Eq. 1)"""
    abar_t, sigma1 = torch.as_tensor(abar_t, dtype=torch.float64), torch.as_tensor(sigma1, dtype=torch.float64)
    return abar_t.sqrt() / (abar_t + (1 - abar_t) / sigma1**2)  # divided by σ₁², so that inf works


def delta(x, picture, abar_t, sigma1):
    """δ_t(x_t, x′) = k_t (x_t − √ᾱ_t x′): what stays between the predicted and the learned picture.   (Eq. 1)"""
    return _over(gain(abar_t, sigma1), x) * (x - _over(abar_t, x).sqrt() * picture)


def predict_x0(x, picture, abar_t, sigma1):
    """x̂_0 = x′ + δ_t(x_t, x′), mean and mode of P_θ(x_0 | x_t). x, picture: (B, C, H, W) or alike.   (Eq. 2)"""
    return picture + delta(x, picture, abar_t, sigma1)


def posterior_variance(abar_t, sigma1):
    """σ₁² (1−ᾱ_t) / (ᾱ_t σ₁² + 1 − ᾱ_t), of each element of x_0 given x_t, float64.   (Eq. 1 with its σ₁² put right)"""
    abar_t, sigma1 = torch.as_tensor(abar_t, dtype=torch.float64), torch.as_tensor(sigma1, dtype=torch.float64)
    return 1 / (1 / sigma1**2 + abar_t / (1 - abar_t))  # precisions add: the prior's and the observation's


def expected_loss(abar_t, sigma1):
    """ᾱ_t k_t²: the diffusion loss, per element, of Eq. 2's network on its own picture; 0 … 1, float64."""
    return torch.as_tensor(abar_t, dtype=torch.float64) * gain(abar_t, sigma1) ** 2


def sigma1_of(gain_t, abar_t):
    """`gain` solved for σ₁, float64: σ₁² = k(1−ᾱ)/(√ᾱ − ᾱk). 0 for k ≤ 0, inf for k ≥ 1/√ᾱ_t."""
    abar_t = torch.as_tensor(abar_t, dtype=torch.float64)
    share = (torch.as_tensor(gain_t, dtype=torch.float64) * abar_t.sqrt()).clamp(0, 1)
    return (share / (1 - share) * (1 - abar_t) / abar_t).sqrt()


def nearest(x, pictures, abar_t):
    """Number (B,) of the picture that minimises ‖δ_t(x_t, x*)‖: of the √ᾱ_t x* nearest to x_t.   (§3.2, I_θ)"""
    scaled = _over(abar_t, x).sqrt() * x.new_ones(len(x), *[1] * (x.ndim - 1))  # (B, 1, 1, 1)
    distance = [(x - scaled * picture).square().flatten(1).sum(1) for picture in pictures]
    return torch.stack(distance).argmin(0)


def predict_x0_of_set(x, pictures, abar_t, sigma1):
    """Eq. 2 around the nearest picture of I_θ. x: (B, C, H, W); pictures: (n, C, H, W).   (§3.2)"""
    return predict_x0(x, pictures[nearest(x, pictures, abar_t)], abar_t, sigma1)


def eps_model(pictures, abar, sigma1):
    """The network that Eq. 2 describes: model(x, t) -> ε̂, as the samplers of `schedule` and `estimate_sigma1` take it.

    abar: (1000,); sigma1: a number, or (1000,), one for each t.
    Example: schedule.sample_ddim(eps_model(pictures, abar, 0.5), noise, schedule.timesteps(50), abar).
    """
    sigma1 = torch.as_tensor(sigma1, dtype=torch.float64).expand(len(abar))

    def model(x, t):
        return eps_from_x0(x, predict_x0_of_set(x, pictures, abar[t], sigma1[t]), abar[t])

    return model


# --- the measurement --------------------------------------------------------------------------------------------------















if __name__ == "__main__":
    from ..options.parsing import run
    from .probes import look

    run(lambda options: look(COMMAND, options), OPTIONS)
