"""What is measured on the pictures of a checkpoint: of the bundled world by `metrics`, of photographs by `photo_metrics`.

Both give one line of numbers with the same names; what a judge cannot say is None.
"""

import torch

from ..photo import loading
from ..photo import measures as photo_measures
from ..pictures import to_pil
from ..world import measures as world_measures
from ..world.classifier import reconstruct


def _rounded(values):
    return {name: None if value is None else round(float(value), 5) for name, value in values.items()}


def _diversity(images, prompts):
    """Mean over prompts of `metrics.diversity`, of those with several pictures; None without any."""
    alike = []
    for prompt in dict.fromkeys(prompts):
        group = [image for image, other in zip(images, prompts, strict=True) if other == prompt]
        if len(group) > 1:
            alike.append(world_measures.diversity(torch.stack(group)))
    return sum(alike) / len(alike) if alike else None


class WorldJudge:
    """Judges pictures of the bundled world."""

    def __init__(self, sd, training):
        self.seen = reconstruct(sd, training)  # what the decoder cannot draw is no fault of the UNet

    def __call__(self, pictures, wanted):
        """List of B pictures, B pairs (prompt, what it shows) -> {measure: mean over the pictures}."""
        images, prompts = pictures.to_tensor(pictures), [prompt for prompt, _ in wanted]
        mean, nearest = world_measures.fidelity(images, self.seen)
        noise = world_measures.noise(images)
        values = {
            "fidelity": mean.mean(), "nearest": nearest.mean(), "noise": noise.mean(), "worst_noise": noise.quantile(0.9),
            "immerkaer": world_measures.immerkaer(images).mean(), "diversity": _diversity(images, prompts),
        }  # fmt: skip
        right = world_measures.prompt_fidelity(images, [want for _, want in wanted])
        for name in ("subject", "background"):
            known = [value for value in right[name] if value is not None]
            values[name] = sum(known) / len(known) if known else None
        return _rounded(values)


class PhotoJudge:
    """Judges photographs: fidelity by Dino, noise by Immerkær in grey levels, and by CLIP, Lpips, Clip-IQA if given."""

    def __init__(self, sd, training, options):
        self.dino = loading.load_dino(options.dino, sd.device)
        self.clip = loading.load_clip(options.clip, sd.device) if options.clip else None
        self.lpips = loading.load_lpips(options.lpips, sd.device) if options.lpips else None
        self.quality = loading.load_clip_iqa(options.clip_iqa, sd.device) if options.clip_iqa else None
        self.seen = photo_measures.dino_pictures(to_pil(training), self.dino)

    def __call__(self, pictures, wanted):
        """As `WorldJudge`, on photographs."""
        prompts = [prompt for prompt, _ in wanted]
        cosine = photo_measures.dino_pictures(pictures, self.dino) @ self.seen.T
        noise = 127.5 * world_measures.immerkaer(pictures.to_tensor(pictures))
        values = {
            "fidelity": cosine.mean(), "nearest": cosine.max(1).values.mean(), "noise": noise.mean(),
            "worst_noise": noise.quantile(0.9), "immerkaer": noise.mean() / 127.5, "diversity": None,
            "subject": None, "background": None, "clip_t": None, "clip_iqa": None,
        }  # fmt: skip
        if self.lpips and len(set(prompts)) < len(prompts):
            values["diversity"] = photo_measures.lpips_diversity(pictures, prompts, self.lpips).mean()
        if self.clip:
            images = photo_measures.clip_pictures(pictures, self.clip)
            values["clip_t"] = photo_measures.clip_t(images, photo_measures.clip_prompts(prompts, self.clip)).mean()
        if self.quality:
            values["clip_iqa"] = photo_measures.clip_iqa_quality(pictures, self.quality).mean()
        return _rounded(values)
