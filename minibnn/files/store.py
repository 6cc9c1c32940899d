"""Reading and writing files of text and JSON. A damaged one gives one clear line; all are written whole or not at all.

Without torch, so that options can be read at once; `weights.py` has the files of tensors.
"""

import contextlib
import json
import math
import os
from pathlib import Path

from ..errors import UserError
from .schema import fitting

ASSETS = Path(__file__).parents[1] / "assets"  # the bundled models and the other files of the package
UMASK = os.umask(0)
os.umask(UMASK)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_json(path, kind=None):
    """The object in a JSON file, a dict. kind: what it must be (`schema.py`).

    Raises UserError, naming the file, when it is missing, damaged or of another kind.
    """
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return fitting(value, kind, path) if kind else value


def read_text(path):
    """The text of a file in UTF-8. Raises UserError, naming the file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def parse_json(text, place):
    """The value that a JSON text holds; NaN and Infinity, which are not JSON, are refused. Raises UserError.

    place: what the text is, for the message.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; brackets within brackets
        raise UserError(f"{place} is not valid JSON ({error})") from None


def _no_constant(word):
    raise ValueError(f"{word} is not a JSON number")


# --- writing ----------------------------------------------------------------------------------------------------------


class CannotWrite(UserError):
    """The disk is full, or the folder may not be written to."""


def write_whole(path, write):
    """Call `write(temporary path)` and rename the result, so that `path` holds the old file or the whole new one.

    Raises CannotWrite.
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
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error}; free some space or choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path, text):
    """Write a text file whole, in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_text(path, text):
    """Add text to the end of a file, in UTF-8; a kill may leave a part of it. Raises UserError, naming the file."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space, or let it be written to") from None


def write_json(path, value):
    """Write a JSON file whole, readable by people. NaN and infinite numbers, which are not JSON, become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value):
    """The same dicts, lists and values with None for each float that is not finite."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
