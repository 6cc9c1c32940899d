"""Two measures of textured pictures that see noise: structural similarity to a picture, and Immerkær's noise level.

The cosine of a network's features (`measures.py`) is made to overlook noise. Here noise is what is looked for. On the
photograph of a cat of `tutorials/subjects`, white noise of standard deviation 0.1 takes SSIM from 1 to 0.87, and 0.2
to 0.68.

Pictures are (B, 3, H, W) in [-1, 1]; they are clipped to that range, as a file is.
"""

import torch
import torch.nn.functional as F

from .measures import immerkaer

WINDOW, WINDOW_SIGMA = 7, 1.5  # pixels
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # for values that span 2


def ssim(pictures, reference):
    """Mean structural similarity of each picture to `reference` (1, 3, H, W): (B,), at most 1.   (Wang et al. 2004)

    A Gaussian window of 7 pixels and σ = 1.5, without borders; the colours are compared one by one and averaged.
    """
    offsets = torch.arange(WINDOW) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    window = (line[:, None] * line / line.sum() ** 2).to(pictures)[None, None]

    def local_mean(x):
        return F.conv2d(x.flatten(0, 1)[:, None], window).unflatten(0, (-1, 3))[:, :, 0]

    x, y = pictures.clamp(-1, 1), reference.clamp(-1, 1).expand_as(pictures)
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * (2 * covariance + C2) / (var_x + var_y + C2)).mean((1, 2, 3))


def noise_level(pictures):
    """The standard deviation of white noise that would explain the finest structure: (B,).   (Immerkær 1996)

    Of the mean of the three colours, so that independent noise of standard deviation s in each counts as s/√3. Texture
    counts too: compare with the level of the true picture.
    """
    return immerkaer(pictures.clamp(-1, 1).mean(1, keepdim=True))
