"""Adapter files: written for other programs, and read from them. LAYER is the name of a layer.

    pytorch_lora_weights.safetensors   diffusers: pipe.load_lora_weights(RUN)
                                       unet.LAYER.lora.down.weight, unet.LAYER.lora.up.weight
    adapter_model.safetensors, with    peft: PeftModel.from_pretrained(pipe.unet, RUN)
    adapter_config.json                base_model.model.LAYER.lora_A.weight, ….lora_B.weight; for OFT ….oft_R.weight
    lora_kohya.safetensors             ComfyUI, AUTOMATIC1111, diffusers
                                       lora_unet_LAYER.lora_down.weight, ….lora_up.weight, ….alpha

diffusers computes W + B A whatever α is, so that B is written times α/r; peft and kohya files hold B and α. peft's OFT
parameter is the upper triangle of −½(Q − Qᵀ), because its R = (I − S)(I + S)⁻¹.

But: only UNets and linear layers; no text encoder, no DoRA, no LoRA of convolutions; one rank for a whole peft file.
"""

from pathlib import Path

import torch
from torch import nn

from ..files.store import WeightsError, read_json, read_tensors, write_json, write_tensors
from . import lora, oft
from .adapters import adapters

DIFFUSERS = "pytorch_lora_weights.safetensors"
PEFT_CONFIG, PEFT = "adapter_config.json", "adapter_model.safetensors"
KOHYA = "lora_kohya.safetensors"
# The names of down, up and α; {} is the layer's name, and {_} the same with underscores for dots.
NAMINGS = {
    "diffusers": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", None),
    "diffusers with peft": ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", None),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None),
    "kohya": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight", "lora_unet_{_}.alpha"),
}
OFT_NAME = "base_model.model.{}.oft_R.weight"
# Settings of a peft file that would change the computation.
NOT_IMPLEMENTED = (
    "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "block_share", "use_cayley_neumann",
)


def _name(naming, layer):
    return naming and naming.replace("{_}", layer.replace(".", "_")).replace("{}", layer)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_lora(network, folder, program, base):
    """Write every LoRA of the network, at the mean, for "diffusers", "peft" or "kohya".

    base: the name of the model, which a peft file tells to people.
    """
    down, up, alpha = NAMINGS[program]
    tensors = {}
    for name, adapter in adapters(network).items():
        rank, scale = len(adapter.down), adapter.scale
        tensors[_name(down, name)] = adapter.down
        tensors[_name(up, name)] = adapter.up * scale if program == "diffusers" else adapter.up
        if alpha:
            tensors[_name(alpha, name)] = torch.tensor(scale * rank)
    write_tensors(Path(folder) / {"diffusers": DIFFUSERS, "peft": PEFT, "kohya": KOHYA}[program], tensors)
    if program == "peft":
        _write_peft_config(network, folder, base, {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank})


def write_oft(network, folder, base):
    """Write every OFT of the network, at the mean, for peft; base as in `write_lora`."""
    tensors = {}
    for name, adapter in adapters(network).items():
        blocks, size, _ = adapter.q.shape
        rows, columns = torch.triu_indices(size, size, 1)
        tensors[_name(OFT_NAME, name)] = -oft.skew(adapter.q.detach())[:, rows, columns]
    write_tensors(Path(folder) / PEFT, tensors)
    settings = {"peft_type": "OFT", "r": blocks, "oft_block_size": 0, "use_cayley_neumann": False}
    _write_peft_config(network, folder, base, settings)


def _write_peft_config(network, folder, base, settings):
    common = {
        "base_model_name_or_path": base, "target_modules": sorted(adapters(network)), "bias": "none",
        "task_type": None, "inference_mode": True, "fan_in_fan_out": False,
    }
    write_json(Path(folder) / PEFT_CONFIG, settings | common)


# --- reading ----------------------------------------------------------------------------------------------------------


def is_adapter(path):
    """True for a file, or a folder with a file, that `merge_file` would try to read."""
    path = Path(path)
    return path.is_file() or (path / DIFFUSERS).exists() or (path / PEFT).exists()


@torch.no_grad()
def merge_file(network, path):
    """Add an adapter's file, or the one in a folder, to the network's weights in place; their dtype and device stay.

    Reads LoRA in the three layouts above and peft's OFT. Raises WeightsError, naming what is missing or does not fit.
    """
    path, config = Path(path), {}
    if path.is_dir():
        name = next((name for name in (DIFFUSERS, PEFT, KOHYA) if (path / name).exists()), None)
        if name is None:
            raise WeightsError(f"no adapter in {path}: there is no {DIFFUSERS}, {PEFT} or {KOHYA}")
        path = path / name
    if path.name == PEFT:
        config = read_json(path.with_name(PEFT_CONFIG))
        for key in NOT_IMPLEMENTED:
            if config.get(key):
                raise WeightsError(f"{path.with_name(PEFT_CONFIG)}: {key} = {config[key]!r} is not implemented")
    is_oft = config.get("peft_type") == "OFT"
    wanted_shapes, merged = (_oft_shapes, _with_oft) if is_oft else (_lora_shapes, _with_lora)
    tensors = read_tensors(path)
    layers = {name: layer for name, layer in network.named_modules() if type(layer) is nn.Linear}
    wanted = {name: shapes for name, layer in layers.items() if (shapes := wanted_shapes(name, layer, tensors))}
    _refuse_misfits(path, tensors, {name: shape for shapes in wanted.values() for name, shape in shapes.items()})
    for name, shapes in wanted.items():
        weight = layers[name].weight
        weight.copy_(merged(weight, [tensors[key] for key in shapes], config))


def _lora_shapes(name, layer, tensors):
    """The names of a layer's LoRA matrices, and of α if it is there, with the shapes that fit; {} without LoRA."""
    for naming in NAMINGS.values():
        down, up, alpha = (_name(part, name) for part in naming)
        if down in tensors and up in tensors:
            rank = len(tensors[down])
            shapes = {down: (rank, layer.in_features), up: (layer.out_features, rank)}
            return shapes | {alpha: ()} if alpha in tensors else shapes
    return {}


def _with_lora(weight, parts, config):
    """W + (α/r)·B A."""
    down, up, *alpha = parts
    alpha = alpha[0].item() if alpha else config.get("lora_alpha", len(down))
    return weight + lora.delta(down, up, alpha / len(down)).to(weight.device)


def _oft_shapes(name, layer, tensors):
    """The name of a layer's OFT parameter with the shape that fits; {} without OFT."""
    name = _name(OFT_NAME, name)
    if name not in tensors:
        return {}
    blocks = len(tensors[name])
    size = layer.in_features // blocks
    return {name: (blocks, size * (size - 1) // 2)}


def _with_oft(weight, parts, config):
    """W Rᵀ."""
    (triangles,) = parts
    size = weight.shape[1] // len(triangles)
    rows, columns = torch.triu_indices(size, size, 1)
    q = torch.zeros(len(triangles), size, size)
    q[:, rows, columns] = -triangles.float()
    return oft.rotate(weight, oft.cayley(q - q.mT).to(weight.device))


def _refuse_misfits(path, tensors, wanted):
    """Raises WeightsError unless every tensor of the file has found its layer and has the wanted shape."""
    if not wanted:
        first = min(tensors, default="none")
        raise WeightsError(f"{path} holds no LoRA or OFT for this UNet's linear layers (its first tensor: {first})")
    strange = [name for name in tensors if name not in wanted]
    if strange:
        raise WeightsError(
            f"{path}: {len(strange)} of {len(tensors)} tensors belong to no linear layer of this UNet, as {strange[0]};"
            " it was made for another model, or also for the text encoder"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            misfit = f"{name} is {list(tensors[name].shape)}, this UNet needs {list(shape)}"
            raise WeightsError(f"{path} was made for another model: {misfit}")
