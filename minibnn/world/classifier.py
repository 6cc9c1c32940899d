"""A classifier that says which subject, colour and background a drawing of the world shows, and how it is trained."""

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..files.weights import WeightsError, read_tensors, write_tensors
from ..pictures import to_tensor
from ..progress import progress_bar
from . import scenes as world
from .damage import blur, white_noise

ATTRIBUTES = {"subject": world.SUBJECTS, "colour": tuple(world.COLOURS), "background": tuple(world.BACKGROUNDS)}


class Classifier(nn.Module):
    """Maps pictures (B, 3, 64, 64) in [-1, 1] to the logits of each attribute, {attribute: (B, n)}.

    attributes: {name: its n possible values}.
    """

    def __init__(self, attributes=ATTRIBUTES):
        super().__init__()
        channels = (3, 32, 64, 128, 128)
        self.body = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU(), nn.MaxPool2d(2))
            for a, b in itertools.pairwise(channels)
        ))
        self.heads = nn.ModuleDict({name: nn.Linear(128 * 16, len(values)) for name, values in attributes.items()})

    def forward(self, images):
        features = self.body(images).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}


def labels(scenes):
    """What the scenes show, as indices of classes: {attribute: (B,) int64}."""
    return {name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in ATTRIBUTES.items()}


def random_scenes(count, seed, held_out=None):
    """`count` random scenes. held_out: as in `random_scene`; None means that one in twenty is held out."""
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng, rng.random() < 0.05 if held_out is None else held_out) for _ in range(count)]


def blur_and_noise(images, generator):
    """Blur training drawings at random and add noise, so that the classifier learns content and not sharpness."""
    images = blur(images, torch.rand(1, generator=generator).item() * 1.5 + 1e-3, radius=4)
    return white_noise(images, torch.rand(len(images), 1, 1, 1, generator=generator) * 0.15, generator)


def fit_on_world(network_class, path, steps, batch, seed, peak, loss_of):
    """Train a network on fresh drawings and write it to `path`, or read it from there if the file exists.

    loss_of(network, scenes, generator) returns a scalar. Step i gets `batch` scenes of the seed (seed, i) and a
    generator with the seed i. peak: the highest learning rate. Returns the network in evaluation mode. Raises UserError
    when the file is damaged or holds another network.
    """
    torch.manual_seed(0)
    network = network_class()
    if Path(path).exists():
        try:
            network.load_state_dict(read_tensors(path))
        except (WeightsError, RuntimeError):
            raise UserError(f"{path} is damaged or holds another network: delete it, then it is made again") from None
        return network.eval()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps)
    for step in progress_bar(range(steps), desc=Path(path).stem):
        loss = loss_of(network, random_scenes(batch, [seed, step]), torch.Generator().manual_seed(step))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    write_tensors(path, network.state_dict())
    return network.eval()


def attribute_loss(logits, scenes):
    """The cross-entropy between the logits {attribute: (B, n)} and what the scenes show, summed over the attributes."""
    return sum(F.cross_entropy(logits[name], target) for name, target in labels(scenes).items())


def right(logits, scenes):
    """{attribute: the share of the scenes, 0..1, for which the largest logit is that of what the scene shows}."""
    return {name: (logits[name].argmax(1) == target).float().mean().item() for name, target in labels(scenes).items()}


def train_classifier(path, steps=1200, batch=48):
    """The classifier, trained on fresh drawings or read from `path`. Raises UserError as `fit_on_world`."""

    def loss_of(classifier, scenes, generator):
        return attribute_loss(classifier(blur_and_noise(to_tensor([world.draw(s) for s in scenes]), generator)), scenes)

    return fit_on_world(Classifier, path, steps, batch, 6, 2e-3, loss_of)


@torch.no_grad()
def words_seen(classifier, images, attributes=ATTRIBUTES):
    """What a classifier of these attributes sees on each of B pictures: {attribute: list of B of its values}."""
    logits = [classifier(part) for part in images.split(64)]
    return {name: [words[i] for part in logits for i in part[name].argmax(1)] for name, words in attributes.items()}


@torch.no_grad()
def accuracy(classifier, images, scenes):
    """{attribute: the share of the pictures, 0..1, that the classifier recognises as what their scene shows}."""
    parts = [classifier(part) for part in images.split(100)]
    return right({name: torch.cat([part[name] for part in parts]) for name in ATTRIBUTES}, scenes)


@torch.no_grad()
def reconstruct(sd, images):
    """Encode the pictures with the VAE, take the mean of the latents, and decode it, clamped to [-1, 1]."""
    return torch.cat([sd.vae.decode(sd.vae.encode(part)[0]).clamp(-1, 1) for part in images.split(50)])
