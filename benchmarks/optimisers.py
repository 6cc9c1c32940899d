"""Does `--optimiser adamw-bf16` train as well as AdamW? `python benchmarks/optimisers.py`, on a CPU.

The bundled model is fine-tuned on the six pictures of tutorials/dog, with random weights and the recipe's rate, with
each optimiser and for each seed. A seed fixes pictures, times, noise and ε_θ, so that the runs of a seed differ in
nothing else. Afterwards the loss at θ = μ is taken on the same pictures, at 96 fixed times and noises: the seeds' mean
for each optimiser, and the difference to AdamW's seed by seed, with the 95 % interval of its mean.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from minibnn import StableDiffusion, data, schedule
from minibnn.options.training import TrainOptions
from minibnn.train import Batches, fine_tuning, train

DOG, PROMPT = Path(__file__).parents[1] / "tutorials" / "dog", "a photo of a sks dog"
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's


@torch.no_grad()
def loss_at_the_mean(sd, latents, context):
    """‖ε̂ − ε‖² at θ = μ, the mean over 96 fixed pairs of time and noise."""
    generator, abar, total = torch.Generator().manual_seed(12345), sd.alphas_cumprod, 0.0
    sd.unet.eval()
    for _ in range(96 // len(latents)):
        t = torch.randint(0, schedule.TRAIN_STEPS, (len(latents),), generator=generator)
        eps = torch.randn(latents.shape, generator=generator)
        predicted = sd.predict_eps(schedule.q_sample(latents, eps, abar[t]), t, context.expand(len(latents), -1, -1))
        total += (predicted - eps).square().mean().item()
    return total / (96 // len(latents))


def run(kind, seed, steps, images):
    """(the loss at the mean before, after the training, seconds a step)."""
    sd = StableDiffusion.load("tiny")
    options = TrainOptions(
        images=[str(DOG)], where="paper", sigma=sd.recipe["sigma"], lr=sd.recipe["lr"], steps=steps, seed=seed,
        batch_size=1, dtype="float32", kernel="torch", prior_weight=0.0, optimiser=kind,
    )
    batches = Batches(sd, [(images, [PROMPT] * len(images))], options.batch_size, seed)
    [(mean, _, context, _)] = batches.sources
    latents = mean * batches.scale
    before, training = loss_at_the_mean(sd, latents, context), fine_tuning(sd, options)
    sd.unet.train()
    start = time.perf_counter()
    train(training, options, batches)
    return before, loss_at_the_mean(sd, latents, context), (time.perf_counter() - start) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {options.steps} steps, seeds 0 to {options.seeds - 1}", flush=True)
    images, found = data.load_pictures(data.list_pictures(DOG), 64), {"adamw": [], "adamw-bf16": []}
    for seed in range(options.seeds):
        for kind, losses in found.items():
            before, after, seconds = run(kind, seed, options.steps, images)
            losses.append(after)
            print(f"seed {seed}, {kind}: {before:.5f} → {after:.5f}, {seconds * 1e3:.0f} ms a step", flush=True)
    for kind, losses in found.items():
        print(f"{kind}: mean loss {statistics.mean(losses):.5f}, standard deviation {statistics.stdev(losses):.5f}")
    differences = [b - a for a, b in zip(found["adamw"], found["adamw-bf16"], strict=True)]
    half = T975[len(differences) - 1] * statistics.stdev(differences) / len(differences) ** 0.5
    print(f"adamw-bf16 − adamw, seed by seed: {statistics.mean(differences):+.5f} ± {half:.5f}")


if __name__ == "__main__":
    main()
