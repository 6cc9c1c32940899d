"""Draw pictures: `python -m minibnn.sample --model runs/dog --prompt "a photo of a sks dog in the snow" --out dog.png`.

One picture is written as it is; several make a grid and stand one by one in a folder beside it. Each PNG holds its
settings as text ("minibnn"), so that it can be drawn again.
"""

from .options import SampleOptions, answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(SampleOptions, "minibnn.sample")
    answer_ctrl_c_while_importing()

import dataclasses
import json
from pathlib import Path

import torch
from PIL import PngImagePlugin

from . import graft, guidance
from .errors import UserError
from .pipeline import StableDiffusion, grid
from .train import check_device
from .weights import write_whole


def sample(options):
    """Draw and write the pictures of SampleOptions; returns the list of PIL images. Raises UserError."""
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    prompts = [prompt for prompt in options.prompt for _ in range(options.count)]
    folder = out.with_suffix("")
    for path in (out, folder) if len(prompts) > 1 else (out,):
        if path.exists() and not options.overwrite:
            raise UserError(f"--out: {path} exists; name another file or pass --overwrite")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    dtype = options.dtype or ("float16" if device.startswith("cuda") else "float32")
    if (Path(options.model) / graft.RECORD).exists():
        sd = graft.load(options.model, dtype=getattr(torch, dtype))
    else:
        sd = StableDiffusion.load(options.model, options.tokenizer, getattr(torch, dtype), options.prediction_type)
    sd.to(device)
    guided_by = predictor(options, sd)
    side = sd.recipe["resolution"]
    size = (options.width or side, options.height or side)
    pictures = sd.generate(
        prompts, options.steps, options.guidance, options.seed, options.negative_prompt, size, options.sampler,
        options.eta, options.batch_size, predictor=guided_by,
    )  # fmt: skip

    settings = dataclasses.asdict(options) | {
        "steps": options.steps or sd.recipe["sample_steps"], "width": size[0], "height": size[1], "dtype": dtype,
        "guidance": sd.recipe["guidance"] if options.guidance is None else options.guidance,
    }  # fmt: skip
    if len(pictures) > 1:
        for stale in folder.glob("[0-9][0-9][0-9].png"):
            stale.unlink()
        for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            save_png(picture, folder / f"{i:03d}.png", settings | {"prompt": prompt, "number": i})
        columns = options.count if options.count > 1 else min(4, len(pictures))
        save_png(grid(pictures, columns), out, settings)
    else:
        save_png(pictures[0], out, settings | {"prompt": prompts[0]})
    print(f"{out}: {len(pictures)} picture{'s' if len(pictures) > 1 else ''}")
    return pictures


def predictor(options, sd):
    """What --unconditional-from and --first-prompt ask for; None for plain guidance. Raises UserError."""
    if options.first_guidance is not None and not options.first_prompt:
        raise UserError("--first-guidance needs --first-prompt")
    if not (options.unconditional_from or options.first_prompt):
        return None
    base = sd
    if options.unconditional_from:
        path = options.unconditional_from
        base = StableDiffusion.load(path, options.tokenizer, sd.unet.conv_in.weight.dtype).to(sd.device)
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
