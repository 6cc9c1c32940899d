"""What an option is, and the kinds of values that options take."""

import math
from dataclasses import field, fields
from pathlib import Path

from ..errors import UserError

WORLD = ("tiny-v2", "tiny")  # the models in the package that draw the picture world, by name
DEFAULT = "tiny-v2"  # the model where none is named, but for the experiments that were measured on "tiny"
BUNDLED = (*WORLD, "textured")  # all models in the package, wherever a model can be named


def full_name(model):
    """What --model names, wherever one stands: a bundled model's name, or an absolute path."""
    return model if model in BUNDLED else str(Path(model).resolve())


def option(default, help, group, means=None, **argparse_settings):
    """A dataclass field with what argparse needs. `default=None` means: the model's recipe, or none.

    means: where the name means something else than in `train`, what it is, for `aliases.py`: the name that is used
    elsewhere ("--sample-steps") or words that no other program's option stands for ("a temperature").
    """
    metadata = {"help": help, "group": group, "means": means, "argparse": argparse_settings}
    return field(default=default, metadata=metadata)


def as_asked(options):
    """For __post_init__: one value of a list may be given without a list, and a path as a Path. In place."""
    for each in fields(options):
        value = getattr(options, each.name)
        if each.type is list and value is not None and not isinstance(value, (list, tuple)):
            value = [value]
        if isinstance(value, (list, tuple)):
            value = type(value)(str(one) if isinstance(one, Path) else one for one in value)
        elif isinstance(value, Path):
            value = str(value)
        object.__setattr__(options, each.name, value)  # they are frozen


def each_once(options):
    """For __post_init__ of an experiment: as `as_asked`, and what a list names twice is done once. In place."""
    as_asked(options)
    for each in fields(options):
        value = getattr(options, each.name)
        if isinstance(value, (list, tuple)):
            object.__setattr__(options, each.name, type(value)(dict.fromkeys(value)))


def refuse(options, names, why):
    """Raises UserError "--NAME why" for the first of these options that has another value than its default.

    For options that would be ignored: refuse(options, ("steps", "lr"), "is for training").
    """
    for name in names:
        if getattr(options, name) != getattr(type(options), name):
            raise UserError(f"--{name.replace('_', '-')} {why}")


def whole(text):
    """An integer ≥ 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def natural(text):
    """An integer ≥ 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def seed_number(text):
    """An integer 0 ≤ n < 2³²: PyTorch's generator on a CPU reads no more bits of a seed."""
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def positive(text):
    """A finite number > 0."""
    if not 0 < float(text) < math.inf:
        raise ValueError
    return float(text)


def nonnegative(text):
    """A finite number ≥ 0."""
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def share(text):
    """A number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def words(text):
    """A text that is not empty."""
    if not text.strip():
        raise ValueError
    return text


KINDS = {
    whole: "a whole number of at least 1", natural: "a whole number of at least 0",
    seed_number: "a whole number from 0 to 2^32 - 1", positive: "a number above 0",
    nonnegative: "a number of at least 0", share: "a number from 0 to 1", words: "a text with at least one word in it",
    int: "a whole number", float: "a number",
}
