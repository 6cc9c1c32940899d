"""The eye of the laboratory: a small network whose cosine similarity says how like two pictures are.

Follows: DINO (Caron et al. 2021), by which the paper measures fidelity (App. G), in that it is self-supervised: the
network must recognise one crop of a picture in another. The loss is that of SimCLR (Chen et al. 2020, eq. 1):

    L = −mean_i log( exp(z_i·z_j(i)/τ) / Σ_{k≠i} exp(z_i·z_k/τ) ),      z: unit vectors, j(i): the other crop

DINO sees detail and noise, and so must this network. Therefore each picture is in the batch in four states: undamaged,
with white noise, with blotches and blurred; and two different subjects share each background. To tell all of them
apart, the network must see the damage and the subject, and not only the place.

The tutorials' dog is not among the training pictures, but spotted animals in other colours are.

But: neither DINO's own loss nor its momentum teacher. In trials, networks of this size overlooked noise with them.

    python -m minibnn world-eye --out minibnn/assets/fidelity.safetensors        about 10 minutes on one core
"""

import itertools
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.store import ASSETS
from ..files.weights import read_tensors, write_tensors
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from . import scenes as world
from .classifier import reconstruct
from .damage import blotches, blur, white_noise

TAU = 0.1


class Eye(nn.Module):
    """Maps pictures (B, 3, H, W) in [-1, 1], at least 32 pixels wide and high, to features (B, 128)."""

    def __init__(self):
        super().__init__()
        channels = (3, 32, 64, 128, 128)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, padding=1), nn.GroupNorm(8, b) if i else nn.Identity(), nn.GELU())
            for i, (a, b) in enumerate(itertools.pairwise(channels))
        )
        self.out = nn.Sequential(nn.Linear(2 * sum(channels[1:]), 256), nn.GELU(), nn.Linear(256, 128))

    def forward(self, images):
        x, pooled = images, []
        for block in self.body:  # the early blocks see grain, mostly by its deviation; the late ones see shapes
            x = block(x)
            pooled += [x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()]
        return self.out(torch.cat(pooled, 1))


@cache
def bundled_eye():
    """The eye that comes with minibnn, in evaluation mode. Raises WeightsError if its file is missing."""
    network = Eye()
    network.load_state_dict(read_tensors(ASSETS / "fidelity.safetensors"))
    return network.eval().requires_grad_(False)


# --- training ---------------------------------------------------------------------------------------------------------


def pictures(pairs, seed):
    """Drawings of two different things on each of `pairs` random backgrounds: (2·pairs, 3, 64, 64) in [-1, 1].

    A fifth of them are spotted animals in two random colours.
    """
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(pairs):
        place = str(rng.choice(list(world.BACKGROUNDS)))
        for subject in rng.choice(world.SUBJECTS, 2, replace=False):
            main = accent = None
            spotted = rng.random() < 0.2
            if spotted:
                subject = rng.choice(world.ANIMALS)
                main, accent = (tuple(int(v) for v in rng.integers(20, 236, 3)) for _ in range(2))
            scene = world.Scene(str(subject), str(rng.choice(list(world.COLOURS))), place, spotted=spotted)
            drawn.append(world.draw(world.pose(scene, rng), main, accent))
    return to_tensor(drawn)


def four_states(images, generator):
    """Each picture as it is, with white noise, with blotches, and blurred, by random amounts: (4·B, 3, H, W)."""
    amount = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    noisy = white_noise(images, 0.02 + 0.4 * amount[0], generator)
    blotchy = blotches(images, 0.05 + 0.5 * amount[1], generator)
    blurred = blur(images, 0.5 + 1.5 * torch.rand(1, generator=generator).item())
    return torch.cat([images, noisy, blotchy, blurred]).clamp(-1, 1)


def crop(images, size, area, generator):
    """Cut a random square out of each picture, mirror it or not, and scale it to `size` pixels: (B, 3, size, size).

    area: (least, most) share of the picture's area that the square covers.
    """
    n = len(images)
    side = (area[0] + (area[1] - area[0]) * torch.rand(n, generator=generator)).sqrt()
    centre = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side[:, None])
    flip = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, centre
    where = F.affine_grid(theta, (n, 3, size, size), align_corners=False)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def contrastive_loss(features):
    """SimCLR's eq. 1 for features (2·n, d), where i and i + n are two crops of one picture.

    Returns (loss, the share of the crops whose most similar crop is the other one of the same picture).
    """
    z, n = F.normalize(features, dim=1), len(features) // 2
    score = (z @ z.T / TAU).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    other = torch.arange(2 * n).roll(n)
    return F.cross_entropy(score, other), (score.argmax(1) == other).float().mean().item()


@threads_kept()
def train_eye(options):
    """Train the eye of EyeOptions from nothing and write it in half precision."""
    if options.steps <= 10:
        raise UserError(f"--steps {options.steps}: at least 11, because the rate rises over the first tenth")
    torch.manual_seed(0)
    crisp, drawn = pictures(2000, 3), pictures(1000, 4)
    decoded = reconstruct(StableDiffusion.load("tiny"), drawn)  # what the decoder changes must not count as damage
    bank = torch.cat([crisp, decoded]).view(-1, 2, 3, 64, 64)
    network = Eye()
    choose_threads("cpu", network)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.04)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, options.steps, pct_start=0.1)
    bar = progress_bar(range(options.steps), desc="eye")
    for step in bar:
        generator = torch.Generator().manual_seed(step)
        pairs = bank[torch.randint(len(bank), (10,), generator=generator)].flatten(0, 1)
        images = four_states(pairs, generator)  # 80
        views = [crop(images, 64, (0.4, 1.0), generator) for _ in range(2)]
        loss, found = contrastive_loss(network(torch.cat(views)))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimiser.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", recognised=f"{found:.0%}", refresh=False)
    write_tensors(options.out, {name: value.half() for name, value in network.state_dict().items()})
