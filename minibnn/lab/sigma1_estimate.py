"""σ₁ of Eq. 2, measured in any network by least squares.

Follows: the paper's §3.3 and Fig. 4, which report σ₁ of fine-tuned models.

But: the paper does not say how it measured; the estimator (`estimate_sigma1`) is ours.
"""

from dataclasses import dataclass

import torch

from .. import data, distributed
from ..schedule import q_sample
from .eq2 import nearest, sigma1_of

TIMES = (20, 50, 100, 200, 400, 600, 800)


@dataclass(frozen=True)
class Sigma1:
    """What `estimate_sigma1` found. Each list has one value for each t; `dataclasses.asdict` of it goes into JSON."""

    t: list
    gain: list  # k_t by least squares
    sigma1: list  # σ₁,t of that gain; inf where the network removes none of the noise
    low: list  # the ends of the bootstrap interval of σ₁,t
    high: list
    loss: list  # the mean of (ε̂ − ε)²
    explained: list  # ᾱ_t k_t² / loss, 0 … 1: the share of the loss that has the form of Eq. 2
    from_loss: list  # σ₁,t read from the loss, as if all of it had that form; never below sigma1
    own: list  # the share of draws whose nearest picture is the one that was noised
    mean: float  # of σ₁,t over t, as in the paper's Fig. 4: large t dominate
    mean_low: float
    mean_high: float


@torch.no_grad()
def estimate_sigma1(predict_eps, latents, abar, ts=TIMES, draws=32, seed=0, batch_size=64, level=0.95, resamples=1000):
    """σ₁,t of a network, by least squares of its errors x̂_0 − x′ on x_t − √ᾱ_t x′ over fresh noise.

    For an ε̂ this is √ᾱ_t k_t = 1 − ⟨ε̂, ε⟩/⟨ε, ε⟩, the share of the added noise that the network leaves in. By Stein's
    lemma k_t is the mean of the diagonal of ∂x̂_0/∂x_t, so it means something for every network. That the whole error
    has this form (`explained` = 1), and that σ₁,t is the same at all t, is the paper's model, which may be wrong.

    predict_eps(x, t): (B, 4, h, w) and an int -> ε̂; `predictor` makes it from a model and a prompt.
    latents: (n, 4, h, w), those of the training pictures; abar: (1000,), on the CPU or on their device.
    The noise (draws, n, 4, h, w) of `seed` is the same for all t and all networks, so that two checkpoints differ by
    the network alone. The intervals (percentile bootstrap, `level`) resample the draws of each picture, not the
    pictures. Cost: len(ts)·n·draws forwards. Returns a Sigma1. Raises ValueError for fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"draws = {draws}: an interval needs at least 2")
    n = len(latents)
    noise = torch.randn((draws, *latents.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    noise = noise.flatten(0, 1).to(latents)  # draw by draw, all pictures
    clean = latents.repeat(draws, *[1] * (latents.ndim - 1))
    owner = torch.arange(n).repeat(draws)
    left, loss, own = [], [], []
    for t in ts:
        x = q_sample(clean, noise, abar[t])
        eps = torch.cat([predict_eps(part, int(t)) for part in x.split(batch_size)])
        error = (noise - eps).cpu().double().flatten(1)  # in float64 on the CPU: Apple's GPUs have none
        left.append((error * noise.cpu().double().flatten(1)).sum(1))  # ⟨ε − ε̂, ε⟩ of each draw
        loss.append(error.square().mean().item())
        own.append((nearest(x, latents, abar[t]).cpu() == owner).double().mean().item())
    left = torch.stack(left).reshape(len(ts), draws, n)
    energy = noise.cpu().double().square().flatten(1).sum(1).reshape(draws, n)

    abar_t = torch.stack([abar[t] for t in ts]).cpu().double()
    gain_t = left.sum((1, 2)) / energy.sum() / abar_t.sqrt()
    sigma1 = sigma1_of(gain_t, abar_t)
    # How often each draw is taken when the draws of each picture are drawn again: (resamples, draws, n).
    picked = torch.randint(draws, (resamples, draws, n), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(picked.shape, dtype=torch.float64).scatter_add_(1, picked, torch.ones_like(picked).double())
    shares = torch.einsum("rdn,tdn->rt", counts, left) / torch.einsum("rdn,dn->r", counts, energy)[:, None]
    resampled = sigma1_of(shares / abar_t.sqrt(), abar_t)  # (resamples, len(ts))
    resampled = torch.cat([resampled, resampled.mean(1, keepdim=True)], 1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(resampled, ends, dim=0, interpolation="nearest")  # not between values: some may be inf
    loss = torch.tensor(loss, dtype=torch.float64)
    relative = loss * noise[0].numel() * len(noise) / energy.sum()  # to the noise drawn, whose variance is not quite 1
    explained = torch.where(loss > 0, abar_t * gain_t**2 / relative, 1.0)
    from_loss = sigma1_of((relative / abar_t).sqrt(), abar_t)
    columns = (gain_t, sigma1, low[:-1], high[:-1], loss, explained, from_loss)
    means = (sigma1.mean(), low[-1], high[-1])
    return Sigma1([int(t) for t in ts], *(c.tolist() for c in columns), own, *(m.item() for m in means))


def predictor(sd, prompt):
    """predict_eps(x, t) of a StableDiffusion for one prompt ("" for none), without guidance; x and ε̂ are float32."""
    context = sd.encode_prompts([prompt])

    def predict_eps(x, t):
        times = torch.full((len(x),), t, device=x.device)
        return sd.predict_eps(x.to(context.dtype), times, context.expand(len(x), -1, -1)).float()

    return predict_eps


def latents_of(sd, images):
    """Pictures (n, 3, H, W) in [-1, 1] -> scaled latents (n, 4, h, w), float32, the means of the VAE's posterior.

    By this process alone: of several that train, one watches.
    """
    return data.latent_moments(sd.vae, images.to(sd.device), distributed.fill_alone)[0] * sd.vae.config.scaling_factor
