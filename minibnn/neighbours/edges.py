"""Sketches of photographs: what `bps --edges` gives a branch where nobody has drawn a hint.

Follows: Sobel & Feldman (1968), as in Gonzalez & Woods, *Digital Image Processing*: two 3 × 3 masks, the length of the
gradient. The strongest edge of a picture is 1; what is below `WEAK` of it is 0, so that texture and noise are left out.

But: lines as thick as the masks, no thinning and no linking (Canny does both); BPS's authors use learned sketches.
"""

import torch
import torch.nn.functional as F

WEAK = 0.2  # of the strongest edge


def gradient_length(images):
    """Length of the brightness gradient of pictures (B, C, H, W): (B, 1, H, W), in units of the pictures a pixel."""
    grey = images.mean(1, keepdim=True)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(grey) / 8
    masks = torch.stack([across, across.T])[:, None]
    return F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), masks).square().sum(1, keepdim=True).sqrt()


def sketch(images):
    """The sketch of each picture (B, C, H, W): (B, 1, H, W) in [0, 1], 0 where an edge is weak; all 0 without edges."""
    length = gradient_length(images)
    strongest = length.amax((1, 2, 3), keepdim=True)
    share = length / strongest.clamp(min=1e-6)
    return torch.where((share >= WEAK) & (strongest > 1e-3), share, 0.0)
