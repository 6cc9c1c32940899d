"""Pictures from the posterior: with newly sampled weights θ = μ + σ∘ε, where inference otherwise takes θ = μ.

The paper trains with sampled weights and draws pictures with their mean (§4.2 "Inference"); this shows what the mean
hides. All pictures of a prompt start from the same noise, and one θ serves all steps of a picture, so that only the
weights make them differ.

Needs `posterior.safetensors` in the run (`--keep-posterior`): μ and σ of what was trained.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import runs
from .errors import UserError
from .files.weights import read_tensors
from .finetune import bayes, methods
from .pipeline import StableDiffusion, open_base

SCALE = 4  # brightness of a deviation of one grey level: deviations of 64 and more are white


@torch.no_grad()
def open_run(run, tokenizer=None, dtype=torch.float32, prediction_type=None):
    """A run with its posterior -> (StableDiffusion at θ = μ, {name: (μ, σ)} of its random parameters, float32).

    Adapters stay apart from the weights, so that they can be drawn. Raises UserError when there is no posterior.
    """
    path = Path(run) / "posterior.safetensors"
    if not path.exists():
        raise UserError(f"{run} holds no {path.name}: --posterior-samples needs a run trained with --keep-posterior")
    if runs.is_adapter_run(run):
        sd, options = open_base(run, tokenizer, dtype, prediction_type), runs.options_of(run)
        sd.recipe |= runs.subject_of(options)
        options.bayes = False  # only the means are put in; `set_weights` draws
        methods.make_trainable(sd.unet, options)
    else:
        sd = StableDiffusion.load(run, tokenizer, dtype, prediction_type)
    parameters, random = dict(sd.unet.named_parameters()), {}
    tensors = read_tensors(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, shape in shapes.items():
        mu = name.removesuffix("_sigma")
        if mu not in parameters or mu not in shapes or {shape, parameters[mu].shape} != {shapes[mu]}:
            raise UserError(f"{path}: {name} belongs to no parameter of this run's model; it is damaged")
    for name, tensor in tensors.items():
        if name.endswith("_sigma"):
            mu = name.removesuffix("_sigma")
            random[mu] = (tensors[mu].float(), tensor.float())
        else:
            parameters[name].copy_(tensor)
    return sd, random


@torch.no_grad()
def set_weights(unet, random, seed=None):
    """Put θ = μ + σ∘ε into the network's parameters in place; seed None: θ = μ. random: as `open_run` returns it."""
    for stream, (name, (mu, sigma)) in enumerate(sorted(random.items())):
        theta = mu if seed is None else mu + sigma * bayes.epsilon(mu.shape, seed, stream, "cpu")
        unet.get_parameter(name).copy_(theta)


def generate_with_draws(sd, random, count, seed, generate):
    """`generate()` once at θ = μ and `count` times with a draw of θ each: a list of 1 + count results; leaves θ = μ."""
    generator = torch.Generator().manual_seed(seed)
    seeds = [None] + [int(torch.randint(2**62, (1,), generator=generator)) for _ in range(count)]
    results = []
    for each in seeds:
        set_weights(sd.unet, random, each)
        results.append(generate())
    set_weights(sd.unet, random)
    return results


def mean_and_deviation(pictures):
    """K pictures of one prompt -> (their mean, their deviation pixel by pixel as a grey picture, its average).

    The deviation is the root of the variance over the draws (divisor K − 1), averaged over the three colours before the
    root, in grey levels 0..255; in the picture it is SCALE times brighter. K must be at least 2.
    """
    stack = np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])  # (K, H, W, 3)
    mean = stack.mean(axis=0)
    deviation = np.sqrt(stack.var(axis=0, ddof=1).mean(axis=-1))  # (H, W)
    shown = (SCALE * deviation).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(mean.round().astype(np.uint8)), Image.fromarray(shown).convert("RGB"), deviation.mean()
