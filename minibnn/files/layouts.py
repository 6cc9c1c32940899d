"""Which tensor of an official weight file belongs where in our networks, checked name by name and shape by shape.

Follows: the files of the official repositories (runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-*,
CompVis single files). Our attribute names are the names in the diffusers layout, so that only exceptions need a table:
older VAE files, text encoders without their prefix, and the single-file layout (`ldm.py`).
"""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Self

import torch
from torch import nn

from ..errors import UserError
from . import ldm
from .hollow import hollow
from .schema import fitting, integer, optional, record
from .weights import WeightsError, check_finite, open_weights, shapes_of

log = logging.getLogger("minibnn")
SIZE = integer(1, 2**16)  # of channels and the like, in a config.json

POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers < 0.12
# Tensors that belong to no computation of ours: constants, and the halves of CLIP that make no context.
UNUSED = re.compile(
    r"position_ids$|^(vision_model|visual_projection|text_projection|logit_scale|loss|model_ema)\b"
    r"|^cond_stage_model\.((transformer|model)\.)?(text_projection(\.weight)?|logit_scale|attn_mask)$"
)


def check_config(config_class, values, component):
    """The values of an official config.json (a dict, or None for the defaults) as a `config_class`.

    Raises UserError, naming key and value, for a value that this code does not implement.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = values or {}
    known, own = {}, values.get("text_config") or values
    kinds = {key: optional(kind) for key, kind in config_class.KINDS.items()}
    fitting(own, record(kinds), f"{component} config")
    for key, value in own.items():  # text_config: in the file of a whole CLIPModel
        if key in fields:
            if value is not None:
                known[key] = tuple(value) if isinstance(value, list) else value
        elif not _is_implemented(config_class, key, value):
            raise UserError(f"{component} config: {key} = {value!r} is not implemented")
    return config_class(**known)


def _is_implemented(config_class, key, value):
    """Whether the networks compute what this setting, which is not a field of the class, asks for."""
    if key in config_class.FIXED:
        return value is None or value == config_class.FIXED[key]
    ignored = config_class.IGNORED is None or key in config_class.IGNORED or key.startswith("_")
    return ignored or not value  # an unknown option that is off changes nothing


def is_single_file(names):
    """True for a file that holds a whole model in the LDM layout."""
    return any(name.startswith("model.diffusion_model.") for name in names)


def find_tensors(part, network, shapes):
    """Where a file holds each tensor of the network: {our name: (name in the file, third)}, as `ldm.ldm_name` has them.

    network: on any device, also "meta". shapes: {name in the file: shape}. Raises WeightsError with a list of misfits.
    """
    openclip = any(name.startswith(ldm.OPENCLIP) for name in shapes)
    found, missing, wrong = {}, [], []
    for name, tensor in network.state_dict().items():
        present = [c for c in _candidates(part, name, network.config, openclip) if c[0] in shapes]
        if not present:
            missing.append(name)
            continue
        candidate, third = found[name] = present[0]
        shape, wanted = list(shapes[candidate]), list(tensor.shape)
        if third is not None:
            shape[0] //= 3
        if without_ones(shape) != without_ones(wanted):
            wrong.append(f"{candidate} {shape} instead of {wanted}")
    used = {candidate for candidate, _ in found.values()}
    prefix = ldm.PREFIX[part] if any(name.startswith(ldm.PREFIX[part]) for name in used) else ""
    surplus = [n for n in shapes if n.startswith(prefix) and n not in used and not UNUSED.search(n)]
    if openclip:  # SD v2 stops before CLIP's last layer, but its single files hold that layer too
        surplus = [n for n in surplus if f"resblocks.{network.config.num_hidden_layers}." not in n]
    if missing or wrong or surplus:
        raise WeightsError(_mismatch(part, missing, surplus, wrong, shapes))
    return found


def _candidates(part, name, config, openclip):
    """The names, with `third`, under which a file may hold our tensor `name`."""
    yield name, None
    if part == "vae":
        for new, old in OLD_VAE_NAMES.items():
            if f".{new}." in name:
                yield name.replace(f".{new}.", f".{old}."), None
    if part == "text_encoder":
        yield name.removeprefix("text_model."), None
        yield "cond_stage_model.transformer." + name.removeprefix("text_model."), None
    ldm_name, third = ldm.ldm_name(part, name, config, openclip)
    yield ldm_name, third
    yield ldm_name.removeprefix(ldm.PREFIX[part]), third


def without_ones(shape):
    """[out, in] for the shape (out, in, 1, 1), because a 1 × 1 convolution is a linear layer; a list."""
    return [*shape[:2]] if [*shape[2:]] == [1, 1] else [*shape]


def _mismatch(part, missing, surplus, wrong, shapes):
    lines = [f"the file does not hold this {part}{_guess(part, shapes)}"]
    for what, names in (("missing", missing), ("not expected", surplus), ("of another shape", wrong)):
        if names:
            more = f", … ({len(names) - 4} more)" if len(names) > 4 else ""
            lines.append(f"{len(names)} {what}: {', '.join(names[:4])}{more}")
    return "; ".join(lines)


def _guess(part, shapes):
    """What kind of file this probably is, as far as its names show."""
    names = " ".join(shapes)
    context = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    if "lora" in names:
        return ": this is a LoRA file, not a model; pass the model it was made for"
    if "conditioner.embedders" in names or "add_embedding" in names or 2048 in context:
        return ": this is an SDXL checkpoint; minibnn reads Stable Diffusion v1.x and v2.x"
    if "joint_blocks" in names or "double_blocks" in names or "context_embedder" in names:
        return ": this is a transformer model (SD 3, Flux); minibnn reads Stable Diffusion v1.x and v2.x"
    if part != "unet":
        return ": this is a UNet" if context and not is_single_file(shapes) else ""
    first = shapes.get("conv_in.weight") or shapes.get("model.diffusion_model.input_blocks.0.0.weight")
    if first and first[1] == 9:
        return ": this is an inpainting model (9 input channels)"
    if not context:
        return "" if "vision_model" in names or "down_blocks.0.attentions" in names else ": there is no UNet in it"
    if context[0] == 1024:
        return ": this looks like SD v2; give its config (cross_attention_dim 1024, …)"
    return ": this looks like SD v1" if context[0] == 768 else ""


class Network(nn.Module):
    """A network that can be read from official files. A subclass names its configuration class, its class in official
    configurations, and the part of a model that it is: "unet", "vae" or "text_encoder"."""

    @classmethod
    def from_file(cls, path: Path | str, config: dict | None = None, dtype: torch.dtype | None = None) -> Self:
        """Read the network's own file, or a single file of a whole model. Returns it in evaluation mode.

        path: a .safetensors file. config: the values of the official config.json; None means SD v1.5. dtype: None keeps
        the file's; tensors then stay mapped from the file and take no other memory. Raises WeightsError or UserError,
        naming the tensors or keys that do not fit.
        """
        with hollow():
            network = cls(check_config(cls.Config, config, cls.official_class))
        with open_weights(path) as file:
            shapes = shapes_of(file)
            if cls.part == "unet" and any(name.startswith("model_ema.") for name in shapes):
                log.warning("%s holds EMA copies too; the model weights are used, not the EMA weights", path)
            try:
                found = find_tensors(cls.part, network, shapes)
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}") from None
            state = {}
            for name, tensor in network.state_dict().items():
                key, third = found[name]
                value = file.get_tensor(key)
                if not value.is_floating_point():
                    raise WeightsError(f"{path}: {key} holds {str(value.dtype).removeprefix('torch.')}, no weights")
                value = value if third is None else value.chunk(3)[third].clone()
                state[name] = value.reshape(tensor.shape).to(dtype or value.dtype)
        network.load_state_dict(check_finite(state, path), strict=True, assign=True)
        return network.eval()


def single_file_tensors(parts, openclip):
    """The tensors {name: tensor} of a single file with these networks, {part: network}. openclip: for SD v2."""
    tensors, thirds = {}, {}
    for part, network in parts.items():
        for name, tensor in network.state_dict().items():
            key, third = ldm.ldm_name(part, name, network.config, openclip)
            if third is not None:
                thirds.setdefault(key, {})[third] = tensor
                continue
            is_vae_attention = part == "vae" and ".mid.attn_1." in key and tensor.ndim == 2
            tensors[key] = tensor[:, :, None, None] if is_vae_attention else tensor
    if "text_encoder" in parts and not openclip:  # it is a constant, but the official file holds it
        length = parts["text_encoder"].config.max_position_embeddings
        tensors[POSITION_IDS] = torch.arange(length)[None]
    tensors |= {key: torch.cat([stack[i] for i in range(3)]) for key, stack in thirds.items()}
    if "text_encoder" in parts and openclip:
        tensors |= _unused_half(tensors, parts["text_encoder"].config)
    return tensors


def _unused_half(tensors, config):
    """What an official file of SD v2 holds beyond our text encoder, and no program computes with: CLIP's last layer,
    here a copy of the one before, and its projection. Without them ComfyUI complains of missing tensors."""
    last, beyond = (f"{ldm.OPENCLIP}transformer.resblocks.{config.num_hidden_layers - 1 + i}." for i in (0, 1))
    copies = {name.replace(last, beyond): value.clone() for name, value in tensors.items() if name.startswith(last)}
    width = tensors[ldm.OPENCLIP + "ln_final.weight"]
    projection = torch.eye(config.hidden_size, dtype=width.dtype, device=width.device)
    scale = torch.tensor(4.6052, dtype=width.dtype)  # ln 100, as in every CLIP
    return copies | {ldm.OPENCLIP + "text_projection": projection, ldm.OPENCLIP + "logit_scale": scale}
