"""Files of lines, each a JSON object (.jsonl): what a training or an experiment notes while it goes on."""

import json
from pathlib import Path

from ..errors import UserError
from .schema import fitting, record
from .store import read_text, write_text


def read_rows(path, schema=None, required=()):
    """The lines of a .jsonl file as dicts, oldest first; [] if there is no file.

    schema, required: as for `schema.record`. A last line that a kill has cut off counts for nothing. Raises UserError,
    naming file and line, for any other damage and for a value that does not fit.
    """
    path, kind = Path(path), record(schema or {}, required)
    *lines, last = read_text(path).split("\n") if path.exists() else [""]
    rows = []
    for i, line in enumerate([*lines, *([last] if is_whole(last) else [])], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {i}: not valid JSON ({error})") from None
        rows.append(fitting(row, kind, f"{path}, line {i}"))
    return rows


def write_rows(path, rows):
    """Write dicts as the lines of a .jsonl file, the whole file or nothing. Raises UserError as `store.write_whole`."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def is_whole(line):
    """Whether a line without an end, the last of a file, holds all of its JSON."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
