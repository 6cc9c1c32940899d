"""GRAFT and P-GRAFT: fine-tune a model on those of its own samples that a reward accepts.

Follows: GRAFT (arXiv 2510.02692): draw from the model, keep by a rule of `rejection.py`, fine-tune on what was kept by
the ordinary diffusion loss. Its partial variant P-GRAFT (Alg. 1-2) credits the reward to the noisy state x_t: it trains
only at noise levels above t, and draws with the fine-tuned model down to t and with the base from there on.

    here       paper
    switch     t       a time of 0..999: the fine-tuned model is used at times above it; 0 is GRAFT
    x_t        X_t     the state of the trajectory at the first time of the sampler that is not above the switch

We had only the abstract and an outline of that paper, which do not say how it trains P-GRAFT at levels s > t. There are
two ways:
    A   x_s is x_t with more noise, which learns the law of the accepted x_t itself (`renoise`);
    B   x_s is the accepted x_0 with noise, as the command does. This learns the same law if (x_0, x_t) of the sampler
        have the law of the forward process: for a good model drawn with η = 1, not for the deterministic sampler.

The candidates of the command are kept by `candidates.py`; the command is in `graft_run.py`. But: one round of sampling
and training.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .. import schedule
from ..checkpoints import STATE, load_checkpoint
from ..data import picked
from ..finetune import methods
from ..observers import Checkpoints, CtrlC, Progress
from ..options.training import TrainOptions
from ..pictures import to_pil
from ..progress import progress_bar
from ..train import fine_tuning, train
from . import rejection

# --- sampling ---------------------------------------------------------------------------------------------------------


def trajectory(model, x, times, abar, switches, eta=0.0, noise=None):
    """Draw as `schedule.sample_ddim` does: x_0, and {switch: (x_t, t)} with the state at the first time t ≤ switch.

    Where the sampler has no such time, x_t is x_0 and t is 0.
    """
    states = {}

    def watched(x, t):
        states.update((switch, (x, t)) for switch in switches if t <= switch and switch not in states)
        return model(x, t)

    x0 = schedule.sample_ddim(watched, x, times, abar, eta, noise)
    return x0, dict.fromkeys(switches, (x0, 0)) | states


def time_at(switch, times):
    """The time of the state at the switch: the first of the sampler's times that is not above it; 0 without one."""
    return next((t for t in times.tolist() if t <= switch), 0)


class Switched(nn.Module):
    """A UNet that is the fine-tuned one at times above `switch` and the base at or below it.   (P-GRAFT, Alg. 2)

    Put in the place of `StableDiffusion.unet`, it makes every way of drawing draw P-GRAFT, also with guidance.
    """

    def __init__(self, finetuned, base, switch):
        super().__init__()
        self.finetuned, self.base, self.switch = finetuned, base, switch

    @property
    def config(self):
        return self.finetuned.config

    @property
    def conv_in(self):
        return self.finetuned.conv_in

    def forward(self, x, t, context):
        """x (B, 4, h, w), t (B,) all above the switch or none, context (B, 77, d) -> (B, 4, h, w)."""
        above = t > self.switch
        if above.any() != above.all():
            raise ValueError(f"times {t.min().item()}..{t.max().item()} lie on both sides of the switch {self.switch}")
        return (self.finetuned if above.all() else self.base)(x, t, context)


@torch.no_grad()
def draw_batch(sd, prompts, options, generator, switches=()):
    """Draw one latent for each prompt, at once: x_0 (n, 4, h, w) and {switch: (x_t, t)} of `trajectory`, on the CPU.

    The options are those of GraftOptions; this uses sample_steps, guidance, eta and resolution.
    """
    times, side = schedule.timesteps(options.sample_steps), options.resolution // sd.vae.factor
    context = sd.encode_prompts(prompts)
    unconditional = sd.encode_prompts([""]).expand_as(context)

    def noise(_):
        shape = (len(context), sd.vae.config.latent_channels, side, side)
        return torch.randn(shape, generator=generator).to(sd.device)

    def model(x, t):
        return sd.guided_eps(x, t, context, unconditional, options.guidance)

    x0, states = trajectory(model, noise(0), times, sd.alphas_cumprod, switches, options.eta, noise)
    return x0.float().cpu(), {switch: (x_t.float().cpu(), t) for switch, (x_t, t) in states.items()}


def draw_latents(sd, prompts, options, seed, switches=()):
    """The same for any number of prompts, drawn `options.batch_size` at a time from one stream of noise."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for i in progress_bar(range(0, len(prompts), options.batch_size), desc="drawing"):
        parts.append(draw_batch(sd, prompts[i : i + options.batch_size], options, generator, switches))
    states = {k: (torch.cat([part[k][0] for _, part in parts]), parts[0][1][k][1]) for k in switches}
    return torch.cat([x0 for x0, _ in parts]), states


@torch.no_grad()
def pictures_of(sd, x0):
    """Latents (n, 4, h, w) -> list of n PIL pictures."""
    return [picture for part in x0.split(16) for picture in to_pil(sd.decode_latents(part.to(sd.device)))]


def picture_key(picture):
    """What makes two pictures "the same" for `--deduplicate`: 4 × 4 mean colours, rounded to one of eight levels."""
    return tuple((np.asarray(picture.resize((4, 4), Image.Resampling.BOX)) // 32).ravel().tolist())


# --- choosing ---------------------------------------------------------------------------------------------------------


def accept(rewards, options):
    """Which samples to keep: rewards (n,), groups of `options.candidates` -> (n,) bool."""
    groups = rewards.reshape(-1, options.candidates)
    if options.rule == "top-k":
        kept = rejection.top_k(groups, options.keep)
    elif options.rule == "threshold":
        kept = rejection.threshold(groups, options.minimum)
    else:
        generator = torch.Generator().manual_seed(options.seed)
        uniform = torch.rand(groups.shape, generator=generator, dtype=rewards.dtype)
        kept = rejection.tilt(groups, options.alpha, rewards.max(), uniform)
    return kept.reshape(-1)


# --- training ---------------------------------------------------------------------------------------------------------


def renoise(x_t, abar_t, abar_s, eps):
    """Way A: noise x_t further to a level s > t -> x_s, the target of ε̂, and the weight of its squared error.

    x_s = ρ·x_t + √σ²·ε,   ρ = √(ᾱ_s/ᾱ_t),   σ² = (1−ᾱ_s) − ρ²(1−ᾱ_t) = 1 − ᾱ_s/ᾱ_t
    target = √((1−ᾱ_s)/σ²)·ε, whose mean given x_s is −√(1−ᾱ_s)·∇log p_s(x_s): denoising score matching (Vincent 2011).
    Its variance diverges as s → t, hence the weight σ²/(1−ᾱ_s). Shapes as x_t; ᾱ_t a number, ᾱ_s a number or (B,).
    """
    abar_s = schedule.per_sample(abar_s, x_t)
    rho2 = abar_s / schedule.per_sample(abar_t, x_t)
    share = (1 - rho2) / (1 - abar_s)
    return rho2.sqrt() * x_t + (share * (1 - abar_s)).sqrt() * eps, eps / share.sqrt(), share


def training_options(options, recipe):
    """TrainOptions of the training that GraftOptions ask for. Raises UserError for options of another method."""
    names = ("model", "tokenizer", "prediction_type", "prompt", "method", "rank", "layers", "steps", "lr",
             "batch_size", "resolution", "dtype", "device", "gradient_checkpointing", "seed", "out", "checkpoint_every")
    fixed = {"images": [], "bayes": False, "prior_weight": 0.0, "ema": 0.0, "monitor": False, "kernel": "torch",
             "samples": 0}
    return methods.settle(TrainOptions(**{name: getattr(options, name) for name in names}, **fixed), recipe)[0]


def train_on_accepted(sd, contexts, x0, t, options, work=None, go_on=None):
    """Train the UNet in place on accepted samples, by the method of `options`. Raises UserError when the loss is not
    finite.

    contexts: n of (77, d); x0 (n, 4, h, w). Noise is added for times above t, the time of the state at the switch; for
    GRAFT, which has no switch, for all times. A model that predicts v is trained on v, as in `train.py`.
    work: a folder for checkpoints; a training that is there goes on. Ctrl-C then saves and raises KeyboardInterrupt
    with `go_on`, the command to go on.
    """
    settled = training_options(options, sd.recipe)

    def batches(i, generator):
        batch = picked(len(contexts), i, options.batch_size, options.seed)
        return x0[batch].to(sd.device), torch.stack([contexts[k] for k in batch]).to(sd.device)

    training = fine_tuning(sd, settled)
    training.first_time = t + 1 if options.switch else 0
    if work and (Path(work) / STATE).exists():
        load_checkpoint(work, training)
    with Progress(None, training, options.steps) as progress, CtrlC() if work else contextlib.nullcontext() as stop:
        kept = dataclasses.replace(settled, out=str(work))
        saving = [Checkpoints(kept, stop, training.step, progress, lambda _: go_on, keep=False)] if work else []
        train(training, settled, batches, [progress, *saving])
    sd.unet.eval()
