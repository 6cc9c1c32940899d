"""What is measured on the pictures of a checkpoint: photographs by the paper's five measures, drawings by their twins.

    role        photographs   drawings     better
    text        Clip-T        as asked     higher   does the picture show what its prompt asks for?
    fidelity    Dino, Clip-I  fidelity     higher   the subject of the training pictures?
    diversity   Lpips         diversity    higher   do the pictures of one prompt differ?
    quality     Clip-IQA      noise        higher; noise: lower

"as asked" is the share of the attributes asked for (dog, place) that a classifier recognises; the others are those of
`world/measures.py`. A judge gives every picture a value of every measure: {measure: list of n}, and picks the cases of
App. I from them.
"""

import torch

from ..photo import measures as photo
from ..pictures import to_pil, to_tensor
from ..world import measures as world_measures
from ..world.classifier import reconstruct

PHOTO = ("Clip-T", "Clip-I", "Dino", "Lpips", "Clip-IQA")
WORLD = ("as asked", "fidelity", "diversity", "noise")
ROLES = {"text": ("Clip-T", "as asked"), "fidelity": ("Dino", "fidelity"), "diversity": ("Lpips", "diversity"),
         "quality": ("Clip-IQA", "noise")}
LOWER = ("noise",)  # measures of which less is better


class PhotoJudge:
    """networks: of `photo.load_networks`; training: (n, 3, H, W) in [-1, 1], as the training sees them."""

    def __init__(self, networks, training):
        self.networks, self.seen = networks, photo.remember(to_pil(training), networks)

    def __call__(self, pictures, wanted):
        """B pictures, B pairs (prompt, what it shows) -> {measure: list of B}."""
        prompts = [prompt for prompt, _ in wanted]
        values = photo.measure_pictures(pictures, prompts, self.seen, self.networks)
        return {name: of_each.tolist() for name, of_each in values.items()}


class WorldJudge:
    """sd: the pretrained model, whose VAE says how faithful a picture can be at best; training as for PhotoJudge."""

    def __init__(self, sd, training):
        self.seen = reconstruct(sd, training.to(sd.device)).cpu()

    def __call__(self, pictures, wanted):
        """As PhotoJudge's."""
        images, prompts = to_tensor(pictures), [prompt for prompt, _ in wanted]
        right = world_measures.prompt_fidelity(images, [want for _, want in wanted])
        of_each = zip(right["subject"], right["background"], strict=True)
        known = [[value for value in pair if value is not None] for pair in of_each]
        return {
            "as asked": [sum(values) / len(values) for values in known],
            "fidelity": world_measures.fidelity(images, self.seen)[0].tolist(),
            "diversity": spread_over(prompts, images),
            "noise": world_measures.noise(images).tolist(),
        }


def spread_over(prompts, images):
    """The diversity of each picture's prompt: list of n. Every prompt must have several pictures."""
    groups = {prompt: [i for i, other in enumerate(prompts) if other == prompt] for prompt in prompts}
    of_prompt = {prompt: world_measures.diversity(images[group]) for prompt, group in groups.items()}
    return [of_prompt[prompt] for prompt in prompts]


def cases(values):
    """Which pictures are the best, average and worst case, as `photo.cases`: {"best": i, "average": i, "worst": i}."""
    by_role = {}
    for role, theirs in (("text", "Clip-T"), ("fidelity", "Dino"), ("quality", "Clip-IQA")):
        name = next(name for name in ROLES[role] if name in values)
        sign = -1 if name in LOWER else 1
        by_role[theirs] = sign * torch.tensor(values[name], dtype=torch.float64)
    return photo.cases(by_role)
