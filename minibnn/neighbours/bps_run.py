"""The command `python -m minibnn bps --hints DIR`: trains a branch on pairs, or draws hints with a trained one.

A training that is stopped leaves its checkpoint in OUT.unfinished, from which --resume goes on.
"""

import dataclasses
import shlex
from pathlib import Path

import torch

from .. import schedule
from ..checkpoints import STATE, read_progress
from ..devices import autocast, choose_device, choose_threads, threads_kept, unscaled_dtype
from ..errors import UserError
from ..files.locks import LOCK, locked
from ..options import unfinished
from ..options.kinds import WORLD, refuse
from ..pictures import grid, save_png, to_pil
from ..pipeline import StableDiffusion
from ..runs import fingerprint
from ..sample import check_numbers
from . import beside
from .bps import (
    Pairs,
    draw_steered,
    edges_of,
    hint_files,
    load_branch,
    pair_files,
    picture_files,
    read_caption,
    read_hint,
    read_pairs,
    train_branch,
)
from .bps_branch import Branch

TRAINING = (  # options that --branch does not allow
    "hint_channels", "gains", "steps", "lr", "batch_size", "resolution", "checkpoint_every", "resume",
    "gradient_checkpointing",
)
ANY_TIME = {  # on --resume: what leaves the branch as it would be
    "out", "resume", "overwrite", "device", "checkpoint_every", "steps", "sample_steps", "guidance", "guide_hint",
    "gradient_checkpointing",
}
AUTHORS_STEPS = 164_000  # of their recipe for sketches on COCO, about


def with_hints(pictures, hints):
    """Hints and pictures side by side, four of each in a row."""
    shown = to_pil(2 * hints.expand(-1, 3, -1, -1) - 1)
    cells = [cell for pair in zip(shown, pictures, strict=True) for cell in pair]
    return grid(cells, 8, zoom=max(1, 128 // pictures[0].width))


def check(options, out):
    """Refuse, before anything is opened, what cannot be done. Raises UserError."""
    if options.branch:
        refuse(options, TRAINING, "is for training; with --branch nothing is trained")
    else:
        beside.check_free(out, "branch")
        unfinished.check(options, out)
    if options.edges and options.hint_channels != 1:
        raise UserError("--edges makes grey hints: leave out --hint-channels 3")
    if options.sample_steps and options.sample_steps >= schedule.TRAIN_STEPS:
        raise UserError(f"--sample-steps {options.sample_steps} is outside 1..{schedule.TRAIN_STEPS - 1}")
    check_numbers("ddim", 0.0, options.guidance or 1.0, options.seed)


@threads_kept()
def train_or_draw(options):
    """Train on the pairs of --hints, or with --branch draw its hints."""
    out = Path(options.out or ("runs/bps-drawn" if options.branch else "runs/bps"))
    there = [path for path in (out.iterdir() if out.is_dir() else [out]) if path.exists() and path.name != LOCK]
    if there and not options.overwrite:  # a lock is all that a kill leaves
        raise UserError(f"--out {out} exists: name another folder or pass --overwrite")
    if out.resolve() == Path(options.hints).resolve():
        raise UserError(f"--out {out} is --hints too, which would be written over: name another folder")
    check(options, out)
    with locked(out):
        train_or_draw_there(out, options)


def train_or_draw_there(out, options):
    """The same in a folder that belongs to this process."""
    device = choose_device(options.device)
    dtype = getattr(torch, options.dtype or unscaled_dtype(device))
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    choose_threads(device, sd.unet)
    if options.branch:
        branch = load_branch(options.branch, sd).to(device)
        sd.to(device)
        names, hints, prompts = hints_to_draw(options, branch.hint_channels, sd.recipe["resolution"])
    else:
        branch, hints, prompts = train_on_pairs(sd.to(device), out, options, dtype)
        names = []  # the pairs' own pictures are shown in samples.png alone
    with autocast(device, dtype):
        settings = options.sample_steps, options.guidance, options.seed
        pictures = draw_steered(sd, branch.eval(), hints, prompts, *settings, guide_hint=options.guide_hint)
    for name, picture in zip(names, pictures, strict=False):
        save_png(picture, out / f"{name}.png")
    save_png(with_hints(pictures, hints), out / "samples.png")
    more = "" if options.branch else f"; --branch {shlex.quote(str(out))} draws other hints"
    print(f"{out / 'samples.png'}: hints and pictures{more}")


def hints_to_draw(options, channels, side):
    """What --branch draws: names, hints (n, channels, H, W) and captions, n of each. Raises UserError.

    side: of the square edges that --edges finds; other hints have the size of the first.
    """
    if options.edges and channels != 1:
        raise UserError(f"--edges makes grey hints, and --branch {options.branch} was trained on coloured ones")
    if options.edges:
        files = picture_files(options.hints)
        hints = [edges_of(path, side) for path in files.values()]
    else:
        files = hint_files(options.hints)
        first = read_hint(next(iter(files.values())), channels)
        hints = [read_hint(path, channels, (first.shape[2], first.shape[1])) for path in files.values()]
    return list(files), torch.stack(hints), [read_caption(options.hints, name) for name in files]


def train_on_pairs(sd, out, options, dtype):
    """Train a branch on the pairs of --hints and save it in a folder: (branch, eight of the hints, their prompts)."""
    resolution, bundled = options.resolution or sd.recipe["resolution"], options.model in WORLD
    steps, lr = options.steps or (400 if bundled else 1000), options.lr or (5e-4 if bundled else 1e-5)
    if resolution % sd.vae.factor:
        raise UserError(f"--resolution {resolution} is not a multiple of {sd.vae.factor}")
    named = {"resolution": resolution, "steps": steps, "lr": lr, "dtype": str(dtype).removeprefix("torch.")}
    options = dataclasses.replace(options, out=str(out), **named)
    hints, images, prompts = read_pairs(options.hints, options.hint_channels, resolution, options.edges)
    read = fingerprint(pair_files(options.hints, options.edges))
    if options.resume:
        check_same(options, out, read)
    if not bundled:
        print(f"{steps} steps of {options.batch_size} pairs; the authors' recipe takes about {AUTHORS_STEPS:,}")
    with unfinished.begun(options, out, read) as work:
        torch.manual_seed(options.seed)
        branch = Branch(sd.unet.config, options.hint_channels, sd.vae.factor, options.gains).to(sd.device)
        pairs, go_on = Pairs(sd, hints, images, prompts), unfinished.to_go_on(options, out)
        numbers = (steps, lr, options.batch_size, options.seed, dtype)
        train_branch(sd, branch, pairs, *numbers, work=work, every=options.checkpoint_every, go_on=go_on,
                     gradient_checkpointing=options.gradient_checkpointing)
        beside.save(branch, out, "branch", dataclasses.asdict(options) | {"factor": sd.vae.factor})
    return branch, hints[:8], prompts[:8]


def check_same(options, out, pictures):
    """Refuse to go on with other options or pairs, or to fewer steps than are done. Raises UserError."""
    unfinished.check_unchanged(options, out, ANY_TIME, pictures)
    state = unfinished.place(out) / STATE
    if state.exists() and (done := read_progress(state)[0]) > options.steps:
        raise UserError(f"--steps {options.steps} lies before the checkpoint, which is after step {done}")
