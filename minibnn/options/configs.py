"""Options from files: a TOML file, or the config.json of an earlier run; and a command's options written as TOML.

A file holds options by their names, with - or _, and values of the kinds that the command line takes; several values
stand in a list. What it does not hold keeps its default, and the command line wins over the file.

    images = "photos/rex"
    prompt = "a photo of a sks dog"
    lr = 5e-6
    bayes = false
"""

import dataclasses
import json
import tomllib
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..files.store import read_text
from .kinds import BUNDLED
from .of_methods import OWNED, owners_of
from .of_runs import training_options
from .outputs import OUTPUTS
from .typed import typed

MACHINE = ("device", "kernel")  # what a run settled for the machine that it ran on
OF_METHOD = (  # what a run settled for its method
    "where", "rank", "alpha", "blocks", "coft", "layers", "lr", "steps", "prior_weight", "class_count",
    "prior_target", "ema",
)
OF_RANDOM = ("where", "sigma", "lambda_kl", "kl", "prior_sigma", "keep_posterior")  # options of random weights
OF_CLASS = ("prior_target", "class_count", "class_guidance", "class_images")
IN_VAIN = (  # (option, its value on the command line, what of a file does nothing then)
    ("bayes", False, (*OF_RANDOM, "kernel")), ("prior_weight", 0, OF_CLASS), ("lambda_kl", 0, ("kl", "prior_sigma")),
    ("monitor", False, ("monitor_every", "monitor_dino")),
)
REWARD_FOLDERS = ("clip", "aesthetic")  # rewards whose networks come from a folder, as in `neighbours/rewards.py`


def config_options(path, options_class, given):
    """{name: value} of the options that --config takes from a file or a run, beside those `given` on the command line.

    Relative paths are those of the file's folder, or of the folder in which the run was started, if they are there. Of
    a run the device and the kernel, which belong to its machine, are left out, and with another --method also what was
    settled for the run's own; so is what belongs to random weights or class pictures where there are none. Of both
    kinds of file what the command line makes meaningless is left out, as the `sigma` of a file with --no-bayes: only
    what somebody writes in one place contradicts itself. Raises UserError naming file and option.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".toml":
        values = read_toml(path, options_class)
        kept = {name: value for name, value in values.items() if name not in in_vain(given)}
        return beside(kept, options_class, path.parent)
    if path.suffix != ".json":
        raise UserError(f"{path}: a configuration file ends with .toml, that of a run is its config.json")
    values, config = training_options(path, options_class)
    other = given.get("method", values.get("method")) != values.get("method")
    left_out = {*MACHINE, *(OF_METHOD if other else ()), *in_vain(values | given)}
    return beside({k: v for k, v in values.items() if k not in left_out}, options_class,
                  Path(config.get("folder", ".")))


def in_vain(given):
    """The names of the options that do nothing beside those that are given, {name: value}."""
    names = {name for option, value, others in IN_VAIN if given.get(option) == value for name in others}
    method = given.get("method")
    return names | {name for name in OWNED if method and method not in owners_of(name)}


def read_toml(path, options_class):
    """{name: value} of the options in a TOML file. Raises UserError naming file and option."""
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    return typed(values, options_class, path)


def beside(values, options_class, home):
    """Options whose relative paths are taken from the folder `home`, where they are there."""
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    return {name: with_paths(value, fields[name], partial(_found, home=home)) for name, value in values.items()}


def with_paths(value, field, change):
    """An option's value with change(path) in the place of its path, also in --reward clip:FOLDER and FILE:FUNCTION."""
    if field.metadata["argparse"].get("metavar") != "REWARD":
        return change(value) if is_path(field) else value
    kind, _, rest = value.partition(":")
    if kind in REWARD_FOLDERS or not rest:
        return f"{kind}:{change(rest)}" if rest else value
    path, _, function = value.rpartition(":")
    return f"{change(path)}:{function}"


def is_path(field):
    """Whether an option names a file or folder that is read."""
    kind = field.metadata["argparse"].get("metavar")
    return field.name not in OUTPUTS and kind in ("DIR", "FILE", "PATH", "MODEL", "JSON", "RUN")


def _found(value, home):
    if isinstance(value, list):
        return [_found(each, home) for each in value]
    there = value not in BUNDLED and not Path(value).is_absolute() and (home / value).exists()
    return str(home / value) if there else value


def write_options(path, values, options_class):
    """Write {field: value} of these options as a TOML file that `read_toml` reads. Raises UserError when it exists.

    In another folder than the present one relative paths would mean something else, and become absolute.
    """
    if Path(path).resolve().parent != Path.cwd():
        values = beside(values, options_class, Path.cwd())
    words = {name.rstrip("_").replace("_", "-"): toml(value) for name, value in values.items()}
    made = False
    try:
        with open(path, "x", encoding="utf-8") as file:
            made = True
            file.write("".join(f"{name} = {value}\n" for name, value in words.items()))
    except (OSError, UnicodeError) as error:
        if made:  # a full disk
            Path(path).unlink()
        raise UserError(f"--save-config {path}: {getattr(error, 'strerror', error)}; name another file") from None


def toml(value):
    """A text, number, truth value or list of them in TOML. (No runtime package writes TOML.)"""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's texts are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
