"""SD's UNet: predicts the noise ε̂ (or the velocity v) in a noisy latent, given the time and the prompt.

Follows: diffusers' `UNet2DConditionModel` as configured by Stable Diffusion v1.x and v2.x (`unet/config.json`);
architecture of Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Attribute names
are the names in `unet/diffusion_pytorch_model.safetensors`.

But: no class or size embeddings (SDXL), and only one transformer layer in each block. Beyond SD, the prompt may also
reach the residual blocks, as in DeepFloyd IF: see the last three values of UNetConfig.

Shapes: B pictures, C channels, H × W latent pixels, L prompt tokens, D context width, T time-embedding channels.
The way of a 512 × 512 picture through SD v1.5:

    conv_in        320 × 64 × 64
    down_blocks.0  320 × 64 × 64  resnet attention  resnet attention  downsample ─┐ The skips: conv_in's output and
    down_blocks.1  640 × 32 × 32  resnet attention  resnet attention  downsample  │ those of each resnet (with its
    down_blocks.2 1280 × 16 × 16  resnet attention  resnet attention  downsample  │ attention) and downsample, 12 in
    down_blocks.3 1280 ×  8 ×  8  resnet            resnet                        │ all. Each up block takes three,
    mid_block     1280 ×  8 ×  8  resnet attention  resnet                        │ the newest first.
    up_blocks.0   1280 ×  8 ×  8  3 × (resnet)             upsample  ─────────────┤
    up_blocks.1   1280 × 16 × 16  3 × (resnet attention)   upsample               │
    up_blocks.2    640 × 32 × 32  3 × (resnet attention)   upsample               │
    up_blocks.3    320 × 64 × 64  3 × (resnet attention)  ────────────────────────┘
    conv_out         4 × 64 × 64
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..files.layouts import SIZE, Network
from ..files.schema import either, integer, items, number, one_of, truth
from .layers import Downsample, ResnetBlock, Upsample
from .text_time import TextTimeEmbedding
from .transformer import SpatialTransformer

TIME_SCALE_SHIFTS = ("default", "scale_shift")
ADDITIONS = (None, "text")


@dataclass(frozen=True)
class UNetConfig:
    """The values of the official `unet/config.json` that change the computation; the defaults are SD v1.5's."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    cross_attention_dim: int = 768
    # The official files call it attention_head_dim; it is the *number* of heads (v2: one number for each level).
    attention_head_dim: int | tuple = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"  # or "scale_shift": the time embedding also scales (FiLM)
    addition_embed_type: str = None  # or "text": the prompt is also added to the time embedding
    addition_embed_type_num_heads: int = 64

    # The code below always computes with these values. A configuration that gives another value is refused.
    FIXED = {
        "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "act_fn": "silu",
        "mid_block_type": "UNetMidBlock2DCrossAttn", "mid_block_scale_factor": 1, "transformer_layers_per_block": 1,
        "time_embedding_type": "positional", "conv_in_kernel": 3, "conv_out_kernel": 3, "downsample_type": "conv",
        "attention_type": "default", "dropout": 0.0, "only_cross_attention": False, "resnet_out_scale_factor": 1.0,
    }
    IGNORED = ("sample_size", "downsample_padding", "projection_class_embeddings_input_dim")
    KINDS = {  # what a config.json may say
        "in_channels": SIZE, "out_channels": SIZE, "block_out_channels": items(SIZE, 1, 16),
        "layers_per_block": integer(1, 64), "cross_attention_dim": SIZE,
        "down_block_types": items(one_of("DownBlock2D", "CrossAttnDownBlock2D"), 1, 16),
        "up_block_types": items(one_of("UpBlock2D", "CrossAttnUpBlock2D"), 1, 16),
        "attention_head_dim": either(items(SIZE, 1, 16), SIZE), "norm_num_groups": SIZE, "norm_eps": number(above=0),
        "use_linear_projection": truth, "upcast_attention": truth, "addition_embed_type_num_heads": SIZE,
    }

    def __post_init__(self):
        levels, groups = len(self.block_out_channels), self.norm_num_groups
        for name in ("down_block_types", "up_block_types", "heads"):
            if len(getattr(self, name)) != levels:
                raise UserError(f"unet config: {name} names {len(getattr(self, name))} levels and not {levels}")
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % groups or channels % heads or channels % 2:
                divisors = f"2, norm_num_groups {groups} and {heads} heads"
                raise UserError(f"unet config: {channels} of block_out_channels do not divide by {divisors}")
        for key, known in (("resnet_time_scale_shift", TIME_SCALE_SHIFTS), ("addition_embed_type", ADDITIONS)):
            if getattr(self, key) not in known:
                raise UserError(f"unet config: {key} = {getattr(self, key)!r} is not implemented")

    @property
    def heads(self):
        """The number of attention heads at each level, as a tuple."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)


def time_sinusoid(t, channels):
    """Sinusoidal embedding of the times `t` (B,) -> (B, channels), float32, with the cosines first.

    [cos(t ω_i), sin(t ω_i)], ω_i = 10000^(−i/(channels/2)).   (Vaswani et al. 2017, §3.5, with sin and cos swapped)
    """
    half = channels // 2
    omega = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = t[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers: sinusoids (B, C) -> time embedding (B, T)."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


def resnet(in_channels, channels, config):
    """A residual block with the settings of this UNet."""
    time_channels, scale_shift = 4 * config.block_out_channels[0], config.resnet_time_scale_shift == "scale_shift"
    return ResnetBlock(in_channels, channels, time_channels, config.norm_num_groups, config.norm_eps, scale_shift)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if the level has it (`attend`)."""

    def __init__(self, in_channels, channels, heads, attend, config):  # in_channels: a list, one for each block
        super().__init__()
        self.resnets = nn.ModuleList(resnet(n, channels, config) for n in in_channels)
        self.attentions = nn.ModuleList(SpatialTransformer(channels, heads, config) for _ in in_channels if attend)

    def layer(self, i, x, time, context):
        """The i-th residual block and its attention."""
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context) if self.attentions else x


class DownBlock(Level):
    """A level that downsamples at its end unless it is the last. Returns x and the list of its skips."""

    def __init__(self, in_channels, channels, heads, attend, last, config):
        super().__init__([in_channels] + [channels] * (config.layers_per_block - 1), channels, heads, attend, config)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels, symmetric=True)])

    def forward(self, x, time, context):
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, time, context)
            skips.append(x)
        if self.downsamplers:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, channels, heads, config):
        super().__init__()
        self.resnets = nn.ModuleList(resnet(channels, channels, config) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialTransformer(channels, heads, config)])

    def forward(self, x, time, context):
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, context)
        return self.resnets[1](x, time)


class UpBlock(Level):
    """A level whose residual blocks each get a skip beside their input, along the channels; all but the last upsample.

    size: (h, w) to which it upsamples.
    """

    def __init__(self, in_channels, skip_channels, channels, heads, attend, last, config):
        before = [in_channels] + [channels] * (len(skip_channels) - 1)
        super().__init__([a + b for a, b in zip(before, skip_channels, strict=True)], channels, heads, attend, config)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(self, x, skips, time, context, size):
        for i, skip in enumerate(reversed(skips)):
            x = self.layer(i, torch.cat([x, skip], dim=1), time, context)
        return self.upsamplers[0](x, size) if self.upsamplers else x


class UNet(Network):
    """ε̂ = unet(x, t, context), or v̂ for a network that was trained to predict v.

    x (B, C, h, w) are noisy latents of any height and width (C: 4 in SD, 16 in tiny-v2), t (B,) int64 are times in
    0..999, and context (B, L, D) is the text encoder's output. Returns (B, C, h, w).
    With `gradient_checkpointing = True`, backward computes each block again instead of keeping its inner results;
    `checkpoint_settings` are further arguments of `torch.utils.checkpoint.checkpoint`, such as `context_fn`.
    """

    Config, official_class, part = UNetConfig, "UNet2DConditionModel", "unet"

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing, self.checkpoint_settings = False, {}
        channels, heads = config.block_out_channels, config.heads
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        if config.addition_embed_type == "text":
            text_heads = config.addition_embed_type_num_heads
            self.add_embedding = TextTimeEmbedding(config.cross_attention_dim, 4 * channels[0], text_heads)

        self.down_blocks = nn.ModuleList()
        skip_channels = [channels[0]]
        for i, kind in enumerate(config.down_block_types):
            last, attend = i == len(channels) - 1, kind == "CrossAttnDownBlock2D"
            self.down_blocks.append(DownBlock(channels[max(i - 1, 0)], channels[i], heads[i], attend, last, config))
            skip_channels += [channels[i]] * (config.layers_per_block + (not last))

        self.mid_block = MidBlock(channels[-1], heads[-1], config)

        self.up_blocks = nn.ModuleList()
        before = channels[-1]
        for i, kind in enumerate(config.up_block_types):
            level = len(channels) - 1 - i
            taken = [skip_channels.pop() for _ in range(config.layers_per_block + 1)]
            last, attend = level == 0, kind == "CrossAttnUpBlock2D"
            self.up_blocks.append(UpBlock(before, taken, channels[level], heads[level], attend, last, config))
            before = channels[level]

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        def run(block, *arguments):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return checkpoint(block, *arguments, use_reentrant=False, **self.checkpoint_settings)
            return block(*arguments)

        sinusoid = time_sinusoid(t, self.config.block_out_channels[0]).to(x.dtype)  # (B,) -> (B, C)
        time = self.time_embedding(sinusoid)  # (B, T)
        if self.config.addition_embed_type == "text":
            time = time + self.add_embedding(context)
        time = F.silu(time)

        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x, kept = run(block, x, time, context)
            skips += kept
        x = run(self.mid_block, x, time, context)
        for block in self.up_blocks:
            n = len(block.resnets)
            taken, skips = skips[-n:], skips[:-n]
            size = skips[-1].shape[2:] if skips else None  # to upsample to: doubling misses odd sizes
            x = run(block, x, taken, time, context, size)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
