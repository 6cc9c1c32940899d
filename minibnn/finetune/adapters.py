"""Adapters in a network: which layers get one, putting them in, merging them into the weights and taking them out again.

Follows: diffusers' `train_dreambooth_lora.py` and the authors' OFT script: the attention projections of every transformer
block, self and cross. The adapters themselves are in `lora.py` and `oft.py`, their files in `adapter_files.py`.
"""

import torch
from torch import nn

from .lora import LoraLinear
from .oft import OftLinear, project

LAYERS = "to_q,to_k,to_v,to_out.0"


def select(network, layers=LAYERS):
    """Names of the linear layers whose names end in one of the words, joined by commas. Raises ValueError naming a word
    that no layer ends in."""
    linear = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    words = tuple("." + word for word in layers.split(","))
    for word in words:
        if not any(("." + name).endswith(word) for name in linear):
            raise ValueError(f"no linear layer is called {word[1:] or repr('')}; the usual ones are {LAYERS}")
    return [name for name in linear if ("." + name).endswith(words)]


def attach_lora(network, layers=LAYERS, rank=4, alpha=4.0, sigma=None, draw=None, seed=0):
    """Freeze the network and give the chosen layers a LoRA, in place. sigma None: plain weights. Raises ValueError."""
    generator = torch.Generator().manual_seed(seed)
    _attach(network, layers, lambda layer, stream: LoraLinear(layer, rank, alpha, sigma, draw, stream, generator))


def attach_oft(network, layers=LAYERS, blocks=4, sigma=None, draw=None):
    """Freeze the network and give the chosen layers an OFT, in place. sigma None: plain weights. Raises ValueError."""
    _attach(network, layers, lambda layer, stream: OftLinear(layer, blocks, sigma, draw, stream))


def _attach(network, layers, make):
    made = {}
    for stream, name in enumerate(select(network, layers)):
        layer = network.get_submodule(name)
        try:
            made[name] = make(layer, stream).train(layer.training)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    network.requires_grad_(False)
    for name, adapter in made.items():
        network.set_submodule(name, adapter)


def adapters(network):
    """{name: adapter layer}."""
    return {name: m for name, m in network.named_modules() if isinstance(m, (LoraLinear, OftLinear))}


def merge(network):
    """Replace every adapter by an ordinary layer of the merged weight, in place; returns the adapters for `unmerge`."""
    taken = adapters(network)
    for name, adapter in taken.items():
        network.set_submodule(name, adapter.merged())
    return taken


def unmerge(network, taken):
    """Put back what `merge` took: the network is what it was, to the last bit."""
    for name, adapter in taken.items():
        network.set_submodule(name, adapter)


@torch.no_grad()
def constrain(network, eps):
    """COFT's projection of every Q, after each optimiser step.   (as the authors' code and peft project: Q, not R)"""
    for adapter in adapters(network).values():
        adapter.q.copy_(project(adapter.q, eps))
