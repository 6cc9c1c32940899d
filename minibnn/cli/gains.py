"""The command `python -m minibnn gains --model runs/dog`: does guidance leave noise, and what would help?

It measures the gains of the predictions with and without the prompt (`lab/gains.py`) around the training pictures, and
with the prompt those of the mean colour and of the noise's strength alone, which training hardly teaches. It predicts
by the law of gains (`lab/gain_law.py`) how much noise each guidance leaves in samples, and says so in one sentence
(`lab/gain_advice.py`).
"""

import dataclasses
import math
from pathlib import Path

import torch

from .. import data, runs, schedule
from ..devices import choose_device, choose_threads, drawing_dtype, threads_kept
from ..errors import UserError
from ..files.store import write_json
from ..lab import gain_advice, gains, monitor
from ..lab.sigma1_estimate import latents_of, predictor
from ..neighbours import guidance
from ..options.kinds import BUNDLED
from ..pipeline import StableDiffusion

PARTS = {"mean colour": gains.colour_of, "strength": gains.strength_of}  # of the noise, with the prompt


@threads_kept()
def show_gains(options):
    """Print the table and the verdict of GainsOptions, and write them as JSON if asked; returns what is written.

    Raises UserError.
    """
    run = runs.options_of(options.model)
    check(options, run)
    device = choose_device(options.device)
    dtype = getattr(torch, options.dtype or drawing_dtype(device))
    sd = StableDiffusion.load(options.model, options.tokenizer, dtype, options.prediction_type).to(device)
    if options.adapter:
        sd.merge_adapter(options.adapter)
    choose_threads(device, sd.unet)
    prompt = options.prompt or sd.recipe["prompt"]
    if not prompt:
        raise UserError('--prompt is required for this model: the one it was trained with, e.g. "a photo of a sks dog"')
    files = data.list_pictures(options.images or runs.images_of(options.model)[0])
    latents = latents_of(sd, data.load_pictures(files, sd.recipe["resolution"]))
    base = base_prediction(options, sd) if options.unconditional_from else None
    drawn = options.times, options.draws, options.seed, options.batch_size
    measured = gains.measure(sd, latents, prompt, options.negative_prompt, *drawn, base)
    given = predictor(sd, prompt), latents.to(sd.device), sd.alphas_cumprod, *drawn
    parts = {name: gains.slopes(*given, part=part) for name, part in PARTS.items()}
    steps = options.steps or sd.recipe["sample_steps"]
    own = (gains.mean(measured.c), gains.mean(measured.u))
    reading = gain_advice.Reading(measured.times, *own, sd.alphas_cumprod.cpu(), steps)
    world = monitor.is_world(run.model if run else options.model, sd.recipe["resolution"])
    visible, scales = monitor.visible_noise(sd, latents, world), options.guidance or usual(sd.recipe["guidance"])
    found = describe(measured, parts, reading, scales, visible)
    found["verdict"] = gain_advice.verdict(reading, scales[-1], visible, gain_advice.training_remedies(run))
    print(f"{len(files)} pictures, {options.draws} draws each, prompt {prompt!r}; mean ± standard error")
    print("\n".join(table(found)))
    print(found["verdict"])
    if options.out:
        write_json(options.out, {"command": "gains", "options": dataclasses.asdict(options), "found": found})
        print(f"{options.out}: the figures")
    return found


def check(options, run):
    """Refuse, before a model is opened, what cannot be done. Raises UserError. run: the options of the run, or None."""
    for name in ("model", "images"):
        path = getattr(options, name)
        if path not in (None, *BUNDLED) and not Path(path).exists():
            raise UserError(f"--{name} {path}: there is no such file or folder")
    if not options.images and run is None:
        raise UserError(f"--images is required: {options.model} is not a run, which would name its training pictures")
    if late := [t for t in options.times if t >= schedule.TRAIN_STEPS]:
        raise UserError(f"--times {late[0]} is outside 0..{schedule.TRAIN_STEPS - 1}")
    if odd := [g for g in options.guidance or () if not math.isfinite(g)]:
        raise UserError(f"--guidance {odd[0]} is not a finite number")
    if options.steps:
        schedule.timesteps(options.steps)  # raises UserError for more than there are
    if options.out and Path(options.out).exists() and not options.overwrite:
        raise UserError(f"--out: {options.out} exists; name another file or pass --overwrite")


def usual(guidance):
    """The values of guidance that are shown unless others are asked for; the last is the model's own."""
    return [*(scale for scale in (1.0, 3.0) if scale < guidance), guidance]


def base_prediction(options, sd):
    """ε̂ of --unconditional-from, as a function of x and t. Raises UserError."""
    given = (options.tokenizer, sd.unet.conv_in.weight.dtype, options.prediction_type)
    base = StableDiffusion.load(options.unconditional_from, *given)
    try:
        return guidance.unconditional_of(base.to(sd.device), sd, options.negative_prompt)
    except UserError as error:
        raise UserError(f"--unconditional-from {options.unconditional_from}: {error}") from None


def describe(measured, parts, reading, scales, visible):
    """What was found, for JSON. Infinite standard errors (of one draw) and levels are null."""

    def both(values):
        errors = [error if math.isfinite(error) else None for error in gains.standard_error(values)]
        return {"mean": gains.mean(values), "standard error": errors}

    return {
        "t": list(measured.times), "with the prompt": both(measured.c), "without": both(measured.u),
        "parts": {name: both(values) for name, values in parts.items()},
        "guided": {f"{s:g}": both(measured.guided(s)) for s in scales},
        "noise": {f"{s:g}": {"eta 0": reading.noise(s), "eta 1": reading.noise(s, eta=1.0)} for s in scales},
        "sampling steps": reading.steps, "visible noise": visible if math.isfinite(visible) else None,
    }


def table(found):
    """The lines of the table that a user reads."""
    columns = found["parts"] | {"with prompt": found["with the prompt"], "without": found["without"]}
    columns |= {f"guidance {s}": values for s, values in found["guided"].items()}
    lines = ["    t" + "".join(f"{name:>17}" for name in columns)]
    for i, t in enumerate(found["t"]):
        lines.append(f"{t:5d}")
        for values in columns.values():
            mean, error = values["mean"][i], values["standard error"][i]
            lines[-1] += f"{mean:17.3f}" if error is None else f"{mean:9.3f} ± {error:.3f}"
    lines.append(f"noise left in samples by the law of gains, DDIM with {found['sampling steps']} steps:")
    for s, noise in found["noise"].items():
        lines.append(f"  guidance {s}: {noise['eta 0']:.3f} with eta 0, {noise['eta 1']:.3f} with eta 1")
    return lines
