"""Three kinds of damage to pictures (B, C, H, W) in [-1, 1]: white noise, blotches and blur."""

import torch
import torch.nn.functional as F


def white_noise(images, amount, generator):
    """Add independent normal noise to every value. amount: its standard deviation, a number or (B, 1, 1, 1)."""
    return images + amount * torch.randn(images.shape, generator=generator)


def blotches(images, amount, generator):
    """Add smooth coloured blotches, 8 pixels wide, as from wrong latents. amount: their standard deviation."""
    b, c, h, w = images.shape
    coarse = torch.randn((b, c, -(-h // 8), -(-w // 8)), generator=generator)
    noise = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)
    return images + amount * noise / noise.std()


def blur(images, sigma, radius=None):
    """Convolve with a Gaussian of standard deviation sigma > 0, cut off at `radius` [3 sigma], both in pixels."""
    radius, channels = radius or max(1, round(3 * sigma)), images.shape[1]
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(channels, 1, 1, -1)
    images = F.conv2d(F.pad(images, (radius,) * 4, mode="reflect"), taps, groups=channels)
    return F.conv2d(images, taps.transpose(2, 3), groups=channels)
