"""Our tensor names translated into those of the single-file ("LDM") layout, e.g. `v1-5-pruned-emaonly.safetensors`.

Follows: CompVis/stable-diffusion's module names (and OpenCLIP's for the text encoder of SD v2), which ComfyUI and
AUTOMATIC1111 read.

A single file holds `model.diffusion_model.*` (UNet), `first_stage_model.*` (VAE), `cond_stage_model.*` (text encoder),
and often buffers of the noise schedule and `model_ema.*` copies, which are not read.
"""

import re

PREFIX = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
OPENCLIP = "cond_stage_model.model."

_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPENCLIP_LAYER = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def ldm_name(part, name, config, openclip=False):
    """Our name of one tensor -> (LDM name, third).

    part: "unet", "vae" or "text_encoder"; config: that network's, for the number of layers and levels. `third` is None
    except where OpenCLIP stacks query, key and value in one tensor: there 0, 1 or 2 tells which of them is ours.
    Example: ("unet", "conv_in.weight", …) -> ("model.diffusion_model.input_blocks.0.0.weight", None).
    """
    if part == "unet":
        return PREFIX[part] + _unet(name, config), None
    if part == "vae":
        return PREFIX[part] + _vae(name, len(config.block_out_channels)), None
    if openclip:
        return _openclip(name)
    return "cond_stage_model.transformer." + name, None


def _unet(name, config):
    per_level = config.layers_per_block + 1
    module, leaf = name.rsplit(".", 1)
    if module in _UNET_TOP:
        return f"{_UNET_TOP[module]}.{leaf}"
    if module.startswith("add_embedding"):  # in no model of CompVis, so that there is no other name
        return name
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, i, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{_resnet(kind, rest)}"
    direction, level, kind, i, rest = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name).groups()
    level, i = int(level), int(i)
    if direction == "down":
        if kind == "downsamplers":
            return f"input_blocks.{per_level * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + per_level * level + i}.{int(kind == 'attentions')}.{_resnet(kind, rest)}"
    if kind == "upsamplers":
        slot = 2 if config.up_block_types[level] == "CrossAttnUpBlock2D" else 1
        return f"output_blocks.{per_level * (level + 1) - 1}.{slot}.{rest}"
    return f"output_blocks.{per_level * level + i}.{int(kind == 'attentions')}.{_resnet(kind, rest)}"


def _resnet(kind, rest):
    if kind == "attentions":
        return rest
    module, leaf = rest.rsplit(".", 1)
    return f"{_UNET_RESNET[module]}.{leaf}"


def _vae(name, levels):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.match(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.*)", name):
        side, i, rest = match.groups()
        return f"{side}.mid.block_{int(i) + 1}.{rest}"
    if match := re.match(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)\.(\w+)", name):
        side, module, leaf = match.groups()
        return f"{side}.mid.attn_1.{_VAE_ATTENTION[module]}.{leaf}"
    if match := re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(.*)", name):
        side, way, level, rest = match.groups()
        level = levels - 1 - int(level) if way == "up" else level  # LDM numbers the levels by their resolution
        for ours, theirs in (("resnets", "block"), ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample")):
            rest = rest.replace(ours, theirs)
        return f"{side}.{way}.{level}.{rest}"
    return name


def _openclip(name):
    name = name.removeprefix("text_model.")
    if name == "embeddings.token_embedding.weight":
        return OPENCLIP + "token_embedding.weight", None
    if name == "embeddings.position_embedding.weight":
        return OPENCLIP + "positional_embedding", None
    if name.startswith("final_layer_norm."):
        return OPENCLIP + name.replace("final_layer_norm", "ln_final"), None
    layer, module, leaf = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(\w+)", name).groups()
    block = f"{OPENCLIP}transformer.resblocks.{layer}."
    if module == "self_attn.out_proj":
        return f"{block}attn.out_proj.{leaf}", None
    if module.startswith("self_attn."):
        return f"{block}attn.in_proj_{leaf}", ("q_proj", "k_proj", "v_proj").index(module.removeprefix("self_attn."))
    return f"{block}{_OPENCLIP_LAYER[module]}.{leaf}", None
