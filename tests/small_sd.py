"""Stable Diffusion v1 and v2 with random weights and a twentieth of the width or less, in the exact layouts."""

import dataclasses

import torch

from minibnn import VAE, StableDiffusion, TextEncoder, Tokenizer, UNet
from minibnn.files.configs import RECIPE, SD_SCHEDULER, official_configs
from minibnn.files.store import ASSETS
from minibnn.networks.text_encoder import TextEncoderConfig
from minibnn.networks.unet import UNetConfig
from minibnn.networks.vae import VAEConfig

UNETS = {
    "v1": {"attention_head_dim": 2},
    "v2": {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True, "upcast_attention": True},
}
TEXTS = {"v1": {"hidden_act": "quick_gelu"}, "v2": {"hidden_act": "gelu"}}


def make(folder, version="v1", prediction_type="epsilon", layers=2):
    """Write a diffusers folder of "v1" or "v2" and return it. layers: in each block; Stable Diffusion has 2."""
    tokenizer = Tokenizer(ASSETS / "tiny" / "tokenizer")
    common = {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8}
    text = TextEncoderConfig(
        vocab_size=659, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        **TEXTS[version],
    )
    torch.manual_seed(0)
    parts = (
        UNet(UNetConfig(cross_attention_dim=32, layers_per_block=layers, **common, **UNETS[version])),
        VAE(dataclasses.replace(VAEConfig(), block_out_channels=(8, 16, 16, 16), norm_num_groups=8)),
        TextEncoder(text),
    )
    configs = official_configs(*parts) | {"scheduler": SD_SCHEDULER | {"prediction_type": prediction_type}}
    configs["unet"]["sample_size"] = configs["vae"]["sample_size"] // 8
    StableDiffusion(*parts, tokenizer, configs, RECIPE | {"resolution": 64}).save(folder)
    return folder
