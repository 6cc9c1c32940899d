"""A classifier of the picture world: which subject, colour and background a drawing shows. Trained on fresh drawings."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..errors import UserError
from ..files.store import WeightsError, open_weights, write_tensors
from ..pictures import to_tensor
from . import scenes as world

ATTRIBUTES = {"subject": world.SUBJECTS, "colour": tuple(world.COLOURS), "background": tuple(world.BACKGROUNDS)}


class Classifier(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] -> logits of subject, colour and background: {name: (B, n)}."""

    def __init__(self):
        super().__init__()
        channels = (3, 32, 64, 128, 128)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU(), nn.MaxPool2d(2))
                for a, b in zip(channels, channels[1:], strict=False)
            )
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128 * 16, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images):
        features = self.body(images).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}


def labels(scenes):
    """{attribute: (B,) int64}."""
    return {name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in ATTRIBUTES.items()}


def random_scenes(count, seed, held_out=None):
    """`count` scenes; held_out None: of all combinations."""
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng, rng.random() < 0.05 if held_out is None else held_out) for _ in range(count)]


def blur_and_noise(images, generator):
    """Soften and roughen training drawings at random, so that the classifier judges content and not crispness."""
    sigma = torch.rand(1, generator=generator).item() * 1.5 + 1e-3
    taps = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, 9)
    images = F.conv2d(F.pad(images, (4, 4, 4, 4), mode="reflect"), taps, groups=3)
    images = F.conv2d(images, taps.transpose(2, 3), groups=3)
    amount = torch.rand(len(images), 1, 1, 1, generator=generator) * 0.15
    return images + amount * torch.randn(images.shape, generator=generator)


def fit_on_world(network_class, path, steps, batch, seed, peak, loss_of):
    """Train a network on fresh drawings, or load what an earlier run left at `path`; returns it ready for use.

    loss_of(network, scenes, generator) -> scalar. Step i has `batch` scenes of the seed (seed, i) and a generator seeded
    with i; peak: the highest learning rate. Raises UserError when the file is damaged or holds another network.
    """
    torch.manual_seed(0)
    network = network_class()
    if Path(path).exists():
        try:
            with open_weights(path) as file:
                network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (WeightsError, RuntimeError):
            raise UserError(f"{path} is damaged or holds another network: delete it, then it is made again") from None
        return network.eval()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps)
    for step in tqdm(range(steps), desc=Path(path).stem, mininterval=2):
        loss = loss_of(network, random_scenes(batch, [seed, step]), torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    write_tensors(path, network.state_dict())
    return network.eval()


def attribute_loss(logits, scenes):
    """Sum over attributes of the cross-entropy between logits {name: (B, n)} and what the scenes are."""
    return sum(F.cross_entropy(logits[name], target) for name, target in labels(scenes).items())


def right(logits, scenes):
    """{attribute: share of logits whose largest is what the scene says}, 0..1."""
    return {name: (logits[name].argmax(1) == target).float().mean().item() for name, target in labels(scenes).items()}


def train_classifier(path, steps=1200, batch=48):
    """The classifier, made on fresh drawings or loaded from `path`; errors as `fit_on_world`."""

    def loss_of(classifier, scenes, generator):
        return attribute_loss(classifier(blur_and_noise(to_tensor([world.draw(s) for s in scenes]), generator)), scenes)

    return fit_on_world(Classifier, path, steps, batch, 6, 2e-3, loss_of)


@torch.no_grad()
def accuracy(classifier, images, scenes):
    """{attribute: share of pictures judged as their scene says}, 0..1."""
    return right({name: torch.cat([classifier(part)[name] for part in images.split(100)]) for name in ATTRIBUTES}, scenes)


@torch.no_grad()
def reconstruct(sd, images):
    """Pictures through the VAE and back, at the mean of the posterior."""
    return torch.cat([sd.vae.decode(sd.vae.encode(part)[0]).clamp(-1, 1) for part in images.split(50)])
