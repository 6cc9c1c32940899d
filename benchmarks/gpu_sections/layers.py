"""Layers: all random linear layers of SD v1.5 once, forward and backward, each with weights of its own.

    plain             nn.Linear under autocast, which casts the weights
    authors           their layer (`authors.py`) under autocast, and in float32 as their script runs it
    fused, mixed, …   our layers one by one, by these paths (`kernels/bayes_linear.py`)
    all at once       our layers as a training draws them where there is room (`kernels/network.py`)

Timed are replays of a CUDA graph of all layers together, so that weights come from memory as in a network, and apart
from them what the host takes to launch the same.
"""

import contextlib
import importlib.util
from unittest import mock

import torch
from torch import nn

from minibnn.devices import autocast
from minibnn.finetune import bayes
from minibnn.finetune.all_at_once import draw_at_once

from . import models, timing
from .authors import RandLinear

PATHS = ("fused", "mixed", "sample", "auto")


class Layers(nn.Module):
    """Linear layers side by side, each with an input of its own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(layer.k, layer.n, layer.bias) for layer in layers)

    def forward(self, inputs):
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def run(section):
    ways = ["plain", "authors", "authors, float32"]
    if importlib.util.find_spec("triton") is None:
        section.missing("triton")
    else:
        ways += ["all at once", *PATHS[-1 if section.tiny else 0 :]]
    for batch in (1,) if section.tiny else (2, 1, 4):
        found = {}
        for way in ways:
            found[way] = section.measure(f"{way}, batch {batch}", of_way, section, way, batch, needs=5)
        device = {way: figures and figures["device"] for way, figures in found.items()}
        host = {way: figures and figures["host"] for way, figures in found.items()}
        at_once, plain = device.get("all at once"), device["plain"]
        section.goal(f"random layers all at once / plain ones, batch {batch}", timing.ratio(at_once, plain), most=1.25)
        section.goal(f"the authors' layers, float32 / ours all at once, batch {batch}",
                     timing.ratio(device["authors, float32"], at_once), least=2.0)
        section.goal(f"the host's time of ours all at once / the authors', batch {batch}",
                     timing.ratio(host.get("all at once"), host["authors"]), most=1.0)


def layers_of(section, batch):
    """A list of the layers (m, n, k, bias)."""
    from kernel import Layer, sd15_layers

    found = {Layer(5, 8, 4, True): 2, Layer(3, 4, 8, False): 1} if section.tiny else sd15_layers("paper", batch)
    return [layer for layer, count in found.items() for _ in range(count)]


def of_way(section, way, batch):
    """{"device", "host": seconds of forward and backward of all layers, "peak": bytes, all that exists included}."""
    layers = layers_of(section, batch)
    dtype = torch.float32 if way.endswith("float32") else section.dtype
    torch.manual_seed(0)
    with torch.device(section.device):
        network = Layers(layers).train()
        inputs = [torch.randn(layer.m, layer.k).to(dtype).requires_grad_() for layer in layers]
        gradients = [torch.randn(layer.m, layer.n).to(dtype) for layer in layers]
    if way.startswith("authors"):
        for i, layer in enumerate(network.layers):
            network.layers[i] = RandLinear(layer)
    elif way != "plain":
        noise = bayes.bayesianize(network, "all", 0.01, models.kernel(section))
        noise.seed = noise.seed.to(section.device)
        draw_at_once(network, noise)
        noise.at_once = way == "all at once"
    parameters = [*network.parameters(), *inputs]

    def step():
        with autocast(section.device, dtype):
            outputs = network(inputs)
        return torch.autograd.grad(outputs, parameters, gradients)

    with by_path(way):
        return {"host": timing.of_host(step), "device": timing.of_device(step), "peak": timing.peak(step)}


def by_path(way):
    """Inside, the fused operator takes this path."""
    if way not in PATHS or way == "auto":
        return contextlib.nullcontext()
    from minibnn_kernels import bayes_linear

    return mock.patch.object(bayes_linear, "choose_path", lambda *_: way)
