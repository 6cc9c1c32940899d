"""The JSON files around the weights: the official values for SD v1.5 and v2, and what we write for other programs.

Follows: `scheduler/scheduler_config.json` and the networks' `config.json` in the official repositories.
"""

import dataclasses

from ..errors import UserError
from .schema import fitting, integer, mapping, number, one_of, optional, record, text

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
SD2_TEXT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu",
}
SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False, "prediction_type": "epsilon",
}
# How to fine-tune and sample official SD models (paper, App. H.1). A model's own recipe.json overrides it.
RECIPE = {
    "prompt": None, "class_prompt": None, "resolution": 512, "steps_per_picture": 200, "batch_size": 1, "lr": 5e-6,
    "class_pictures_per_picture": 200, "class_guidance": 7.5, "prior_weight": 1.0, "prior_target": "noise",
    "sigma": 0.01, "ema": 0.0, "sample_steps": 50, "guidance": 7.5, "dtype": None,
    "methods": {  # what differs from the values above
        "lora": {"steps_per_picture": 400, "lr": 1e-4, "prior_weight": 0.0},
        "oft": {"lr": 1e-4, "prior_weight": 0.0},
    },
}


PRIOR_TARGETS = ("noise", "pretrained")
NUMBERS = {
    "steps_per_picture": integer(1), "batch_size": integer(1), "lr": number(above=0), "prior_weight": number(0),
    "ema": number(0, 1),
}
RECIPE_KINDS = NUMBERS | {
    "prompt": optional(text), "class_prompt": optional(text), "resolution": integer(8, 2**16),
    "class_pictures_per_picture": integer(1), "class_guidance": number(), "prior_target": one_of(*PRIOR_TARGETS),
    "sigma": number(above=0),
    "sample_steps": integer(1, 1000), "guidance": number(), "dtype": optional(one_of("float32", "bfloat16", "float16")),
    "methods": mapping(record(NUMBERS | {"rank": integer(1)})),
}


def complete_recipe(own):
    """RECIPE, with what a model's own recipe says instead; class pictures have its guidance if it names no other."""
    return RECIPE | {"class_guidance": own.get("guidance", RECIPE["class_guidance"])} | own


def check_scheduler(config):
    """Raises UserError for a noise schedule that `schedule.py` does not implement. The file's sampler is ignored."""
    implemented = {
        "beta_schedule": ("scaled_linear",), "num_train_timesteps": (1000,), "trained_betas": (None,),
        "prediction_type": ("epsilon", "v_prediction"), "rescale_betas_zero_snr": (False, None),
    }
    for key, values in implemented.items():
        if key in config and config[key] not in values:
            raise UserError(f"scheduler config: {key} = {config[key]!r} is not implemented")
    betas = {"beta_start": number(above=0, high=0.999), "beta_end": number(above=0, high=0.999)}
    fitting(config, record(betas, required=betas), "scheduler config")


def official_configs(unet, vae, text_encoder):
    """The config.json of each network for diffusers and transformers, for networks that did not come from a folder."""
    levels = len(vae.config.block_out_channels)
    configs = {
        "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, **dataclasses.asdict(unet.config)},
        "vae": {
            "_class_name": "AutoencoderKL", "sample_size": 512, **dataclasses.asdict(vae.config),
            "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": 2,
            "pad_token_id": 1, **dataclasses.asdict(text_encoder.config),
        },
    }
    return {part: {k: list(v) if isinstance(v, tuple) else v for k, v in c.items()} for part, c in configs.items()}
