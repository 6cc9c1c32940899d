"""Adapter files: written for other programs, and read from them.

    file                                          opened by                                       a layer's tensors
    pytorch_lora_weights.safetensors              diffusers: pipe.load_lora_weights(RUN)          unet.….lora.down.weight, .lora.up.weight
    adapter_config.json, adapter_model.safetensors  peft: PeftModel.from_pretrained(pipe.unet, RUN)  base_model.model.….lora_A.weight, .lora_B.weight; .oft_R.weight
    lora_kohya.safetensors                        ComfyUI, AUTOMATIC1111, diffusers               lora_unet_….lora_down.weight, .lora_up.weight, .alpha

diffusers computes W + B A whatever α is: there α/r is multiplied into B; peft and kohya files keep B and say α. peft's OFT
parameter is the upper triangle of −½(Q − Qᵀ), because its R = (I − S)(I + S)⁻¹.

But: only UNets and linear layers; no text encoder, no DoRA, no LoRA of convolutions; one rank for a whole peft file.
"""

from pathlib import Path

import torch
from torch import nn

from ..files.store import WeightsError, open_weights, read_json, shapes_of, write_json, write_tensors
from . import lora, oft
from .adapters import adapters

DIFFUSERS = "pytorch_lora_weights.safetensors"
PEFT_CONFIG, PEFT = "adapter_config.json", "adapter_model.safetensors"
KOHYA = "lora_kohya.safetensors"
# Names of down, up and α; {} is the layer's name, {_} the same with underscores for dots.
NAMINGS = (
    ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", None),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", None),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None),
    ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight", "lora_unet_{_}.alpha"),
)
OFT_NAME = "base_model.model.{}.oft_R.weight"
# What would change the computation, if a peft file says so.
NOT_IMPLEMENTED = (
    "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "block_share", "use_cayley_neumann",
)  # fmt: skip


def _name(naming, layer):
    return naming and naming.replace("{_}", layer.replace(".", "_")).replace("{}", layer)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_diffusers_lora(network, folder):
    """pytorch_lora_weights.safetensors: every LoRA of the network at the mean, α/r folded into up."""
    _write_lora(network, Path(folder) / DIFFUSERS, NAMINGS[0], folded=True)


def write_kohya_lora(network, folder):
    """lora_kohya.safetensors, with α beside each pair of matrices."""
    _write_lora(network, Path(folder) / KOHYA, NAMINGS[3], folded=False)


def write_peft_lora(network, folder, base):
    """adapter_model.safetensors and adapter_config.json. base: name of the model, for people."""
    _write_lora(network, Path(folder) / PEFT, NAMINGS[2], folded=False)
    rank, scale = next((len(a.down), a.scale) for a in adapters(network).values())
    _write_peft_config(network, folder, base, {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank})


def _write_lora(network, path, naming, folded):
    down, up, alpha = naming
    tensors = {}
    for name, adapter in adapters(network).items():
        tensors[_name(down, name)] = adapter.down
        tensors[_name(up, name)] = adapter.up * adapter.scale if folded else adapter.up
        if alpha:
            tensors[_name(alpha, name)] = torch.tensor(adapter.scale * len(adapter.down))
    write_tensors(path, tensors)


def write_peft_oft(network, folder, base):
    """adapter_model.safetensors and adapter_config.json of every OFT of the network, at the mean."""
    tensors = {}
    for name, adapter in adapters(network).items():
        rows, columns = torch.triu_indices(*adapter.q.shape[1:], 1)
        tensors[_name(OFT_NAME, name)] = -oft.skew(adapter.q.detach())[:, rows, columns]
        blocks = len(adapter.q)
    write_tensors(Path(folder) / PEFT, tensors)
    settings = {"peft_type": "OFT", "r": blocks, "oft_block_size": 0, "use_cayley_neumann": False}
    _write_peft_config(network, folder, base, settings)


def _write_peft_config(network, folder, base, settings):
    common = {
        "base_model_name_or_path": base, "target_modules": sorted(adapters(network)), "bias": "none", "task_type": None,
        "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip
    write_json(Path(folder) / PEFT_CONFIG, settings | common)


# --- reading ----------------------------------------------------------------------------------------------------------


def is_adapter(path):
    """True for a file, or a folder with a file, that `merge_file` would try to read."""
    path = Path(path)
    return path.is_file() or (path / DIFFUSERS).exists() or (path / PEFT).exists()


@torch.no_grad()
def merge_file(network, path):
    """Add an adapter's file, or the one in a folder, to the network's weights in place (dtype and device stay).

    Reads LoRA in the three layouts above and peft's OFT. Raises WeightsError naming what is missing or does not fit.
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
    linear = {name: layer for name, layer in network.named_modules() if type(layer) is nn.Linear}
    with open_weights(path) as file:
        shapes = shapes_of(file)
        changes = _read_oft(file, shapes, linear) if config.get("peft_type") == "OFT" else _read_lora(file, shapes, linear, config)
        _refuse_misfits(path, shapes, linear, changes)
        for name, (_, merged) in changes.items():
            weight = linear[name].weight
            weight.copy_(merged(weight))


def _read_lora(file, shapes, linear, config):
    """{layer: ({tensor: wanted shape or None}, merged(W) -> W + (α/r)·B A)}."""
    changes = {}
    for layer in linear:
        for naming in NAMINGS:
            down, up, alpha = (_name(part, layer) for part in naming)
            if down not in shapes or up not in shapes:
                continue
            rank = shapes[down][0]
            fits = {down: (rank, linear[layer].in_features), up: (linear[layer].out_features, rank)}
            if alpha in shapes:
                fits[alpha] = ()

            def merged(weight, down=down, up=up, alpha=alpha, rank=rank):
                a = file.get_tensor(alpha).item() if alpha in shapes else config.get("lora_alpha", rank)
                change = lora.delta(file.get_tensor(down), file.get_tensor(up), a / rank)
                return weight + change.to(weight.device)

            changes[layer] = (fits, merged)
    return changes


def _read_oft(file, shapes, linear):
    """{layer: ({tensor: wanted shape}, merged(W) -> W Rᵀ)}."""
    changes = {}
    for layer in linear:
        name = _name(OFT_NAME, layer)
        if name not in shapes:
            continue
        blocks = shapes[name][0]
        size = linear[layer].in_features // blocks
        fits = {name: (blocks, size * (size - 1) // 2)}

        def merged(weight, name=name, blocks=blocks, size=size):
            rows, columns = torch.triu_indices(size, size, 1)
            q = torch.zeros(blocks, size, size)
            q[:, rows, columns] = -file.get_tensor(name).float()
            return oft.rotate(weight, oft.cayley(q - q.mT).to(weight.device))

        changes[layer] = (fits, merged)
    return changes


def _refuse_misfits(path, shapes, linear, changes):
    """Raises WeightsError unless every tensor of the file has found its layer, in the right shape."""
    wanted = {name: shape for fits, _ in changes.values() for name, shape in fits.items()}
    strange = [name for name in shapes if name not in wanted]
    wrong = [name for name, shape in wanted.items() if shapes[name] != shape]
    if not wanted:
        raise WeightsError(f"{path} holds no LoRA or OFT for this UNet's linear layers (its first tensor: {min(shapes, default='none')})")
    if strange:
        raise WeightsError(
            f"{path}: {len(strange)} of {len(shapes)} tensors belong to no linear layer of this UNet, as {strange[0]}; "
            "it was made for another model, or also for the text encoder"
        )
    if wrong:
        raise WeightsError(
            f"{path} was made for another model: {wrong[0]} is {list(shapes[wrong[0]])}, this UNet needs {list(wanted[wrong[0]])}"
        )
