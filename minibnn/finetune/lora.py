"""LoRA: a linear layer plus a low-rank correction that starts at zero.

Follows: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", §4.1, and diffusers'
`train_dreambooth_lora.py`, which the paper uses (App. H.1); for random weights the paper's App. D.

    y = W x + b + (α/r)·B A x,    A (r, in) "down", starts at N(0, 1/r²),    B (out, r) "up", starts at 0

Only `up` is random, θ_B = μ + σ∘ε: given A, the weight W + (α/r)·θ_B A is then Gaussian too. The paper writes
W = W₀ + BA and calls A the "up" matrix; what its code makes random is the matrix that starts at zero, here `up`.

But: linear layers only; no dropout on x.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .adapter_layer import Adapter
from .weight_noise import sample_tensor


def delta(down, up, scale):
    """(α/r)·B A: the change of the weight, (out, in), float32.   (Hu et al. 2021, eq. 3)"""
    return scale * (up.float() @ down.float())


class LoraLinear(Adapter):
    """sigma: initial standard deviation of `up`, or None for plain weights. generator: for the start of `down`, CPU.

    Raises ValueError when rank exceeds the smaller side of the layer's weight.
    """

    RANDOM, FULL_PRECISION = ("up",), False  # for `all_at_once.draw_weights`

    def __init__(self, layer, rank, alpha, sigma, noise, stream, generator):
        if rank > min(layer.weight.shape):
            size = f"{layer.in_features} inputs and {layer.out_features} outputs"
            raise ValueError(f"rank {rank} is larger than a layer of {size}")
        super().__init__(layer, noise, stream)
        self.scale = alpha / rank
        down = torch.randn(rank, layer.in_features, generator=generator, device="cpu") / rank
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        self.up_sigma = None if sigma is None else nn.Parameter(torch.full_like(self.up, sigma))

    def adapted(self, x):
        low = F.linear(x, self.down)  # (…, in) -> (…, r)
        if self.up_sigma is None or not self.training:
            change = F.linear(low, self.up)
        elif self.noise.kernel == "triton" and self.noise.drawn_for(self.stream) is None:
            from minibnn_kernels.bayes_linear import bayes_linear

            change = bayes_linear(low, self.up, self.up_sigma, None, None, seed=self.noise.seed, stream=self.stream)
        else:
            change = F.linear(low, sample_tensor(self.up, self.up_sigma, self.noise, self.stream))
        return F.linear(x, self.weight, self.bias) + self.scale * change

    def merged_weight(self):
        """W + (α/r)·B A at the mean of B, in float32."""
        return self.weight.float() + delta(self.down, self.up, self.scale)
