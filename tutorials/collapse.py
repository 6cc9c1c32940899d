"""The collapse of lesson 03, which takes some three minutes of one core: `python tutorials/collapse.py`.

The bundled model learns four photos of the dog in 400 steps. On the way eight pictures are drawn, always from the same
noise, with guidance 7.5 whose unconditional prediction comes from the model itself or from the model before training,
and the gains of all three predictions are measured. Seed 0. Writes results/collapse.webp, a row for each of STEPS, and
results/collapse.json, or to the folder given: `python tutorials/collapse.py mine`.
"""

import json
import sys
from pathlib import Path

import torch

from minibnn import StableDiffusion, data, devices, schedule
from minibnn.experiments import prompts
from minibnn.lab import gains, sigma1_estimate
from minibnn.pictures import grid, to_pil
from minibnn.world import measures

HERE = Path(__file__).parent
PROMPT, STEPS, TIMES = "a photo of a sks dog", (0, 25, 50, 100, 200, 400), (20, 100, 300, 600, 900)
VIEWS = {"own": 7.5, "base": 7.5, "none": 1.0}  # whose unconditional prediction, and the guidance


@torch.no_grad()
def draw(sd, base, context, unconditional, start, guidance):
    """Latents drawn by DDIM in 25 steps; the unconditional prediction is `base`'s."""

    def model(x, t):
        times = torch.full((len(x),), int(t))
        without = base.predict_eps(x, times, unconditional)
        return without + guidance * (sd.predict_eps(x, times, context) - without)

    return schedule.sample_ddim(model, start, schedule.timesteps(25), sd.alphas_cumprod)


def look(sd, base, latents, asked, start):
    """({view: measures}, the pictures of the view "base", the gains) of the model as it is now."""
    context, unconditional = sd.encode_prompts(asked), sd.encode_prompts([""] * len(asked))
    seen, views = sd.decode_latents(latents), {}
    for name, guidance in VIEWS.items():
        drawn = draw(sd, sd if name == "own" else base, context, unconditional, start, guidance)
        images = sd.decode_latents(drawn)
        fidelity, noise = measures.fidelity(images, seen)[0].mean().item(), measures.noise(images)[2:].mean().item()
        views[name] = {"fidelity": fidelity, "noise": noise, "spread": drawn.std().item()}
        if name == "base":
            shown = images
    found = gains.measure(sd, latents, PROMPT, times=TIMES)
    first = gains.slopes(sigma1_estimate.predictor(base, ""), latents, sd.alphas_cumprod, TIMES)
    named = {"c": found.c, "u": found.u, "base": first}
    return views, shown, {name: gains.mean(value) for name, value in named.items()}


def main(folder):
    sd, base = StableDiffusion.load("tiny"), StableDiffusion.load("tiny")
    devices.choose_threads("cpu", sd.unet)
    photos = data.load_pictures(data.list_pictures(HERE / "dog")[:4], 64)
    latents, context = sigma1_estimate.latents_of(sd, photos), sd.encode_prompts([PROMPT])
    asked = [PROMPT] * 2 + [prompt for prompt, _ in prompts.world_prompts("sks", "dog")[:6]]
    start = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    optimiser = torch.optim.AdamW(sd.unet.parameters(), lr=2e-4, weight_decay=0.01, fused=True)
    generator, rows, sheet = torch.Generator().manual_seed(0), [], []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            views, images, found = look(sd, base, latents, asked, start)
            rows.append({"step": step, "views": views, "gains": found})
            sheet += to_pil(images)
            print(step, views["base"], flush=True)
        which, t = torch.randint(0, 4, (1,), generator=generator), torch.randint(0, 1000, (1,), generator=generator)
        eps = torch.randn(1, 4, 8, 8, generator=generator)
        predicted = sd.unet(schedule.q_sample(latents[which], eps, sd.alphas_cumprod[t]), t, context)
        optimiser.zero_grad()
        (predicted - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(sd.unet.parameters(), 1.0)
        optimiser.step()
    folder.mkdir(parents=True, exist_ok=True)
    grid(sheet, 8).save(folder / "collapse.webp", quality=90, method=6)
    rounded = json.loads(json.dumps(rows), parse_float=lambda text: float(f"{float(text):.4g}"))
    made = {"command": "python tutorials/collapse.py", "seed": 0, "times": TIMES, "prompts": asked, "rows": rounded}
    (folder / "collapse.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results")
