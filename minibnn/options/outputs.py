"""Can what a command will write be written? Asked before the work begins, which may take hours."""

import dataclasses
import os
import stat
import tempfile
from pathlib import Path

from ..errors import UserError

OUTPUTS = ("out", "work", "dog", "pairs")  # the options that name what a command writes


def check_outputs(options):
    """Refuse what cannot be written. options: of any command, a dataclass. Raises UserError."""
    for field in dataclasses.fields(options):
        path = getattr(options, field.name)
        if field.name not in OUTPUTS or not path:
            continue
        try:
            try_to_write(path)
        except OSError as error:
            raise UserError(f"--{field.name} {path} cannot be written: {error.strerror}; name another place") from None
        if field.metadata["argparse"]["metavar"] == "DIR" and os.path.isfile(path):
            raise UserError(f"--{field.name} {path} is a file; name a folder")


def try_to_write(path):
    """Make and delete a file without a name where a path is or would be. Raises OSError; leaves nothing."""
    folder = Path(path).absolute()
    while True:
        try:
            if stat.S_ISDIR(os.stat(folder).st_mode):
                break
        except FileNotFoundError:
            pass
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass
