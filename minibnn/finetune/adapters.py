"""Adapters in a network: choosing the layers, giving them adapters, and merging these into the weights.

Follows: diffusers' `train_dreambooth_lora.py` and the authors' OFT script: the attention projections of every
transformer block, self and cross. The adapters are in `lora.py` and `oft.py`, their files in `adapter_files.py`.
"""

import torch
from torch import nn

from .lora import Adapter, LoraLinear
from .oft import OftLinear, project

LAYERS = "to_q,to_k,to_v,to_out.0"


def select(network, layers=LAYERS):
    """The names of the linear layers that end in one of the words of `layers`. Raises ValueError for unknown words."""
    linear = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    words = tuple("." + word for word in layers.split(","))
    for word in words:
        if not any(("." + name).endswith(word) for name in linear):
            raise ValueError(f"no linear layer is called {word[1:] or repr('')}; the usual ones are {LAYERS}")
    return [name for name in linear if ("." + name).endswith(words)]


def attach_lora(network, layers=LAYERS, rank=4, alpha=4.0, sigma=None, noise=None, seed=0):
    """Freeze the network and give the chosen layers a LoRA, in place. Raises ValueError as `select` and LoraLinear.

    sigma: initial standard deviation of the random weights, which share the WeightNoise `noise`; None: plain weights.
    """
    generator = torch.Generator().manual_seed(seed)
    _attach(network, layers, lambda layer, stream: LoraLinear(layer, rank, alpha, sigma, noise, stream, generator))


def attach_oft(network, layers=LAYERS, blocks=4, sigma=None, noise=None):
    """Freeze the network and give the chosen layers an OFT, in place; sigma, noise and errors as in `attach_lora`."""
    _attach(network, layers, lambda layer, stream: OftLinear(layer, blocks, sigma, noise, stream))


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
    """All adapters in the network, {name: layer}."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Adapter)}


def merge(network):
    """Replace every adapter by an ordinary layer with the merged weight, in place."""
    for name, adapter in adapters(network).items():
        network.set_submodule(name, adapter.merged())


@torch.no_grad()
def constrain(network, eps):
    """COFT: project every Q after an optimiser step. As in the authors' code and in peft, this is Q and not R."""
    for adapter in adapters(network).values():
        adapter.q.copy_(project(adapter.q, eps))
