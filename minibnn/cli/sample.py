"""The command `python -m minibnn sample --model runs/dog --prompt "…" --out dog.png`: opens any model, writes pictures.

One picture is written as it is; several make a grid (`pictures.columns_of`) and stand one by one in a folder beside
it. Each PNG holds its settings as text ("minibnn"), so that it can be drawn again. `--posterior-samples K` draws every
prompt with the mean weights and with K draws of the weights, and shows the mean and the deviation of those K
(`posterior.py`).
"""

import dataclasses
import logging
import math
import re
import shlex
from pathlib import Path

import torch
from PIL import Image

from .. import posterior
from ..devices import check_compiler, choose_device, choose_threads, compile_in_place, drawing_dtype, threads_kept
from ..errors import UserError
from ..lab import curves
from ..neighbours import graft_run, guidance
from ..pictures import columns_of, grid, save_png
from ..pipeline import StableDiffusion
from ..world import words

log = logging.getLogger("minibnn")

OWN = re.compile(r"\d{3,}(-(\d{2,}|mean|deviation))?\.png")  # the pictures in the folder beside --out


@threads_kept()
def sample(options):
    """Draw and write the pictures of SampleOptions; returns the list of PIL images. Raises UserError."""
    out = Path(options.out)
    prompts = [prompt for prompt in options.prompt for _ in range(options.count)]
    several = len(prompts) > 1 or options.posterior_samples > 0
    check(options, out, several)
    device = choose_device(options.device)
    if options.compile:
        check_compiler(device)
    dtype = options.dtype or drawing_dtype(device)
    sd, random = open_model(options, getattr(torch, dtype))
    for line in filter(None, [which_step(options.model), words.advice(sd, prompts)]):
        log.warning(line)
    choose_threads(device, sd.unet)
    sd.to(device)
    if options.compile:
        compile_in_place(sd.unet)
    predictor = base_predictor(options, sd) if options.unconditional_from else None
    side = sd.recipe["resolution"]
    size = (options.width or side, options.height or side)

    def generate():
        return sd.generate(
            prompts, options.steps, options.guidance, options.seed, options.negative_prompt, size, options.sampler,
            options.eta, options.batch_size, predictor=predictor,
        )

    columns = columns_of(len(options.prompt), options.count)
    if options.posterior_samples:
        columns = options.posterior_samples + 3
        draws = posterior.generate_with_draws(sd, random, options.posterior_samples, options.seed, generate)
        named = posterior_pictures(draws)
    else:
        named = {f"{i:03d}": picture for i, picture in enumerate(generate())}
    pictures = list(named.values())
    settings = dataclasses.asdict(options) | {
        "steps": options.steps or sd.recipe["sample_steps"], "width": size[0], "height": size[1], "dtype": dtype,
        "guidance": sd.recipe["guidance"] if options.guidance is None else options.guidance,
    }
    if several:
        write_folder(out.with_suffix(""), named, prompts, settings)
        save_png(grid(pictures, columns), out, settings)
    else:
        save_png(pictures[0], out, settings | {"prompt": prompts[0]})
    print(f"{out}: {len(pictures)} pictures, one by one in {out.with_suffix('')}" if several else f"{out}: 1 picture")
    return pictures


def check(options, out, several):
    """Refuse, before a model is opened, what cannot be done. Raises UserError.

    several: whether there will be more than one picture, and so a folder beside `out`.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    strengths(options)
    if options.posterior_samples == 1 or (options.posterior_samples and options.adapter):
        raise UserError("--posterior-samples needs at least 2, and a run as --model instead of --adapter")
    folder = out.with_suffix("")
    if several and folder.exists() and not folder.is_dir():
        raise UserError(f"--out {out}: single pictures go into a folder {folder}, which is a file; name another")
    for path in (out, folder) if several else (out,):
        if path.exists() and not options.overwrite:
            raise UserError(f"--out: {path} exists; name another file or pass --overwrite")
    for path in folder.iterdir() if several and folder.is_dir() else ():
        if OWN.fullmatch(path.name) and not is_drawn(path):
            raise UserError(f"--out {out} would replace {path}, which minibnn did not draw; name another file")


def open_model(options, dtype):
    """Whatever --model names, with --adapter in it, and {name: (μ, σ)} where weights are to be drawn, else None."""
    random = None
    if options.posterior_samples:
        sd, random = posterior.open_run(options.model, options.tokenizer, dtype, options.prediction_type)
    elif (Path(options.model) / graft_run.RECORD).exists():
        sd = graft_run.open_graft_run(options.model, None, dtype, options.tokenizer, options.prediction_type)
    else:
        sd = StableDiffusion.load(options.model, options.tokenizer, dtype, options.prediction_type)
    for path, strength in zip(options.adapter or [], strengths(options), strict=True):
        sd.merge_adapter(path, strength)
    return sd, random


def which_step(model):
    """For a run whose monitor advises another step than its last: which one is opened, and how to open the other.

    None for any other model.
    """
    advice = curves.advice_of(model) if Path(model).is_dir() else None
    if not advice or not advice["model"] or not (Path(model) / advice["model"]).is_dir():
        return None
    advised = shlex.quote(str(Path(model) / advice["model"]))
    return f"{model} draws as after its last step; its monitor advises step {advice['step']}: --model {advised}"


def strengths(options):
    """The strength of each adapter, from --adapter-scale. Raises UserError when their numbers do not fit."""
    scales, adapters = options.adapter_scale or [1.0], options.adapter or []
    if options.adapter_scale and not adapters:
        raise UserError("--adapter-scale is the strength of --adapter, and none is given: name one, or leave it out")
    if options.adapter_scale and len(scales) not in (1, len(adapters)):
        raise UserError(f"--adapter-scale: {len(scales)} numbers for {len(adapters)} adapters; give one for each")
    if not all(math.isfinite(scale) for scale in scales):
        raise UserError("--adapter-scale: give finite numbers")
    return scales * len(adapters) if len(scales) == 1 else scales


def base_predictor(options, sd):
    """The predictor that takes ε(∅) from the model of --unconditional-from. Raises UserError."""
    path = options.unconditional_from
    base = StableDiffusion.load(path, options.tokenizer, sd.unet.conv_in.weight.dtype, options.prediction_type)
    if not options.posterior_samples:  # they overwrite the weights of `sd` in place
        guidance.share_weights(base, sd)
    base.to(sd.device)
    try:
        return guidance.one_condition(sd, guidance.unconditional_of(base, sd, options.negative_prompt))
    except UserError as error:
        raise UserError(f"--unconditional-from {path}: {error}") from None


def posterior_pictures(draws):
    """What `posterior.generate_with_draws` returns -> {name: picture}.

    For each prompt: the picture at θ = μ, one for each of the K draws, their mean and their deviation.
    """
    named = {}
    for i, (central, *drawn) in enumerate(zip(*draws, strict=True)):
        mean, deviation, average = posterior.mean_and_deviation(drawn)
        named[f"{i:03d}"] = central
        named |= {f"{i:03d}-{k:02d}": picture for k, picture in enumerate(drawn, 1)}
        named |= {f"{i:03d}-mean": mean, f"{i:03d}-deviation": deviation}
        print(f"picture {i}: the {len(drawn)} draws deviate by {average:.1f} of 255 grey levels")
    return named


def is_drawn(path):
    """Whether a picture was drawn by minibnn: only then it may be replaced."""
    try:
        with Image.open(path) as picture:
            return "minibnn" in picture.info
    except (OSError, ValueError, SyntaxError):
        return False


def write_folder(folder, named, prompts, settings):
    """Write {name: picture} as NAME.png; NAME begins with the prompt's number. Pictures of an earlier command go."""
    for stale in folder.iterdir() if folder.is_dir() else ():
        if OWN.fullmatch(stale.name) and is_drawn(stale):
            stale.unlink()
    for name, picture in named.items():
        number = int(name.split("-")[0])
        save_png(picture, folder / f"{name}.png", settings | {"prompt": prompts[number], "number": number})
