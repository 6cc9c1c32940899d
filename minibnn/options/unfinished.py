"""What a command has begun and not finished: the folder OUT.unfinished beside OUT, with what it takes to go on.

Its options.json holds the command's name, its options, the folder in which it was started, and fingerprints of the
pictures that it learns from. --resume continues it; --overwrite without --resume discards it.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..files.schema import anything, mapping, record, text
from ..files.store import read_json, write_json
from .configs import with_paths
from .of_runs import ONE_CALL, moved
from .typed import typed

FILE = "options.json"
CONTENT = {"command": text, "options": mapping(anything), "pictures": mapping(text)}
SCHEMA = CONTENT | {"folder": text}  # the folder is missing in those of earlier versions


def place(out):
    """OUT.unfinished, for the folder OUT."""
    out = Path(out)
    return Path(f"{out if out.name.strip('.') else out.resolve()}.unfinished")  # "." and ".." are not names


def read(out, options_class):
    """How the making of `out` began: ({name: value} of the options, {name: fingerprint} of the pictures).

    Relative paths are those of the folder in which it was started (`moved`). Raises UserError when there is nothing, or
    what another command began.
    """
    path = place(out) / FILE
    if not path.exists():
        raise UserError(f"nothing to resume: there is no {path}; start without --resume")
    found = content(path, options_class)
    values = {name: value for name, value in found["options"].items() if value is not None and name not in ONE_CALL}
    values = typed(values, options_class, path)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    values = {name: with_paths(value, fields[name], partial(moved, config=found)) for name, value in values.items()}
    return values, found["pictures"]


def content(path, options_class):
    """What is in options.json. Raises UserError when it is damaged, or what another command began."""
    found, command = read_json(path, record(SCHEMA, CONTENT)), command_of(options_class)
    if found["command"] != command:
        raise UserError(f"{path.parent} was begun by the command {found['command']}, not by {command}: name another "
                        "--out")
    return found


def command_of(options_class):
    """The command that takes these options: GraftOptions -> "graft"."""
    return options_class.__name__.removesuffix("Options").lower()


def going_on(given, options_class, out, settled=None):
    """The options given {name: value} and, with --resume, those with which the making of their `out` began.

    out: the folder if none is given. settled: {option: other options}; the latter were settled for its value, and are
    forgotten when it is given another. Raises UserError when there is nothing to go on with.
    """
    if not given.get("resume"):
        return given
    before, _ = read(given.get("out") or out, options_class)
    for choice, others in (settled or {}).items():
        if given.get(choice, before.get(choice)) != before.get(choice):
            before = {name: value for name, value in before.items() if name not in others}
    return before | given


def to_go_on(options, out):
    """The command that goes on, for the person who reads a message."""
    words = f"python -m minibnn {command_of(type(options))} --resume --out {shlex.quote(str(out))}"
    return words + " --overwrite" * options.overwrite


def check(options, out):
    """Refuse to begin anew what was begun, unless --overwrite discards it, and to delete anything else.

    Raises UserError.
    """
    work = place(out)
    if options.resume or not work.exists() or not any(work.iterdir()):
        return
    if not (work / FILE).exists():
        raise UserError(f"--out {out}: {work} is needed, and holds something else: move it, or name another --out")
    if not options.overwrite:
        raise UserError(f"--out {out}: {work} holds what was begun: --resume continues it, --overwrite discards it")
    content(work / FILE, type(options))


def check_unchanged(options, out, may_change, pictures=None):
    """Refuse to go on with other options or pictures than those with which the making of `out` began.

    may_change: the names of the options that may be others. pictures: their fingerprints. Raises UserError.
    """
    before, pictures_before = read(out, type(options))
    for field in dataclasses.fields(options):
        name = field.name
        now, was = getattr(options, name), before.get(name, field.default)
        same = now == was or (now and was and _resolved(now, field) == _resolved(was, field))
        if name not in may_change and not same:
            raise UserError(f"--{name.replace('_', '-')} is not what {place(out)} began with, which decides what "
                            "comes out: leave it out, or begin anew with --overwrite")
    if (pictures or {}) != pictures_before:
        raise UserError(f"the pictures or captions are not those that {place(out)} began with: put them back, or begin "
                        "anew with --overwrite")


def _resolved(value, field):
    """An option's value with its path, if it holds one, as it is from the root on."""
    return with_paths(value, field, lambda path: Path(path).resolve())


@contextlib.contextmanager
def begun(options, out, pictures=None):
    """Inside, a command makes `out` with the help of the folder that this gives; --resume goes on with what it holds.

    pictures: fingerprints of those that it learns from. The folder is deleted when the block ends well, or leaves
    nothing in it to go on with; else Ctrl-C names the command that goes on.
    """
    work = place(out)
    if work.exists() and not options.resume:
        shutil.rmtree(work)
    values = {"command": command_of(type(options)), "options": dataclasses.asdict(options), "pictures": pictures or {}}
    write_json(work / FILE, values | {"folder": os.getcwd()})
    try:
        yield work
    except BaseException as error:
        if [path.name for path in work.iterdir()] == [FILE]:
            shutil.rmtree(work)
        elif isinstance(error, KeyboardInterrupt) and not error.args:
            again = to_go_on(options, out)
            raise KeyboardInterrupt(f"stopped; what is done is in {work}; to go on: {again}") from None
        raise
    shutil.rmtree(work)
