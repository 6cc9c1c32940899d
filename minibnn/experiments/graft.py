"""GRAFT and P-GRAFT on the bundled model: `python -m minibnn.experiments graft`

Prompts "a SUBJECT on the grass", whose colours the model chooses freely; reward 1 for a red thing on the grass, else 0; the
binary rule. All methods of a seed share the candidates. Each seed's results are kept in OUT/graft.json when it is
done and not computed again.

    reward      mean over fresh samples: GRAFT should reach 1
    ceiling     the base finishes the accepted x_t again: E[a²]/E[a], the best P-GRAFT can do at this switch
    path KL     KL of the fine-tuned sampler's trajectories to the base's in nats, an upper bound of the samples' KL;
                the least possible is −log of the acceptance rate
    diversity   root mean square difference of two pictures of the same prompt, values 0..1
"""

import argparse
import copy
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import pictures, schedule
from ..errors import UserError
from ..files.store import read_json, write_json, write_whole
from ..neighbours import graft
from ..neighbours.rewards import judge, red_thing_on_grass
from ..options.commands import GraftOptions
from ..options.parsing import readable, run, seed_number
from ..pipeline import StableDiffusion

SWITCHES = (250, 500, 750)
METHODS = {"GRAFT": (0, "B"), "random choice": (0, "B")} | {f"P-GRAFT {t}": (t, "B") for t in SWITCHES} | {"P-GRAFT 500 A": (500, "A")}  # fmt: skip


def path_kl(abar_t, abar_prev, difference):
    """KL of one DDIM step with η = 1 between two predictions of ε, in nats, (B,).

    Both steps are Gaussians of variance σ²; their means differ by c·Δε with c = √(1−ᾱ_{t−1}−σ²) − √(ᾱ_{t−1}(1−ᾱ_t)/ᾱ_t)
    (DDIM eq. 12), so KL = c²‖Δε‖²/(2σ²).
    """
    sigma = schedule.ddim_sigma(abar_t, abar_prev, 1.0)
    c = (1 - abar_prev - sigma**2).sqrt() - (abar_prev * (1 - abar_t) / abar_t).sqrt()
    return c**2 * difference.flatten(1).square().sum(1) / (2 * sigma**2)


@torch.no_grad()
def draw_and_compare(sd, base, prompts, options, seed):
    """Fresh samples of `sd`, and the path KL of its sampler to that with the UNet `base`: pictures, nats."""
    generator = torch.Generator().manual_seed(seed)
    abar, times = sd.alphas_cumprod, schedule.timesteps(options.sample_steps)
    pictures, kl = [], 0.0
    for i in range(0, len(prompts), options.batch_size):
        context = sd.encode_prompts(prompts[i : i + options.batch_size])
        x = torch.randn((len(context), 4, 8, 8), generator=generator)
        for t, abar_t, abar_prev in schedule.pairs(times, abar, abar[0]):
            t = torch.full((len(x),), t)
            eps = sd.unet(x, t, context)
            kl += path_kl(abar_t, abar_prev, eps - base(x, t, context)).sum().item()
            x = schedule.ddim_step(x, eps, abar_t, abar_prev, 1.0, torch.randn(x.shape, generator=generator))
        pictures += graft.pictures_of(sd, x)
    return pictures, kl / len(prompts)


@torch.no_grad()
def finish(sd, x, t, contexts, options, seed):
    """The base draws from states x at time t to the end: pictures."""
    generator = torch.Generator().manual_seed(seed)
    abar, times = sd.alphas_cumprod, schedule.timesteps(options.sample_steps)
    for now, abar_t, abar_prev in schedule.pairs(times, abar, abar[0]):
        if now <= t:
            eps = sd.predict_eps(x, torch.full((len(x),), now), contexts)
            x = schedule.ddim_step(x, eps, abar_t, abar_prev, 1.0, torch.randn(x.shape, generator=generator))
    return graft.pictures_of(sd, x)


def diversity(pictures, prompts):
    """Root mean square difference of two pictures of the same prompt, mean over pairs, 0..1."""
    arrays = [np.asarray(p) / 255 for p in pictures]
    pairs = [(a, b) for a, b in itertools.combinations(range(len(prompts)), 2) if prompts[a] == prompts[b]]
    return float(np.mean([math.sqrt(((arrays[a] - arrays[b]) ** 2).mean()) for a, b in pairs]))


def one_seed(seed, options, fresh_for_each):
    """All methods from the same candidates: {method: figures}, {method: eight pictures}."""
    base = StableDiffusion.load("tiny")
    options = dataclasses.replace(graft.settle(options, base), seed=seed)
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    x0, states = graft.draw(base, prompts, options, 1000 + seed, SWITCHES)
    pictures = graft.pictures_of(base, x0)
    rewards = judge(red_thing_on_grass, pictures, prompts)
    chosen = graft.accept(rewards, options)
    fresh = [prompt for prompt in options.prompt for _ in range(fresh_for_each)]
    table = {"base": {"reward": rewards.mean().item(), "path_kl": 0.0, "diversity": diversity(pictures[::4], prompts[::4])}}
    kept_pictures = [p for p, k in zip(pictures, chosen, strict=True) if k]
    kept_prompts = [p for p, k in zip(prompts, chosen, strict=True) if k]
    least = -math.log(chosen.double().mean())
    table["accepted samples"] = {"reward": 1.0, "path_kl": least, "diversity": diversity(kept_pictures, kept_prompts)}
    shown = {"base": pictures[:: len(pictures) // 8][:8]}
    for name, (switch, realisation) in METHODS.items():
        kept = chosen
        if name == "random choice":
            kept = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
        contexts = base.encode_prompts([p for p, k in zip(prompts, kept, strict=True) if k])
        settings = dataclasses.replace(options, switch=switch, realisation=realisation, batch_size=8)
        x_t, t = states.get(switch, (x0, 0))
        sd = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
        graft.fine_tune(sd, contexts, x0[kept], x_t[kept], t, settings)
        if switch:
            sd.unet = graft.Switched(sd.unet, base.unet, switch)
        drawn, kl = draw_and_compare(sd, base.unet, fresh, options, 2000 + seed)
        table[name] = {"reward": judge(red_thing_on_grass, drawn, fresh).mean().item(), "path_kl": kl}
        table[name]["diversity"] = diversity(drawn, fresh)
        if switch and realisation == "B":
            again = finish(base, x_t[kept], t, contexts, options, 3000 + seed)
            table[name]["ceiling"] = judge(red_thing_on_grass, again, [""] * len(again)).mean().item()
        shown[name] = drawn[:: len(drawn) // 8][:8]
        print(seed, name, {k: round(v, 3) for k, v in table[name].items()}, flush=True)
    return table, shown


def kept_seeds(path, settings):
    """The seeds that are done, {seed: table}. Raises UserError when they were made with other settings."""
    if not path.exists():
        return {}
    result = read_json(path)
    before = result.get("settings", {})
    if before != settings:
        name = min(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
        raise UserError(f"{path} was made with {name} = {before.get(name)}, not {settings.get(name)}; name another --out")
    return result["seeds"]


def experiment(options):
    path = options.out / "graft.json"
    settings = GraftOptions(
        reward="red_thing_on_grass", rule="binary", candidates=8, groups=options.groups, steps=options.steps, lr=options.lr, batch_size=32,
        sample_steps=options.sample_steps,
    )  # fmt: skip
    described = {k: getattr(settings, k) for k in ("reward", "rule", "candidates", "groups", "steps", "lr", "guidance", "eta", "sample_steps")}
    described["fresh_for_each_prompt"] = options.fresh
    seeds = kept_seeds(path, described)
    for seed in options.seeds:
        if str(seed) in seeds:
            continue
        seeds[str(seed)], shown = one_seed(seed, settings, options.fresh)
        write_json(path, {"settings": described, "seeds": seeds})
        sheet = pictures.sheet(list(shown.values()), list(shown), [""] * 8).quantize(256, dither=Image.Dither.NONE)
        write_whole(options.out / "graft-samples.png", lambda file, sheet=sheet: sheet.save(file, format="PNG", optimize=True))
    print_table(seeds)


def print_table(seeds):
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    print("| method | reward | ceiling | path KL | diversity |\n|---|---|---|---|---|")
    for name in next(iter(seeds.values())):
        cells = []
        for key in ("reward", "ceiling", "path_kl", "diversity"):
            values = [table[name][key] for table in seeds.values() if key in table[name]]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.2f}{spread}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m minibnn.experiments graft", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tutorials/results"), help="folder [tutorials/results]")
    parser.add_argument("--seeds", type=readable(seed_number), nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=3, help="groups of 8 candidates for each of 12 prompts [3]")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps, 8 samples each [60]")
    parser.add_argument("--sample-steps", type=int, default=15, help="of DDIM with η = 1 [15]")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--fresh", type=int, default=4, help="fresh samples for each prompt [4]")
    run(experiment, parser.parse_args(arguments))
