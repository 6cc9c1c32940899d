"""From a command line to a frozen dataclass, and from a mistake to one line.

Each command's options are one dataclass (`commands.py`); argparse is built from its fields, config.json holds them.

But: no configuration files. A run is repeated from the options in its config.json.
"""

import argparse
import dataclasses
import difflib
import sys
from dataclasses import field

from ..errors import visible


def option(default, help, group, **argparse_settings):
    """A dataclass field with what argparse needs. `default=None` means: the model's recipe, or none."""
    return field(default=default, metadata={"help": help, "group": group, "argparse": argparse_settings})


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
    """An integer 0 ≤ n < 2⁶³, which every generator takes."""
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)


def positive(text):
    """A finite number > 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def nonnegative(text):
    """A finite number ≥ 0."""
    if not 0 <= float(text) < float("inf"):
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


_KINDS = {
    whole: "a whole number of at least 1", natural: "a whole number of at least 0",
    seed_number: "a whole number from 0 to 2^63 - 1", positive: "a number above 0",
    nonnegative: "a number of at least 0", share: "a number from 0 to 1", words: "a text that is not empty",
    int: "a whole number", float: "a number",
}


def fail(message):
    """Say in one line what is wrong, and exit with 2."""
    print(f"error: {visible(message)}", file=sys.stderr)
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the option that was probably meant."""

    def error(self, message):
        fail(message)

    def unknown(self, words):
        """Complain about the first word that is no option, and suggest one."""
        wrong = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
        near = difflib.get_close_matches(wrong, self._option_string_actions, 1)
        self.error(f"no option {wrong}; " + (f"did you mean {near[0]}?" if near else f"{self.prog} --help lists all"))


def parse(options_class, prog, argv=None):
    """Command line -> an `options_class`; exits with 2 and one line on a mistake."""
    parser = _Parser(prog=f"python -m {prog}", description=options_class.__doc__, allow_abbrev=False)
    groups, required = {}, []
    for f in dataclasses.fields(options_class):
        name, meta = f.metadata["group"], f.metadata
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        settings, help = dict(meta["argparse"]), meta["help"]
        if settings.pop("required", False):  # checked below: a mistyped option is told first
            required.append(f.name)
            help += " (required)"
        if f.type is bool:
            if f.default is False:
                settings["action"] = "store_true"
            else:
                settings["action"] = argparse.BooleanOptionalAction
                help += " [--bayes]" if f.name == "bayes" else ""
        else:
            if "choices" not in settings:
                settings["type"] = readable(settings.get("type", f.type if f.type in (int, float) else str))
                settings.setdefault("metavar", {int: "N", float: "X"}.get(f.type, "TEXT"))
            if f.default not in (None, ""):
                shown = " ".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
                help += f" [{shown}]"
        flag = "--" + f.name.replace("_", "-")
        groups[name].add_argument(flag, default=f.default, help=help.replace("%", "%%"), **settings)
    values, rest = parser.parse_known_args(argv)
    if rest:
        parser.unknown(rest)
    for name in required:
        if getattr(values, name) is None:
            parser.error(f"--{name} is required; {parser.prog} --help explains it")
    return options_class(**vars(values))


def readable(kind):
    """A converter, for argparse, whose complaint says what is wanted."""

    def convert(text):
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_KINDS.get(kind, 'valid')}") from None

    return convert
