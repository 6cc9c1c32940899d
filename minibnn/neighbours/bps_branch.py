"""The branch of Bayesian Power Steering, and how it steers a frozen UNet. `bps.py` trains it and draws with it.

Follows: Huang et al. 2024 (arXiv 2406.03683) and the authors' released code, as far as they are known.

By Bayes' rule the noise prediction of a model that also knows a hint y is that of the frozen model plus one term:

    ε(z_t, t, c, y) = ε(z_t, t, c) + M,   M = −√(1−ᾱ_t) ∇_z log p_t(y | z_t, c)

Here M is what a trainable *branch* causes: a U-shaped network that sees the hint and the time, never z_t or the prompt,
and whose features B_k are added, through convolutions that start at zero, inside all units k of the frozen UNet:

    h ← Block(h) + gain_k · ZeroConv_k(B_k(y, t))      after each residual block and each attention of unit k

SD v1.5 has 25 units (12 encoder, 1 middle, 12 decoder) and 38 such additions. "Head-heavy and foot-light": encoder and
middle get blocks that know the time, with gains 16, 8, 4, 2 and 16; the decoder gets light blocks without time, and
gain 1.

But: no BPS-XL. The released branch also holds 4 zero convolutions for conv_in and the downsamplers, which nothing uses
(20.3 M parameters in SD v1.5); here they are left out.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..networks.unet import time_sinusoid

# --- the branch -------------------------------------------------------------------------------------------------------


def zero_conv(in_channels, out_channels):
    """A 3 × 3 convolution that gives 0 until it is trained."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class TimedBlock(nn.Module):
    """Heavy block: x -> shortcut(x) + zero conv(silu((1 + scale)·norm(conv(silu(norm(x)))) + shift)).

    scale and shift are linear functions of the embedded time.
    """

    def __init__(self, in_channels, channels, time_channels, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * channels)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = zero_conv(channels, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class LightBlock(nn.Module):
    """Light block: x -> shortcut(x) + zero conv(silu(norm(x))), without time."""

    def __init__(self, in_channels, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, in_channels)
        self.conv = zero_conv(in_channels, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.conv(F.silu(self.norm(x)))


class Branch(nn.Module):
    """features = branch(hint, time): what is added in each unit of a UNet of this configuration.

    hint (B, hint_channels, H, W), where H and W are multiples of the VAE's `factor`; time (B, T) from `time_of`.
    Returns one tensor (B, C, h, w) for each unit, in the order of `units`; None for conv_in and the downsamplers.
    With `gradient_checkpointing = True`, backward computes each block again instead of keeping its inner results.
    """

    def __init__(self, config, hint_channels=1, factor=8, gains="head-heavy"):
        super().__init__()
        channels, n, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        last, time_channels = len(channels) - 1, 4 * channels[0]
        self.factor, self.hint_channels, self.gradient_checkpointing = factor, hint_channels, False

        widths, heavy = [channels[0]], [16.0]  # of the encoder's units
        self.encoder = nn.ModuleList([nn.Conv2d(hint_channels * factor**2, channels[0], 3, padding=1)])
        for level, width in enumerate(channels):
            blocks = [TimedBlock(widths[-1] if i == 0 else width, width, time_channels, groups) for i in range(n)]
            downsample = [nn.Conv2d(width, width, 3, stride=2, padding=1)] if level < last else []
            self.encoder += blocks + downsample
            widths += [width] * len(blocks + downsample)
            heavy += [2.0 ** (4 - level)] * len(blocks + downsample)
        self.gains = [*heavy, 16.0] if gains == "head-heavy" else [1.0] * (len(heavy) + 1)  # of encoder and middle
        self.middle = nn.ModuleList(TimedBlock(channels[-1], channels[-1], time_channels, groups) for _ in range(2))
        places = zip([*self.encoder, None], [*widths, channels[-1]], strict=True)  # None: the middle
        self.zeros = nn.ModuleList(
            nn.Identity() if isinstance(unit, nn.Conv2d) else zero_conv(width, width) for unit, width in places
        )

        self.decoder, self.upsamplers, before = nn.ModuleList(), nn.ModuleList(), channels[-1]
        for level in reversed(range(len(channels))):
            for _ in range(n + 1):
                self.decoder.append(LightBlock(before + widths.pop(), channels[level], groups))
                before = channels[level]
            if level:
                self.upsamplers.append(nn.Conv2d(before, before, 3, padding=1))
        outputs = [block.conv.out_channels for block in self.decoder]
        self.decoder_zeros = nn.ModuleList(zero_conv(width, width) for width in outputs)

    def forward(self, hint, time):
        def run(block, *arguments):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return checkpoint(block, *arguments, use_reentrant=False)
            return block(*arguments)

        def joined(block, h, skip):
            return block(torch.cat([h, skip], dim=1))

        h, skips, features = F.pixel_unshuffle(hint, self.factor), [], []  # (B, C, H, W) -> (B, f²C, H/f, W/f)
        for unit, zero, gain in zip(self.encoder, self.zeros, self.gains, strict=False):
            timed = isinstance(unit, TimedBlock)
            h = run(unit, h, time) if timed else unit(h)
            skips.append(h)
            features.append(gain * zero(h) if timed else None)
        for block in self.middle:
            h = run(block, h, time)
        features.append(self.gains[-1] * self.zeros[-1](h))
        per_level = len(self.decoder) // (len(self.upsamplers) + 1)
        for i, (block, zero) in enumerate(zip(self.decoder, self.decoder_zeros, strict=True)):
            h = run(joined, block, h, skips.pop())
            features.append(zero(h))
            if skips and (i + 1) % per_level == 0:
                h = F.interpolate(h, size=skips[-1].shape[2:], mode="nearest")
                h = self.upsamplers[i // per_level](h)
        return features


# --- where its features go --------------------------------------------------------------------------------------------


def units(unet):
    """For each unit, the modules whose output is added to: 25 lists for SD v1.5, empty for conv_in and downsamplers."""
    lists = [[]]
    for block in unet.down_blocks:
        lists += [[resnet, *block.attentions[i : i + 1]] for i, resnet in enumerate(block.resnets)]
        lists += [[] for _ in block.downsamplers]
    mid = unet.mid_block
    lists.append([mid.resnets[0], mid.attentions[0], mid.resnets[1]])
    for block in unet.up_blocks:
        lists += [[resnet, *block.attentions[i : i + 1]] for i, resnet in enumerate(block.resnets)]
    return lists


@contextlib.contextmanager
def added(unet, features):
    """Within this block the UNet's forward adds features[k] to the output of every module of unit k."""
    handles = []
    try:
        for modules, feature in zip(units(unet), features, strict=True):
            for module in modules if feature is not None else []:
                handles.append(module.register_forward_hook(lambda _, args, out, feature=feature: out + feature))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def checkpointed_in(unet, context):
    """Within this block, what the UNet computes again in backward is computed inside context().

    Backward may run when this block, and with it the context of its forward, is over.
    """
    unet.checkpoint_settings = {"context_fn": lambda: (contextlib.nullcontext(), context())}
    try:
        yield
    finally:
        unet.checkpoint_settings = {}


def time_of(unet, t, dtype=torch.float32):
    """The embedded time that the branch receives, computed by the frozen UNet: (B,) -> (B, T)."""
    with torch.no_grad():
        return F.silu(unet.time_embedding(time_sinusoid(t, unet.config.block_out_channels[0]).to(dtype)))


def steered(unet, branch, x, t, context, hint, inject=added):
    """What the UNet predicts when steered by `hint`. inject: a context, as `added`, that brings features into the UNet.

    Raises UserError when the hint does not have the size of the picture that x (B, 4, h, w) stands for.
    """
    wanted = (branch.hint_channels, branch.factor * x.shape[2], branch.factor * x.shape[3])
    if tuple(hint.shape[1:]) != wanted:
        given = tuple(hint.shape[1:])
        raise UserError(f"hint of (channels, height, width) {given}: this model and picture size need {wanted}")
    features = branch(hint.to(x.dtype), time_of(unet, t, x.dtype))
    with inject(unet, features), checkpointed_in(unet, lambda: inject(unet, features)):
        return unet(x, t, context)
