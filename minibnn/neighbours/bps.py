"""Bayesian Power Steering: a frozen model learns to follow pictures such as sketches and maps.

Reads pairs, trains the branch of `bps_branch.py` on them, which says what is learned (arXiv 2406.03683), and draws with
it; `bps_run.py` is the command. A pair is NAME.png (picture), NAME.hint.png (hint) and NAME.txt (caption);
`python -m minibnn world --pairs DIR` makes some. With `--edges` no hints are needed: they are the edges of NAME.png
itself (`edges.py`), in training and in drawing.

But: style hints, which are several maps at once, are left out.
"""

import contextlib
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .. import data, schedule
from ..checkpoints import STATE, load_checkpoint
from ..devices import autocast
from ..errors import UserError
from ..files.schema import integer, one_of, text
from ..files.weights import load_state
from ..networks.vae import sample_latents
from ..observers import Checkpoints, CtrlC, Progress
from ..options.training import TrainOptions
from ..pictures import to_pil
from ..progress import progress_bar
from ..sample import guide
from ..train import Training, train
from . import beside
from .bps_branch import Branch, added, steered
from .edges import sketch

CONFIG = {  # what opening a branch needs
    "model": text, "hint_channels": integer(1, 64), "factor": integer(1, 64), "gains": one_of("head-heavy", "equal"),
}


# --- pairs ------------------------------------------------------------------------------------------------------------


class Pairs:
    """hints (n, C, H, W) in [0, 1]; mean and logvar (n, 4, h, w) of the latents of pictures (n, 3, H, W); captions."""

    def __init__(self, sd, hints, images, captions):
        self.hints, self.captions = hints, captions
        self.mean, self.logvar = data.latent_moments(sd.vae, images)


def pngs_of(folder):
    """The PNG files of --hints by name. Raises UserError if there is no such folder."""
    if not Path(folder).is_dir():
        raise UserError(f"--hints {folder}: there is no such folder")
    return sorted(Path(folder).glob("*.png"))


def hint_files(folder):
    """NAME -> its hint's path. Raises UserError if there is none."""
    found = {path.name.removesuffix(".hint.png"): path for path in pngs_of(folder) if path.name.endswith(".hint.png")}
    if not found:
        example = "`python -m minibnn world --pairs DIR` makes an example"
        raise UserError(f"--hints {folder}: no NAME.hint.png in it ({example})")
    return found


def read_hint(path, channels, size=None, resolution=None):
    """A PNG -> (channels, H, W) in [0, 1]. size: the (width, height) it must have; resolution: crop it to a square.

    Transparent parts are black, where a hint says nothing. Raises UserError naming the file.
    """
    image = data.open_picture(path, background="black").convert("L" if channels == 1 else "RGB")
    if size and image.size != size:
        wanted = f"{size[0]} x {size[1]}; make it that size"
        raise UserError(f"{path} is {image.width} x {image.height} pixels, not {wanted}")
    if resolution:
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    array = np.array(image, dtype=np.float32).reshape(image.height, image.width, channels) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def picture_files(folder):
    """NAME -> its picture's path. Raises UserError if there is none."""
    found = {path.stem: path for path in pngs_of(folder) if not path.name.endswith(".hint.png")}
    if not found:
        raise UserError(f"--hints {folder}: no NAME.png in it, whose edges --edges could take")
    return found


def edges_of(path, resolution):
    """The sketch (1, H, W) in [0, 1] of a picture that is cropped to a square. Raises UserError naming the file."""
    return sketch((data.load_picture(path, resolution)[None] + 1) / 2)[0]


def read_caption(folder, name):
    """The words of NAME.txt in a folder. Raises UserError if it is missing, empty or not UTF-8."""
    picture = Path(folder) / f"{name}.png"
    if not data.caption_file(picture).exists():
        raise UserError(f"{data.caption_file(picture)} is missing: it holds the caption of {picture.name}")
    return data.captions([picture], "")[0]


def pair_files(folder, edges=False):
    """The pictures of all pairs and, unless they are edges, their hints: paths. Raises UserError if there is none."""
    hints = {} if edges else hint_files(folder)
    return [*hints.values(), *(Path(folder) / f"{name}.png" for name in hints or picture_files(folder))]


def read_pairs(folder, channels, resolution, edges=False):
    """Folder -> hints, pictures, captions, each hint as large as its picture; both cropped to the resolution.

    edges: take the pictures' edges as their hints.
    """
    hints, images, captions = [], [], []
    for name, path in (picture_files(folder) if edges else hint_files(folder)).items():
        picture = Path(folder) / f"{name}.png"
        images.append(data.load_picture(picture, resolution))
        if edges:
            hints.append(edges_of(picture, resolution))
        else:
            hints.append(read_hint(path, channels, data.open_picture(picture).size, resolution))
        captions.append(read_caption(folder, name))
    return torch.stack(hints), torch.stack(images), captions


# --- training and drawing ---------------------------------------------------------------------------------------------


def train_branch(sd, branch, pairs, steps, lr, batch_size=16, seed=0, dtype=torch.float32, inject=added, work=None,
                 every=0, go_on="", gradient_checkpointing=False):
    """Train the branch by the ordinary ε (or v) loss; everything else stays as it is. Every tenth caption is left out.

    work: a folder for checkpoints, after `every` steps (0: never), at the end and on Ctrl-C, which then raises
    KeyboardInterrupt with `go_on`, the command to go on; a training that is there goes on. gradient_checkpointing: of
    branch and UNet. Returns the losses of the steps. Raises UserError when one is not finite.
    """
    sd.unet.requires_grad_(False)
    sd.unet.gradient_checkpointing = branch.gradient_checkpointing = gradient_checkpointing
    contexts = sd.encode_prompts([*pairs.captions, ""])
    sd.vae.cpu()
    sd.text_encoder.cpu()  # training needs neither

    def batches(i, generator):
        picked = data.picked(len(pairs.captions), i, batch_size, seed)
        x0 = sample_latents(pairs.mean[picked], pairs.logvar[picked], generator).to(sd.device)
        return x0 * sd.vae.config.scaling_factor, picked

    def predict(x_t, t, picked, generator):
        silent = torch.rand(batch_size, generator=generator) < 0.1
        context = contexts[torch.where(silent, len(contexts) - 1, torch.tensor(picked))]
        with autocast(sd.device, dtype):
            return steered(sd.unet, branch, x_t, t, context, pairs.hints[picked].to(sd.device), inject)

    optimiser, scaler = torch.optim.AdamW(branch.parameters(), lr, fused=True), torch.amp.GradScaler(enabled=False)
    training = Training(sd, branch, predict, optimiser, scaler, max_norm=math.inf)
    options = TrainOptions(
        steps=steps, lr=lr, batch_size=batch_size, seed=seed, out=str(work), checkpoint_every=every,
    )
    if work and (Path(work) / STATE).exists():
        load_checkpoint(work, training)
    figures = []

    def note(training):
        if training.figures:  # there are none before the first step; they are read in the end, so that nobody waits
            figures.append(training.figures)

    stopping = CtrlC() if work else contextlib.nullcontext()
    with Progress(None, training, steps, "training the branch") as progress, stopping as stop:
        saving = [Checkpoints(options, stop, training.step, progress, lambda _: go_on)] if work else []
        train(training, options, batches, [progress, note, *saving])
    sd.to(sd.device)
    return [each.read()["diffusion"] for each in figures]


@torch.no_grad()
def draw_steered(sd, branch, hints, prompts, steps=None, guidance=None, seed=0, batch_size=8, inject=added,
                 guide_hint=False, negatives=None):
    """One picture for each hint (n, C, H, W) and prompt, as large as the hints: list of PIL images.

    Guidance is on the text alone: the hint steers both predictions, so ε̂ = ε(∅, y) + s·(ε(c, y) − ε(∅, y)). guide_hint:
    on text and hint, ε̂ = ε(∅) + s·(ε(c, y) − ε(∅)), whose ε(∅) is that of the frozen model without the branch.
    negatives: prompts in the place of the empty one, one for each picture.
    Raises UserError for hints of a size that the model cannot draw.
    """
    steps, guidance = steps or sd.recipe["sample_steps"], sd.recipe["guidance"] if guidance is None else guidance
    height, width = hints.shape[-2:]
    if width % branch.factor or height % branch.factor:
        raise UserError(f"hint of {width} x {height} pixels: both must be multiples of {branch.factor}")
    shape = (len(prompts), sd.vae.config.latent_channels, height // branch.factor, width // branch.factor)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    times, abar, pictures = schedule.timesteps(steps), sd.alphas_cumprod, []
    negatives = negatives or [""] * len(prompts)
    for i in progress_bar(range(0, len(prompts), batch_size), desc="drawing"):
        part = slice(i, i + batch_size)
        context = sd.encode_prompts([*negatives[part], *prompts[part]])
        hint = hints[part].to(sd.device).repeat(2, 1, 1, 1)

        def model(x, t, context=context, hint=hint):
            both, time = x.to(context.dtype).repeat(2, 1, 1, 1), torch.full((len(context),), t, device=x.device)
            if guide_hint:
                (x_u, x_c), (t_u, t_c), (null, own), y = both.chunk(2), time.chunk(2), context.chunk(2), hint[: len(x)]
                out = torch.cat([sd.unet(x_u, t_u, null), steered(sd.unet, branch, x_c, t_c, own, y, inject)]).float()
            else:
                out = steered(sd.unet, branch, both, time, context, hint, inject).float()
            if sd.v_prediction:
                out = schedule.eps_from_v(x.repeat(2, 1, 1, 1), out, abar[t])
            return guide(*out.chunk(2), guidance)

        pictures += to_pil(sd.decode_latents(schedule.sample_ddim(model, start[part].to(sd.device), times, abar)))
    return pictures


# --- the files of a branch --------------------------------------------------------------------------------------------


def load_branch(folder, sd):
    """A saved branch for this model. Raises UserError if the folder holds none or it belongs to another UNet."""
    config, state = beside.read(folder, "branch", CONFIG)
    branch, model = Branch(sd.unet.config, config["hint_channels"], config["factor"], config["gains"]), config["model"]
    unused = [i for i, zero in enumerate(branch.zeros) if not list(zero.parameters())]
    for i in unused:  # version 0.1 wrote four convolutions that nothing uses
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"zeros.{i}.")}
    load_state(branch, state, f"--branch {folder} was trained for {model}, whose UNet is another; pass --model {model}")
    return branch.eval()
