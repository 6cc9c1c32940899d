"""The two models of the picture world that the package brings along, as `python -m minibnn pretrain` makes them.

`tiny-v2` is the model of the first command. `tiny`, which blurs, is that of the experiments and of the tutorials, which
were measured on it. The latents of `tiny-v2` have 16 channels, as in SD 3, instead of 4: a place of 8 × 8 pixels then
keeps 16 numbers, enough for edges, eyes and spots. Its UNet has a third of the parameters: two levels are enough for
latents of 8 × 8. It has seen animals with spots in many colours, but not the few-shot subjects'.
"""

from dataclasses import dataclass, replace

from ..files.configs import SD_SCHEDULER, official_configs
from ..networks.tokenizer import END, START
from ..networks.unet import UNetConfig
from ..networks.vae import VAEConfig

LATENT_SIDE = 8  # both VAEs make 8 × 8 latents of 64 × 64 pixels
TEXT_CONFIG = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_RECIPE = {
    "prompt": "a photo of a sks dog", "class_prompt": "a photo of a dog", "resolution": 64, "steps_per_picture": 150,
    "lr": 2e-4, "class_pictures_per_picture": 16, "sigma": 0.01, "sample_steps": 25, "guidance": 3.0,
    "dtype": "float32",
    "methods": {
        "lora": {"steps_per_picture": 100, "lr": 1e-3, "prior_weight": 0.0},
        "oft": {"steps_per_picture": 100, "lr": 1e-3, "prior_weight": 0.0},
    },
}
# `experiment recipe` measures what this gives; it was chosen on single trainings of dog, cat and fish.
TINY_V2_RECIPE = TINY_RECIPE | {
    "steps_per_picture": 120, "batch_size": 4, "lr": 3e-4, "prior_weight": 3.0, "prior_target": "pretrained",
    "ema": 0.98,
    "methods": {
        "lora": {"steps_per_picture": 100, "lr": 3e-3, "prior_weight": 1.0, "rank": 8},
        "oft": {"steps_per_picture": 100, "lr": 2e-3, "prior_weight": 0.0, "ema": 0.0},
    },
}


@dataclass(frozen=True)
class Bundled:
    """What a model is made of, and the recipe that it carries."""

    vae: VAEConfig
    unet: UNetConfig
    recipe: dict
    subject_weight: float  # a pixel of the subject counts 1 + subject_weight times as much for the VAE
    spotted: float  # share of the VAE's animals in random colours that have spots
    animals: float  # chance that the VAE's subject in random colours is made an animal
    unet_spotted: float  # share of the UNet's pictures that show spotted animals in random colours
    vae_lr: float
    unet_lr: float
    muon: bool  # whether Muon trains VAE and UNet, instead of AdamW
    residuals_from_zero: bool  # whether residual blocks of VAE and UNet begin as their shortcuts
    steps: dict  # of each stage, and how many pictures the UNet is trained on


TINY = Bundled(
    vae=VAEConfig(block_out_channels=(16, 32, 64, 96), layers_per_block=1, norm_num_groups=8),
    unet=UNetConfig(
        block_out_channels=(64, 128, 192), layers_per_block=1, cross_attention_dim=128, attention_head_dim=4,
        norm_num_groups=16, down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    ),
    recipe=TINY_RECIPE, subject_weight=3.0, spotted=0.5, animals=0.0, unet_spotted=0.0, vae_lr=2e-3, unet_lr=8e-4,
    muon=False, residuals_from_zero=False,
    steps={"vae_steps": 6500, "decoder_steps": 0, "text_steps": 1500, "unet_steps": 8200, "pictures": 48000},
)
TINY_V2 = Bundled(
    vae=replace(TINY.vae, block_out_channels=(16, 32, 64, 64), latent_channels=16),
    unet=replace(
        TINY.unet, in_channels=16, out_channels=16, block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    ),
    recipe=TINY_V2_RECIPE, subject_weight=3.0, spotted=0.8, animals=0.5, unet_spotted=0.25, vae_lr=3e-3, unet_lr=2e-3,
    muon=True, residuals_from_zero=True,
    steps={"vae_steps": 3000, "decoder_steps": 3000, "text_steps": 1500, "unet_steps": 6500, "pictures": 24000},
)
WORLD_MODELS = {"tiny": TINY, "tiny-v2": TINY_V2}


def configs_of(unet, vae, text_encoder, tokenizer, latent_side, side):
    """The official configs of networks that were trained here. latent_side, side: of their latents and pictures."""
    configs = official_configs(unet, vae, text_encoder)
    configs["unet"]["sample_size"], configs["vae"]["sample_size"] = latent_side, side
    tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    configs["text_encoder"] |= {key: tokenizer.vocab[token] for key, token in tokens.items()}
    configs["scheduler"] = SD_SCHEDULER | {"_class_name": "DDIMScheduler"}
    return configs
