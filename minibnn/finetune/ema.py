"""The exponential moving average of what is trained (`--ema DECAY`), which a run then draws with, saves and exports.

Follows: diffusers' `EMAModel` as its training scripts use it. After the k-th update, for every trained μ,

    average ← d·average + (1 − d)·μ,   d = min(DECAY, k/(k + 9)),   d = 0 for k = 1

so that the beginning is soon forgotten. What is trained goes on from μ; σ of random weights is not averaged.
"""

import contextlib

import torch


class Average:
    """The averages of a network's trained parameters. decay: the largest d, 0 … 1."""

    def __init__(self, network, decay):
        self.decay, self.inside = decay, False
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.now = {name: p for name, p in trained.items() if not name.endswith("_sigma")}  # the parameters themselves
        self.mean = {name: p.detach().clone() for name, p in self.now.items()}

    @torch.no_grad()
    def update(self, k):
        """Take in the parameters after the k-th step, k = 1, 2, …"""
        decay = min(self.decay, k / (k + 9)) if k > 1 else 0.0
        torch._foreach_lerp_(list(self.mean.values()), list(self.now.values()), 1 - decay)

    @torch.no_grad()
    def swap(self):
        """Exchange the averages and the parameters, in place and to the last bit."""
        for name, parameter in self.now.items():
            before = parameter.clone()
            parameter.copy_(self.mean[name])
            self.mean[name].copy_(before)


def attach(network, decay):
    """Let the network keep the averages of its parameters; returns the Average; None for decay None or 0."""
    network.average = Average(network, decay) if decay else None
    return network.average


@contextlib.contextmanager
def averaged(network):
    """Inside, a network that keeps averages computes with them; any other as always. May be nested."""
    average = getattr(network, "average", None)
    if average is None or average.inside:
        yield
        return
    average.swap()
    average.inside = True
    try:
        yield
    finally:
        average.inside = False
        average.swap()


def take_over(network):
    """At the end of a training: the averages, where they are kept, become the parameters."""
    if getattr(network, "average", None) is not None:
        network.average.swap()
        network.average = None
