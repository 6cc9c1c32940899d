"""The eye of the laboratory: a small network whose cosine similarity says how like two pictures are.

Follows: DINO (Caron et al. 2021), by which the paper measures fidelity (App. G), in being self-supervised: it must recognise
one crop of a picture in another. The loss is that of SimCLR (Chen et al. 2020), which learns fastest at this size:

    L = −mean_i log( exp(z_i·z_j(i)/τ) / Σ_{k≠i} exp(z_i·z_k/τ) ),   z: unit vectors, j(i): the other crop    (SimCLR, eq. 1)

DINO sees detail and noise, and so must this network. All crops of one picture share its damage (none, white noise, blotches,
blur), and a batch holds each picture in all four states and two subjects on each background: to tell them apart, the network
must see the damage and the subject, and not only the place. DINO's own loss, tried first, at this size kept the backgrounds
and overlooked noise; so did, in a short trial, a momentum teacher.

The tutorials' dog is not among the training pictures; spotted animals in other colours are.

    python -m minibnn.fidelity --out minibnn/assets/fidelity.safetensors        about 10 minutes on one core
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..errors import UserError
from ..files.store import open_weights, write_tensors
from ..options.parsing import run
from ..pictures import to_tensor
from ..pipeline import StableDiffusion
from . import scenes as world
from .classifier import reconstruct

FILE = Path(__file__).parents[1] / "assets" / "fidelity.safetensors"
FEATURES = 128
TAU = 0.1


class Eye(nn.Module):
    """(B, 3, H, W) in [-1, 1], sides from 32 -> features (B, 128), compared by their cosine."""

    def __init__(self):
        super().__init__()
        channels = (3, 32, 64, 128, 128)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, padding=1), nn.GroupNorm(8, b) if i else nn.Identity(), nn.GELU())
            for i, (a, b) in enumerate(zip(channels, channels[1:], strict=False))
        )
        self.out = nn.Sequential(nn.Linear(2 * sum(channels[1:]), 256), nn.GELU(), nn.Linear(256, FEATURES))

    def forward(self, images):
        x, pooled = images, []
        for block in self.body:  # the early blocks see grain, above all by its spread; the late ones shapes
            x = block(x)
            pooled += [x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()]
        return self.out(torch.cat(pooled, 1))


def asset(path):
    """The path of a file of this package. Raises UserError if it is missing."""
    if not path.exists():
        raise UserError(f"{path} is missing, which comes with minibnn: install it again")
    return path


def shipped(network, path):
    """The network with the weights of a file of this package, in evaluation mode. Errors as `asset`."""
    with open_weights(asset(path)) as file:
        network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()}, strict=True)  # noqa: SIM118
    return network.eval().requires_grad_(False)


@cache
def load():
    """The shipped eye. Errors as `asset`."""
    return shipped(Eye(), FILE)


# --- training ---------------------------------------------------------------------------------------------------------


def pictures(pairs, seed):
    """Two drawings of different things on each of `pairs` random backgrounds, a fifth of them spotted animals in two random
    colours: (2·pairs, 3, 64, 64) in [-1, 1]."""
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


def white_noise(images, amount, generator):
    """Independent noise on every value; amount (B, 1, 1, 1): its standard deviation on the scale of [-1, 1]."""
    return images + amount * torch.randn(images.shape, generator=generator)


def blotches(images, amount, generator, cell=8):
    """Smooth coloured blotches, `cell` pixels wide, as a wrong latent position decodes to; amount: standard deviation."""
    b, c, h, w = images.shape
    coarse = torch.randn((b, c, -(-h // cell), -(-w // cell)), generator=generator)
    noise = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)
    return images + amount * noise / noise.std()


def blur(images, sigma):
    """Gaussian blur; sigma in pixels, > 0."""
    radius = max(1, round(3 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    groups = images.shape[1]
    images = F.conv2d(F.pad(images, (radius,) * 4, mode="reflect"), taps, groups=groups)
    return F.conv2d(images, taps.transpose(2, 3), groups=groups)


def four_states(images, generator):
    """Each picture as it is, with white noise, with blotches, and blurred, by random amounts: (4·B, …)."""
    amount = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    noisy = white_noise(images, 0.02 + 0.4 * amount[0], generator)
    blotchy = blotches(images, 0.05 + 0.5 * amount[1], generator)
    blurred = blur(images, 0.5 + 1.5 * torch.rand(1, generator=generator).item())
    return torch.cat([images, noisy, blotchy, blurred]).clamp(-1, 1)


def crop(images, size, area, generator):
    """A random square of a share `area` = (least, most) of each picture, either way round, scaled to `size` pixels."""
    n = len(images)
    side = (area[0] + (area[1] - area[0]) * torch.rand(n, generator=generator)).sqrt()
    centre = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side[:, None])
    flip = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, centre
    where = F.affine_grid(theta, (n, 3, size, size), align_corners=False)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def contrastive_loss(features):
    """(loss, share of crops recognised) of features (2·n, d), where i and i + n are two crops of one picture.   (SimCLR, eq. 1)"""
    z, n = F.normalize(features, dim=1), len(features) // 2
    score = (z @ z.T / TAU).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    other = torch.arange(2 * n).roll(n)
    return F.cross_entropy(score, other), (score.argmax(1) == other).float().mean().item()


def train(options):
    """Train the eye from nothing on one core; writes it in half precision."""
    torch.manual_seed(0)
    crisp, drawn = pictures(2000, 3), pictures(1000, 4)
    decoded = reconstruct(StableDiffusion.load("tiny"), drawn)  # the hand of the decoder is no damage either
    bank = torch.cat([crisp, decoded]).view(-1, 2, 3, 64, 64)
    network = Eye()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.04)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, options.steps, pct_start=0.1)
    bar = tqdm(range(options.steps), desc="fidelity")
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


def main():
    parser = argparse.ArgumentParser(prog="python -m minibnn.fidelity", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=int, default=1500, help="batches of 80 pictures [1500]")
    run(train, parser.parse_args())


if __name__ == "__main__":
    main()
