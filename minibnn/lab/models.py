"""What the probes share: models side by side, denoising in one step or in many, and the files that a probe leaves."""

import dataclasses
from pathlib import Path

import torch

from .. import data, runs, schedule
from ..devices import choose_device
from ..errors import UserError
from ..files.store import write_json
from ..pictures import save_png, to_pil
from ..pipeline import StableDiffusion, open_base
from .intervals import interval
from .sigma1_estimate import latents_of


@dataclasses.dataclass
class Lab:
    models: dict  # name -> StableDiffusion: "pretrained" and "fine-tuned", or "model" alone
    prompt: str
    latents: torch.Tensor  # (n, 4, h, w), of the training pictures: the mean of the VAE's posterior, scaled
    abar: torch.Tensor  # (1000,)

    def decode(self, latents):
        """(B, 4, h, w) -> list of PIL pictures; by the first model's VAE, which fine-tuning does not change."""
        return to_pil(next(iter(self.models.values())).decode_latents(latents))

    @property
    def zoom(self):
        """Small pictures are enlarged in figures."""
        factor = next(iter(self.models.values())).vae.factor
        return max(1, 144 // (factor * self.latents.shape[-1]))


def open_lab(options):
    """Open the model, the one it was trained from, and the training pictures of ProbeOptions. Raises UserError."""
    device = choose_device(options.device)
    dtype = getattr(torch, options.dtype or ("float16" if device.startswith("cuda") else "float32"))
    given = (options.tokenizer, dtype, options.prediction_type)
    run = runs.options_of(options.model)
    images = options.images or (run and run.images)
    if not images:
        if options.model != "tiny" and not Path(options.model).exists():
            StableDiffusion.load(options.model)  # says so
        raise UserError(f"--images is required: {options.model} is no run, which would name its training pictures")
    files = data.list_pictures(images)
    if options.picture >= len(files):
        raise UserError(f"--picture {options.picture}: {images} holds {len(files)} pictures, numbered from 0")
    if not 1 <= options.t < schedule.TRAIN_STEPS:
        raise UserError(f"--t {options.t} is outside 1..{schedule.TRAIN_STEPS - 1}")
    if options.draws < 2:
        raise UserError("--draws 1: at least 2 are needed")
    models = {}
    if options.base:
        models["pretrained"] = StableDiffusion.load(options.base, *given)
    elif run:
        models["pretrained"] = open_base(options.model, *given)
    sd = models["fine-tuned" if models else "model"] = StableDiffusion.load(options.model, *given)
    for model in models.values():
        model.to(device)
    prompt = options.prompt or sd.recipe["prompt"]
    if not prompt:
        raise UserError('--prompt is required for this model: the one it was trained with, e.g. "a photo of a sks dog"')
    pictures = data.load_pictures(files, sd.recipe["resolution"])
    return Lab(models, prompt, latents_of(sd, pictures), sd.alphas_cumprod)


def noises(options, latents):
    """Noise (draws, 4, h, w) of the seed."""
    generator = torch.Generator().manual_seed(options.seed)
    return torch.randn((options.draws, *latents.shape[1:]), generator=generator).to(latents)


@torch.no_grad()
def one_step(predict_eps, x, t, abar, batch_size):
    """x̂_0 of x (B, 4, h, w) at time t, in batches."""
    eps = torch.cat([predict_eps(part, t) for part in x.split(batch_size)])
    return schedule.x0_from_eps(x, eps, abar[t])


@torch.no_grad()
def all_steps(predict_eps, x, t, abar, steps):
    """DDIM from x at time t, in equal steps down to 0."""
    times = torch.linspace(t, 0, steps + 1).round().long().tolist()
    for now, following in zip(times, times[1:], strict=False):
        x = schedule.ddim_step(x, predict_eps(x, now), abar[now], abar[following])
    return x


def cosine(a, b):
    """Between latents (4, h, w), or for each pair of (B, 4, h, w) and (4, h, w)."""
    return torch.nn.functional.cosine_similarity(a.flatten(-3), b.flatten(-3), dim=-1)


def mean_and_half_width(values):
    """(mean, half width of a 95 % t-interval) of n ≥ 2 draws."""
    mean, low, high = interval(values)
    return mean, (high - low) / 2


def check_out(options, command):
    """The PNG and JSON to write. Raises UserError if one exists, unless --overwrite."""
    out = Path(options.out or f"{command}.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end with .png")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not options.overwrite:
            raise UserError(f"--out: {path} exists; name another file or pass --overwrite")
    return out


def write_found(out, command, options, image, numbers, lines):
    """Leave a command's picture and its numbers as JSON, and print its lines."""
    save_png(image, out)
    write_json(out.with_suffix(".json"), {"command": command, "options": dataclasses.asdict(options), "found": numbers})
    print("\n".join([*lines, f"{out}: the picture; {out.with_suffix('.json')}: the numbers"]))
