"""The corruption stage as Eq. 2 predicts it: pictures drawn without a network, from a set I_θ of pictures and σ₁ (§3.2).

`python -m minibnn.corruption model --images tutorials/dog --out model.png`

The paper's story is a walk through the table that this makes: pretrained (a large set, small σ₁), then a few pictures with
σ₁ still large (corruption), then σ₁ → 0 (over-fitting). Eq. 2 does not say how σ₁ moves; that is measured.
"""

import numpy as np
import torch
from tqdm import tqdm

from .. import data, schedule
from ..errors import UserError
from ..files.store import read_json
from ..pictures import beside, sheet, to_pil, to_tensor
from ..pipeline import StableDiffusion
from ..world import scenes as world
from .eq2 import eps_model, nearest
from .plot import Line, Panel, chart
from .sigma1_estimate import latents_of

COUNT, SHOWN = 32, 2  # pictures drawn for each place of the table: for the numbers, and shown


def predicted(options):
    """Do ModelOptions: (image, numbers, lines) as the probes of `probes.py`. Raises UserError."""
    columns = [(f"sigma_1 = {value:g}", value) for value in options.sigma1]
    if options.measured:
        columns.append(("sigma_1,t\nmeasured", measured_sigma1(options.measured)))
    files = data.list_pictures(options.images)
    sd = StableDiffusion.load(options.model, dtype=torch.float32)
    training = latents_of(sd, data.load_pictures(files, sd.recipe["resolution"]))
    many = manifold(options, sd)
    sets = {f"{len(many)} others": many, f"{len(training)} training\npictures": training, "one of\nthem": training[:1]}
    generator = torch.Generator().manual_seed(options.seed)
    start = torch.randn((COUNT, *training.shape[1:]), generator=generator)
    times, abar = schedule.timesteps(options.steps), sd.alphas_cumprod

    rows, labels, numbers = [], [], {}
    with tqdm(total=len(sets) * len(columns), desc="drawing") as bar:
        for name, pictures in sets.items():
            drawn, numbers[name.replace("\n", " ")] = [], (found := [])
            for label, sigma1 in columns:
                latents = schedule.sample_ddim(eps_model(pictures, abar, sigma1), start, times, abar)
                found.append({"sigma1": label.replace("\n", " "), **judge(latents, pictures, training)})
                drawn.append(to_pil(sd.decode_latents(latents[:SHOWN])))
                bar.update()
            rows += [[pictures_of_column[i] for pictures_of_column in drawn] for i in range(SHOWN)]
            labels += [name] + [""] * (SHOWN - 1)
    zoom = max(1, 144 // sd.recipe["resolution"])
    table = sheet(rows, labels, [label for label, _ in columns], zoom)
    xs = list(options.sigma1)
    panels = [
        Panel(title, [Line(n, xs, [f[key] for f in found[: len(xs)]]) for n, found in numbers.items()], "sigma_1", stretch=0.1)
        for key, title in (("similarity", "cosine to the nearest training picture"), ("noise", "rms distance to the nearest of the set"))
    ]
    lines = ["set, σ₁: similarity to the nearest training picture, noise (rms distance to the nearest of the set, latents)"]
    lines += [f"  {n}, {f['sigma1']}: {f['similarity']:.3f}, {f['noise']:.3f}" for n, found in numbers.items() for f in found]
    return beside([table, chart(panels)]), numbers, lines


def manifold(options, sd):
    """Latents of many pictures: those of a folder, or drawings of the world."""
    if options.manifold:
        return latents_of(sd, data.load_pictures(data.list_pictures(options.manifold, "--manifold"), sd.recipe["resolution"]))
    if sd.recipe["resolution"] != world.SIZE:
        raise UserError("--manifold is required for this model: a folder with many pictures of all kinds")
    rng = np.random.default_rng(options.seed)
    return latents_of(sd, to_tensor([world.draw(world.random_scene(rng)) for _ in range(options.manifold_size)]))


def measured_sigma1(path):
    """σ₁,t for all 1000 t from what the command sigma1 wrote, linear between its times. Raises UserError."""
    written = read_json(path)
    if written.get("command") != "sigma1":
        raise UserError(f"--measured {path} was not written by the command sigma1")
    last = list(written["found"].values())[-1]  # the fine-tuned model, if there are two
    return torch.from_numpy(np.interp(np.arange(schedule.TRAIN_STEPS), last["t"], last["sigma1"]))


def judge(latents, pictures, training):
    """{"similarity", "noise"}, over latents (B, 4, h, w): mean cosine to the nearest of `training`, rms distance to it in `pictures`."""
    training = training.flatten(1)
    similarity = torch.nn.functional.cosine_similarity(latents.flatten(1)[:, None], training[None], dim=2).max(1).values
    closest = pictures[nearest(latents, pictures, 1.0)]
    return {"similarity": similarity.mean().item(), "noise": (latents - closest).square().mean().sqrt().item()}
