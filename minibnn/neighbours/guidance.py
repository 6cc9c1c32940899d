"""Guidance whose unconditional prediction comes from a base model.

Follows: "Unconditional Priors Matter" (UPM, arXiv 2503.20240). Fine-tuning spoils the unconditional prediction; the
remedy, without any training, is to take it from the model before fine-tuning, or from another of the same latent space.

    here         UPM paper
    eps_u        ε_θ(x_t, ∅), or ε_ψ(x_t, ∅) of the base model ψ
    eps_c        ε_θ(x_t, c) of the fine-tuned model θ
    scale        γ
    eps_1        ε_θ(x_t, c_1, ∅), eps_12: ε_θ(x_t, c_1, c_2), for two conditions
    tau          τ(t), the base's time of the same noise as t

A *predictor* is what `StableDiffusion.generate(predictor=…)` calls at each step with (x, t, context, unconditional,
scale); it returns ε̂.

    base, dog = StableDiffusion.load("tiny-v2"), StableDiffusion.load("runs/dog")
    dog.generate(["a photo of a sks dog"], predictor=one_condition(dog, unconditional_of(base, dog)))

But: predictions in unlike latent spaces are refused, not converted; x_t goes to the base as it is, not rescaled.
"""

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..lab.sigma1_estimate import predictor
from ..sample import guide

SAME_LATENTS = 0.05  # relative; float16 moves the bundled VAE's latents by 0.0004, bfloat16 by 0.004


def guide_two(eps_u, eps_1, eps_12, scale_1, scale_2):
    """ε = ε_u + γ_1·(ε_1 − ε_u) + γ_2·(ε_12 − ε_1).   (UPM eq. 8)

    With a base, ε_u is the base's in both places; ε_1 stays the fine-tuned model's.
    """
    return eps_u + scale_1 * (eps_1 - eps_u) + scale_2 * (eps_12 - eps_1)


def schedule_map(abar, abar_base):
    """τ(t) = argmin_τ |(1−ᾱ_base(τ)) − (1−ᾱ(t))|, the time of the base whose noise variance is nearest.   (UPM, App.)

    abar (T,) and abar_base (T',) -> (T,) int64. The same schedule gives τ(t) = t.
    """
    return ((1 - abar_base.double())[None] - (1 - abar.double())[:, None]).abs().argmin(1)


@torch.no_grad()
def check_same_latents(sd, base):
    """Refuse a base whose latents mean something else. Raises UserError naming what differs.

    Channels and size must agree, and one picture must have the same scaled latents under both encoders: a VAE whose
    decoder alone was trained further, or in half precision, is the same latent space.
    """
    ours, theirs = ((s.vae.config.latent_channels, s.vae.factor) for s in (sd, base))
    for what, a, b in zip(("latent channels", "pixels for each latent position"), ours, theirs, strict=True):
        if a != b:
            raise UserError(
                f"the base has {b} {what}, the model {a}: their predictions cannot be mixed; "
                "take a base of the same family"
            )
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = F.interpolate(picture, size=8 * sd.vae.factor, mode="bilinear")
    means = [s.vae.encode(picture.to(s.vae.quant_conv.weight))[0].float().cpu() for s in (sd, base)]
    a, b = (mean * s.vae.config.scaling_factor for mean, s in zip(means, (sd, base), strict=True))
    difference = ((a - b).square().mean() / a.square().mean()).sqrt().item()
    if not difference <= SAME_LATENTS:
        raise UserError(
            f"the base has another latent space: the same picture's latents differ by {difference:.0%}; "
            "take the model that yours was fine-tuned from, or one with the same VAE"
        )


def unconditional_of(base, sd, prompt=""):
    """The base's ε̂ without a condition, on the times of `sd`: a function of x (B, 4, h, w) float32 and t, an int.

    The base sees x at τ(t) with its own empty prompt, and a base that predicts v is converted with its own ᾱ. prompt:
    what to keep away from, instead of the empty prompt. Raises UserError for a base of another latent space.
    """
    if base is not sd:
        check_same_latents(sd, base)
    eps, tau = predictor(base, prompt), schedule_map(sd.alphas_cumprod, base.alphas_cumprod).tolist()
    return lambda x, t: eps(x, tau[t])


def share_weights(base, sd):
    """Let the base use the tensors of `sd` that equal its own, so that only those that differ are in memory twice.

    After LoRA and OFT the attention projections differ, after fine-tuning of the UNet the whole UNet.
    """
    for part in ("unet", "vae", "text_encoder"):
        theirs, ours = getattr(base, part), dict(getattr(sd, part).named_parameters())
        for name, parameter in list(theirs.named_parameters()):
            same = ours.get(name)
            if same is not None and same.dtype == parameter.dtype and torch.equal(parameter.to(same.device), same):
                layer, _, leaf = name.rpartition(".")
                setattr(theirs.get_submodule(layer), leaf, same)


def one_condition(sd, eps_base):
    """Predictor of eq. 7: one evaluation of the base and one of `sd`; γ = 1 needs no base."""

    def predict(x, t, context, _unconditional, scale):
        eps_c = sd.guided_eps(x, t, context, None, 1)
        return eps_c if scale == 1 else guide(eps_base(x, t), eps_c, scale)

    return predict
