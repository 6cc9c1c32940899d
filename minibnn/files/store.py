"""Reading and writing files. A damaged file gives one clear line, and a file is written whole or not at all.

But: weights come from safetensors files only. A pickle can run code when it is opened, and is refused.
"""

import contextlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError

ASSETS = Path(__file__).parents[1] / "assets"  # the bundled model and the other files of the package
UMASK = os.umask(0)
os.umask(UMASK)
PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


class WeightsError(UserError):
    """A weight file that is missing, damaged, or does not fit the network."""


def read_json(path):
    """The object in a JSON file, a dict. Raises UserError when it is missing or damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise UserError(f"{path} holds no JSON object")
        return value
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None


# --- reading ----------------------------------------------------------------------------------------------------------


def open_weights(path):
    """An open safetensors file whose tensors are mapped from disk when asked for. Raises WeightsError."""
    path = Path(path)
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
        reason = f"({path.stat().st_size} bytes) is damaged or is no safetensors file ({error})"
        raise WeightsError(f"{path} {reason}: download it again") from None


def read_tensors(path):
    """All tensors of a file, {name: tensor}. Raises WeightsError, as `open_weights` does."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def shapes_of(file):
    """The shapes of all tensors of an open file, {name: shape}, without reading the tensors."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# --- writing ----------------------------------------------------------------------------------------------------------


def write_whole(path, write):
    """Call `write(temporary path)` and rename the result, so that `path` holds the old file or the whole new one.

    Raises UserError when the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.chmod(temporary, 0o666 & ~UMASK)  # safetensors makes files that only their owner can read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; free some space or choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path, text):
    """Write a text file whole, in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path, value):
    """Write a JSON file whole, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path, tensors, metadata=None):
    """Write {name: tensor} as a whole safetensors file. metadata: {str: str} to write beside "format": "pt"."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"} | (metadata or {})))
