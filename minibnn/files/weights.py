"""Reading and writing files of tensors: a damaged one gives one clear line, and all are written whole or not at all.

But: weights come from safetensors files only. A pickle can run code when it is opened, and is refused.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from .schema import mapping, record, text
from .store import read_json, write_whole

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class WeightsError(UserError):
    """A weight file that is missing, damaged, or does not fit the network."""


class NotFinite(UserError):
    """Tensors that were about to be written hold NaN or infinite values; what was there before still is."""


# --- reading ----------------------------------------------------------------------------------------------------------


def open_weights(path):
    """An open safetensors file whose tensors are mapped from disk when asked for. Raises WeightsError.

    path: of the file, or of the index (….safetensors.index.json) of several files that are opened as one.
    """
    path = Path(path)
    if path.suffix == ".json":
        return Shards(path)
    if path.suffix in PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which can run code when opened, and is not read. Convert it on a machine you can "
            'spare: python -c "import torch, safetensors.torch as s; '
            "d = torch.load('FILE', map_location='cpu', weights_only=True); s.save_file({k: v.contiguous() "
            "for k, v in d.get('state_dict', d).items()}, 'FILE.safetensors', {'format': 'pt'})\""
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = f"({path.stat().st_size} bytes) is damaged or not a safetensors file ({error})"
        raise WeightsError(f"{path} {reason}: download it again") from None


class Shards:
    """Several safetensors files as one, by their index: {"weight_map": {tensor: file in the same folder}}.

    It has those methods of an open file that are used here. Raises UserError, naming the file or tensor.
    """

    def __init__(self, index):
        names = read_json(index, record({"weight_map": mapping(text)}, required=["weight_map"]))["weight_map"]
        if outside := [name for name in names.values() if Path(name).name != name]:
            raise WeightsError(f"{index} names {outside[0]!r}, which is not a file of the same folder")
        files = {name: open_weights(index.with_name(name)) for name in sorted(set(names.values()))}
        held = {name: set(file.keys()) for name, file in files.items()}
        for tensor, name in names.items():
            if tensor not in held[name]:
                raise WeightsError(f"{index} says that {tensor} is in {name}, but it is not: download them again")
        self.files = {tensor: files[name] for tensor, name in names.items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.files = {}

    def keys(self):
        return self.files.keys()

    def metadata(self):
        return {}

    def get_slice(self, name):
        return self.files[name].get_slice(name)

    def get_tensor(self, name):
        return self.files[name].get_tensor(name)


def read_tensors(path):
    """All tensors of a file, {name: tensor}. Raises WeightsError, as `open_weights` does, or for NaN among them."""
    with open_weights(path) as file:
        return check_finite({name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118


def check_finite(tensors, path):
    """The tensors {name: tensor} that were read from a file. Raises WeightsError, naming one that is not finite."""
    if name := not_finite(tensors):
        raise WeightsError(f"{path}: {name} holds NaN or infinite values, with which nothing can be computed")
    return tensors


@torch.no_grad()
def not_finite(tensors):
    """The name of the first of the tensors {name: tensor} that holds NaN or an infinite value; None if none does.

    A minimum and a maximum take a hundredth of the time of `isfinite().all()`: 0.2 s for the UNet of SD v1.5.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor.float() if tensor.element_size() == 1 else tensor  # the types of 8 bits lack aminmax
            if not all(end.isfinite() for end in wide.aminmax()):  # NaN is passed on
                return name
    return None


def load_state(network, state, complaint):
    """Load {name: tensor} into a network of just these names and shapes; else raises WeightsError(complaint)."""
    there, wanted = ({name: tensor.shape for name, tensor in each.items()} for each in (state, network.state_dict()))
    if there != wanted:
        raise WeightsError(complaint)
    network.load_state_dict(state)


def shapes_of(file):
    """The shapes of all tensors of an open file, {name: shape}, without reading the tensors."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# --- writing ----------------------------------------------------------------------------------------------------------


def write_tensors(path, tensors, metadata=None):
    """Write {name: tensor} as a whole safetensors file. metadata: {str: str} to write beside "format": "pt".

    Raises UserError as `write_whole`, and NotFinite before anything is written.
    """
    if name := not_finite(tensors):
        raise NotFinite(f"{path} is not written: {name} holds NaN or infinite values")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: _save(tensors, temporary, {"format": "pt"} | (metadata or {})))


def _save(tensors, path, metadata):
    """`save_file`, with the OSError of a full disk as Python's own, and with the metadata sorted."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    with open(path, "rb+") as file:  # safetensors writes it in an order of chance, so that bytes would differ
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as it is; else it would reach into the tensors
            file.seek(8)
            file.write(text.ljust(size))
