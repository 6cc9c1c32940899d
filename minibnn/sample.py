"""Drawing pictures: from prompts and noise to pictures, with guidance.

    python -m minibnn sample --model runs/dog --prompt "a photo of a sks dog in the snow" --out dog.png

Follows: diffusers' `StableDiffusionPipeline`; classifier-free guidance of Ho & Salimans 2022.

    prompt → context c;  noise → x_T;  ε̂ = ε(∅) + s·(ε(c) − ε(∅));  a step of DDIM or PNDM;  …  x_0 → VAE → picture

The functions are methods of `StableDiffusion` (`pipeline.py`): `sd.generate(["a dog"])`.
"""

if __name__ == "__main__":  # before torch is imported, so that --help and a mistyped option answer at once
    from minibnn.__main__ import main

    raise SystemExit(main("sample"))

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL.Image import Image

from . import schedule
from .errors import UserError
from .networks.transformer import same_prompt
from .pictures import to_pil
from .progress import progress_bar


def guide(eps_u, eps_c, scale):
    """ε̂ = ε_u + s·(ε_c − ε_u): away from the unconditional prediction.   (Ho & Salimans 2022, eq. 6, with s = 1 + w)"""
    return eps_u + scale * (eps_c - eps_u)


def guided_eps(sd: Any, x: torch.Tensor, t: int, context: torch.Tensor, unconditional: torch.Tensor,
               guidance: float) -> torch.Tensor:
    """`guide` with both predictions from one forward; guidance 1 costs one half.

    x (B, 4, h, w) float32; t an int; context and unconditional (B, 77, d) -> (B, 4, h, w) float32.
    """
    return eps_of_joined(sd, x, t, context if guidance == 1 else torch.cat([unconditional, context]), guidance)


def eps_of_joined(sd, x, t, contexts, guidance):
    """The same with the contexts joined beforehand: (2B, 77, d), those without the prompt first; or (B, 77, d)."""
    copies = len(contexts) // len(x)
    times = torch.full((len(contexts),), t, device=x.device)
    eps = sd.predict_eps(x.to(contexts.dtype).repeat(copies, 1, 1, 1), times, contexts).float()
    return guide(*eps.chunk(2), guidance) if copies == 2 else eps


@torch.no_grad()
def generate(sd: Any, prompts: str | Iterable[str], steps: int | None = None,
             guidance: float | None = None, seed: int = 0, negative_prompt: str = "",
             size: int | tuple[int, int] | None = None, sampler: str = "ddim", eta: float = 0.0,
             batch_size: int = 8, progress: bool = True, predictor: Callable | None = None,
             start: Callable | None = None) -> list[Image]:
    """Draw one picture for each prompt: a list of n strings -> a list of n PIL images.

    steps, guidance, size (pixels, or (width, height)): None takes the recipe's (50, 7.5 and 512 for SD).
    sampler: "ddim" (with η = `eta`) or "pndm". The starting noise is made on the CPU, so that a seed means the same on
    every device: `torch.randn(n, C, h, w, generator=torch.Generator().manual_seed(seed))`,
    with C latent channels: 4 in SD, 16 in tiny-v2.
    predictor: what takes the place of `guided_eps`, for instance that of `guidance.one_condition`.
    start(noise, ᾱ_T): what takes the place of the starting noise (n, C, h, w), for instance `schedule.with_mean`.
    Raises UserError for sizes that are not multiples of the network's factor and for bad numbers.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    steps = sd.recipe["sample_steps"] if steps is None else steps
    guidance = sd.recipe["guidance"] if guidance is None else guidance
    width, height = picture_size(sd, size)
    check_numbers(sampler, eta, guidance, seed)
    times = schedule.timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(prompts), sd.vae.config.latent_channels, height // sd.vae.factor, width // sd.vae.factor)
    first = torch.randn(shape, generator=generator)
    if start:
        first = start(first, sd.alphas_cumprod[times[0]])
    later = torch.randn((steps if eta else 0, *shape), generator=generator)

    abar, pictures, starts = sd.alphas_cumprod, [], range(0, len(prompts), batch_size)
    evaluations = steps + (sampler == "pndm" and steps > 1)
    with progress_bar(total=len(starts) * evaluations, desc="drawing", disable=not progress) as bar:
        for i in starts:
            part = slice(i, i + batch_size)
            context = sd.encode_prompts(prompts[part])
            unconditional = sd.encode_prompts([negative_prompt]).expand_as(context)
            joined = context if guidance == 1 else torch.cat([unconditional, context])

            def model(x, t, context=context, unconditional=unconditional, joined=joined):
                bar.update()
                if predictor:
                    return predictor(x, t, context, unconditional, guidance)
                return eps_of_joined(sd, x, t, joined, guidance)

            x = first[part].to(sd.device)
            with same_prompt(sd.unet):
                if sampler == "pndm":
                    x = schedule.sample_pndm(model, x, times, abar, sd.v_prediction)
                else:
                    x = schedule.sample_ddim(model, x, times, abar, eta, lambda k, p=part: later[k, p].to(sd.device))
            pictures += to_pil(sd.decode_latents(x))
    return pictures


def picture_size(sd, size):
    """(width, height) in pixels of a size as `generate` takes it. Raises UserError."""
    size = sd.recipe["resolution"] if size is None else size
    width, height = (size, size) if isinstance(size, int) else size
    multiple = sd.vae.factor
    if width < multiple or height < multiple or width % multiple or height % multiple:
        raise UserError(f"picture size {width} x {height}: both must be positive multiples of {multiple}")
    return width, height


def check_numbers(sampler, eta, guidance, seed):
    """Raises UserError for settings of `generate` that make no sense."""
    if sampler not in ("ddim", "pndm"):
        raise UserError(f'sampler {sampler!r} is not one of "ddim", "pndm"')
    if not 0 <= eta <= 1:
        raise UserError(f"eta = {eta} is outside 0..1")
    if eta and sampler == "pndm":
        raise UserError(f"eta = {eta} is for the sampler ddim only, and this is pndm, which adds no noise")
    if not math.isfinite(guidance):
        raise UserError(f"guidance = {guidance} is not a finite number")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed} is outside 0..2**32 - 1")
