"""The training loop: `python -m minibnn.train --images ./dog` fine-tunes a model on a few pictures.

Follows: DreamBooth (Ruiz et al. 2023) as in diffusers' `train_dreambooth.py`, which the paper uses (App. H.1), and the
paper's Algorithm 1. Methods differ in *what is trainable*; this one loop serves them all, and GRAFT and BPS too.

    pictures → VAE → x_0;   t, ε → x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε;   θ = μ + σ∘ε_θ
    L = ‖ε_θ(x_t, t, c) − ε‖² + w·‖… on a class picture‖² + λ·KL(Q_W(θ) ‖ P(θ))     →  AdamW on μ and σ

The loop knows nothing of folders, progress bars and samples: observers see to those (`runs.py`, `cli/train.py`).

But: the text encoder and the VAE are not trained. Several GPUs: see `distributed.py`.
"""

if __name__ == "__main__":  # before torch is imported, so that --help and a mistyped option answer at once
    from minibnn.__main__ import main

    raise SystemExit(main("train"))

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from . import data, distributed, schedule
from .devices import autocast
from .errors import UserError
from .finetune import bayes, methods
from .networks.vae import sample_latents
from .pipeline import StableDiffusion


@dataclass
class Training:
    """What is trained, how it predicts, and how far the training is. Observers see this after every step."""

    sd: StableDiffusion
    network: nn.Module  # its parameters are trained: the UNet, or a network that steers it
    predict: Callable  # (x_t, t, condition, generator) -> what the model predicts, (B, 4, h, w)
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    prior_means: dict = field(default_factory=dict)  # {name of μ: its pretrained value}, for the KL
    called: nn.Module = None  # what `predict` calls: the network, or DDP around it
    first_time: int = 0  # t is drawn from first_time … 999
    max_norm: float = 1.0  # a longer gradient is scaled down to this length
    step: int = 0  # completed optimiser steps
    losses: dict = field(default_factory=dict)  # of the last step


def train(training, options, batches, observers=()):
    """Train until `options.steps` optimiser steps are done.

    options: TrainOptions; of these the loop reads steps, seed, batch_size, accumulate, lr, lr_warmup_steps, min_snr,
    lambda_kl, prior_sigma, kl, coft, and prior_weight where there are class pictures.

    batches(i, generator) -> x_0 (B, 4, h, w) and the condition of forward i. The first `options.batch_size` pictures of
    a batch are the subject's; the others, if any, are pictures of its class. The observers are called with the training
    before the first step and after each step. All that is random in forward i comes from a generator seeded by (seed,
    i), so that a resumed training repeats nothing. Raises Diverged when the loss is not finite.
    """
    sd, network, optimiser, scaler = training.sd, training.network, training.optimiser, training.scaler
    abar, forwards = sd.alphas_cumprod.to(sd.device), options.accumulate * distributed.world()
    for observer in observers:
        observer(training)
    while training.step < options.steps:
        losses = dict.fromkeys(("diffusion", "prior", "kl"), torch.zeros((), device=sd.device))
        for forward in range(options.accumulate):
            i = distributed.number(training.step, forward, options.accumulate)
            generator = data.generator_of(options.seed, i)
            distributed.reduce_after(training.called, last=forward + 1 == options.accumulate)
            x0, condition = batches(i, generator)
            t = torch.randint(training.first_time, schedule.TRAIN_STEPS, (len(x0),), generator=generator).to(x0.device)
            eps = torch.randn(x0.shape, generator=generator).to(x0.device)
            x_t = schedule.q_sample(x0, eps, abar[t])
            target = schedule.velocity(x0, eps, abar[t]) if sd.v_prediction else eps
            predicted = training.predict(x_t, t, condition, generator)
            squares = (predicted.to(x0.dtype) - target).square()
            if options.min_snr:
                weight = schedule.min_snr_weight(sd.alphas_cumprod.double(), options.min_snr, sd.v_prediction)
                squares = squares * weight[t.cpu()].to(squares)[:, None, None, None]
            subject, *of_class = squares.split(options.batch_size)
            terms = {"diffusion": (1.0, subject.mean())}
            if of_class:
                terms["prior"] = (options.prior_weight, of_class[0].mean())
            if options.lambda_kl:
                divergence = bayes.kl(network, training.prior_means, options.prior_sigma, options.kl)
                terms["kl"] = (options.lambda_kl, divergence)
            loss = sum(weight * term for weight, term in terms.values()) / forwards
            scaler.scale(loss).backward()
            for name, (_, term) in terms.items():
                losses[name] = losses[name] + term.detach() / forwards
        of_all = sum(distributed.gathered(torch.stack(tuple(losses.values()))))  # in the order of the processes
        training.losses = dict(zip(losses, of_all.tolist(), strict=True))
        stop_if_not_finite(sum(of_all), "loss", training.step)
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(network.parameters(), training.max_norm)
        if not scaler.is_enabled():  # with loss scaling an overflow is expected, and the scaler skips the step
            stop_if_not_finite(norm, "norm of the gradient", training.step)
        for group in optimiser.param_groups:
            group["lr"] = options.lr * min(1, (training.step + 1) / (options.lr_warmup_steps or 1))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        methods.constrain(network, options)
        training.step += 1
        for observer in observers:
            observer(training)


class Diverged(UserError):
    """The loss or the gradient is infinite or not a number."""


def stop_if_not_finite(value, what, step):
    """Raises Diverged, naming the step. value: a scalar tensor; step: how many are completed."""
    if not torch.isfinite(value):
        raise Diverged(f"the {what} is {value.item()} at step {step + 1}; try a smaller --lr")


# --- what the loop is given -------------------------------------------------------------------------------------------


def fine_tuning(sd, options):
    """The Training of a model by the method that the options ask for; prepares its UNet in place."""
    unet, dtype = sd.unet.train(), getattr(torch, options.dtype)
    unet.gradient_checkpointing = options.gradient_checkpointing
    noise = methods.make_trainable(unet, options)
    called = distributed.wrap(unet)

    def predict(x_t, t, context, generator):
        noise.renew(generator, sd.device)
        with autocast(sd.device, dtype):
            return called(x_t, t, context)

    scaler = torch.amp.GradScaler(sd.device.type, enabled=dtype == torch.float16)
    means = {name: mu.detach().clone() for name, (mu, _) in bayes.sigmas(unet).items()} if options.lambda_kl else {}
    return Training(sd, unet, predict, make_optimiser(unet, options.lr), scaler, means, called)


def make_optimiser(network, lr):
    """AdamW with the defaults of diffusers' script; σ takes no weight decay, which would pull it to 0."""
    groups = {False: [], True: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.endswith("_sigma")].append(parameter)
    decayed, sigmas = ({"params": groups[is_sigma], "weight_decay": 0.0 if is_sigma else 0.01} for is_sigma in groups)
    return torch.optim.AdamW([decayed, sigmas], lr, fused=True)


class Batches:
    """batches(i, generator) -> x_0 (size·n, 4, h, w) and context (size·n, 77, d) on the device, for n sources.

    sources: (pictures, prompts) of the subjects, and perhaps of their classes: a sequence of tensors (3, H, W) in
    [-1, 1], and as many prompts. VAE and text encoder run once, here, and leave the GPU afterwards.

    null_dropout: the share of the pictures, of subject and class alike, that get the empty prompt instead of theirs, so
    that the unconditional prediction is trained beside the conditional one (Ho & Salimans 2022, Algorithm 1). Which
    they are is a random stream of its own: latents, times and noise are those of a training without it.
    """

    def __init__(self, sd, sources, size, seed, null_dropout=0.0):
        self.size, self.seed, self.scale = size, seed, sd.vae.config.scaling_factor
        self.null_dropout, self.null = null_dropout, sd.encode_prompts([""]) if null_dropout else None
        self.sources = []
        for images, prompts in sources:
            different = list(dict.fromkeys(prompts))
            which = torch.tensor([different.index(prompt) for prompt in prompts])
            self.sources.append((*data.latent_moments(sd.vae, images), sd.encode_prompts(different), which))
        sd.vae.cpu()
        sd.text_encoder.cpu()

    def __call__(self, i, generator):
        latents, contexts = [], []
        for mean, logvar, context, which in self.sources:
            picked = data.picked(len(mean), i, self.size, self.seed)
            latents.append(sample_latents(mean[picked], logvar[picked], generator) * self.scale)
            contexts.append(context[which[picked].to(context.device)])
        latents, contexts = torch.cat(latents), torch.cat(contexts)
        if self.null_dropout:
            own = data.generator_of(self.seed, -1 - i)  # the steps have the numbers from 0 on
            dropped = torch.rand(len(contexts), generator=own) < self.null_dropout
            contexts = torch.where(dropped[:, None, None].to(contexts.device), self.null, contexts)
        return latents, contexts


@contextlib.contextmanager
def at_the_mean(sd, dtype=torch.float32):
    """Inside, a model in training draws as it will draw later: all parts on its device, weights at θ = μ, autocast."""
    sd.to(sd.device)
    sd.unet.eval()
    try:
        with autocast(sd.device, dtype):
            yield
    finally:
        sd.unet.train()
        sd.vae.cpu()
        sd.text_encoder.cpu()
