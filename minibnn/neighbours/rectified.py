"""Rectified flows in Stable Diffusion's layout: drawing, and inverse noise correction with text and guidance.

    python -m minibnn rectified --model FLOW --prompt "a cat in the snow" --out cat.png
    python -m minibnn rectified --model FLOW --train --images photos --out runs/corrector
    python -m minibnn rectified --model FLOW --corrector runs/corrector --prompt "a cat in the snow" --out cat.png

Follows: InstaFlow's 2-rectified flow (Liu et al. 2024, arXiv 2309.06380), a UNet of Stable Diffusion's shape that
predicts a velocity; `flow.py` for the sampler, its inverse and the corrector.

    here                        InstaFlow's pipeline
    s: 0 = noise, 1 = data      the UNet is told the time 1000·(1 − s)
    v(x, s) = v_∅ + w·(v_c − v_∅)   w = guidance; the same formula, on velocities

What is inverted is this guided sampler: a corrector belongs to one number of steps, one guidance, one resolution and
one model. It is a small UNet that sees the prompt, or one factor, the root mean square of the inverse noise, which
costs nothing.

But: one guidance for all prompts, no negative prompt in training; the inversion is in float32.
"""

import dataclasses
import json
import logging
import shlex
from pathlib import Path

import torch
from torch import nn

from .. import data
from ..devices import choose_device, choose_threads, drawing_dtype, threads_kept
from ..errors import UserError
from ..files.locks import locked
from ..files.schema import integer, items, number, text
from ..files.weights import load_state, read_tensors, write_tensors
from ..networks.unet import UNet, UNetConfig
from ..options import unfinished
from ..options.kinds import refuse
from ..pictures import columns_of, grid, save_png, to_pil
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..runs import fingerprint
from ..sample import check_numbers, guide, picture_size
from . import beside, fitted_noise, flow

CONFIG = {  # what opening a corrector needs
    "model": text, "euler_steps": integer(1, 10**4), "guidance": number(), "resolution": integer(1, 2**13),
    "factor": number(above=0), "channels": items(integer(8, 4096), 1), "latent_channels": integer(1, 64),
    "context": integer(1, 2**14),
}
TRAINING, DRAWING = ("images", "channels", "steps", "lr", "resume"), ("corrector", "count", "corrector_steps", "dtype")
ROWS = ("plain", "factor", "network")  # of the picture that is drawn
ANY_TIME = {"out", "resume", "overwrite", "device", "batch_size", "steps", "lr", "channels"}  # may change on --resume

log = logging.getLogger("minibnn")

# --- the flow and its corrector ---------------------------------------------------------------------------------------


def velocity_of(sd, unconditional, guidance):
    """v(x, s, context) of a rectified flow: x (B, 4, h, w), s (B,), context (B, 77, d); unconditional (1, 77, d).

    Guidance 1 costs one evaluation of the UNet, any other two in one batch.
    """

    def velocity(x, s, context):
        if guidance != 1:
            context = torch.cat([unconditional.expand_as(context), context])
        copies = len(context) // len(x)
        v = sd.unet(x.to(context.dtype).repeat(copies, 1, 1, 1), (1000 * (1 - s)).repeat(copies), context).to(x.dtype)
        return guide(*v.chunk(2), guidance) if copies == 2 else v

    return velocity


class Corrector(nn.Module):
    """v(x, s, context) of the flow from normal to inverse noise: a small UNet that sees the prompt, 0 at first."""

    def __init__(self, channels, latent_channels, context):
        super().__init__()
        levels = len(channels)
        self.unet = UNet(UNetConfig(
            in_channels=latent_channels, out_channels=latent_channels, block_out_channels=tuple(channels),
            layers_per_block=1, cross_attention_dim=context, attention_head_dim=8, norm_num_groups=8,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        ))
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x, s, context):
        return self.unet(x, 1000 * s, context)


def load_corrector(folder, sd):
    """(corrector, its config) for this model, in float32 or float16. Raises UserError if there is none, or another's.

    Those of earlier versions do not say whose they are, and are taken with a warning.
    """
    config, state = beside.read(folder, "corrector", CONFIG)
    wanted = (sd.unet.config.in_channels, sd.unet.config.cross_attention_dim)
    if (config["latent_channels"], config["context"]) != wanted:
        raise UserError(f"--corrector {folder} was trained for {config['model']}, a model of another size")
    complaint = f"{folder}: corrector.safetensors does not hold what config.json beside it says"
    if any(width % 8 for width in config["channels"]):
        raise UserError(complaint)
    if "flow" not in config:
        log.warning("--corrector %s does not say for which flow it was trained: it must have been this one", folder)
    elif config["flow"] != beside.fingerprint(sd.unet, sd.text_encoder):
        raise UserError(f"--corrector {folder} was trained for the flow {config['model']}, and this one has other "
                        "weights: name that as --model, or train a corrector for this one")
    corrector = Corrector(config["channels"], *wanted)
    load_state(corrector, state, complaint)
    return corrector.eval(), config


# --- training ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def inverse_noises(velocity, x, contexts, which, options, folder):
    """The inverse noises z of latents x (n, 4, h, w), each under its prompt, and whose they are: (z, which).

    contexts (m, 77, d); which (n,): the row of each picture's prompt. Those that do not contract are left out.

    Each batch is kept in a file of the folder, and read if it is there, also if it is of another size. Raises UserError
    as soon as more than the share `flow.LOST` of all does not contract.
    """
    found, lost, i = [], 0, 0
    with progress_bar(total=len(x), desc="inverse noise") as bar:
        while i < len(x):
            path, some = Path(folder) / f"inverse-{i:06d}.safetensors", slice(i, i + options.batch_size)
            if not path.exists():
                condition = lambda rows, own=which[some]: contexts[own[rows]]  # noqa: E731
                z, residual = flow.invert(velocity, x[some], options.euler_steps, flow.REACHED, 1.0, condition)
                reached = residual <= flow.REACHED  # False for NaN
                z[~reached] = 0  # they may be infinite, which is not written
                write_tensors(path, {"z": z, "reached": reached})
            kept = read_tensors(path)
            n = len(kept.get("reached", ()))
            if not n or kept.keys() != {"z", "reached"} or kept["z"].shape != x[i : i + n].shape:
                raise UserError(f"{path} does not hold the inverse noises of these pictures: delete it, or --overwrite")
            found.append((kept["z"][kept["reached"]], which[i : i + n][kept["reached"]]))
            lost += int((~kept["reached"]).sum())
            if lost > flow.LOST * len(x):
                raise UserError(
                    f"the inversion does not contract: {lost} of {len(x)} pictures have residuals above "
                    f"{flow.REACHED:g} with {options.euler_steps} Euler steps at guidance {options.guidance:g}; take "
                    "more --euler-steps, or less --guidance, and --overwrite"
                )
            bar.update(n)
            i += n
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def train_corrector(sd, files, options, work):
    """Invert the pictures in these files and train a corrector on their noises: (corrector, config)."""
    nameless = [path for path in files if not data.caption_file(path).exists()]
    if nameless and not options.prompt:
        raise UserError(f"{nameless[0]} has no caption: write {data.caption_file(nameless[0]).name}, or give --prompt")
    captions = data.captions(files, options.prompt[0] if options.prompt else "")
    prompts = list(dict.fromkeys(captions))
    which = torch.tensor([prompts.index(caption) for caption in captions])
    contexts, null = sd.encode_prompts(prompts), sd.encode_prompts([""])
    mean, _ = data.latent_moments(sd.vae, data.Pictures(files, options.resolution))
    sd.vae.cpu()
    sd.text_encoder.cpu()
    velocity, x = velocity_of(sd, null, options.guidance), mean.to(sd.device) * sd.vae.config.scaling_factor
    z, which = inverse_noises(velocity, x, contexts, which, options, work)
    factor = fitted_noise.scale_of(z)
    print(f"{len(z)} of {len(files)} pictures inverted; their noise is {factor:.3f} times a normal one")
    sizes = (sd.unet.config.in_channels, sd.unet.config.cross_attention_dim)
    torch.manual_seed(options.seed)
    corrector = Corrector(options.channels, *sizes).to(sd.device)
    flow.fit(corrector, z.to(sd.device), options.steps, options.lr, options.batch_size, options.seed, "corrector",
             lambda rows: contexts[which[rows]])
    names = ("model", "euler_steps", "guidance", "channels", "resolution", "steps", "lr", "seed")
    settled = {name: getattr(options, name) for name in names}
    more = {"factor": factor, "latent_channels": sizes[0], "context": sizes[1], "pictures": len(files), "kept": len(z),
            "flow": beside.fingerprint(sd.unet, sd.text_encoder)}
    return corrector.eval(), settled | more


# --- drawing ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def draw(sd, prompts, steps, guidance, seed, size, batch_size=8, correction=None, corrector_steps=10):
    """One picture for each prompt by n Euler steps: a list of PIL pictures.

    size: (width, height). correction: None, a factor, or a Corrector; all begin with the same noise as
    `StableDiffusion.generate` does.
    """
    width, height = size
    shape = (len(prompts), sd.vae.config.latent_channels, height // sd.vae.factor, width // sd.vae.factor)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    null, pictures = sd.encode_prompts([""]), []
    for i in progress_bar(range(0, len(prompts), batch_size), desc="drawing"):
        context, e = sd.encode_prompts(prompts[i : i + batch_size]), start[i : i + batch_size].to(sd.device)
        if isinstance(correction, Corrector):
            e = flow.euler(flow.under(correction, context.float()), e, corrector_steps)
        elif correction is not None:
            e = correction * e
        velocity = flow.under(velocity_of(sd, null, guidance), context)
        pictures += to_pil(sd.decode_latents(flow.euler(velocity, e, steps)))
    return pictures


# --- command ----------------------------------------------------------------------------------------------------------


def check(options, out):
    """Refuse, before anything is opened, what cannot be done. Raises UserError."""
    if options.train:
        refuse(options, DRAWING, "is for drawing: leave it out, or --train")
    else:
        refuse(options, TRAINING, "is for training: leave it out, or add --train")
    if options.train and not options.images:
        raise UserError("--train needs --images")
    if options.train and len(options.prompt or []) > 1:
        raise UserError("--train takes one --prompt, for the pictures without captions; write the others as NAME.txt")
    if not options.corrector:
        refuse(options, ["corrector_steps"], "needs --corrector")
    if options.train and any(width % 8 for width in options.channels):
        raise UserError("--channels must be multiples of 8")
    if not options.train and not options.prompt:
        raise UserError("--prompt is required for drawing")
    if not options.train and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    check_numbers("ddim", 0.0, 1.0 if options.guidance is None else options.guidance, options.seed)
    if out.exists() and not options.overwrite:
        raise UserError(f"--out {out} exists: name another or pass --overwrite")
    if options.train and out.is_file():
        raise UserError(f"--out {out} is a file; with --train name a folder")
    if options.train:
        beside.check_free(out, "corrector")
        unfinished.check(options, out)


@threads_kept()
def train_or_draw(options):
    """Do what RectifiedOptions ask for. Raises UserError, KeyboardInterrupt."""
    out = Path(options.out or ("runs/corrector" if options.train else "rectified.png"))
    check(options, out)
    device = choose_device(options.device)
    if not options.train:
        return draw_rows(StableDiffusion.load(options.model, dtype=torch.float32), options, out, device)
    with locked(out.parent, f".{out.name}.lock"):
        check(options, out)
        sd = StableDiffusion.load(options.model, dtype=torch.float32)
        options = dataclasses.replace(
            options, device=device, resolution=options.resolution or sd.recipe["resolution"],
            guidance=1.5 if options.guidance is None else options.guidance,
            euler_steps=options.euler_steps or 25, channels=list(options.channels),
        )
        picture_size(sd, options.resolution)
        train_there(sd.to(device), options, out)


def train_there(sd, options, out):
    """Train a corrector in a folder that belongs to this process."""
    files = data.list_pictures(options.images)
    read = fingerprint(files)
    if options.resume:
        unfinished.check_unchanged(options, out, ANY_TIME, read)
    choose_threads(options.device, sd.unet)
    with unfinished.begun(options, out, read) as work:
        corrector, config = train_corrector(sd, files, options, work)
        beside.save(corrector.cpu(), out, "corrector", config)
    print(f"done: {out} holds the corrector. Draw with it: python -m minibnn rectified --model "
          f"{shlex.quote(options.model)} --corrector {shlex.quote(str(out))} --prompt TEXT --out picture.png")


def draw_rows(sd, options, out, device):
    """Write one picture: all prompts without correction or, with --corrector, a row without and two rows with it.

    sd: in float32, of which the corrector knows a fingerprint.
    """
    corrector, config = load_corrector(options.corrector, sd) if options.corrector else (None, {})
    sd.to(device, getattr(torch, options.dtype or drawing_dtype(device)))
    for name in ("euler_steps", "guidance", "resolution"):
        given, own = getattr(options, name), config.get(name)
        if None not in (given, own) and given != own:
            raise UserError(f"--{name.replace('_', '-')} {given:g}: the corrector was trained for {own:g}")
    steps, guidance = options.euler_steps or config.get("euler_steps", 25), options.guidance
    guidance = config.get("guidance", 1.5) if guidance is None else guidance
    size = picture_size(sd, options.resolution or config.get("resolution"))
    prompts = [prompt for prompt in options.prompt for _ in range(options.count)]
    kinds = (None, config["factor"], corrector.to(sd.device)) if corrector else (None,)
    pictures = [
        picture for kind in kinds
        for picture in draw(sd, prompts, steps, guidance, options.seed, size, options.batch_size, kind,
                            options.corrector_steps)
    ]
    columns = len(prompts) if corrector else columns_of(len(options.prompt), options.count)
    save_png(grid(pictures, columns), out, {"prompts": json.dumps(prompts), "steps": steps, "guidance": guidance})
    rows = f": rows {', '.join(ROWS)}, from the same noise" if corrector else ""
    print(f"{out}: {steps} Euler steps, guidance {guidance:g}{rows}")
    return pictures
