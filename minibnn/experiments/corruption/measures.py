"""What is measured on the pictures of a checkpoint: one line of numbers; what cannot be measured is None."""

import torch

from ...pictures import to_tensor
from ...world import measures as world_measures
from ...world.classifier import reconstruct


def _rounded(values):
    return {name: None if value is None else round(float(value), 5) for name, value in values.items()}


def _diversity(images, prompts):
    """Mean of the diversity over the prompts that have several pictures; None without any."""
    alike = []
    for prompt in dict.fromkeys(prompts):
        group = [image for image, other in zip(images, prompts, strict=True) if other == prompt]
        if len(group) > 1:
            alike.append(world_measures.diversity(torch.stack(group)))
    return sum(alike) / len(alike) if alike else None


class WorldMeasures:
    """Measures pictures of the bundled world, on the CPU."""

    def __init__(self, sd, training):
        self.seen = reconstruct(sd, training.to(sd.device)).cpu()  # as far as the decoder can draw them

    def __call__(self, pictures, wanted):
        """List of B pictures, B pairs (prompt, what it shows) -> {measure: mean over the pictures}."""
        images, prompts = to_tensor(pictures), [prompt for prompt, _ in wanted]
        mean, nearest = world_measures.fidelity(images, self.seen)
        noise = world_measures.noise(images)
        values = {
            "fidelity": mean.mean(), "nearest": nearest.mean(), "noise": noise.mean(),
            "worst_noise": noise.quantile(0.9), "immerkaer": world_measures.immerkaer(images).mean(),
            "diversity": _diversity(images, prompts),
        }
        right = world_measures.prompt_fidelity(images, [want for _, want in wanted])
        for name in ("subject", "background"):
            known = [value for value in right[name] if value is not None]
            values[name] = sum(known) / len(known) if known else None
        return _rounded(values)
