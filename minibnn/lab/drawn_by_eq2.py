"""The corruption stage as Eq. 2 predicts it: pictures drawn without a network, from a set I_θ and σ₁ alone (§3.2).

    python -m minibnn eq2 --images tutorials/dog

The paper's story is a walk through the table that this draws: the pretrained model (a large set, small σ₁), then a few
pictures with σ₁ still large (corruption), then σ₁ → 0 (over-fitting).

But: Eq. 2 does not say how σ₁ moves; `python -m minibnn sigma1` measures it.
"""

import numpy as np
import torch

from .. import data, schedule
from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.schema import fitting, items, mapping, number, optional, record
from ..files.store import read_json
from ..pictures import to_pil, to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..world import scenes as world
from .eq2 import eps_model, nearest
from .models import check_out, cosine, write_found
from .plot import Line, Panel, chart
from .sheets import beside, sheet
from .sigma1_estimate import latents_of

COUNT, SHOWN = 32, 2  # pictures for each place of the table: how many are drawn for the numbers, and how many are shown
TITLES = {"similarity": "cosine to the nearest training picture", "noise": "rms distance to the nearest of the set"}


@threads_kept()
def draw_by_eq2(options):
    """Draw the table of Eq2Options and leave it as a PNG, with its numbers as JSON. Raises UserError."""
    out = check_out(options, "eq2")
    columns = [(f"sigma_1 = {value:g}", value) for value in options.sigma1]
    if options.measured:
        columns.append(("sigma_1,t\nmeasured", measured_sigma1(options.measured)))
    files = data.list_pictures(options.images)
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    choose_threads("cpu", sd.vae)
    side, abar, times = sd.recipe["resolution"], sd.alphas_cumprod, schedule.timesteps(options.steps)
    training = latents_of(sd, data.load_pictures(files, side))
    many = manifold(options, sd)
    sets = {f"{len(many)} others": many, f"{len(training)} training\npictures": training, "one of\nthem": training[:1]}
    start = torch.randn((COUNT, *training.shape[1:]), generator=torch.Generator().manual_seed(options.seed))

    rows, labels, numbers = [], [], {}
    with progress_bar(total=len(sets) * len(columns), desc="drawing") as bar:
        for name, pictures in sets.items():
            drawn, found = [], []
            for label, sigma1 in columns:
                latents = schedule.sample_ddim(eps_model(pictures, abar, sigma1), start, times, abar)
                measured = similarity_and_noise(latents, pictures, training)
                found.append({"sigma1": label.replace("\n", " "), **measured})
                drawn.append(to_pil(sd.decode_latents(latents[:SHOWN])))
                bar.update()
            numbers[name.replace("\n", " ")] = found
            rows += zip(*drawn, strict=True)
            labels += [name] + [""] * (SHOWN - 1)
    lines = ["set, σ₁: cosine to the nearest training picture, rms distance to the nearest latent of the set (noise)"]
    panels = {key: Panel(title, x_label="sigma_1", stretch=0.1) for key, title in TITLES.items()}
    for name, found in numbers.items():
        lines += [f"  {name}, {f['sigma1']}: {f['similarity']:.3f}, {f['noise']:.3f}" for f in found]
        for key, panel in panels.items():
            panel.lines.append(Line(name, list(options.sigma1), [f[key] for f in found[: len(options.sigma1)]]))
    table = sheet(rows, labels, [label for label, _ in columns], max(1, 144 // side))
    write_found(out, "eq2", options, beside([table, chart(list(panels.values()))]), numbers, lines)


def manifold(options, sd):
    """The latents of many pictures: those of a folder, or drawings of the picture world."""
    if options.manifold:
        files = data.list_pictures(options.manifold, "--manifold")
        return latents_of(sd, data.load_pictures(files, sd.recipe["resolution"]))
    if sd.recipe["resolution"] != world.SIZE:
        raise UserError("--manifold is required for this model: a folder with many pictures of all kinds")
    rng = np.random.default_rng(options.seed)
    return latents_of(sd, to_tensor([world.draw(world.random_scene(rng)) for _ in range(options.manifold_size)]))


def measured_sigma1(path):
    """σ₁,t for all 1000 t from what the command sigma1 wrote, linear between its times. Raises UserError.

    JSON has no infinity: where the network removes none of the noise, null stands for it.
    """
    written = read_json(path)
    if written.get("command") != "sigma1" or not written.get("found"):
        raise UserError(f"--measured {path} was not written by the command sigma1")
    curve = {"t": items(number(0, schedule.TRAIN_STEPS), 1), "sigma1": items(optional(number(0)), 1)}
    fitting(written["found"], mapping(record(curve, required=curve)), f"--measured {path}: found")
    last = list(written["found"].values())[-1]  # the fine-tuned model, if there are two
    if len(last["t"]) != len(last["sigma1"]):
        raise UserError(f"--measured {path}: t and sigma1 are not equally long")
    times = np.array(last["t"], dtype=np.float64)
    values = np.array([np.inf if value is None else value for value in last["sigma1"]], dtype=np.float64)
    return torch.from_numpy(np.interp(np.arange(schedule.TRAIN_STEPS), times, values))


def similarity_and_noise(latents, pictures, training):
    """Of latents (B, 4, h, w), as {"similarity", "noise"}: the mean cosine to the nearest of the training pictures, and
    the rms distance to the nearest of `pictures`."""
    similarity = torch.stack([cosine(latents, picture) for picture in training]).amax(0)
    closest = pictures[nearest(latents, pictures, 1.0)]
    return {"similarity": similarity.mean().item(), "noise": (latents - closest).square().mean().sqrt().item()}
