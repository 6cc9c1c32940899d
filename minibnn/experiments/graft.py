"""GRAFT and P-GRAFT on the bundled model: `python -m minibnn experiment graft`

The prompts are "a SUBJECT on the grass", whose colours the model chooses freely. The reward is 1 for a red thing on
the grass, else 0, and what has the reward 1 is kept. All methods of a seed share the candidates. The results of each
seed are kept in OUT/graft.json when it is done, and not computed again.

    reward      mean over fresh samples: GRAFT should reach 1
    ceiling     the base finishes the accepted x_t again: E[a²]/E[a], the best P-GRAFT can do at this switch
    path KL     KL of the fine-tuned sampler's trajectories to the base's in nats, an upper bound of the samples' KL;
                the least possible is −log of the acceptance rate. Steps at and below the switch add 0 by construction,
                so it cannot by itself say that P-GRAFT's *samples* are nearer to the base's
    distance    measured on samples: energy distance in the features of `world/eye.py` between fresh samples and
                successes of the base that nobody has trained on; unbiased, so that 0 is the law of the base's successes
    diversity   root mean square difference of two pictures of the same prompt, values 0..1

Criterion (settled before the runs): "P-GRAFT 250 is nearer than GRAFT" if the differences of their distances, paired by
seed, have a 95 % t-interval above 0; "farther" if below; else "not told apart". The same for the rewards.
"""

import copy
import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import schedule
from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.locks import locked
from ..files.schema import mapping, number, record
from ..files.store import read_json, write_json
from ..lab.energy_distance import energy_distance
from ..lab.intervals import in_words, interval, require_scipy
from ..lab.sheets import sheet
from ..neighbours import graft, graft_run
from ..neighbours.rewards import red_thing_on_grass, rewards_of
from ..options.neighbours import GraftOptions
from ..pictures import save_png, to_tensor
from ..pipeline import StableDiffusion
from ..world import measures as world_measures
from .records import check_alike

SWITCHES = (250, 500, 750)
METHODS = {"GRAFT": 0, "random choice": 0} | {f"P-GRAFT {t}": t for t in SWITCHES}  # name: switch


def path_kl(abar_t, abar_prev, difference):
    """KL of one DDIM step with η = 1 between two predictions of ε, in nats, (B,).

    Both steps are Gaussians of variance σ²; their means differ by c·Δε with c = √(1−ᾱ_{t−1}−σ²) − √(ᾱ_{t−1}(1−ᾱ_t)/ᾱ_t)
    (DDIM eq. 12), so KL = c²‖Δε‖²/(2σ²).
    """
    sigma = schedule.ddim_sigma(abar_t, abar_prev, 1.0)
    c = (1 - abar_prev - sigma**2).sqrt() - (abar_prev * (1 - abar_t) / abar_t).sqrt()
    return c**2 * difference.flatten(1).square().sum(1) / (2 * sigma**2)


@torch.no_grad()
def draw_down(sd, x, start, contexts, options, generator, base=None):
    """DDIM with η = 1 from states x at time `start` to the end: latents, and nats of path KL to the UNet `base`."""
    abar, kl = sd.alphas_cumprod, 0.0
    for now, abar_t, abar_prev in schedule.pairs(schedule.timesteps(options.sample_steps), abar, abar[0]):
        if now > start:
            continue
        t = torch.full((len(x),), now)
        eps = sd.unet(x, t, contexts)
        if base is not None:
            kl += path_kl(abar_t, abar_prev, eps - base(x, t, contexts)).sum().item()
        x = schedule.ddim_step(x, eps, abar_t, abar_prev, 1.0, torch.randn(x.shape, generator=generator))
    return x, kl


def draw_and_compare(sd, base, prompts, options, seed):
    """Fresh samples of `sd`, and the path KL of its sampler to that with the UNet `base`: pictures, nats."""
    generator, drawn, kl = torch.Generator().manual_seed(seed), [], 0.0
    for i in range(0, len(prompts), options.batch_size):
        contexts = sd.encode_prompts(prompts[i : i + options.batch_size])
        x = torch.randn((len(contexts), 4, 8, 8), generator=generator)
        x0, nats = draw_down(sd, x, schedule.TRAIN_STEPS, contexts, options, generator, base)
        drawn += graft.pictures_of(sd, x0)
        kl += nats
    return drawn, kl / len(prompts)


def diversity(pictures, prompts):
    """Root mean square difference of two pictures of the same prompt, mean over pairs, 0..1."""
    arrays = [np.asarray(p) / 255 for p in pictures]
    pairs = [(a, b) for a, b in itertools.combinations(range(len(prompts)), 2) if prompts[a] == prompts[b]]
    return float(np.mean([math.sqrt(((arrays[a] - arrays[b]) ** 2).mean()) for a, b in pairs]))


def check_enough(kept, prompts):
    """Raises UserError unless two pictures of a prompt are kept (n,), which diversity needs."""
    number = Counter(prompt for prompt, k in zip(prompts, kept, strict=True) if k)
    if max(number.values(), default=0) < 2:
        raise UserError(f"{number.total()} of {len(prompts)} candidates earn the reward, but no two of one prompt: "
                        "raise --groups or --sample-steps")


def successes(base, prompts, options, seed):
    """Features (n, 128) of the base's successes among candidates of their own seed: what GRAFT should draw."""
    pictures = graft.pictures_of(base, graft.draw_latents(base, prompts, options, seed)[0])
    kept = rewards_of(red_thing_on_grass, pictures, prompts) > 0
    check_enough(kept, prompts)
    return world_measures.features(to_tensor([picture for picture, k in zip(pictures, kept, strict=True) if k]))


def one_seed(seed, options, fresh_for_each):
    """All methods from the same candidates: {method: figures}, {method: eight pictures}."""
    base = StableDiffusion.load("tiny")
    choose_threads("cpu", base.unet)
    options = dataclasses.replace(graft_run.settle(options, base), seed=seed)
    prompts = [prompt for prompt in options.prompt for _ in range(options.groups * options.candidates)]
    x0, states = graft.draw_latents(base, prompts, options, 1000 + seed, SWITCHES)
    candidates = graft.pictures_of(base, x0)
    rewards = rewards_of(red_thing_on_grass, candidates, prompts)
    chosen = graft.accept(rewards, options)
    check_enough(chosen, prompts)
    fresh = [prompt for prompt in options.prompt for _ in range(fresh_for_each)]
    accepted = chosen.nonzero()[:, 0].tolist()
    goal = successes(base, prompts, options, 4000 + seed)

    def far(pictures):
        return energy_distance(world_measures.features(to_tensor(pictures)), goal)

    table = {
        "base": {
            "reward": rewards.mean().item(), "path_kl": 0.0, "diversity": diversity(candidates[::4], prompts[::4]),
            "distance": far(candidates),
        },
        "accepted samples": {
            "reward": 1.0, "path_kl": -math.log(chosen.double().mean()),
            "diversity": diversity([candidates[i] for i in accepted], [prompts[i] for i in accepted]),
            "distance": far([candidates[i] for i in accepted]),
        },
    }
    shown = {"base": candidates[:: len(candidates) // 8][:8]}
    for name, switch in METHODS.items():
        kept = chosen
        if name == "random choice":
            kept = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
        contexts = base.encode_prompts([p for p, k in zip(prompts, kept, strict=True) if k])
        x_t, t = states.get(switch, (x0, 0))
        sd = dataclasses.replace(base, unet=copy.deepcopy(base.unet))
        graft.train_on_accepted(sd, contexts, x0[kept], t, dataclasses.replace(options, switch=switch, batch_size=8))
        if switch:
            sd.unet = graft.Switched(sd.unet, base.unet, switch)
        drawn, kl = draw_and_compare(sd, base.unet, fresh, options, 2000 + seed)
        reward = rewards_of(red_thing_on_grass, drawn, fresh).mean().item()
        table[name] = {"reward": reward, "path_kl": kl, "diversity": diversity(drawn, fresh), "distance": far(drawn)}
        if switch:
            again, _ = draw_down(base, x_t[kept], t, contexts, options, torch.Generator().manual_seed(3000 + seed))
            ceiling = rewards_of(red_thing_on_grass, graft.pictures_of(base, again), [""] * len(again))
            table[name]["ceiling"] = ceiling.mean().item()
        shown[name] = drawn[:: len(drawn) // 8][:8]
        print(seed, name, {k: round(v, 3) for k, v in table[name].items()}, flush=True)
    return table, shown


def kept_seeds(path, settings):
    """The seeds that are done, {seed: table}. Raises UserError when they were made with other settings."""
    kind = record({"settings": record({}), "seeds": mapping(mapping(mapping(number())))}, ("settings", "seeds"))
    result = read_json(path, kind) if path.exists() else {"settings": settings, "seeds": {}}
    check_alike(result["settings"], settings, path)
    return result["seeds"]


@threads_kept()
def experiment(options):
    """Do what GraftExperimentOptions ask for: every seed that is not there yet, and the table of all."""
    require_scipy()
    if options.fresh < 2:
        raise UserError("--fresh 1: diversity compares the pictures of one prompt, of which at least 2 are needed")
    with locked(options.out, ".graft.lock"):
        experiment_there(options)


def experiment_there(options):
    """The same in a folder that belongs to this process."""
    out = Path(options.out)
    settings = GraftOptions(
        reward="red_thing_on_grass", rule="threshold", minimum=1.0, candidates=8, groups=options.groups,
        steps=options.steps, lr=options.lr, batch_size=32, sample_steps=options.sample_steps,
    )
    names = ("reward", "rule", "candidates", "groups", "steps", "lr", "guidance", "eta", "sample_steps")
    described = {name: getattr(settings, name) for name in names} | {"fresh_for_each_prompt": options.fresh}
    seeds = kept_seeds(out / "graft.json", described)
    for seed in options.seeds:
        if str(seed) in seeds:
            continue
        seeds[str(seed)], shown = one_seed(seed, settings, options.fresh)
        write_json(out / "graft.json", {"settings": described, "seeds": seeds})
        picture = sheet(list(shown.values()), list(shown), [""] * 8).quantize(256, dither=Image.Dither.NONE)
        save_png(picture, out / "graft-samples.png", optimize=True)
    print_table(seeds)


def print_table(seeds):
    """Mean ± standard deviation over the seeds, as a Markdown table; then P-GRAFT 250 against GRAFT, paired by seed."""
    print("| method | reward | ceiling | path KL | distance | diversity |\n|---|---|---|---|---|---|")
    for name in next(iter(seeds.values())):
        cells = []
        for key in ("reward", "ceiling", "path_kl", "distance", "diversity"):
            values = [table[name][key] for table in seeds.values() if key in table[name]]
            digits = 3 if key == "distance" else 2
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
    for key in ("reward", "distance"):
        both = [(table["GRAFT"][key], table["P-GRAFT 250"][key]) for table in seeds.values() if key in table["GRAFT"]]
        found = in_words(*interval([a - b for a, b in both])) if both else "not measured"
        print(f"{key}: GRAFT − P-GRAFT 250 = {found}, {len(both)} seeds")
