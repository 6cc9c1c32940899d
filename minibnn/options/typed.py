"""Values that stand in a file, as the command line would have read them."""

import dataclasses
import difflib

from ..errors import UserError
from .kinds import KINDS, words


def typed(values, options_class, where):
    """{option: value} from a file -> {field: value} as the command line would have read it. Raises UserError.

    where: the file, for the message.
    """
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(options_class)}
    read = {}
    for name, value in values.items():
        field = fields.get(name.replace("-", "_").rstrip("_"))
        if field is None:
            near = difflib.get_close_matches(name, fields, 1)
            raise UserError(f"{where}: no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            read[field.name] = _value(value, field)
        except (ValueError, TypeError):
            raise UserError(f"{where}: {name} = {value!r} is not {wanted(field)}") from None
    return read


def _value(value, field):
    """A value of a file as the option's own; raises ValueError when it is of another kind or out of range."""
    settings = field.metadata["argparse"]
    if field.type is list:
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise ValueError
        return [_single(each, settings, settings.get("type", str)) for each in values]
    return _single(value, settings, settings.get("type", field.type))


def _single(value, settings, kind):
    if kind is bool:
        right = isinstance(value, bool)
    elif kind is str or kind is words:
        right = isinstance(value, str)
    else:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right:
        raise ValueError
    value = value if kind is bool else kind(str(value))
    if value not in settings.get("choices", (value,)):
        raise ValueError
    return value


def wanted(field):
    """What values an option takes, in words."""
    settings = field.metadata["argparse"]
    if "choices" in settings:
        return "one of " + ", ".join(map(str, settings["choices"]))
    kind = settings.get("type", str if field.type is list else field.type)
    return {bool: "true or false", str: "a text"}.get(kind) or KINDS[kind]
