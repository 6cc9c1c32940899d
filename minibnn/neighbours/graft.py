"""GRAFT and P-GRAFT: fine-tune a model on those of its own samples that a reward accepts.

    python -m minibnn graft --reward red_thing_on_grass --switch 500 --out runs/red

Follows: GRAFT (arXiv 2510.02692): draw from the model, keep by a rule of `rejection.py`, fine-tune on what was kept by
the ordinary diffusion loss. Its partial variant P-GRAFT (Alg. 1-2) credits the reward to the noisy state x_t: it trains
only at noise levels above t, and draws with the fine-tuned model down to t and with the base from there on.

    here       paper
    switch     t       a time of 0..999: the fine-tuned model is used at times above it; 0 is GRAFT
    x_t        X_t     the state of the trajectory at the first time of the sampler that is not above the switch

How the paper trains P-GRAFT at levels s > t was not seen by us: its body was not at hand. There are two ways:
    A   x_s is x_t with more noise, which learns the law of the accepted x_t itself (`renoise`);
    B   x_s is the accepted x_0 with noise, as the command does. This learns the same law if (x_0, x_t) of the sampler
        have the law of the forward process: for a good model drawn with η = 1, not for the deterministic sampler.

But: one round of sampling and training; no resuming: the folder appears when all is done.
"""

import contextlib
import dataclasses
import glob
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .. import runs, schedule
from ..data import full_name, picked, read_prompts
from ..devices import autocast, choose_device, choose_threads, unscaled_dtype
from ..errors import UserError
from ..files import schema
from ..files.locks import locked
from ..files.store import read_json, write_json
from ..options.commands import GraftOptions, TrainOptions
from ..options.kinds import BUNDLED
from ..pictures import grid, save_png, to_pil
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..sample import check_numbers
from ..train import Training, make_optimiser, train
from ..world import scenes as world
from . import rejection
from .rewards import load_reward, rewards_of

RECORD = "graft.json"
OWN_NAMES = {  # what a run writes, and --overwrite replaces
    RECORD, "samples.png", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "recipe.json", "model_index.json",
}
KIND = schema.record({  # what it must hold so that the run can be opened
    "base": schema.text, "switch": schema.integer(0, 998),
    "options": schema.record({name: schema.optional(schema.text) for name in ("tokenizer", "prediction_type")},
                             required=("tokenizer", "prediction_type")),
}, required=("base", "switch", "options"))
OWN = {"keep": "top-k", "minimum": "threshold", "alpha": "tilt"}  # options of one rule alone


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
def draw_latents(sd, prompts, options, seed, switches=()):
    """Draw one latent for each prompt: x_0 (n, 4, h, w) and {switch: (x_t, t)} of `trajectory`, on the CPU.

    The options are those of GraftOptions; this uses sample_steps, guidance, eta, batch_size and resolution.
    """
    generator = torch.Generator().manual_seed(seed)
    times, abar = schedule.timesteps(options.sample_steps), sd.alphas_cumprod
    side = options.resolution // sd.vae.factor
    parts = []
    for i in progress_bar(range(0, len(prompts), options.batch_size), desc="drawing"):
        context = sd.encode_prompts(prompts[i : i + options.batch_size])
        unconditional = sd.encode_prompts([""]).expand_as(context)
        shape = (len(context), sd.vae.config.latent_channels, side, side)

        def noise(_, shape=shape):
            return torch.randn(shape, generator=generator).to(sd.device)

        def model(x, t, context=context, unconditional=unconditional):
            return sd.guided_eps(x, t, context, unconditional, options.guidance)

        parts.append(trajectory(model, noise(0), times, abar, switches, options.eta, noise))
    states = {k: (torch.cat([part[k][0].cpu() for _, part in parts]), parts[0][1][k][1]) for k in switches}
    return torch.cat([x0.cpu() for x0, _ in parts]), states


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
    abar_s = schedule._over(abar_s, x_t)
    rho2 = abar_s / schedule._over(abar_t, x_t)
    share = (1 - rho2) / (1 - abar_s)
    return rho2.sqrt() * x_t + (share * (1 - abar_s)).sqrt() * eps, eps / share.sqrt(), share


def train_on_accepted(sd, contexts, x0, t, options):
    """Train the UNet in place on accepted samples. Raises UserError when the loss is not finite.

    contexts (n, 77, d), x0 (n, 4, h, w). Noise is added for times above t, the time of the state at the switch; for
    GRAFT, which has no switch, for all times. A model that predicts v is trained on v, as in `train.py`.
    """
    device, dtype, size = sd.device, getattr(torch, options.dtype), options.batch_size

    def batches(i, generator):
        batch = picked(len(contexts), i, size, options.seed)
        return x0[batch].to(device), contexts[batch].to(device)

    def predict(x_t, t, context, generator):
        with autocast(device, dtype):
            return sd.unet(x_t, t, context)

    optimiser, scaler = make_optimiser(sd.unet.train(), options.lr), torch.amp.GradScaler(enabled=False)
    training = Training(sd, sd.unet, predict, optimiser, scaler, first_time=t + 1 if options.switch else 0)
    settled = TrainOptions(steps=options.steps, lr=options.lr, batch_size=size, seed=options.seed)
    with runs.Progress(None, training, options.steps) as progress:
        train(training, settled, batches, [progress])
    sd.unet.eval()


# --- the whole --------------------------------------------------------------------------------------------------------


def check_folder(options, out):
    """Refuse a folder that is not to be replaced, or that holds what the run is made from. Raises UserError."""
    if out.exists() and not (options.overwrite and (out / RECORD).exists()):
        why = ", it is no run of this command" if options.overwrite else " or pass --overwrite"
        raise UserError(f"--out {out} exists: name another{why}")
    strange = sorted({path.name for path in out.iterdir()} - OWN_NAMES) if out.exists() else []
    if strange:
        raise UserError(f"--out {out} holds {strange[0]}, which this command did not write: move it, or name another")
    for name in ("model", "tokenizer", "prompts_from"):
        value = getattr(options, name)
        if value and not (name == "model" and value in BUNDLED) and Path(value).resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out} would replace --{name.replace('_', '-')} {value}: name another")
    if options.model not in BUNDLED and out.resolve().is_relative_to(Path(options.model).resolve()):
        raise UserError(f"--out {out} lies inside --model {options.model}: name another")


def settle(options, sd):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError."""
    prompts = list(options.prompt or [])
    if options.prompts_from:
        prompts += read_prompts(options.prompts_from, "--prompts-from")
    if not prompts and options.model == "tiny":
        prompts = [world.article(f"{subject} on the grass") for subject in world.SUBJECTS]
    if not prompts:
        raise UserError("--prompt or --prompts-from is required for this model")
    device = choose_device(options.device)
    options = dataclasses.replace(
        options,
        prompt=prompts,
        tokenizer=options.tokenizer and str(Path(options.tokenizer).resolve()),  # for opening the run
        sample_steps=options.sample_steps or sd.recipe["sample_steps"],
        lr=options.lr or sd.recipe["lr"],
        resolution=options.resolution or sd.recipe["resolution"],
        device=device,
        dtype=options.dtype or unscaled_dtype(device),
    )
    if options.sample_steps >= schedule.TRAIN_STEPS:
        raise UserError(f"--sample-steps {options.sample_steps} is outside 1..{schedule.TRAIN_STEPS - 1}")
    check_numbers("ddim", options.eta, options.guidance, options.seed)
    if options.resolution % sd.vae.factor:
        raise UserError(f"--resolution {options.resolution} is no multiple of {sd.vae.factor}")
    noisiest, switch = int(schedule.timesteps(options.sample_steps)[0]), options.switch
    if switch >= noisiest:
        raise UserError(f"--switch {switch} leaves nothing to the fine-tuned model: the sampler starts at {noisiest}")
    for name, rule in OWN.items():
        if options.rule != rule and getattr(options, name) != getattr(GraftOptions, name):
            raise UserError(f"--{name} belongs to --rule {rule}, not to {options.rule}")
    if options.rule == "top-k" and options.keep > options.candidates:
        raise UserError(f"--keep {options.keep} of --candidates {options.candidates} is impossible")
    return options


def graft(options):
    """Run GraftOptions from candidates to the run's folder; returns its record. Raises UserError, KeyboardInterrupt."""
    out = Path(options.out)
    check_folder(options, out)
    with locked(out.parent, f".{out.name}.lock"):
        restore(out)
        check_folder(options, out)  # again: it may have changed since
        return graft_there(options, out)


def graft_there(options, out):
    """The same into a folder that belongs to this process and may be replaced."""
    reward = load_reward(options.reward, choose_device(options.device))
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd)
    choose_threads(options.device, sd.unet)
    sd.to(options.device)
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    x0, states = draw_latents(sd, prompts, options, options.seed, [options.switch])
    pictures = pictures_of(sd, x0)
    rewards = rewards_of(reward, pictures, prompts)
    kept = accept(rewards, options)
    if options.deduplicate:
        keys = [(prompt, picture_key(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
        kept = rejection.deduplicate(kept, keys, torch.Generator().manual_seed(options.seed))
    samples, count = len(rewards), int(kept.sum())
    if not count:
        raise UserError(f"--rule {options.rule} accepts none of {samples} samples, whose rewards are "
                        f"{rewards.min():g}..{rewards.max():g}; draw more or ask for less")
    before, of_kept = rewards.mean().item(), rewards[kept].mean().item()
    print(f"{count} of {samples} samples kept: mean reward {before:.4g}, of the kept {of_kept:.4g}")

    contexts = torch.cat([sd.encode_prompts([prompts[i]]).cpu() for i in kept.nonzero()[:, 0].tolist()])
    train_on_accepted(sd, contexts, x0[kept], states[options.switch][1], options)
    sd.recipe |= {name: getattr(options, name) for name in ("guidance", "sample_steps", "resolution")}
    record = {
        "base": full_name(options.model), "switch": options.switch, "options": dataclasses.asdict(options),
        "samples": samples, "kept": count, "reward_before": before, "reward_kept": of_kept,
    }
    with new_folder(out) as temporary:
        sd.to("cpu").save(temporary)
        if options.evaluate:
            sd = open_graft_run(temporary, record).to(options.device)
            fresh = [options.prompt[i % len(options.prompt)] for i in range(options.evaluate)]
            pictures = pictures_of(sd, draw_latents(sd, fresh, options, options.seed + 1)[0])
            after = record["reward_after"] = rewards_of(reward, pictures, fresh).mean().item()
            save_png(grid(pictures[:24], 8, zoom=max(1, 128 // options.resolution)), temporary / "samples.png")
            print(f"mean reward {before:.4g} -> {after:.4g} on {options.evaluate} fresh samples")
        write_json(temporary / RECORD, record)
    drawing = ("--model", str(out), "--prompt", options.prompt[0], "--eta", f"{options.eta:g}", "--out", "picture.png")
    print(f"done: python -m minibnn.sample {shlex.join(drawing)}")
    return record


def restore(out):
    """Bring back what a killed run was about to replace, and delete what it was making. Only for the owner of `out`."""
    name = glob.escape(out.name)
    for old in out.parent.glob(f".{name}.*.old"):
        shutil.rmtree(old) if out.exists() else os.replace(old, out)
    for half in out.parent.glob(f".{name}.*.tmp"):
        shutil.rmtree(half)


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder beside `out` that takes its place when the block ends well; else `out` stays as it was."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    try:
        yield temporary
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
    finally:
        if old.exists() and not out.exists():  # stopped between the two
            os.replace(old, out)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def open_graft_run(folder, record=None, dtype=None):
    """Open a run of this command: a StableDiffusion whose UNet is `Switched`, or plain for GRAFT. Raises UserError.

    `StableDiffusion.load(folder)` opens the fine-tuned model alone. record: the content of graft.json, if it is not
    there yet.
    """
    record = record or read_json(Path(folder) / RECORD, KIND)
    sd = StableDiffusion.load(folder, dtype=dtype)
    if record["switch"]:
        options = record["options"]
        base = StableDiffusion.load(record["base"], options["tokenizer"], dtype, options["prediction_type"])
        sd.unet = Switched(sd.unet, base.unet, record["switch"])
    return sd
