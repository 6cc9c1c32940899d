"""The blocks that the UNet and the VAE share: residual block, attention, down- and upsampling.

Follows: diffusers' `resnet.py` and `attention.py`, attribute for attribute, because attribute names are the
names in the official weight files (`norm1`, `to_q`, `to_out.0`, `downsamplers.0.conv`, ...).

But: no dropout, no normalisation or activation by name, no attention processors.

Shapes: B pictures, C channels, H × W positions, N query and L key/value tokens, T time-embedding channels.
"""

import torch.nn.functional as F
from torch import nn


def attention(q, k, v, heads, causal=False):
    """Multi-head attention softmax(q kᵀ/√d) v with d = C/heads.   (Vaswani et al. 2017, eq. 1)

    q (B, N, C), k and v (B, L, C) -> (B, N, C). With `causal`, position n sees only the positions up to n.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, N, C) -> (B, heads, N, d)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(-2)  # (B, heads, N, d) -> (B, N, C)


class ResnetBlock(nn.Module):
    """x -> shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time))); (B, in, H, W) -> (B, out, H, W).

    `time_channels=None` leaves the time out, for the VAE. `eps` is 1e-5 in SD's UNet and 1e-6 in its VAE. With
    `scale_shift` the time gives two values for each channel: norm2(…)·(1 + scale) + shift.   (Perez et al. 2018)
    """

    def __init__(self, in_channels, out_channels, time_channels, groups, eps, scale_shift=False):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift, given = scale_shift, out_channels * (1 + scale_shift)
        self.time_emb_proj = nn.Linear(time_channels, given) if time_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time=None):
        """`time` (B, T) is the time embedding after its SiLU, which all residual blocks of a UNet share."""
        h = self.conv1(F.silu(self.norm1(x)))
        given = None if self.time_emb_proj is None else self.time_emb_proj(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = given.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if given is None else h + given)
        h = self.conv2(F.silu(h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve H and W with a stride-2 convolution. The VAE pads only right and bottom (`symmetric=False`)."""

    def __init__(self, channels, symmetric):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x):
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Enlarge (B, C, H, W) to `size` by repeating pixels, then convolve. Without `size` it becomes (2H, 2W)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, size=None):
        x = F.interpolate(x, size=size, scale_factor=None if size is not None else 2.0, mode="nearest")
        return self.conv(x)
