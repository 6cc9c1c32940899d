"""Draw pictures: `python -m minibnn.sample --model runs/dog --prompt "a photo of a sks dog in the snow" --out dog.png`.

One picture is written as it is; several make a grid and stand one by one in a folder beside it. Each PNG holds its
settings as text ("minibnn"), so that it can be drawn again. `--posterior-samples K` draws every prompt with the mean weights
and with K draws of the weights, and shows the mean and the deviation of those K (`posterior.py`).
"""

from .options.commands import SampleOptions
from .options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(SampleOptions, "minibnn.sample")
    answer_ctrl_c_while_importing()

import dataclasses
import json
import re
from pathlib import Path

import torch
from PIL import PngImagePlugin

from . import posterior
from .devices import choose_device
from .errors import UserError
from .files.store import write_whole
from .neighbours import graft, guidance
from .pictures import grid
from .pipeline import StableDiffusion


def sample(options):
    """Draw and write the pictures of SampleOptions; returns the list of PIL images. Raises UserError."""
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    prompts = [prompt for prompt in options.prompt for _ in range(options.count)]
    folder = out.with_suffix("")
    several = len(prompts) > 1 or options.posterior_samples > 0
    if options.posterior_samples == 1 or (options.posterior_samples and options.adapter):
        raise UserError("--posterior-samples needs at least 2, and a run as --model instead of --adapter")
    for path in (out, folder) if several else (out,):
        if path.exists() and not options.overwrite:
            raise UserError(f"--out: {path} exists; name another file or pass --overwrite")
    device = choose_device(options.device)
    dtype = options.dtype or ("float16" if device.startswith("cuda") else "float32")
    if options.posterior_samples:
        sd, random = posterior.open_run(options.model, options.tokenizer, getattr(torch, dtype))
    elif (Path(options.model) / graft.RECORD).exists():
        sd = graft.load(options.model, dtype=getattr(torch, dtype))
    else:
        sd = StableDiffusion.load(options.model, options.tokenizer, getattr(torch, dtype), options.prediction_type)
    if options.adapter:
        sd.merge_adapter(options.adapter)
    sd.to(device)
    guided_by = predictor(options, sd)
    side = sd.recipe["resolution"]
    size = (options.width or side, options.height or side)

    def generate():
        return sd.generate(
            prompts, options.steps, options.guidance, options.seed, options.negative_prompt, size, options.sampler,
            options.eta, options.batch_size, predictor=guided_by,
        )  # fmt: skip

    settings = dataclasses.asdict(options) | {
        "steps": options.steps or sd.recipe["sample_steps"], "width": size[0], "height": size[1], "dtype": dtype,
        "guidance": sd.recipe["guidance"] if options.guidance is None else options.guidance,
    }  # fmt: skip
    columns = options.count if options.count > 1 else min(4, len(prompts))
    if options.posterior_samples:
        columns = options.posterior_samples + 3
        named = posterior_pictures(posterior.draw(sd, random, options.posterior_samples, options.seed, generate))
    else:
        named = {f"{i:03d}": picture for i, picture in enumerate(generate())}
    pictures = list(named.values())
    if several:
        for stale in folder.iterdir() if folder.is_dir() else ():
            if re.fullmatch(r"\d{3,}(-(\d{2,}|mean|deviation))?\.png", stale.name):
                stale.unlink()
        for name, picture in named.items():
            number = int(name.split("-")[0])
            save_png(picture, folder / f"{name}.png", settings | {"prompt": prompts[number], "number": number})
        save_png(grid(pictures, columns), out, settings)
    else:
        save_png(pictures[0], out, settings | {"prompt": prompts[0]})
    print(f"{out}: {len(pictures)} picture{'s' if len(pictures) > 1 else ''}")
    return pictures


def posterior_pictures(draws):
    """Draws as `posterior.draw` returns them -> {name: picture}, for each prompt: at θ = μ, K draws, mean, deviation."""
    named = {}
    for i, (at_the_mean, *drawn) in enumerate(zip(*draws, strict=True)):
        mean, deviation, average = posterior.mean_and_deviation(drawn)
        named[f"{i:03d}"] = at_the_mean
        named |= {f"{i:03d}-{k:02d}": picture for k, picture in enumerate(drawn, 1)}
        named |= {f"{i:03d}-mean": mean, f"{i:03d}-deviation": deviation}
        print(f"picture {i}: the {len(drawn)} draws deviate by {average:.1f} of 255 grey levels")
    return named


def predictor(options, sd):
    """What --unconditional-from and --first-prompt ask for; None for plain guidance. Raises UserError."""
    if options.first_guidance is not None and not options.first_prompt:
        raise UserError("--first-guidance needs --first-prompt")
    if not (options.unconditional_from or options.first_prompt):
        return None
    base = sd
    if options.unconditional_from:
        path = options.unconditional_from
        base = StableDiffusion.load(path, options.tokenizer, sd.unet.conv_in.weight.dtype)
        if not options.posterior_samples:  # they overwrite the weights of `sd` in place
            guidance.share_weights(base, sd)
        base.to(sd.device)
    try:
        eps_base = guidance.unconditional_of(base, sd, options.negative_prompt)
    except UserError as error:
        raise UserError(f"--unconditional-from {options.unconditional_from}: {error}") from None
    if not options.first_prompt:
        return guidance.one_condition(sd, eps_base)
    scale = sd.recipe["guidance"] if options.guidance is None else options.guidance
    return guidance.two_conditions(
        sd, eps_base, options.first_prompt, scale if options.first_guidance is None else options.first_guidance
    )


def save_png(picture, path, settings):
    """Write a PNG whole, with the settings as JSON under the text key "minibnn"."""
    info = PngImagePlugin.PngInfo()
    info.add_text("minibnn", json.dumps(settings, ensure_ascii=False))
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=info))


if __name__ == "__main__":
    run(sample, OPTIONS)
