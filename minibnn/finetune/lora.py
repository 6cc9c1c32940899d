"""LoRA: a linear layer plus a low-rank correction that starts at zero.

Follows: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", §4.1, and diffusers'
`train_dreambooth_lora.py`, which the paper uses (App. H.1); for random weights the paper's App. D.

    y = W x + b + (α/r)·B A x,    A (r, in) "down", starts at N(0, 1/r²),    B (out, r) "up", starts at 0

Only `up` is random, θ_B = μ + σ∘ε: given A, the weight W + (α/r)·θ_B A is then Gaussian too. The paper writes W = W₀ + BA and
calls A the "up" matrix; what its code makes random is the matrix that starts at zero, here `up`.

But: linear layers only; no dropout on x.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .bayes import draw_tensor


def delta(down, up, scale):
    """(α/r)·B A: the change of the weight, (out, in), float32.   (Hu et al. 2021, eq. 3)"""
    return scale * (up.float() @ down.float())


def check_rank(layer, rank):
    """Raises ValueError when rank exceeds the smaller side of the layer's weight, which no product B A can exceed."""
    if rank > min(layer.weight.shape):
        raise ValueError(f"rank {rank} is larger than a layer of {layer.in_features} inputs and {layer.out_features} outputs")


class LoraLinear(nn.Module):
    """(…, in) -> (…, out). Takes over the layer's weight and bias, frozen, under their own names.

    sigma: initial standard deviation of `up`, or None for plain weights; draw and stream as in `bayes.py`;
    generator: torch.Generator on the CPU, for the start of `down`. Raises ValueError as `check_rank`.
    """

    def __init__(self, layer, rank, alpha, sigma, draw, stream, generator):
        super().__init__()
        check_rank(layer, rank)
        self.scale, self.draw, self.stream = alpha / rank, draw, stream
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        down = torch.randn(rank, layer.in_features, generator=generator, device="cpu") / rank
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        self.up_sigma = None if sigma is None else nn.Parameter(torch.full_like(self.up, sigma))

    def forward(self, x):
        low = F.linear(x, self.down)  # (…, in) -> (…, r)
        if self.up_sigma is None or not self.training:
            change = F.linear(low, self.up)
        elif self.draw.kernel == "triton":
            from minibnn_kernels.bayes_linear import bayes_linear

            change = bayes_linear(low, self.up, self.up_sigma, None, None, seed=self.draw.seed, stream=self.stream)
        else:
            change = F.linear(low, draw_tensor(self.up, self.up_sigma, self.draw, self.stream))
        return F.linear(x, self.weight, self.bias) + self.scale * change

    def merged(self):
        """An ordinary layer with the weight W + (α/r)·B A, at the mean of B."""
        weight = (self.weight.float() + delta(self.down, self.up, self.scale)).to(self.weight.dtype)
        return plain_linear(weight, self.bias)


def plain_linear(weight, bias):
    """nn.Linear of given weight (out, in) and bias (out,) or None."""
    layer = nn.Linear(*reversed(weight.shape), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    layer.bias = None if bias is None else nn.Parameter(bias.detach())
    return layer
