"""What an experiment keeps, so that a later call adds to its results instead of repeating them."""

import contextlib
import json

from ..errors import UserError


def read_rows(path):
    """The lines of a .jsonl file, oldest first; none if it does not exist. Damaged lines are dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def check_alike(before, settings, what):
    """Refuse to mix results made with other settings. before, settings: {name: value}; what: the earlier results.

    Raises UserError naming the first setting that differs.
    """
    for name, now in settings.items():
        was = before.get(name, "unknown")
        if was != now:
            how = f"other {name}" if isinstance(now, dict) else f"{name} = {was}, not {now}"
            raise UserError(f"{what} was made with {how}; name another --out")
