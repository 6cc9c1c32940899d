"""Adapter files written for other programs; `adapter_reading.py` reads these and others. LAYER is the name of a layer.

    pytorch_lora_weights.safetensors   diffusers: pipe.load_lora_weights(RUN)
                                       unet.LAYER.lora.down.weight, unet.LAYER.lora.up.weight
    adapter_model.safetensors, with    peft: PeftModel.from_pretrained(pipe.unet, RUN)
    adapter_config.json                base_model.model.LAYER.lora_A.weight, ….lora_B.weight; for OFT ….oft_R.weight
    lora_kohya.safetensors             ComfyUI, AUTOMATIC1111, kohya's tools, diffusers
                                       lora_unet_LAYER.lora_down.weight, ….lora_up.weight, ….alpha

For diffusers B is written times α/r, because only diffusers from 0.34 on looks for another strength (in the header, see
`adapter_settings.py`); peft and kohya files hold B and α. peft's OFT parameter is the upper triangle of −½(Q − Qᵀ),
because its R = (I − S)(I + S)⁻¹.

But: adapters of the UNet's linear layers; one rank for a whole file.
"""

from pathlib import Path

import torch

from ..files.store import write_json
from ..files.weights import read_tensors, write_tensors
from . import oft
from .adapter_settings import PEFT, PEFT_CONFIG
from .adapters import adapters

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"
FILES = {"diffusers": DIFFUSERS, "peft": PEFT, "kohya": KOHYA}
# The names of down and up; {} is the layer's name, and {_} the same with underscores for dots.
NAMINGS = {
    "diffusers": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "kohya": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight"),
}
KOHYA_ALPHA = "lora_unet_{_}.alpha"
OFT_NAME = "base_model.model.{}.oft_R.weight"


def _name(naming, layer):
    return naming.replace("{_}", layer.replace(".", "_")).replace("{}", layer)


def is_adapter(path):
    """True for a file, or a folder with a file that a run of LoRA or OFT leaves."""
    path = Path(path)
    return path.is_file() or (path / DIFFUSERS).exists() or (path / PEFT).exists()


def file_of(run):
    """The file of the LoRA or OFT in a run's folder that is merged into its model."""
    return next(path for path in (Path(run) / DIFFUSERS, Path(run) / PEFT) if path.exists())


def lora_of(network):
    """{layer: (down (r, in), up (out, r), α)} of every LoRA in the network, at the mean."""
    return {name: (a.down.detach(), a.up.detach(), a.scale * len(a.down)) for name, a in adapters(network).items()}


def oft_of(network):
    """{layer: Q (blocks, b, b)} of every OFT in the network, at the mean."""
    return {name: adapter.q.detach() for name, adapter in adapters(network).items()}


def read_run_lora(folder, alpha):
    """What `lora_of` gave when the LoRA run in this folder was saved; alpha: its α."""
    tensors = read_tensors(Path(folder) / DIFFUSERS)
    down_name, up_name = NAMINGS["diffusers"]
    before, after = down_name.split("{}")
    layers = [name[len(before) : -len(after)] for name in tensors if name.endswith(after)]
    lora = {}
    for layer in layers:
        down, up = tensors[_name(down_name, layer)], tensors[_name(up_name, layer)]
        lora[layer] = down, up / (alpha / len(down)), alpha
    return lora


def read_run_oft(folder):
    """What `oft_of` gave when the OFT run in this folder was saved, as far as a rotation depends on it: ½(Q − Qᵀ)."""
    before, after = OFT_NAME.split("{}")
    rotations = {}
    for name, triangles in read_tensors(Path(folder) / PEFT).items():
        rotations[name[len(before) : -len(after)]] = skew_of(triangles)
    return rotations


def skew_of(triangles):
    """S = ½(Q − Qᵀ) of peft's OFT parameter: (blocks, b(b−1)/2) -> (blocks, b, b)."""
    size = round((1 + (1 + 8 * triangles.shape[1]) ** 0.5) / 2)
    s = triangles.new_zeros(len(triangles), size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    s[:, rows, columns] = -triangles
    return s - s.mT


def write_lora(lora, path, program, base, header, dtype=None):
    """Write a LoRA, as `lora_of` gives it, for "diffusers", "peft" or "kohya".

    path: of the file; for peft its folder, where adapter_config.json is written too. base: the name of the model, which
    peft's file tells to people. header: what `headers.lora_header` returns. dtype: of the matrices; None: as they are.
    """
    down_name, up_name = NAMINGS[program]
    tensors = {}
    for layer, (down, up, alpha) in lora.items():
        rank = len(down)
        folded = up * (alpha / rank) if program == "diffusers" else up
        tensors[_name(down_name, layer)] = down.to(dtype or down.dtype)
        tensors[_name(up_name, layer)] = folded.to(dtype or up.dtype)
        if program == "kohya":
            tensors[_name(KOHYA_ALPHA, layer)] = torch.tensor(alpha)
    shown = rank if program == "diffusers" else alpha
    header = header | {"ss_network_dim": str(rank), "ss_network_alpha": f"{shown:g}"}
    write_tensors(Path(path) / PEFT if program == "peft" else path, tensors, header)
    if program == "peft":
        _write_peft_config(lora, path, base, {"peft_type": "LORA", "r": rank, "lora_alpha": alpha})


def write_oft(rotations, folder, base, header, dtype=None):
    """Write an OFT, as `oft_of` gives it, for peft; the rest as in `write_lora`."""
    tensors = {}
    for layer, q in rotations.items():
        rows, columns = torch.triu_indices(q.shape[1], q.shape[2], 1)
        tensors[_name(OFT_NAME, layer)] = -oft.skew(q)[:, rows, columns].to(dtype or q.dtype)
    write_tensors(Path(folder) / PEFT, tensors, header)
    settings = {"peft_type": "OFT", "r": len(q), "oft_block_size": 0, "use_cayley_neumann": False}
    _write_peft_config(rotations, folder, base, settings)


def _write_peft_config(layers, folder, base, settings):
    common = {
        "base_model_name_or_path": base, "target_modules": sorted(layers), "bias": "none", "task_type": None,
        "inference_mode": True, "fan_in_fan_out": False,
    }
    write_json(Path(folder) / PEFT_CONFIG, settings | common)
