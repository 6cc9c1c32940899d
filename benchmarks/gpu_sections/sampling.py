"""Sampling: 50 steps of DDIM with guidance at 512 × 512 pixels in 16 bits, and the decoder apart; ours and diffusers'.

diffusers' side is its UNet and DDIMScheduler in the loop of its StableDiffusionPipeline: both halves of the guidance in
one forward. Both start from the same weights and the same noise.
"""

import importlib.util

import torch

from minibnn import schedule

from . import models, timing
from .steps import their_unet

GUIDANCE = 7.5


def run(section):
    sd, theirs, steps = prepared(section), None, 2 if section.tiny else 50
    if importlib.util.find_spec("diffusers") is None:
        section.missing("diffusers")
    else:
        theirs = their_unet(section).to(drawing_dtype(section)).eval()
        theirs.network.load_state_dict(sd.unet.state_dict())
    for batch in (1,) if section.tiny else (1, 4, 8):
        job = section, sd, batch, steps
        a, b = section.measure(f"ours, batch {batch}", of_ours, *job, needs=10), None
        if theirs is not None:
            b = section.measure(f"diffusers, batch {batch}", of_theirs, *job, theirs, needs=10)
        share = timing.ratio(a and a["drawing"], b and b["drawing"])
        section.goal(f"{steps} steps of ours / of diffusers, batch {batch}", share, most=0.9)
        section.measure(f"decoder, batch {batch}", of_decoder, section, sd, batch)


def drawing_dtype(section):
    return torch.bfloat16 if section.tiny else torch.float16


def prepared(section):
    sd = models.model(section).to(drawing_dtype(section))
    sd.unet.eval()
    return sd


def inputs(section, sd, batch):
    """Noise and the contexts of the prompt and of the empty one."""
    side = models.latents_side(section)
    x = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0)).to(section.device)
    context = sd.encode_prompts(["a photo of a dog"] * batch)
    return x, context, sd.encode_prompts([""]).expand_as(context)


def figures(section, draw, batch):
    with torch.no_grad():
        times, peak = timing.called(draw, 3), timing.peak(draw)
        few = timing.busy(draw) if section.left() > 20 or section.tiny else {}
    return {"drawing": times, "a picture": times["median"] / batch, "peak": peak} | few


def of_ours(section, sd, batch, steps):
    x, context, unconditional = inputs(section, sd, batch)
    times = schedule.timesteps(steps)

    def draw():
        def model(x, t):
            return sd.guided_eps(x, t, context, unconditional, GUIDANCE)

        return schedule.sample_ddim(model, x, times, sd.alphas_cumprod)

    return figures(section, draw, batch)


def of_theirs(section, sd, batch, steps, theirs):
    from diffusers import DDIMScheduler

    x, context, unconditional = inputs(section, sd, batch)
    both, scheduler = torch.cat([unconditional, context]), DDIMScheduler.from_config(sd.configs["scheduler"])

    def draw():
        scheduler.set_timesteps(steps, device=section.device)
        latents = x.to(both.dtype)
        for t in scheduler.timesteps:
            eps_u, eps_c = theirs(scheduler.scale_model_input(torch.cat([latents] * 2), t), t, both).chunk(2)
            latents = scheduler.step(eps_u + GUIDANCE * (eps_c - eps_u), t, latents).prev_sample
        return latents

    return figures(section, draw, batch)


def of_decoder(section, sd, batch):
    x, _, _ = inputs(section, sd, batch)
    return timing.called(lambda: sd.decode_latents(x), 5) | {"peak": timing.peak(lambda: sd.decode_latents(x))}
