"""What the values of a JSON file may be: kinds of values, and a check that names the file, the key and the value.

A kind is a function (value, name) that raises Unfit for a value that it does not take. A schema, {key: kind}, stands
beside the dataclass or the code that uses the values:

    RECORD = {"switch": integer(0, 999), "base": text}
    record(RECORD, required=RECORD)({"switch": 3.5, "base": "tiny"}, "")
        raises Unfit: switch is 3.5, but must be a whole number from 0 to 999

`fitting` here and `read_json(path, kind)` in `store.py` turn that into a UserError.
"""

import dataclasses
import math
import reprlib
import sys
import typing

from ..errors import UserError

LARGEST = sys.float_info.max  # a whole number in JSON may be larger


class Unfit(ValueError):
    """A value of another kind than it must be, or none; the message names key and value."""


def _unfit(value, name, kind):
    shown = {dict: "an object", list: "a list"}.get(type(value)) or reprlib.repr(value)
    return Unfit(f"{name} is {shown}, but must be {kind}" if name else f"it holds {shown} and not {kind}")


def integer(low=-(2**63), high=2**63 - 1):
    """A whole number low … high; true and 3.0 do not count."""
    kind = f"a whole number from {low} to {high}" if low > -(2**63) else "a whole number"

    def check(value, name):
        if type(value) is not int or not low <= value <= high:
            raise _unfit(value, name, kind)

    return check


def number(low=-math.inf, high=math.inf, above=-math.inf):
    """A finite number, low … high and greater than `above`; true does not count."""
    bounds = ((f"of at least {low:g}", low > -math.inf), (f"above {above:g}", above > -math.inf),
              (f"of at most {high:g}", high < math.inf))
    kind = " ".join(["a finite number", *(words for words, given in bounds if given)])

    def check(value, name):
        fits = type(value) in (int, float) and -LARGEST <= value <= LARGEST and low <= value <= high and value > above
        if not fits:
            raise _unfit(value, name, kind)

    return check


def text(value, name):
    """A string."""
    if type(value) is not str:
        raise _unfit(value, name, "a text")


def truth(value, name):
    """true or false."""
    if type(value) is not bool:
        raise _unfit(value, name, "true or false")


def anything(value, name):
    """Any value: the key must be there, and no more."""


def one_of(*values):
    """One of these values, of the same type."""

    def check(value, name):
        if not any(type(value) is type(each) and value == each for each in values):
            raise _unfit(value, name, f"one of {', '.join(map(repr, values))}")

    return check


def optional(kind):
    """null, or a value of this kind."""

    def check(value, name):
        if value is not None:
            kind(value, name)

    return check


def either(kind, other):
    """A value of one of two kinds; the complaint is that of the second."""

    def check(value, name):
        try:
            kind(value, name)
        except Unfit:
            other(value, name)

    return check


def items(kind, shortest=0, longest=math.inf):
    """A list (or, from Python, a tuple) of values of this kind, not shorter and not longer than asked for."""
    limits = (f"at least {shortest}" if shortest else "") + (f" and at most {longest}" if longest < math.inf else "")
    wanted = f"a list of {limits.removeprefix(' and ')} values" if limits else "a list"

    def check(value, name):
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            raise _unfit(value, name, wanted)
        for i, each in enumerate(value):
            kind(each, f"{name}[{i}]")

    return check


def mapping(kind):
    """An object with any keys, whose values are of this kind."""

    def check(value, name):
        if not isinstance(value, dict):
            raise _unfit(value, name, "an object")
        for key, each in value.items():
            kind(each, _within(name, key))

    return check


def record(schema, required=()):
    """An object with the keys `required`, whose values at keys of `schema` are of their kinds; other keys are free."""

    def check(value, name):
        if not isinstance(value, dict):
            raise _unfit(value, name, "an object")
        for key in required:
            if key not in value:
                raise Unfit(f"{_within(name, key)} is missing")
        for key, kind in schema.items():
            if key in value:
                kind(value[key], _within(name, key))

    return check


def _within(name, key):
    return f"{name}.{key}" if name else str(key)


def fitting(value, kind, place):
    """The value, if it is of this kind (`schema.py`). Raises UserError with the place, the key and the value."""
    try:
        kind(value, "")
    except Unfit as error:
        raise UserError(f"{place}: {error}") from None
    return value


def fields_of(options_class):
    """The schema {field: kind} of a dataclass of options (in `options/`), for values read back from JSON."""
    plain = {int: integer(), float: number(), str: text, bool: truth, list: either(text, items(anything))}
    schema = {}
    for field in dataclasses.fields(options_class):
        kind = plain[typing.get_origin(field.type) or field.type]
        choices = field.metadata.get("argparse", {}).get("choices")
        if choices and field.type is str:
            kind = one_of(*choices)
        schema[field.name] = optional(kind)
    return schema
