"""The prompt as a part of the time embedding, through which it reaches every residual block of a UNet.

Follows: diffusers' `TextTimeEmbedding` (`addition_embed_type="text"`), which is that of DeepFloyd IF. Stable Diffusion
has none: there the prompt enters by cross-attention alone. The bundled textured model has it.
"""

import torch
from torch import nn

from .layers import attention


class AttentionPooling(nn.Module):
    """Tokens (B, L, D) -> one (B, D): the mean token attends to itself and to all others."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(1, channels))
        nn.init.normal_(self.positional_embedding, std=channels**-0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x):
        mean = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)
        x = torch.cat([mean, x], dim=1)
        return attention(self.q_proj(mean), self.k_proj(x), self.v_proj(x), self.heads)[:, 0]


class TextTimeEmbedding(nn.Module):
    """The text encoder's output (B, L, D) -> what is added to the time embedding (B, T)."""

    def __init__(self, context_channels, time_channels, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(context_channels)
        self.pool = AttentionPooling(context_channels, heads)
        self.proj = nn.Linear(context_channels, time_channels)
        self.norm2 = nn.LayerNorm(time_channels)

    def forward(self, context):
        return self.norm2(self.proj(self.pool(self.norm1(context))))
