"""What an experiment keeps, so that a later call adds to its results instead of repeating them."""

from pathlib import Path

from ..errors import UserError
from ..files.schema import Unfit, record
from ..files.store import read_json, write_json


def figure(value, name):
    """A number, NaN included, or null where nothing was measured: a kind as in `files/schema.py`."""
    if value is not None and type(value) not in (int, float):
        raise Unfit(f"{name} is {value!r:.60}, but must be a number")


def check_settings(names, known):
    """Raises UserError for the first of the names of --settings that is not known."""
    for name in names:
        if name not in known:
            raise UserError(f"--settings {name}: there are {', '.join(known)}")


def check_names(names, what):
    """Refuse two of a name, by which results are kept. what: "--images: two folders". Raises UserError."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{what} are called {twice}; results are kept by these names, so rename one of them")


def check_alike(before, settings, what):
    """Refuse to mix results made with other settings. before, settings: {name: value}; what: the earlier results.

    Raises UserError naming the first setting that differs.
    """
    for name, now in settings.items():
        was = before.get(name, "unknown")
        if was != now:
            how = f"other {name}" if isinstance(now, dict) else f"{name} = {was}, not {now}"
            raise UserError(f"{what} was made with {how}; name another --out")


def kept(path, settings, of_runs):
    """What a JSON file of results holds, {} without one. of_runs: what its runs must be, {name: kind}.

    Raises UserError if it was made with other settings, {name: value}.
    """
    if not path.exists():
        return {}
    found = read_json(path, record(of_runs))
    check_alike(found, settings, path)
    return found


def note_shared(folder, settings):
    """Keep in experiment.json what all runs in a folder share, {name: value}, beside what is there already.

    Raises UserError as `check_alike`, for a name that is there.
    """
    path = Path(folder) / "experiment.json"
    before = read_json(path) if path.exists() else {}
    check_alike(before, {name: now for name, now in settings.items() if name in before}, path)
    write_json(path, before | settings)
