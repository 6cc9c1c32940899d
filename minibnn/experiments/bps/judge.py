"""A judge of drawn pictures: which pixels the subject covers, and which subject, colour and background it sees.

Trained here on fresh drawings of the world, blurred and roughened by `blur_and_noise`; about a minute on one core.
Its own errors on unseen drawings are reported beside what it judges.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...files.schema import number, record
from ...pictures import to_tensor
from ...world import scenes as world
from ...world.classifier import ATTRIBUTES, attribute_loss, blur_and_noise, fit_on_world, right

JUDGED = ("IoU", "subject", "colour", "background")
RESULT = record(dict.fromkeys(JUDGED, number()), JUDGED)  # what is kept of `judged`


def block(in_channels, channels, stride):
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, stride, padding=1), nn.GroupNorm(8, channels), nn.ReLU())


class Judge(nn.Module):
    """(B, 3, 64, 64) in [-1, 1] -> mask logits (B, 64, 64) and {attribute: logits (B, n)}."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([block(3, 24, 2), block(24, 48, 2), block(48, 96, 2)])
        self.middle = block(96, 96, 1)
        self.up = nn.ModuleList([block(96 + 48, 48, 1), block(48 + 24, 24, 1)])
        self.mask = nn.Conv2d(24, 4, 3, padding=1)
        self.heads = nn.ModuleDict({name: nn.Linear(96 * 64, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images):
        fine = self.down[0](images)
        coarse = self.down[1](fine)
        h = self.middle(self.down[2](coarse))
        logits = {name: head(h.flatten(1)) for name, head in self.heads.items()}
        for up, skip in zip(self.up, (coarse, fine), strict=True):
            h = up(torch.cat([F.interpolate(h, scale_factor=2), skip], dim=1))
        return F.pixel_shuffle(self.mask(h), 2)[:, 0], logits


def drawn(scenes):
    """Scenes -> pictures (n, 3, 64, 64) in [-1, 1] and their exact masks (n, 64, 64)."""
    pictures = [world.draw(scene) for scene in scenes]
    masks = [world.subject_mask(scene, picture) for scene, picture in zip(scenes, pictures, strict=True)]
    return to_tensor(pictures), torch.from_numpy(np.stack(masks))


def train_judge(path, steps=500, batch=32):
    """The judge, made on fresh drawings or loaded from `path`; errors as `fit_on_world`."""

    def loss_of(judge, scenes, generator):
        images, masks = drawn(scenes)
        mask, logits = judge(blur_and_noise(images, generator))
        return 4 * F.binary_cross_entropy_with_logits(mask, masks) + attribute_loss(logits, scenes)

    return fit_on_world(Judge, path, steps, batch, 9, 3e-3, loss_of)


def iou(a, b):
    """Intersection over union of each pair of masks (n, H, W), 0 or 1: (n,)."""
    return (a * b).sum((1, 2)) / torch.maximum(a, b).sum((1, 2)).clamp(min=1)


@torch.no_grad()
def judged(judge, images, masks, scenes):
    """{"IoU": mean over pictures, "subject", "colour", "background": share judged as the scene says}."""
    found, logits = judge(images)
    return {"IoU": iou((found > 0).float(), masks).mean().item(), **right(logits, scenes)}
