"""What failed of the work that processes share (`claims.py`): a file for each piece, which says why.

A process does not try again what failed in it, and others try it once more at most, for the fault may be a machine's.
A process that begins later tries everything again: somebody may have mended it.
"""

import os
import socket
import traceback
from pathlib import Path

from ..errors import UserError
from .schema import integer, record, text
from .store import read_json, write_json

TRIES = 2  # of all processes together, from the beginning of each on
FAILURE = {"name": text, "why": text, "tries": integer(1), "where": text, "traceback": text}


class Failures:
    """The files NAME.json in a folder. Only the process that has claimed a piece of work writes or deletes its file."""

    def __init__(self, folder):
        self.folder, self.own = Path(folder), set()
        self.before = {name: held["tries"] for name, held in self.noted().items()}

    def noted(self):
        """{name of what failed: {"why", "tries", …}}. Raises UserError for damaged files."""
        found, kind = {}, record(FAILURE, required=FAILURE)
        for path in sorted(self.folder.glob("*.json")):
            try:
                found[path.stem] = read_json(path, kind)
            except UserError:
                if path.exists():  # else it has just been done after all
                    raise
        return found

    def note(self, name, error):
        """Note that the work of this name failed with an exception."""
        self.own.add(name)
        tries = self.noted().get(name, {"tries": 0})["tries"] + 1
        where = f"process {os.getpid()} on {socket.gethostname()}"
        write_json(self.folder / f"{name}.json", {"name": name, "why": describe(error), "tries": tries, "where": where,
                                                  "traceback": "".join(traceback.format_exception(error))})

    def forget(self, name):
        """The work of this name was done after all."""
        self.own.discard(name)
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def left_out(self):
        """The names of what this process does not try again."""
        tried = {name for name, held in self.noted().items() if held["tries"] >= self.before.get(name, 0) + TRIES}
        return self.own | tried


def describe(error):
    """An exception in one line."""
    words = " ".join(str(error).split())
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}"[:300]
