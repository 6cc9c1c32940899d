"""Adapters in a network: choosing the layers, giving them adapters, and merging these into the weights.

Follows: diffusers' `train_dreambooth_lora.py` and the authors' OFT script: the attention projections of every
transformer block, self and cross. The adapters are in `lora.py` and `oft.py`, their files in `adapter_files.py`.
"""

import contextlib

import torch
from torch import nn

from ..options.of_methods import LAYERS
from .adapter_layer import Adapter
from .all_at_once import draw_no_more
from .bayes import REGIONS
from .lora import LoraLinear
from .oft import OftLinear, project
from .weight_noise import WeightNoise


def select(network, layers=LAYERS):
    """The names of the linear layers that end in one of the words of `layers`. Raises ValueError for unknown words."""
    linear = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    words = tuple("." + word for word in layers.split(","))
    for word in words:
        if not any(("." + name).endswith(word) for name in linear):
            raise ValueError(f"no linear layer is called {word[1:] or repr('')}; the usual ones are {LAYERS}")
    return [name for name in linear if ("." + name).endswith(words)]


def regions(where):
    """How the names of the layers begin that lie in the blocks `where`: regions("up,mid") is ("up_blocks.", …).

    Raises ValueError for words that are not blocks.
    """
    for word in where.split(","):
        if word not in REGIONS:
            raise ValueError(f"where = {word!r} is not a part of a UNet; those of an adapter are {', '.join(REGIONS)}")
    return tuple(REGIONS[word] for word in where.split(","))


def attach_lora(network, layers=LAYERS, rank=4, alpha=4.0, sigma=None, noise=None, seed=0):
    """Freeze the network and give the chosen layers a LoRA, in place; returns the WeightNoise of its random weights.

    sigma: initial standard deviation of the random weights, which in training need `noise.renew` before each forward,
    as those of `bayes.bayesianize`; None: plain weights, without any noise. noise: the WeightNoise that they share;
    None: a new one, which draws by PyTorch's generator. Raises ValueError where `select` or LoraLinear does.
    """
    noise, generator = noise or WeightNoise(), torch.Generator().manual_seed(seed)
    _attach(network, layers, lambda layer, stream, _: LoraLinear(layer, rank, alpha, sigma, noise, stream, generator))
    return noise


def attach_oft(network, layers=LAYERS, blocks=4, sigma=None, noise=None, where=None):
    """The same with an OFT; returns the WeightNoise. sigma, noise and errors are as in `attach_lora`.

    where: the blocks in which Q is random, as of `regions`, which raises ValueError; elsewhere it is plain. None: all.
    """
    noise, inside = noise or WeightNoise(), regions(where) if where else ""

    def make(layer, stream, name):
        random = (sigma, noise) if name.startswith(inside) else (None, None)
        return OftLinear(layer, blocks, *random, stream)

    _attach(network, layers, make)
    return noise


def _attach(network, layers, make):
    made = {}
    for stream, name in enumerate(select(network, layers)):
        layer = network.get_submodule(name)
        try:
            made[name] = make(layer, stream, name).train(layer.training)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    network.requires_grad_(False)
    for name, adapter in made.items():
        network.set_submodule(name, adapter)


def adapters(network):
    """All adapters in the network, {name: layer}."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Adapter)}


@contextlib.contextmanager
def switched_off(network):
    """Inside, a network computes as it did before it was given adapters, bit for bit, and draws no random weights."""
    training, layers = network.training, adapters(network).values()
    network.eval()  # else all random weights would be drawn before each forward, for nothing
    for layer in layers:
        layer.off = True
    try:
        yield
    finally:
        network.train(training)
        for layer in layers:
            layer.off = False


def merge(network):
    """Replace every adapter by an ordinary layer with the merged weight, in place; nothing is random any longer."""
    for name, adapter in adapters(network).items():
        network.set_submodule(name, adapter.merged())
    draw_no_more(network)


@torch.no_grad()
def constrain(network, eps):
    """COFT: project every Q after an optimiser step. As in the authors' code and in peft, this is Q and not R."""
    for adapter in adapters(network).values():
        adapter.q.copy_(project(adapter.q, eps))
