"""GRAFT and P-GRAFT: fine-tune a model on those of its own samples that a reward accepts.

    python -m minibnn.graft --reward red_thing_on_grass --switch 500 --out runs/red

Follows: GRAFT (arXiv 2510.02692): draw from the model, keep by a rule of `rejection.py`, fine-tune on what was kept with
the ordinary diffusion loss. Its partial variant P-GRAFT (Alg. 1-2) credits the reward to the noisy state x_t: train only
at noise levels above t, draw with the fine-tuned model down to t and with the base from there on.

    here       paper
    switch     t       a time of 0..999: the fine-tuned model is used at times above it; 0 is GRAFT
    x_t        X_t     the state of the trajectory at the first time of the sampler that is not above the switch

The paper does not say how P-GRAFT is trained at levels s > t; two realisations:
    A   x_s is x_t with more noise, which learns the law of the accepted x_t itself (`renoise`);
    B   x_s is the accepted x_0 with noise. The same law if (x_0, x_t) of the sampler is that of the forward process, which
        is so for a good model drawn with η = 1, and not for the deterministic sampler.

But: one round of sampling and training; no resuming: the folder appears when all is done.
"""

from ..options.commands import GraftOptions
from ..options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(GraftOptions, "minibnn.graft")
    answer_ctrl_c_while_importing()

import contextlib
import dataclasses
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from .. import schedule
from ..data import epoch_order
from ..devices import choose_device, make_deterministic, unscaled_dtype
from ..errors import UserError
from ..files.store import read_json, write_json, write_whole
from ..pictures import grid, to_pil
from ..pipeline import StableDiffusion
from ..train import make_optimiser, stop_if_not_finite
from ..world import scenes as world
from . import rejection
from .rewards import judge, load_reward

RECORD = "graft.json"
OWN = {"keep": "top-k", "minimum": "threshold", "alpha": "tilt"}  # options of one rule alone


# --- sampling ---------------------------------------------------------------------------------------------------------


def trajectory(model, x, times, abar, switches, eta=0.0, noise=None):
    """Draw as `schedule.sample_ddim` -> x_0 and {switch: (x_t, t)}, the state at the first time t ≤ switch.

    A sampler that has no such time leaves x_t = x_0 and t = 0 there.
    """
    states = {}

    def watched(x, t):
        states.update((switch, (x, t)) for switch in switches if t <= switch and switch not in states)
        return model(x, t)

    x0 = schedule.sample_ddim(watched, x, times, abar, eta, noise)
    return x0, dict.fromkeys(switches, (x0, 0)) | states


class Switched(nn.Module):
    """A UNet that is the fine-tuned one at times above `switch` and the base at or below it.   (P-GRAFT, Alg. 2)

    In the place of `StableDiffusion.unet`, whatever draws with it draws P-GRAFT, with guidance or without.
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
def draw(sd, prompts, options, seed, switches=()):
    """Draw one latent for each prompt -> x_0 (n, 4, h, w) and {switch: (x_t, t)} of `trajectory`, on the CPU.

    Of GraftOptions are used sample_steps, guidance, eta, batch_size and resolution.
    """
    generator = torch.Generator().manual_seed(seed)
    times, abar = schedule.timesteps(options.sample_steps), sd.alphas_cumprod
    side = options.resolution // sd.vae.factor
    parts = []
    for i in tqdm(range(0, len(prompts), options.batch_size), desc="drawing"):
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
    """Which samples to keep: rewards (n,), groups of `options.candidates` -> (n,) bool. Raises UserError."""
    groups = rewards.reshape(-1, options.candidates)
    try:
        if options.rule == "top-k":
            kept = rejection.top_k(groups, options.keep)
        elif options.rule == "best-of-n":
            kept = rejection.best_of_n(groups)
        elif options.rule == "threshold":
            kept = rejection.threshold(groups, options.minimum)
        elif options.rule == "binary":
            kept = rejection.binary(groups)
        else:
            generator = torch.Generator().manual_seed(options.seed)
            uniform = torch.rand(groups.shape, generator=generator, dtype=rewards.dtype)
            kept = rejection.tilt(groups, options.alpha, rewards.max(), uniform)
    except ValueError as error:
        raise UserError(f"--rule {options.rule}: {error}") from None
    return kept.reshape(-1)


# --- training ---------------------------------------------------------------------------------------------------------


def renoise(x_t, abar_t, abar_s, eps):
    """Realisation A: noise x_t further to level s > t -> x_s, the target of ε̂, and the weight of its squared error.

    x_s = ρ·x_t + √σ²·ε,   ρ = √(ᾱ_s/ᾱ_t),   σ² = (1−ᾱ_s) − ρ²(1−ᾱ_t)
    target = √((1−ᾱ_s)/σ²)·ε, whose mean given x_s is −√(1−ᾱ_s)·∇log p_s(x_s): denoising score matching (Vincent 2011).
    Its variance diverges as s → t, hence the weight σ²/(1−ᾱ_s). Shapes as x_t; ᾱ_t a number, ᾱ_s a number or (B,).
    """
    abar_s = schedule._over(abar_s, x_t)
    rho2 = abar_s / schedule._over(abar_t, x_t)
    share = ((1 - abar_s) - rho2 * (1 - schedule._over(abar_t, x_t))) / (1 - abar_s)
    return rho2.sqrt() * x_t + (share * (1 - abar_s)).sqrt() * eps, eps / share.sqrt(), share


def fine_tune(sd, contexts, x0, x_t, t, options):
    """Train the UNet in place on accepted samples. Raises UserError when the loss is not finite.

    contexts (n, 77, d), x0 and x_t (n, 4, h, w), the states at time t. Times s are drawn evenly from those above t, from
    all for GRAFT.
    """
    device, dtype = sd.device, getattr(torch, options.dtype)
    abar = sd.alphas_cumprod.to(device)
    first = t + 1 if options.switch else 0
    optimiser = make_optimiser(sd.unet.train(), options.lr)
    bar = tqdm(range(options.steps), desc="training")
    for step in bar:
        generator = torch.Generator().manual_seed((options.seed * 1_000_003 + step) % 2**63)
        picked = [epoch_order(len(contexts), step * options.batch_size + k, options.seed) for k in range(options.batch_size)]
        s = torch.randint(first, schedule.TRAIN_STEPS, (len(picked),), generator=generator).to(device)
        eps = torch.randn((len(picked), *x0.shape[1:]), generator=generator).to(device)
        if options.realisation == "A":
            x_s, target, weight = renoise(x_t[picked].to(device), abar[t], abar[s], eps)
        else:
            x_s, target, weight = schedule.q_sample(x0[picked].to(device), eps, abar[s]), eps, 1.0
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = sd.predict_eps(x_s, s, contexts[picked].to(device))
        loss = (weight * (predicted.float() - target).square()).mean()
        stop_if_not_finite(loss, "loss", step, 0, bar)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sd.unet.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    sd.unet.eval()


# --- the whole --------------------------------------------------------------------------------------------------------


def check_folder(options, out):
    """Refuse a folder that is not to be replaced, or that holds what the run is made from. Raises UserError."""
    if out.exists() and not (options.overwrite and (out / RECORD).exists()):
        raise UserError(f"--out {out} exists: name another" + (", it is no run of this command" if options.overwrite else " or pass --overwrite"))
    for name in ("model", "tokenizer", "prompts_from"):
        value = getattr(options, name)
        if value and (name, value) != ("model", "tiny") and Path(value).resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out} would replace --{name.replace('_', '-')} {value}: name another")
    if options.model != "tiny" and out.resolve().is_relative_to(Path(options.model).resolve()):
        raise UserError(f"--out {out} lies inside --model {options.model}: name another")


def settle(options, sd):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError."""
    prompts = list(options.prompt or [])
    if options.prompts_from:
        try:
            lines = Path(options.prompts_from).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-from {options.prompts_from}: {error}") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts and options.model == "tiny":
        prompts = [world.article(f"{subject} on the grass") for subject in world.SUBJECTS]
    if not prompts:
        raise UserError("--prompt or --prompts-from is required for this model")
    device = choose_device(options.device)
    options = dataclasses.replace(
        options,
        prompt=prompts,
        sample_steps=options.sample_steps or sd.recipe["sample_steps"],
        lr=options.lr or sd.recipe["lr"],
        resolution=options.resolution or sd.recipe["resolution"],
        device=device,
        dtype=options.dtype or unscaled_dtype(device),
    )
    try:
        noisiest = int(schedule.timesteps(options.sample_steps)[0])
    except ValueError as error:
        raise UserError(f"--sample-{error}") from None
    if not 0 <= options.eta <= 1:
        raise UserError(f"--eta {options.eta}: a number from 0 to 1")
    if not math.isfinite(options.guidance):
        raise UserError(f"--guidance {options.guidance} is no finite number")
    if options.resolution % sd.vae.factor:
        raise UserError(f"--resolution {options.resolution} is no multiple of {sd.vae.factor}")
    if options.switch >= noisiest:
        raise UserError(f"--switch {options.switch} leaves nothing to the fine-tuned model: the sampler starts at {noisiest}")
    if options.realisation == "A" and not options.switch:
        raise UserError("--realisation A needs --switch: without one there is no noisy state to learn")
    for name, rule in OWN.items():
        if options.rule != rule and getattr(options, name) != getattr(GraftOptions, name):
            raise UserError(f"--{name} belongs to --rule {rule}, not to {options.rule}")
    if options.rule == "top-k" and options.keep > options.candidates:
        raise UserError(f"--keep {options.keep} of --candidates {options.candidates} is impossible")
    return options


def graft(options):
    """Run GraftOptions from candidates to the run's folder. Raises UserError, KeyboardInterrupt."""
    out = Path(options.out)
    check_folder(options, out)
    reward = load_reward(options.reward)
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd)
    if options.device.startswith("cuda"):
        make_deterministic()
    sd.to(options.device)
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    x0, states = draw(sd, prompts, options, options.seed, [options.switch])
    x_t, t = states[options.switch]
    pictures = pictures_of(sd, x0)
    rewards = judge(reward, pictures, prompts)
    kept = accept(rewards, options)
    if options.deduplicate:
        keys = [(prompt, picture_key(picture)) for prompt, picture in zip(prompts, pictures, strict=True)]
        kept = rejection.deduplicate(kept, keys, torch.Generator().manual_seed(options.seed))
    count = int(kept.sum())
    if not count:
        raise UserError(f"--rule {options.rule} accepts none of {len(rewards)} samples, whose rewards are {rewards.min():g}..{rewards.max():g}; draw more or ask for less")
    print(f"{count} of {len(rewards)} samples kept: mean reward {rewards.mean():.4g}, of the kept {rewards[kept].mean():.4g}")

    contexts = torch.cat([sd.encode_prompts([prompts[i]]).cpu() for i in kept.nonzero()[:, 0].tolist()])
    fine_tune(sd, contexts, x0[kept], x_t[kept], t, options)
    sd.recipe |= {name: getattr(options, name) for name in ("guidance", "sample_steps", "resolution")}
    base = options.model if options.model == "tiny" else str(Path(options.model).resolve())
    record = {"base": base, "switch": options.switch, "options": dataclasses.asdict(options)}
    record |= {"samples": len(rewards), "kept": count, "reward_before": rewards.mean().item(), "reward_kept": rewards[kept].mean().item()}
    with new_folder(out) as temporary:
        sd.to("cpu").save(temporary)
        if options.evaluate:
            sd = load(temporary, record).to(options.device)
            fresh = [options.prompt[i % len(options.prompt)] for i in range(options.evaluate)]
            pictures = pictures_of(sd, draw(sd, fresh, options, options.seed + 1)[0])
            record["reward_after"] = judge(reward, pictures, fresh).mean().item()
            sheet = grid(pictures[:24], 8, zoom=max(1, 128 // options.resolution))
            write_whole(temporary / "samples.png", lambda path: sheet.save(path, format="PNG"))
        write_json(temporary / RECORD, record)
    if options.evaluate:
        print(f"mean reward {record['reward_before']:.4g} -> {record['reward_after']:.4g} on {options.evaluate} fresh samples")
    print(f'done: python -m minibnn.sample --model {out} --prompt "{options.prompt[0]}" --eta {options.eta:g} --out picture.png')
    return record


@contextlib.contextmanager
def new_folder(out):
    """A temporary folder beside `out` that takes its name when the block ends well; else it disappears, and `out` stays."""
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


def load(folder, record=None, dtype=None):
    """Open a run of this command: a StableDiffusion whose UNet is `Switched`, or plain for GRAFT. Raises UserError.

    `StableDiffusion.load(folder)` opens the fine-tuned model alone. record: graft.json's content if it is not there yet.
    """
    record = record or read_json(Path(folder) / RECORD)
    sd = StableDiffusion.load(folder, dtype=dtype)
    if record["switch"]:
        options = record["options"]
        base = StableDiffusion.load(record["base"], options["tokenizer"], dtype, options["prediction_type"])
        sd.unet = Switched(sd.unet, base.unet, record["switch"])
    return sd


if __name__ == "__main__":
    run(graft, OPTIONS)
