"""The blocks that the UNet and the VAE share: residual block, attention, down- and upsampling.

Follows: diffusers' `resnet.py` and `attention.py`, attribute for attribute, because attribute names are the
names in the official weight files (`norm1`, `to_q`, `to_out.0`, `downsamplers.0.conv`, ...).

But: no dropout, no normalisation or activation by name, no attention processors.

Shapes: B pictures, C channels, H × W positions, N query and L key/value tokens, T time-embedding channels.
"""

import torch
import torch.nn.functional as F
from torch import nn


def attention(q, k, v, heads, causal=False):
    """Multi-head attention softmax(q kᵀ/√d) v with d = C/heads.   (Vaswani et al. 2017, eq. 1)

    q (B, N, C), k and v (B, L, C) -> (B, N, C); `causal`: position n sees positions ≤ n only.

    PyTorch's fused kernel, except when training in bfloat16 on a CPU with few keys: its backward is 1.3 to 4 × slower
    there than two matmuls and a softmax (`python benchmarks/unet_speed.py --attention` measures both).
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, N, C) -> (B, heads, N, d)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and k.shape[-2] <= 256 and not causal:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        out = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(-2)  # (B, heads, N, d) -> (B, N, C)


class ResnetBlock(nn.Module):
    """x -> shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time))); (B, in, H, W) -> (B, out, H, W).

    `time_channels=None` (the VAE) leaves the time out. `eps` differs: 1e-5 in SD's UNet, 1e-6 in its VAE.
    """

    def __init__(self, in_channels, out_channels, time_channels, groups, eps):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x, time=None):
        """`time` (B, T) is the time embedding after its SiLU: all residual blocks of a UNet share that one SiLU."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve H and W with a stride-2 convolution.

    The UNet pads all four sides, SD's VAE encoder only right and bottom (`symmetric=False`); the two results have the
    same shape and differ by a shift, so that a mix-up is seen in pictures only.
    """

    def __init__(self, channels, symmetric):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x):
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Bring (B, C, H, W) to `size` by repeating pixels, then convolve. `size` is (2H, 2W) except after odd sizes."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, size=None):
        x = F.interpolate(x, size=size, scale_factor=None if size is not None else 2.0, mode="nearest")
        return self.conv(x)
