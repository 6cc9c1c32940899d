"""Bayesian Power Steering: a frozen model learns to follow pictures (sketches, maps): `python -m minibnn.bps --hints DIR`.

Trains the branch of `bps_branch.py`, which says what is learned (arXiv 2406.03683), on pairs, and draws with it:

    pairs: NAME.png (picture), NAME.hint.png (its hint), NAME.txt (its caption), e.g. from `python -m minibnn.world --pairs`

But: no style hints of several maps.
"""

from ..options.commands import BpsOptions
from ..options.parsing import answer_ctrl_c_while_importing, parse, run

if __name__ == "__main__":  # before torch is imported: --help and mistyped options answer at once
    OPTIONS = parse(BpsOptions, "minibnn.bps")
    answer_ctrl_c_while_importing()

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from .. import data, schedule
from ..devices import choose_device, make_deterministic, unscaled_dtype
from ..errors import UserError
from ..files.store import open_weights, read_json, write_json, write_tensors, write_whole
from ..networks.vae import sample_latents
from ..pictures import grid, to_pil
from ..pipeline import StableDiffusion
from .bps_branch import Branch, added, steered

FORMAT = "minibnn bps"
CONFIG = {"model", "hint_channels", "factor", "gains"}  # what opening a branch needs
TRAINING = ("hint_channels", "gains", "steps", "lr", "batch_size", "resolution")  # options that --branch has no use for


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pairs:
    """hints (n, C, H, W) in [0, 1]; mean and logvar (n, 4, h, w) of the pictures' latents; captions."""

    hints: torch.Tensor
    mean: torch.Tensor
    logvar: torch.Tensor
    captions: list


def make_pairs(sd, hints, images, captions):
    """Hints (n, C, H, W) in [0, 1], pictures (n, 3, H, W) in [-1, 1] and captions -> Pairs."""
    return Pairs(hints, *data.latent_moments(sd.vae, images), captions)


def hint_files(folder):
    """NAME -> its hint's path. Raises UserError if there is none."""
    found = {path.name.removesuffix(".hint.png"): path for path in sorted(Path(folder).glob("*.hint.png"))}
    if not found:
        raise UserError(f"--hints {folder}: no NAME.hint.png in it (`python -m minibnn.world --pairs DIR` makes an example)")
    return found


def read_hint(path, channels, size=None):
    """A PNG -> (channels, H, W) in [0, 1]; size (width, height): what it must have. Raises UserError naming the file."""
    try:
        image = Image.open(path).convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError:
        raise UserError(f"{path}: too many pixels, perhaps an attack; make it smaller") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: broken or no picture ({error})") from None
    if size and image.size != size:
        raise UserError(f"{path} is {image.width} x {image.height} pixels, not {size[0]} x {size[1]}; make it that size")
    array = np.array(image, dtype=np.float32).reshape(image.height, image.width, channels) / 255
    return torch.from_numpy(array).permute(2, 0, 1)


def read_caption(path):
    """The words of a text file. Raises UserError if it is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    if not text:
        raise UserError(f"{path} is missing or empty: it holds the caption of {path.stem}.png")
    return text


def read_pairs(folder, channels, resolution):
    """Folder -> hints, pictures, captions, each hint as large as its picture; both cropped to the resolution."""
    hints, images, captions = [], [], []
    for name, path in hint_files(folder).items():
        picture = Path(folder) / f"{name}.png"
        images.append(data.load_picture(picture, resolution))
        hint = read_hint(path, channels, ImageOps.exif_transpose(Image.open(picture)).size)
        whole = Image.fromarray((hint.permute(1, 2, 0).numpy().squeeze() * 255).round().astype(np.uint8))
        whole = np.array(ImageOps.fit(whole, (resolution, resolution), Image.Resampling.LANCZOS), dtype=np.float32) / 255
        hints.append(torch.from_numpy(whole.reshape(resolution, resolution, channels)).permute(2, 0, 1))
        captions.append(read_caption(Path(folder) / f"{name}.txt"))
    return torch.stack(hints), torch.stack(images), captions


# --- training and drawing ---------------------------------------------------------------------------------------------


def train(sd, branch, pairs, steps, lr, batch_size=16, seed=0, dtype=torch.float32, inject=added):
    """Train the branch by the ordinary ε (or v) loss; everything else stays as it is. Every tenth caption is left out.

    Returns the losses. Raises UserError when one is not finite.
    """
    sd.unet.requires_grad_(False)
    optimiser = torch.optim.AdamW(branch.parameters(), lr, fused=True)
    contexts = sd.encode_prompts([*pairs.captions, ""])
    abar, losses = sd.alphas_cumprod.to(sd.device), []
    bar = tqdm(range(steps), desc="training the branch")
    for step in bar:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        picked = [data.epoch_order(len(pairs.captions), step * batch_size + k, seed) for k in range(batch_size)]
        x0 = sample_latents(pairs.mean[picked], pairs.logvar[picked], generator).to(sd.device) * sd.vae.config.scaling_factor
        t = torch.randint(0, schedule.TRAIN_STEPS, (batch_size,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator).to(sd.device)
        silent = torch.rand(batch_size, generator=generator) < 0.1
        context = contexts[torch.where(silent, len(contexts) - 1, torch.tensor(picked))]
        x_t, t = schedule.q_sample(x0, eps, abar[t.to(abar.device)]), t.to(sd.device)
        with torch.autocast(sd.device.type, dtype, enabled=dtype != torch.float32):
            predicted = steered(sd.unet, branch, x_t, t, context, pairs.hints[picked].to(sd.device), inject)
        loss = F.mse_loss(predicted.float(), schedule.velocity(x0, eps, abar[t]) if sd.v_prediction else eps)
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {step + 1}; try a smaller --lr")
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
    return losses


@torch.no_grad()
def draw(sd, branch, hints, prompts, steps=None, guidance=None, seed=0, batch_size=8, inject=added):
    """One picture for each hint (n, C, H, W) and prompt, as large as the hints: list of PIL images.

    Guidance is on the text alone: the hint steers both predictions, so ε̂ = ε(∅, y) + s·(ε(c, y) − ε(∅, y)).
    """
    steps, guidance = steps or sd.recipe["sample_steps"], sd.recipe["guidance"] if guidance is None else guidance
    if hints.shape[-1] % branch.factor or hints.shape[-2] % branch.factor:
        raise UserError(f"hint of {hints.shape[-1]} x {hints.shape[-2]} pixels: both must be multiples of {branch.factor}")
    shape = (len(prompts), sd.vae.config.latent_channels, hints.shape[-2] // branch.factor, hints.shape[-1] // branch.factor)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    times, abar, pictures = schedule.timesteps(steps), sd.alphas_cumprod, []
    for i in tqdm(range(0, len(prompts), batch_size), desc="drawing"):
        part = slice(i, i + batch_size)
        context = sd.encode_prompts([""] * len(prompts[part]) + list(prompts[part]))
        hint = hints[part].to(sd.device).repeat(2, 1, 1, 1)

        def model(x, t, context=context, hint=hint):
            both, time = x.to(context.dtype).repeat(2, 1, 1, 1), torch.full((len(context),), t, device=x.device)
            out = steered(sd.unet, branch, both, time, context, hint, inject).float()
            if sd.v_prediction:
                out = schedule.eps_from_v(x.repeat(2, 1, 1, 1), out, abar[t])
            plain, captioned = out.chunk(2)
            return plain + guidance * (captioned - plain)

        pictures += to_pil(sd.decode_latents(schedule.sample_ddim(model, start[part].to(sd.device), times, abar)))
    return pictures


# --- command ----------------------------------------------------------------------------------------------------------


def save_branch(branch, folder, config):
    """branch.safetensors and config.json; config: {"model", "hint_channels", "factor", "gains", …}."""
    write_tensors(Path(folder) / "branch.safetensors", branch.state_dict())
    write_json(Path(folder) / "config.json", {"format": FORMAT, **config})


def load_branch(folder, sd):
    """A saved branch for this model. Raises UserError if the folder holds none or it belongs to another UNet."""
    config = read_json(Path(folder) / "config.json")
    if config.get("format") != FORMAT:
        raise UserError(f"--branch {folder} is no folder of minibnn.bps")
    if missing := CONFIG - config.keys():
        raise UserError(f"--branch {folder}: config.json lacks {min(missing)!r}; it is damaged")
    branch = Branch(sd.unet.config, config["hint_channels"], config["factor"], config["gains"])
    with open_weights(Path(folder) / "branch.safetensors") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wanted = {name: tensor.shape for name, tensor in branch.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise UserError(f"--branch {folder} was trained for {config['model']}, whose UNet is another; pass --model {config['model']}")
    branch.load_state_dict(state)
    return branch.eval()


def with_hints(pictures, hints):
    """Hints and pictures side by side, four of each in a row."""
    cells = []
    for picture, hint in zip(pictures, hints, strict=True):
        cells += [to_pil(2 * hint[None].expand(-1, 3, -1, -1) - 1)[0], picture]
    return grid(cells, 8, zoom=max(1, 128 // pictures[0].width))


def check(options, sd):
    """Refuse, before the long training, what drawing could not do. Raises UserError naming an option."""
    for name in TRAINING if options.branch else ():
        if getattr(options, name) != getattr(BpsOptions, name):
            raise UserError(f"--{name.replace('_', '-')} is for training; with --branch nothing is trained")
    try:
        schedule.timesteps(options.sample_steps or sd.recipe["sample_steps"])
    except ValueError as error:
        raise UserError(f"--sample-{error}") from None
    if options.guidance is not None and not math.isfinite(options.guidance):
        raise UserError(f"--guidance {options.guidance} is no finite number")


def main(options):
    """Train on the pairs of --hints, or with --branch draw its hints."""
    out = Path(options.out or ("runs/bps-drawn" if options.branch else "runs/bps"))
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]) and not options.overwrite:
        raise UserError(f"--out {out} exists: name another folder or pass --overwrite")
    device = choose_device(options.device)
    if device.startswith("cuda"):
        make_deterministic()
    dtype = getattr(torch, options.dtype or unscaled_dtype(device))
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32)
    check(options, sd)
    resolution, bundled = options.resolution or sd.recipe["resolution"], options.model == "tiny"
    if options.branch:
        branch = load_branch(options.branch, sd)
        files = hint_files(options.hints)
        first = read_hint(next(iter(files.values())), branch.hint_channels)
        size = (first.shape[2], first.shape[1])
        hints = torch.stack([read_hint(path, branch.hint_channels, size) for path in files.values()])
        prompts = [read_caption(Path(options.hints) / f"{name}.txt") for name in files]
    else:
        if resolution % sd.vae.factor:
            raise UserError(f"--resolution {resolution} is no multiple of {sd.vae.factor}")
        hints, images, prompts = read_pairs(options.hints, options.hint_channels, resolution)
        torch.manual_seed(options.seed)
        branch = Branch(sd.unet.config, options.hint_channels, sd.vae.factor, options.gains)
    sd.to(device)
    branch.to(device)
    if not options.branch:
        steps, lr = options.steps or (400 if bundled else 1000), options.lr or (5e-4 if bundled else 1e-5)
        train(sd, branch, make_pairs(sd, hints, images, prompts), steps, lr, options.batch_size, options.seed, dtype)
        config = dataclasses.asdict(options) | {"factor": sd.vae.factor, "resolution": resolution, "steps": steps, "lr": lr}
        save_branch(branch, out, config)
        hints, prompts, files = hints[:8], prompts[:8], []
    with torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32):
        pictures = draw(sd, branch.eval(), hints, prompts, options.sample_steps, options.guidance, options.seed)
    for name, picture in zip(files, pictures, strict=False):
        write_whole(out / f"{name}.png", lambda path, picture=picture: picture.save(path, format="PNG"))
    sheet = with_hints(pictures, hints)
    write_whole(out / "samples.png", lambda path: sheet.save(path, format="PNG"))
    print(f"{out / 'samples.png'}: hints and pictures" + ("" if options.branch else f"; --branch {out} draws other hints"))


if __name__ == "__main__":
    run(main, OPTIONS)
