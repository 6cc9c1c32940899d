"""What the probes share: models side by side, denoising in one step or in many, and the files that a probe leaves."""

import dataclasses
from pathlib import Path

import torch

from .. import data, runs, schedule
from ..devices import choose_device, choose_threads, drawing_dtype
from ..errors import UserError
from ..files.store import write_json
from ..options.kinds import BUNDLED
from ..options.lab import ProbeOptions
from ..pictures import save_png, to_pil
from ..pipeline import StableDiffusion, open_base
from .intervals import interval
from .sheets import sheet
from .sigma1_estimate import estimate_sigma1, latents_of, predictor


@dataclasses.dataclass
class Lab:
    """The models that a probe compares, what it asks them to denoise, and how."""

    options: ProbeOptions
    models: dict  # name -> StableDiffusion: "pretrained" and "fine-tuned", or "model" alone
    prompt: str
    latents: torch.Tensor  # (n, 4, h, w), of the training pictures: the mean of the VAE's posterior, scaled
    abar: torch.Tensor  # (1000,)

    def predictors(self, prompt):
        """(name, predict_eps) of each model, for this prompt and without guidance."""
        return ((name, predictor(sd, prompt)) for name, sd in self.models.items())

    def noised(self, clean):
        """Latents (1, 4, h, w) with the noise of the seed at time `options.t`: (draws, 4, h, w)."""
        generator = torch.Generator().manual_seed(self.options.seed)
        noise = torch.randn((self.options.draws, *clean.shape[1:]), generator=generator).to(clean)
        return schedule.q_sample(clean, noise, self.abar[self.options.t])

    @torch.no_grad()
    def one_step(self, predict_eps, x, t):
        """x̂_0 of x (B, 4, h, w) at time t, as the network predicts it."""
        eps = torch.cat([predict_eps(part, t) for part in x.split(self.options.batch_size)])
        return schedule.x0_from_eps(x, eps, self.abar[t])

    @torch.no_grad()
    def all_steps(self, predict_eps, x, t, steps):
        """x (B, 4, h, w) at time t denoised by DDIM, in equal steps down to time 0."""
        times = torch.linspace(t, 0, steps + 1).round().long().tolist()
        parts = list(x.split(self.options.batch_size))
        for now, following in zip(times, times[1:], strict=False):
            abar = self.abar[now], self.abar[following]
            parts = [schedule.ddim_step(part, predict_eps(part, now), *abar) for part in parts]
        return torch.cat(parts)

    def estimate(self, predict_eps, latents, times):
        """The Sigma1 that a network has at these times, around these latents (n, 4, h, w)."""
        options = self.options
        return estimate_sigma1(predict_eps, latents, self.abar, times, options.draws, options.seed, options.batch_size)

    def decode(self, latents):
        """(B, 4, h, w) -> list of PIL pictures, by the VAE of the first model: fine-tuning does not change it."""
        return to_pil(next(iter(self.models.values())).decode_latents(latents))

    def sheet(self, rows, row_labels, column_labels):
        """`sheets.sheet`, in which small pictures are enlarged."""
        side = next(iter(self.models.values())).vae.factor * self.latents.shape[-1]
        return sheet(rows, row_labels, column_labels, max(1, 144 // side))


def open_lab(options):
    """Open the model, the one it was trained from, and the training pictures of ProbeOptions. Raises UserError."""
    device = choose_device(options.device)
    dtype = getattr(torch, options.dtype or drawing_dtype(device))
    given = (options.tokenizer, dtype, options.prediction_type)
    run = runs.options_of(options.model)
    images = options.images or (run and runs.images_of(options.model)[0])
    if not images:
        if options.model not in BUNDLED and not Path(options.model).exists():
            StableDiffusion.load(options.model)  # raises UserError, and says that there is no such model
        raise UserError(f"--images is required: {options.model} is not a run, which would name its training pictures")
    files = data.list_pictures(images)
    if options.picture >= len(files):
        raise UserError(f"--picture {options.picture}: {images} holds {len(files)} pictures, numbered from 0")
    if not 1 <= options.t < schedule.TRAIN_STEPS:
        raise UserError(f"--t {options.t} is outside 1..{schedule.TRAIN_STEPS - 1}")
    if options.draws < 2:
        raise UserError("--draws 1: at least 2 are needed")
    models = {}
    if options.base:
        models["pretrained"] = StableDiffusion.load(options.base, *given).to(device)
    elif run:
        models["pretrained"] = open_base(options.model, *given).to(device)
    if options.base and runs.is_adapter_run(options.model):  # the base that it names may have been moved
        sd = StableDiffusion.load(options.base, *given).merge_adapter(options.model).to(device)
    else:
        sd = StableDiffusion.load(options.model, *given).to(device)
    models["fine-tuned" if models else "model"] = sd
    choose_threads(device, sd.unet)
    prompt = options.prompt or (run and run.prompt[0]) or sd.recipe["prompt"]
    if not prompt:
        raise UserError('--prompt is required for this model: the one it was trained with, e.g. "a photo of a sks dog"')
    pictures = data.load_pictures(files, sd.recipe["resolution"])
    return Lab(options, models, prompt, latents_of(sd, pictures), sd.alphas_cumprod)


def cosine(a, b):
    """The cosine between latents (4, h, w), or for each pair of (B, 4, h, w) and (4, h, w)."""
    return torch.nn.functional.cosine_similarity(a.flatten(-3), b.flatten(-3), dim=-1)


def mean_and_half_width(values):
    """The mean of n ≥ 2 draws, and half the width of its 95 % t-interval."""
    mean, low, high = interval(values)
    return mean, (high - low) / 2


def check_out(options, command):
    """The path of the PNG to write; the JSON stands beside it. Raises UserError if one exists, unless --overwrite."""
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
