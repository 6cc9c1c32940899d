"""The training loop: `python -m minibnn train --images ./dog` fine-tunes a model on a few pictures.

Follows: DreamBooth (Ruiz et al. 2023) as in diffusers' `train_dreambooth.py`, which the paper uses (App. H.1), and the
paper's Algorithm 1. Methods differ in *what is trainable*; this one loop serves them all, and GRAFT and BPS too.

    pictures → VAE → x_0;   t, ε → x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε;   θ = μ + σ∘ε_θ
    L = ‖ε_θ(x_t, t, c) − ε‖² + w·‖… on a class picture‖² + λ·KL(Q_W(θ) ‖ P(θ))     →  AdamW on μ and σ

With `--prior-target pretrained` a class picture teaches what the pretrained model predicts for its x_t, in the place of
ε (as Li & Hoiem 2016, "Learning without Forgetting", keep an old task by the old network's answers).

The loop knows nothing of folders, progress bars and samples: observers see to those (`observers.py`, `cli/train.py`).

But: the text encoder and the VAE are not trained. Several GPUs: see `distributed.py`.
"""

if __name__ == "__main__":  # before torch is imported, so that --help and a mistyped option answer at once
    from minibnn.__main__ import main

    raise SystemExit(main("train"))

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from . import data, distributed, schedule
from .devices import autocast, compiled, upload
from .errors import UserError
from .figures import Figures
from .finetune import adapters, bayes, ema, methods
from .finetune.adamw_bf16 import AdamWBfloat16
from .finetune.all_at_once import draw_weights
from .finetune.kl_gradient import add_kl_gradient
from .networks.vae import sample_latents
from .pipeline import StableDiffusion

LOSSES = ("diffusion", "prior", "kl")  # "prior" is DreamBooth's prior preservation; the prior P(θ) stands in "kl"
FIGURES = (*LOSSES, "sigma", "norm")


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
    pretrained: Callable = None  # (x_t, t, condition) -> what class pictures teach; None: their noise
    first_time: int = 0  # t is drawn from first_time … 999
    average: ema.Average = None  # of the weights, where it is kept
    max_norm: float = 1.0  # a longer gradient is scaled down to this length
    step: int = 0  # completed optimiser steps
    figures: Figures = None  # of the last step: "diffusion", "prior", "kl", "sigma" (the mean of σ) and "norm"

    @property
    def losses(self):
        """{"diffusion", "prior", "kl": of the last step}, empty before the first. The host waits for the device."""
        read = self.figures.read() if self.figures else {}
        return {name: read[name] for name in LOSSES if read}

    def check(self):
        """Raises Diverged if the figures of the last step are not finite. The host waits for the device."""
        if self.figures:
            self.check_figures(self.figures)

    def check_figures(self, figures):
        """Raises Diverged if a step's loss or gradient is not finite.

        With loss scaling the norm of the gradient may be infinite: the step is skipped then.
        """
        read = figures.read()
        loss = sum(read[name] for name in LOSSES)
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {figures.step}; try a smaller --lr")
        if not math.isfinite(read["norm"]) and not self.scaler.is_enabled():
            raise Diverged(f"the norm of the gradient is {read['norm']} at step {figures.step}; try a smaller --lr")


def train(training, options, batches, observers=()):
    """Train until `options.steps` optimiser steps are done.

    options: TrainOptions; of these the loop reads steps, seed, batch_size, accumulate, lr, lr_warmup_steps, min_snr,
    noise_offset, noise_spread, lambda_kl, prior_sigma, kl, coft, and prior_weight where there are class pictures.

    batches(i, generator) -> x_0 (B, 4, h, w) and the condition of forward i. The first `options.batch_size` pictures of
    a batch are the subject's; the others, if any, are pictures of its class. The observers are called with the training
    before the first step and after each step. All that is random in forward i comes from a generator seeded by (seed,
    i), so that a resumed training repeats nothing. Raises Diverged, a step late, when the loss is not finite.

    The host waits for the device only to read the figures of the step before, so that it can queue a step while the
    device computes the last one; with float16 and adamw-bf16 also for the check of overflows.
    """
    sd, network, optimiser, scaler = training.sd, training.network, training.optimiser, training.scaler
    abar, forwards = sd.alphas_cumprod.to(sd.device), options.accumulate * distributed.world()
    sigmas, zero = [sigma for _, sigma in bayes.sigmas(network).values()], torch.zeros((), device=sd.device)
    snr_weight = None
    if options.min_snr:
        snr_weight = schedule.min_snr_weight(sd.alphas_cumprod.double(), options.min_snr, sd.v_prediction)
        snr_weight = snr_weight.to(sd.unet.conv_in.weight)
    for observer in observers:
        observer(training)
    while training.step < options.steps:
        losses, previous = {"diffusion": zero, "prior": zero}, training.figures
        for forward in range(options.accumulate):
            distributed.reduce_after(training.called, last=forward + 1 == options.accumulate)
            i = distributed.number(training.step, forward, options.accumulate)
            terms = denoising_losses(training, options, batches, i, abar, snr_weight)
            loss = terms["diffusion"]
            if "prior" in terms:
                loss = loss + options.prior_weight * terms["prior"]
            scaler.scale(loss / forwards).backward()
            for name, term in terms.items():
                losses[name] = losses[name] + term.detach() / forwards
        mean_losses = sum(distributed.gathered(torch.stack(tuple(losses.values()))))  # in the order of the processes
        scaler.unscale_(optimiser)
        kl = zero
        if options.lambda_kl:
            weight_prior = (training.prior_means, options.prior_sigma, options.kl)
            kl = add_kl_gradient(network, *weight_prior, options.lambda_kl)
        norm = nn.utils.clip_grad_norm_(network.parameters(), training.max_norm)
        for group in optimiser.param_groups:
            group["lr"] = options.lr * min(1, (training.step + 1) / (options.lr_warmup_steps or 1))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        methods.constrain(network, options)
        training.step += 1
        if training.average:
            training.average.update(training.step)
        values = torch.stack([*mean_losses, kl, bayes.mean_of(sigmas, zero), norm])
        training.figures = Figures(training.step, FIGURES, values)
        if previous:
            training.check_figures(previous)
        for observer in observers:
            observer(training)
    training.check()


def denoising_losses(training, options, batches, i, abar, snr_weight):
    """The mean squared errors of forward i: {"diffusion": of the subject, "prior": of its class, if it has pictures}.

    abar: ᾱ (1000,) on the device. snr_weight: (1000,), of --min-snr, or None. All that is random comes from (seed, i).
    """
    generator, v_prediction = data.generator_of(options.seed, i), training.sd.v_prediction
    x0, condition = batches(i, generator)
    t = torch.randint(training.first_time, schedule.TRAIN_STEPS, (len(x0),), generator=generator)
    t = upload(t, x0.device)
    eps = schedule.training_noise(x0.shape, options.noise_offset, options.noise_spread, generator)
    eps = upload(eps, x0.device)
    x_t = schedule.q_sample(x0, eps, abar[t])
    target = schedule.velocity(x0, eps, abar[t]) if v_prediction else eps
    if training.pretrained:
        n = options.batch_size
        target = torch.cat([target[:n], training.pretrained(x_t[n:], t[n:], condition[n:])])
    predicted = training.predict(x_t, t, condition, generator)
    squared_error = (predicted.to(x0.dtype) - target).square()
    if snr_weight is not None:
        squared_error = squared_error * snr_weight[t].to(squared_error.dtype)[:, None, None, None]
    subject, *of_class = squared_error.split(options.batch_size)
    return {"diffusion": subject.mean()} | ({"prior": of_class[0].mean()} if of_class else {})


class Diverged(UserError):
    """The loss or the gradient is infinite or not a number."""


# --- what the loop is given -------------------------------------------------------------------------------------------


def fine_tuning(sd, options):
    """The Training of a model by the method that the options ask for; prepares its UNet in place."""
    unet, dtype = sd.unet.train(), getattr(torch, options.dtype)
    unet.gradient_checkpointing = options.gradient_checkpointing
    pretrained = None
    if options.prior_target == "pretrained":
        # beneath its adapters the network stays the pretrained model; only DreamBooth needs a copy
        copied = options.method == "dreambooth"
        pretrained = predictor_of(copy.deepcopy(unet).requires_grad_(False) if copied else unet, dtype)
    noise = methods.make_trainable(unet, options)
    called = compiled(unet) if options.compile else distributed.wrap(unet)

    def predict(x_t, t, context, generator):
        noise.renew(generator, sd.device)
        with autocast(sd.device, dtype):
            if options.compile and options.bayes and noise.at_once:
                draw_weights(unet)  # what is compiled takes the weights, and does not draw them
            return called(x_t, t, context)

    scaler = torch.amp.GradScaler(sd.device.type, enabled=dtype == torch.float16)
    means = {name: mu.detach().clone() for name, (mu, _) in bayes.sigmas(unet).items()} if options.lambda_kl else {}
    optimiser = make_optimiser(unet, options.lr, options.optimiser, options.seed)
    average = ema.attach(unet, options.ema)
    return Training(sd, unet, predict, optimiser, scaler, means, called, pretrained, average=average)


def predictor_of(unet, dtype):
    """predict(x_t, t, context) of a UNet without the adapters that it has or is yet to get, in this precision."""

    @torch.no_grad()
    def predict(x_t, t, context):
        with autocast(x_t.device, dtype), adapters.switched_off(unet):
            return unet(x_t, t, context)

    return predict


def make_optimiser(network, lr, kind="adamw", seed=0):
    """AdamW with the defaults of diffusers' script; σ takes no weight decay, which would pull it to 0.

    kind: "adamw", or "adamw-bf16" (`finetune/adamw_bf16.py`), whose moments take half the memory and whose rounding has
    this seed.
    """
    groups = {False: [], True: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[name.endswith("_sigma")].append(parameter)
    decayed, sigmas = ({"params": groups[is_sigma], "weight_decay": 0.0 if is_sigma else 0.01} for is_sigma in groups)
    if kind == "adamw-bf16":
        return AdamWBfloat16([decayed, sigmas], lr, seed=seed)
    return torch.optim.AdamW([decayed, sigmas], lr, fused=True)


class Batches:
    """batches(i, generator) -> x_0 (size·n, 4, h, w) and context (size·n, 77, d) on the device, for n sources.

    sources: (pictures, prompts) of the subjects, and perhaps of their classes: a sequence of tensors (3, H, W) in
    [-1, 1], and as many prompts. VAE and text encoder run once, here, and leave the GPU afterwards.

    null_dropout: the share of the pictures, of subject and class alike, that get the empty prompt instead of theirs, so
    that the unconditional prediction is trained beside the conditional one (Ho & Salimans 2022, Algorithm 1). Which
    they are is a random stream of its own: latents, times and noise are those of a training without it. class_null: the
    share of the class pictures, where it is another.
    """

    def __init__(self, sd, sources, size, seed, null_dropout=0.0, class_null=None):
        self.size, self.seed, self.scale = size, seed, sd.vae.config.scaling_factor
        of_class = null_dropout if class_null is None else class_null
        self.nulls = torch.tensor([null_dropout] * size + [of_class] * size * (len(sources) - 1))
        self.null = sd.encode_prompts([""]) if self.nulls.any() else None
        self.sources = []
        for images, prompts in sources:
            different = list(dict.fromkeys(prompts))
            which = [different.index(prompt) for prompt in prompts]
            self.sources.append((*data.latent_moments(sd.vae, images), sd.encode_prompts(different), which))
        sd.vae.cpu()
        sd.text_encoder.cpu()

    def __call__(self, i, generator):
        latents, contexts = [], []
        for mean, logvar, context, which in self.sources:
            picked = data.picked(len(mean), i, self.size, self.seed)
            # rows one by one: indexing by a list would send it to the GPU and wait
            moments = (torch.stack([rows[k] for k in picked]) for rows in (mean, logvar))
            latents.append(sample_latents(*moments, generator) * self.scale)
            contexts += [context[which[k]] for k in picked]
        latents, contexts = torch.cat(latents), torch.stack(contexts)
        if self.null is not None:
            own = data.generator_of(self.seed, -1 - i)  # the steps have the numbers from 0 on
            dropped = torch.rand(len(contexts), generator=own) < self.nulls
            contexts = torch.where(upload(dropped, contexts.device)[:, None, None], self.null, contexts)
        return latents, contexts


@contextlib.contextmanager
def at_the_mean(sd, dtype=torch.float32):
    """Inside, a model in training draws as it will draw later: all parts on its device, θ = μ or its average, autocast.
    """
    sd.to(sd.device)
    sd.unet.eval()
    try:
        with autocast(sd.device, dtype), ema.averaged(sd.unet):
            yield
    finally:
        sd.unet.train()
        sd.vae.cpu()
        sd.text_encoder.cpu()
