"""A VAE whose latents are the pixels themselves: its weights are set by hand, not trained.

A trained VAE with few latents blurs what it decodes, so it hides the noise that a UNet leaves in its samples. The
textured model (`textured.py`) must not hide it, and still be opened by whatever opens Stable Diffusion. So it has an
`AutoencoderKL` in the official layout that computes the identity, up to rounding.

The residual blocks add 0. What is left is conv_in → GroupNorm → SiLU → conv_out, which is made linear in two ways:

    GroupNorm   each picture has the channels x, −x and the constants ±K in its one group. The mean of the group is 0,
                and its standard deviation is K/2 to a relative error of |x|²/K², whatever the picture.
    SiLU        silu(x) − silu(−x) = x·(s(x) + s(−x)) = x, with the logistic function s.
"""

import torch

from ..networks.vae import VAE, VAEConfig

CONSTANT = 200.0  # K: large against pixels, small enough for float32 to resolve x beside it
PIXEL_CONFIG = VAEConfig(
    latent_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=1, scaling_factor=1.0
)
LOGVAR = -30.0  # of the latents: their noise is far below that of float16


@torch.no_grad()
def pixel_vae():
    """A VAE with 3 latent channels at the picture's size: the mean of `encode` is the picture, `decode` its inverse."""
    vae = VAE(PIXEL_CONFIG)
    for name, parameter in vae.named_parameters():
        parameter.fill_(float(name.endswith("norm.weight") or ".norm1." in name and name.endswith("weight")))
    identity = torch.eye(3)[..., None, None]
    for part, out in ((vae.encoder, 6), (vae.decoder, 3)):
        part.conv_in.weight[0:3, :, 1, 1], part.conv_in.weight[3:6, :, 1, 1] = torch.eye(3), -torch.eye(3)
        part.conv_in.bias[6], part.conv_in.bias[7] = CONSTANT, -CONSTANT
        part.conv_norm_out.weight[:6] = CONSTANT / 2
        part.conv_out.weight[:3, 0:3, 1, 1], part.conv_out.weight[:3, 3:6, 1, 1] = torch.eye(3), -torch.eye(3)
        part.conv_out.bias[3:out] = LOGVAR
    vae.quant_conv.weight.copy_(torch.eye(6)[..., None, None])
    vae.post_quant_conv.weight.copy_(identity)
    return vae.eval()
