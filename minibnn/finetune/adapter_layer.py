"""What a LoRA and an OFT have in common: a frozen linear layer that computes with something trained beside it."""

import torch.nn.functional as F
from torch import nn


class Adapter(nn.Module):
    """A linear layer, (…, in) -> (…, out), whose weight and bias are frozen and keep their names.

    A subclass adds what is trained, `adapted`, which computes with it, and `merged_weight`. While `off` is true, the
    layer is the pretrained one. noise and stream are as in `weight_noise.sample_tensor`.
    """

    def __init__(self, layer, noise, stream):
        super().__init__()
        self.noise, self.stream, self.off = noise, stream, False
        self.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) if self.off else self.adapted(x)

    def merged(self):
        """An ordinary layer that computes the same as this one does at the mean."""
        layer = nn.Linear(*reversed(self.weight.shape), bias=False, device="meta")
        layer.weight = nn.Parameter(self.merged_weight().detach().to(self.weight.dtype))
        layer.bias = None if self.bias is None else nn.Parameter(self.bias.detach())
        return layer
