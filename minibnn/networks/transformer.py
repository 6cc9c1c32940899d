"""The UNet's transformer: a picture's positions attend to each other, and to the prompt.

Follows: diffusers' `BasicTransformerBlock` and `Transformer2DModel`, attribute for attribute; Rombach et al. 2022.

But: one block in each transformer, as Stable Diffusion has it.

Shapes: B pictures, C channels, H × W positions, N = H·W of them as tokens, L prompt tokens, D context width.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from .layers import attention


class Attention(nn.Module):
    """Attention of x (B, N, C) to itself, or to the prompt when `context` (B, L, D) is given; -> (B, N, C)."""

    def __init__(self, channels, context_channels, heads, upcast):
        super().__init__()
        self.heads, self.upcast = heads, upcast
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.kept = None  # (context, its keys, its values) within `same_prompt`

    def keys_and_values(self, context):
        if torch.compiler.is_compiling() or self.kept is None:  # keeping them would take a second graph
            return self.to_k(context), self.to_v(context)
        if not self.kept or self.kept[0] is not context:
            self.kept = context, self.to_k(context), self.to_v(context)
        return self.kept[1:]

    def forward(self, x, context=None):
        q, (k, v) = self.to_q(x), self.keys_and_values(x if context is None else context)
        if not self.upcast:
            return self.to_out[0](attention(q, k, v, self.heads))
        with torch.autocast(x.device.type, enabled=False):  # the products q·k of SD v2.1 overflow float16
            out = attention(q.float(), k.float(), v.float(), self.heads)
        return self.to_out[0](out.to(v.dtype))


class GEGLU(nn.Module):
    """x -> a ⊙ gelu(b) with (a, b) = proj(x).   (Shazeer 2020, §2)"""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * channels)

    def forward(self, x):
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each takes the normalised input, and is added to the input."""

    def __init__(self, channels, context_channels, heads, upcast):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads, upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, heads, upcast)
        self.norm3 = nn.LayerNorm(channels)
        # net.1 stands for the dropout of the official code
        net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))
        self.ff = nn.ModuleDict({"net": net})

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff["net"](self.norm3(x))


@contextlib.contextmanager
def same_prompt(network):
    """Inside, a network computes the prompt's keys and values once for as long as `context` is the same tensor.

    For a sampler, which gives the prompt in every step: neither that tensor nor the weights may change inside.
    """
    layers = [block.attn2 for block in network.modules() if isinstance(block, TransformerBlock)]
    for layer in layers:
        layer.kept = ()
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None


class SpatialTransformer(nn.Module):
    """A transformer block over the H·W positions of (B, C, H, W), with projections around it and a shortcut."""

    def __init__(self, channels, heads, config):
        super().__init__()
        self.linear = config.use_linear_projection
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)
        block = TransformerBlock(channels, config.cross_attention_dim, heads, config.upcast_attention)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x, context):
        def to_tokens(h):  # (B, C, H, W) -> (B, HW, C), contiguous because every norm of the block would copy it
            return h.flatten(2).transpose(1, 2).contiguous()

        def to_map(h):  # (B, HW, C) -> (B, C, H, W)
            return h.transpose(1, 2).contiguous().unflatten(2, x.shape[2:])

        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))
        h = self.transformer_blocks[0](h, context)
        return x + (to_map(self.proj_out(h)) if self.linear else self.proj_out(to_map(h)))
