"""What is measured on the pictures of a checkpoint, whether they are drawings of the world or photographs.

Both give one line of numbers with the same names; what they cannot measure is None.
"""

import torch

from ..photo import loading
from ..photo import measures as photo
from ..pictures import to_pil, to_tensor
from ..world import measures as world_measures
from ..world.classifier import reconstruct


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


class PhotoMeasures:
    """Measures photographs: fidelity by Dino, noise by Immerkær in grey levels; the rest by CLIP, Lpips, Clip-IQA."""

    def __init__(self, sd, training, options):
        self.dino = loading.load_dino(options.dino, sd.device)
        self.clip = loading.load_clip(options.clip, sd.device) if options.clip else None
        self.lpips = loading.load_lpips(options.lpips, sd.device) if options.lpips else None
        self.quality = loading.load_clip_iqa(options.clip_iqa, sd.device) if options.clip_iqa else None
        self.seen = photo.dino_pictures(to_pil(training), self.dino)

    def __call__(self, pictures, wanted):
        """As `WorldMeasures`, on photographs."""
        prompts = [prompt for prompt, _ in wanted]
        cosine = photo.dino_pictures(pictures, self.dino) @ self.seen.T
        noise = 127.5 * world_measures.immerkaer(to_tensor(pictures))
        values = {
            "fidelity": cosine.mean(), "nearest": cosine.max(1).values.mean(), "noise": noise.mean(),
            "worst_noise": noise.quantile(0.9), "immerkaer": noise.mean() / 127.5, "diversity": None,
            "subject": None, "background": None, "clip_t": None, "clip_iqa": None,
        }
        if self.lpips and len(set(prompts)) < len(prompts):
            values["diversity"] = photo.lpips_diversity(pictures, prompts, self.lpips).mean()
        if self.clip:
            images = photo.clip_pictures(pictures, self.clip)
            values["clip_t"] = photo.clip_t(images, photo.clip_prompts(prompts, self.clip)).mean()
        if self.quality:
            values["clip_iqa"] = photo.clip_iqa_quality(pictures, self.quality).mean()
        return _rounded(values)
