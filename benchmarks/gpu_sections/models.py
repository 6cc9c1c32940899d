"""The models of the sections: Stable Diffusion v1.5 with random weights, or with --tiny a very small one."""

import dataclasses

import torch

from minibnn import VAE, StableDiffusion, TextEncoder, UNet, UNetConfig
from minibnn.files.configs import RECIPE, SD_SCHEDULER, official_configs
from minibnn.files.store import ASSETS
from minibnn.networks.tokenizer import Tokenizer
from minibnn.options.training import TrainOptions

SMALL = UNetConfig(
    block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=4, layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)


def unet_config(tiny):
    """The UNetConfig of the model."""
    if not tiny:
        return UNetConfig()
    return dataclasses.replace(SMALL, cross_attention_dim=StableDiffusion.load("tiny").unet.config.cross_attention_dim)


def unet(section):
    """A UNet with PyTorch's own random weights in float32, on the device."""
    torch.manual_seed(0)
    with torch.device(section.device):
        return UNet(unet_config(section.tiny))


def model(section):
    """A whole StableDiffusion with random weights in float32, on the device."""
    if section.tiny:
        sd = StableDiffusion.load("tiny")
        sd.unet = unet(section)
        sd.configs |= {"unet": official_configs(sd.unet, sd.vae, sd.text_encoder)["unet"]}
        return sd
    parts = [unet(section)]
    with torch.device(section.device):
        parts += [VAE().eval(), TextEncoder().eval()]
    configs = official_configs(*parts) | {"scheduler": SD_SCHEDULER}
    return StableDiffusion(*parts, Tokenizer(ASSETS / "tiny" / "tokenizer"), configs, dict(RECIPE))


def kernel(section):
    """--kernel of the random weights; Triton's interpreter on a CPU is too slow for whole networks."""
    return "reference" if section.tiny else "triton"


def latents_side(section):
    """Height and width of the latents: of 512 × 512 pixels, with --tiny of 64 × 64."""
    return 8 if section.tiny else 64


def training_options(section, **changes):
    """TrainOptions of a training at batch 1 + 1, as the command would settle them for SD."""
    settled = {
        "images": ["pictures"], "where": "paper", "sigma": 0.01, "lr": 5e-6, "prior_weight": 1.0, "steps": 1,
        "batch_size": 1, "dtype": str(section.dtype).removeprefix("torch."), "kernel": kernel(section),
        "device": section.device,
    }
    return TrainOptions(**settled | changes)


def batches(section, config):
    """What `minibnn.train.train` takes: the same latents of a picture and of a class picture, and random contexts."""
    generator, side = torch.Generator().manual_seed(1), latents_side(section)
    x0 = torch.randn(2, config.in_channels, side, side, generator=generator).to(section.device)
    context = torch.randn(2, 77, config.cross_attention_dim, generator=generator).to(section.device)
    return lambda i, generator: (x0, context)
