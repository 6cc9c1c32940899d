"""Branches of BPS whose features go to fewer places, and the pairs of the world on which they are trained.

    base     the frozen model, which sees no hint
    bps      all 18 additions of the bundled model (38 in SD v1.5)
    skip     ControlNet's places: the encoder's features are added to the skips, the middle's to its output
    encoder  T2I-Adapter's places: additions in the encoder's units alone

The last two take the same branch; only the places where its features go differ. ControlNet proper also copies the UNet
and sees z_t, T2I-Adapter proper has a lighter encoder without time: neither is claimed to be reproduced.
"""

import contextlib

import numpy as np
import torch

from ...neighbours import bps, bps_branch
from ...pictures import to_tensor
from ...world import scenes as world
from ...world.classifier import random_scenes
from .judge import drawn, judged

BATCH, LR, SAMPLE_STEPS, TESTS, TEST_SEED = 8, 3e-4, 8, 24, 12


@contextlib.contextmanager
def skip_only(unet, features):
    """Add features of the encoder's units to the UNet's skips, and that of the middle to the middle's output."""
    encoder = sum(len(block.resnets) + len(block.downsamplers) for block in unet.down_blocks) + 1
    skips, handles = list(features[:encoder]), []
    for block in unet.up_blocks:
        for resnet in block.resnets:
            feature = skips.pop()

            def add(module, args, feature=feature):
                own = args[0].shape[1] - feature.shape[1]
                return torch.cat([args[0][:, :own], args[0][:, own:] + feature], dim=1), *args[1:]

            handles.append(resnet.register_forward_pre_hook(add))
    handles.append(unet.mid_block.register_forward_hook(lambda module, args, out: out + features[encoder]))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SkipBranch(bps_branch.Branch):
    """As `Branch`, but with features for conv_in and the downsamplers too, whose results are skips; no decoder."""

    def __init__(self, config, gains="head-heavy"):
        super().__init__(config, gains=gains)
        for i, unit in enumerate(self.encoder):
            if isinstance(unit, torch.nn.Conv2d):
                self.zeros[i] = bps_branch.zero_conv(unit.out_channels, unit.out_channels)

    def forward(self, hint, time):
        h, features = torch.nn.functional.pixel_unshuffle(hint, self.factor), []
        for unit, zero, gain in zip(self.encoder, self.zeros, self.gains, strict=False):
            h = unit(h, time) if isinstance(unit, bps_branch.TimedBlock) else unit(h)
            features.append(gain * zero(h))
        for block in self.middle:
            h = block(h, time)
        return [*features, self.gains[-1] * self.zeros[-1](h)]


def encoder_only(unet, features):
    """Additions in the encoder's units alone."""
    encoder = sum(len(block.resnets) + len(block.downsamplers) for block in unet.down_blocks) + 1
    return bps_branch.added(unet, features[:encoder] + [None] * (len(features) - encoder))


VARIANTS = {  # name: (branch, where its features go)
    "base": (bps_branch.Branch, bps_branch.added), "bps": (bps_branch.Branch, bps_branch.added),
    "skip": (SkipBranch, skip_only), "encoder": (bps_branch.Branch, encoder_only),
}


def world_pairs(count, seed):
    """Scenes, sketches (n, 1, 64, 64) in [0, 1], pictures (n, 3, 64, 64), exact masks (n, 64, 64)."""
    scenes = random_scenes(count, seed, held_out=False)
    images, masks = drawn(scenes)
    return scenes, torch.from_numpy(np.stack([world.outline(mask.numpy()) for mask in masks]))[:, None], images, masks


def trained(sd, variant, count, seed, steps, lr=LR, gains="head-heavy"):
    """A branch of this variant, trained on `count` pairs; new for 0."""
    kind, inject = VARIANTS[variant]
    torch.manual_seed(seed)
    branch = kind(sd.unet.config, gains=gains)
    if count:
        scenes, hints, images, _ = world_pairs(count, [11, seed])
        pairs = bps.Pairs(sd, hints, images, [world.caption(scene) for scene in scenes])
        bps.train_branch(sd, branch, pairs, steps, lr, BATCH, seed, inject=inject)
    return branch.eval()


def followed(sd, judge, variant, branch, tests, seed):
    """What a branch draws for the sketches of `tests` (as of `world_pairs`): figures of `judged`, and the pictures."""
    (scenes, hints, _, masks), inject = tests, VARIANTS[variant][1]
    captions = [world.caption(scene) for scene in scenes]
    pictures = bps.draw_steered(sd, branch, hints, captions, SAMPLE_STEPS, None, seed, len(scenes), inject)
    return judged(judge, to_tensor(pictures), masks, scenes), pictures
