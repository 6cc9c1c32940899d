"""The folder of a network trained beside a frozen model: its weights, and config.json, by which it is opened."""

from pathlib import Path

import torch

from ..errors import UserError
from ..files.digests import of_networks
from ..files.schema import fitting, record
from ..files.store import read_json, write_json
from ..files.weights import read_tensors, write_tensors

KINDS = {  # option and name of the file: (format in config.json, command that makes it)
    "branch": ("minibnn bps", "bps"), "corrector": ("minibnn corrector", "rectified --train"),
}


def check_free(out, kind):
    """Refuse a folder whose config.json is that of something else, as of a run. Raises UserError."""
    path = Path(out) / "config.json"
    if path.exists() and read_json(path).get("format") != KINDS[kind][0]:
        raise UserError(f"--out {out}: {path} is of something else and would be replaced: name another folder")


def fingerprint(*networks):
    """The digest of the networks' weights in float16: the same for a model in float32 and its halves."""
    return of_networks(*networks, dtype=torch.float16)


def save(network, folder, kind, config):
    """Write KIND.safetensors and config.json, {"format", **config}. A kill leaves no old one beside new weights."""
    path = Path(folder) / "config.json"
    path.unlink(missing_ok=True)
    write_tensors(path.with_name(f"{kind}.safetensors"), network.state_dict())
    write_json(path, {"format": KINDS[kind][0], **config})


def read(folder, kind, schema):
    """(config, {name: tensor} of the weights). schema: what the config must hold. Raises UserError."""
    path, (own, command) = Path(folder) / "config.json", KINDS[kind]
    config = read_json(path) if path.exists() else {}
    if config.get("format") != own:
        raise UserError(f"--{kind} {folder} is not a folder of `python -m minibnn {command}`")
    return fitting(config, record(schema, schema), path), read_tensors(path.with_name(f"{kind}.safetensors"))
