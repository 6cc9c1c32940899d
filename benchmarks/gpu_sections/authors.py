"""The paper's authors' way, written anew from its description: their layer, and their training loop in float32.

    layer   σ is rewritten in each forward by max(σ, ones·1e-7): 24 bytes moved for each weight; then randn_like, a
            multiplication, an addition and F.linear, each an operation of its own that autograd keeps the input of
    loop    no autocast; the KL divergence to the prior is computed through autograd in each step, at λ = 0 too, by a
            torch.distributions.Normal for each random tensor, whose checks make the host wait

But: latents and contexts are made beforehand, which their script does not do: in their favour.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from minibnn import schedule
from minibnn.finetune import bayes


class RandLinear(nn.Module):
    """A linear layer with random weights that takes over the parameters of `layer`."""

    def __init__(self, layer, sigma=0.01):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_sigma = nn.Parameter(torch.full_like(layer.weight, sigma))
        self.bias_sigma = None if layer.bias is None else nn.Parameter(torch.full_like(layer.bias, sigma))
        self.priors = {name: Normal(p.detach().clone(), torch.full_like(p, sigma))
                       for name, p in (("weight", self.weight), ("bias", self.bias)) if p is not None}

    def drawn(self, name):
        """A sample of the weight or bias; None of an absent bias."""
        mu, sigma = getattr(self, name), getattr(self, f"{name}_sigma")
        if mu is None:
            return None
        sigma.data = torch.max(sigma.data, torch.ones_like(sigma.data) * bayes.SIGMA_MIN)
        return mu + sigma * torch.randn_like(sigma)

    def forward(self, x):
        return F.linear(x, self.drawn("weight"), self.drawn("bias"))

    def kl(self):
        """KL(prior ‖ posterior), the sum over the layer's parameters."""
        of_each = (kl_divergence(prior, Normal(getattr(self, name), getattr(self, f"{name}_sigma")))
                   for name, prior in self.priors.items())
        return sum(each.sum() for each in of_each)


def replace(unet):
    """Put RandLinear in the place of the paper's layers; returns them."""
    names = bayes.select(unet, "paper")
    for name in names:
        unet.set_submodule(name, RandLinear(unet.get_submodule(name)))
    return [unet.get_submodule(name) for name in names]


def training_step(unet, layers, optimiser, abar, batches, strength=0.0):
    """A function without arguments: one step of their loop at batch 1 + 1."""
    generator = torch.Generator().manual_seed(2)

    def step():
        x0, context = batches(0, generator)
        t = torch.randint(0, schedule.TRAIN_STEPS, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        predicted = unet(schedule.q_sample(x0, eps, abar[t]), t, context)
        subject, of_class = (predicted - eps).square().chunk(2)
        loss = subject.mean() + of_class.mean() + strength * sum(layer.kl() for layer in layers)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()  # for the progress bar

    return step
