"""SD's variational auto-encoder: it turns pictures into latents, and latents into pictures.

Follows: diffusers' `AutoencoderKL` as configured by Stable Diffusion v1.x and v2.x (`vae/config.json`); Rombach et al.
2022, §3.1 and Kingma & Welling 2014. Attribute names are the names in `vae/diffusion_pytorch_model.safetensors`.

But: no tiling or slicing, no discriminator.

Shapes: B pictures of 3 colours in [-1, 1] and H × W pixels; latents have C channels, 4 in SD and 16 in tiny-v2, and
H/f × W/f positions with f = 2^(levels−1), 8 in SD. Everything here is *unscaled*: the diffusion model sees latents ×
`config.scaling_factor`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..files.layouts import SIZE, Network
from ..files.schema import integer, items, number
from .layers import Downsample, ResnetBlock, Upsample, attention

NORM_EPS = 1e-6


@dataclass(frozen=True)
class VAEConfig:
    """The values of the official `vae/config.json` that change the computation; the defaults are SD v1.5's."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    FIXED = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
    IGNORED = ("sample_size", "down_block_types", "up_block_types", "force_upcast")
    KINDS = {  # what a config.json may say
        "in_channels": SIZE, "out_channels": SIZE, "latent_channels": SIZE, "block_out_channels": items(SIZE, 1, 16),
        "layers_per_block": integer(1, 64), "norm_num_groups": SIZE, "scaling_factor": number(above=0),
    }

    def __post_init__(self):
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                why = f"{channels} of block_out_channels do not divide by norm_num_groups {self.norm_num_groups}"
                raise UserError(f"vae config: {why}")


class SpatialAttention(nn.Module):
    """Single-head self-attention over the H·W positions of (B, C, H, W), added to its input."""

    def __init__(self, channels, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x):
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        h = self.to_out[0](attention(self.to_q(h), self.to_k(h), self.to_v(h), heads=1))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Level(nn.Module):
    """Residual blocks at one resolution, followed by downsampling (encoder) or upsampling (decoder) if asked for."""

    def __init__(self, in_channels, channels, layers, groups, down=False, up=False):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels if i else in_channels, channels, None, groups, NORM_EPS) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(channels, symmetric=False)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(channels)] if up else [])

    def forward(self, x):
        for block in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = block(x)
        return x


class MidBlock(nn.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, channels, groups):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, None, groups, NORM_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups)])

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> means and log-variances before `quant_conv` (B, 8, H/f, W/f)."""

    def __init__(self, config):
        super().__init__()
        channels, groups, n = config.block_out_channels, config.norm_num_groups, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.Sequential(*(
            Level(channels[max(i - 1, 0)], channels[i], config.layers_per_block, groups, down=i < n - 1)
            for i in range(n)
        ))
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (B, C, h, w) after `post_quant_conv` -> pictures (B, 3, f·h, f·w)."""

    def __init__(self, config):
        super().__init__()
        channels, groups, n = config.block_out_channels[::-1], config.norm_num_groups, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.Sequential(*(
            Level(channels[max(i - 1, 0)], channels[i], config.layers_per_block + 1, groups, up=i < n - 1)
            for i in range(n)
        ))
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, z):
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(Network):
    """Encoder and decoder with the 1 × 1 convolutions around the latents."""

    Config, official_class, part = VAEConfig, "AutoencoderKL", "vae"

    def __init__(self, config: VAEConfig = VAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    @property
    def factor(self):
        """f, the number of pixels along the side of one latent position."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """images (B, 3, H, W) in [-1, 1], H and W multiples of f -> (mean, logvar), each (B, 4, H/f, W/f), unscaled.

        logvar is clamped to [-30, 20] as in the official code. Raises ValueError for other sizes.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"picture of {width} x {height} pixels: both must be multiples of {self.factor}")
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Unscaled latents z (B, C, h, w) -> pictures (B, 3, f·h, f·w), about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(z))


def sample_latents(mean, logvar, generator=None):
    """A sample z = mean + exp(logvar/2)·ε of the posterior, ε made on the CPU.   (Kingma & Welling 2014, eq. 10)"""
    eps = torch.randn(mean.shape, generator=generator, pin_memory=mean.is_cuda)  # pinned: the host need not wait
    return mean + (0.5 * logvar).exp() * eps.to(mean, non_blocking=mean.is_cuda)
