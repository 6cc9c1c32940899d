"""Adapter files read, and merged into the weights of a model: LoRA of every layout in `adapter_names.py`, peft's OFT.

    LoRA   W + s·(α/r)·B A    for linear layers and convolutions; B A is a product over the rank, whatever the kernel
    OFT    W Rᵀ               for linear layers; a rotation has no strength, so that only s = 1 is taken

Files that hold anything else are refused as a whole: a part of an adapter would draw other pictures without a word.

But: an adapter is merged, and costs nothing when drawing; it cannot be taken out again, or change its strength later.
"""

from pathlib import Path

import torch
from torch import nn

from ..files.layouts import without_ones
from ..files.weights import WeightsError, check_finite, open_weights
from . import lora, oft
from .adapter_files import DIFFUSERS, KOHYA, OFT_NAME, skew_of
from .adapter_names import adaptable, lora_names, meaning
from .adapter_settings import PEFT, lora_strength, read_settings


@torch.no_grad()
def merge_file(parts, path, strength=1.0):
    """Add an adapter's file, or the one in a folder, to the weights of a model in place; dtype and device stay.

    parts: {"unet": network, "text_encoder": network}; strength: s above. Raises WeightsError, naming what is missing
    or does not fit; then no weight is changed.
    """
    path = find_file(path)
    with open_weights(path) as file:
        tensors = check_finite({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
        header = file.metadata() or {}
    settings = read_settings(path, header)
    is_oft = any(values.get("peft_type") == "OFT" for values in settings.values())
    if is_oft and strength != 1:
        raise WeightsError(f"{path} is an OFT: a rotation has no strength, so that {strength:g} cannot be taken")
    find, merged = (_oft_of, _with_oft) if is_oft else (_lora_of, _with_lora)
    found = {}
    for part, network in parts.items():
        for name, layer in adaptable(network).items():
            if names := find(part, name, layer, network.config, tensors):
                found[part, name] = layer, names
    _refuse_misfits(path, tensors, found)
    weights = []
    for (part, name), (layer, names) in found.items():
        values = [tensors[n].float() for n in names]
        weight = merged(layer.weight, values, settings.get(part, {}), name, path, strength)
        weights.append(weight.to(layer.weight.dtype))  # float16 ends at 65504
        check_finite({f"{name}, after it was added,": weights[-1]}, path)
    for (layer, _), weight in zip(found.values(), weights, strict=True):
        layer.weight.copy_(weight)


def find_file(path):
    """The adapter's file: `path` itself, or the one in that folder. Raises WeightsError."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (DIFFUSERS, PEFT, KOHYA):
        if (path / name).exists():
            return path / name
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    for pickle in sorted(path.glob("*.bin")):
        open_weights(pickle)  # raises, and says how to convert it
    several = f"; name one of its {len(others)} .safetensors files" if others else ""
    if (path / "model_index.json").exists():
        several = "; it holds a whole model: draw with it as --model"
    raise WeightsError(f"no adapter in {path}: there is no {DIFFUSERS}, {PEFT} or {KOHYA}{several}")


# --- LoRA -------------------------------------------------------------------------------------------------------------


def _lora_of(part, name, layer, config, tensors):
    """{name in the file: shape that fits} of a layer's down and up matrix, and of α if there is one; {}: no LoRA."""
    names = lora_names(part, name, config, tensors)
    if names is None:
        return {}
    down, up, alpha = names
    out, into, *kernel = layer.weight.shape
    rank = max(1, len(tensors[down]) if tensors[down].ndim else 1)
    wanted = {down: (rank, into, *kernel), up: (out, rank)}
    if alpha:  # in any shape of a single element
        wanted[alpha] = tuple(tensors[alpha].shape) if tensors[alpha].numel() == 1 else ()
    return wanted


def _with_lora(weight, values, settings, name, path, strength):
    """W + s·(α/r)·B A. An α in the file goes before the settings."""
    down, up, *alpha = values
    scale = alpha[0].item() / len(down) if alpha else lora_strength(settings, name, len(down), path)
    change = lora.delta(down.flatten(1), up.flatten(1), strength * scale)  # (out, in·kernel)
    return weight + change.reshape(weight.shape).to(weight.device)


# --- OFT --------------------------------------------------------------------------------------------------------------


def _oft_of(part, name, layer, config, tensors):
    """{name in the file: shape that fits} of a layer's OFT parameter; {} without OFT."""
    name = OFT_NAME.replace("{}", name)
    if name not in tensors or type(layer) is not nn.Linear or not tensors[name].ndim:
        return {}
    blocks = max(1, len(tensors[name]))
    size = layer.in_features // blocks
    return {name: (blocks, size * (size - 1) // 2)}


def _with_oft(weight, values, settings, name, path, strength):
    """W Rᵀ with the R that peft computes: exactly, or by Neumann's series; within a ball for constrained OFT."""
    (triangles,) = values
    s = skew_of(triangles)
    if settings.get("coft"):
        s = oft.project(s, settings.get("eps", 6e-5))
    if settings.get("use_cayley_neumann", True):
        r = oft.neumann(-s, settings.get("num_cayley_neumann_terms", 5))
    else:
        r = oft.cayley(s)
    return oft.rotate(weight, r.to(weight.device))


# --- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_misfits(path, tensors, found):
    """Raises WeightsError unless every tensor of the file has found its layer, and has the wanted shape."""
    wanted = {name: shape for _, names in found.values() for name, shape in names.items()}
    strange = [name for name in tensors if name not in wanted]
    if strange or not wanted:
        why = meaning(strange)
        if wanted or why:
            count = f"{len(strange)} of {len(tensors)} tensors belong to no layer of this model, as {strange[0]}"
            raise WeightsError(f"{path}: {why or count + '; it was made for another model'}")
        first = min(tensors, default="none")
        raise WeightsError(f"{path} holds no LoRA or OFT for this model (its first tensor: {first})")
    for name, shape in wanted.items():
        if without_ones(tensors[name].shape) != without_ones(shape):
            misfit = f"{name} is {list(tensors[name].shape)}, this model needs {list(shape)}"
            raise WeightsError(f"{path} was made for another model: {misfit}")
