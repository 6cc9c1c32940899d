"""Where does the noise come from? `python -m minibnn experiment stage-starts`.

Two numbers of the starting noise are asked about, for the same fine-tuned weights. Its *mean colour*: three of the
1,728 directions of a picture. And its *strength*, the standard deviation about those means: one direction, ε itself.
White noise of n numbers has a strength of 1 ± 1/√(2n), 1.7 % here and 0.55 % in SD's latents. Training draws such noise
too, but so small a part of the loss hardly teaches a network to take a surplus out, and the normalisation of its layers
hides the surplus from it. `gains.py` measures the gain g of either direction alone, and the law of gains
(`gain_law.py`), which holds in each direction of a linear denoiser by itself, then says: of the surplus s − 1 of the
starting noise the sample keeps

    (s − 1)·Πf(g_strength),   beside the Πf(g) that a mean gain leaves of all noise

Every weight file is drawn from the same `count` noises, by DDIM at guidance 1 and 7.5: as they are, with the colour of
the picture, with a strength of 1, and with both. A seed of noise that is bad for one is bad for all.

Leaves in --out stage_starts.json, and stage_starts.png: for the first weights the noise of each picture against the
strength of its starting noise (of those with the picture's colour), and the line that the law predicts.

But: the gains are those around the picture, at a strength of 0.97 on average. What the network does far from there, or
at another picture, they do not say.
"""

from pathlib import Path

import numpy as np
import torch

from ... import data
from ...files.store import write_json
from ...files.weights import load_state, read_tensors
from ...lab import gain_law, gains, plot, sigma1_estimate
from ...lab.intervals import require_scipy
from ...pictures import save_png, to_tensor
from ...pipeline import StableDiffusion
from ...schedule import noise_strength, timesteps
from ...world.texture_measures import noise_level, ssim
from ..records import check_names
from ..views import View, draw
from .law import GREY
from .trainings import tint
from .views import NO_UNET

STEPS, DRAWS = 20, 8
SCALES = (1.0, 7.5)
STARTS = {  # of the noise
    "as it is": {}, "the picture's colour": {"colour": True}, "strength 1": {"strength": True},
    "both": {"colour": True, "strength": True},
}


def predicted(found, sd, guidance, strengths):
    """The noise in each picture by the law: of all noise, and of the surplus of the start; standard deviations."""
    abar, times = sd.alphas_cumprod, timesteps(STEPS)
    everywhere, along = (
        gain_law.surplus_left(
            gain_law.interpolated(one.times, gains.mean(one.guided(guidance)), abar, times), times, abar
        )
        for one in (found["all"], found["strength"])
    )
    return np.abs(everywhere + (np.asarray(strengths) - 1) * along)


def of_weights(sd, picture, options):
    """What is found of one fine-tuned model, as a dict for JSON."""
    latents = sigma1_estimate.latents_of(sd, picture)
    parts = {"all": gains.all_of, "colour": gains.colour_of, "strength": gains.strength_of}
    found = {name: gains.measure(sd, latents, options.prompt, draws=DRAWS, part=part) for name, part in parts.items()}
    noise = torch.randn((options.count, *latents.shape[1:]), generator=torch.Generator().manual_seed(options.seed))
    strengths = noise_strength(noise).tolist()
    result = {"times": found["all"].times, "strengths": strengths, "drawn": {}} | {
        f"{name} {which}": gains.mean(getattr(one, which)) for name, one in found.items() for which in ("c", "u")
    }
    own, stats = noise_level(picture).item(), require_scipy()
    for guidance in SCALES:
        for name, changes in STARTS.items():
            view = View(steps=STEPS, guidance=guidance, **changes)
            pictures = to_tensor(draw(sd, view, [options.prompt] * options.count, options.seed, batch_size=16,
                                      mean=latents.mean((0, 2, 3))))
            level = noise_level(pictures).numpy()
            row = {"fidelity": ssim(pictures, picture).mean().item(), "noise": float(100 * (level - own).mean()),
                   "tint": tint(pictures, picture), "levels": level.tolist()}
            if not view.strength:
                law = predicted(found, sd, guidance, strengths)
                expected = np.hypot(own, GREY * law)  # the picture's own texture counts as noise too
                residual = ((level - expected) ** 2).sum() / ((level - level.mean()) ** 2).sum()
                row |= {"predicted": expected.tolist(), "R2": 1 - float(residual),
                        "rank correlation": float(stats.spearmanr(strengths, level).statistic)}
            result["drawn"][f"guidance {guidance:g}, {name}"] = row
    return result


def starts(options):
    """Draw, measure and write. Raises UserError for weights that do not fit the model."""
    require_scipy()
    names = [Path(path).stem for path in options.weights]
    check_names(names, "--weights: two files")
    sd = StableDiffusion.load(options.model)
    picture = data.load_pictures(data.list_pictures(options.images)[:1], sd.recipe["resolution"])
    results = {}
    for name, path in zip(names, options.weights, strict=True):
        load_state(sd.unet, {name: p.float() for name, p in read_tensors(path).items()}, f"{path}: {NO_UNET}")
        results[name] = found = of_weights(sd, picture, options)
        print(f"{path}: gains at t = 300: {found['all c'][2]:.2f}, of the mean colour {found['colour c'][2]:.2f}, "
              f"of the strength {found['strength c'][2]:.2f}")
        for way, row in found["drawn"].items():
            line = f"  {way:34s} fidelity {row['fidelity']:.2f}, noise {row['noise']:+.1f}, tint {row['tint']:.3f}"
            if "R2" in row:
                line += f", R² of the law {row['R2']:.2f}, rank correlation {row['rank correlation']:.2f}"
            print(line)
    save_png(chart(next(iter(results.values()))), Path(options.out) / "stage_starts.png", optimize=True)
    settings = {"prompt": options.prompt, "seed": options.seed, "steps": STEPS, "model": Path(options.model).name}
    write_json(Path(options.out) / "stage_starts.json", settings | {"weights": results})


def chart(found):
    """The noise of each picture against the strength of its start, a panel for each guidance."""
    panels = []
    for guidance in SCALES:
        row = found["drawn"][f"guidance {guidance:g}, the picture's colour"]
        order = np.argsort(found["strengths"])
        strengths, level, law = (np.array(values)[order].tolist()
                                 for values in (found["strengths"], row["levels"], row["predicted"]))
        lines = [plot.Line("measured", strengths, level, joined=False), plot.Line("predicted", strengths, law)]
        panels.append(plot.Panel(f"noise of a picture, guidance {guidance:g}", lines, "strength of its start"))
    return plot.chart(panels)
