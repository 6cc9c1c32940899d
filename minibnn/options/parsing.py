"""From a command line to a frozen dataclass, and from a mistake to one line.

Each command's options are one dataclass (in `training.py`, for instance); argparse is built from its fields, and
config.json holds them. Where several places name an option the command line wins, then the file of --config, then what
the command itself completes (`TrainOptions.complete`), then the default.
"""

import argparse
import dataclasses
import difflib
import re
import shlex
import sys

from .. import __version__
from ..errors import UserError, visible
from . import aliases, configs
from .kinds import KINDS


def fail(message):
    """Say in one line what is wrong, and exit with 2."""
    print(f"error: {visible(message)}", file=sys.stderr)
    raise SystemExit(2)


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the option that was probably meant."""

    def error(self, message):
        fail(message.removeprefix("argument "))

    def unknown(self, words, flags):
        """Complain about the first word that is not an option, and suggest one. flags: as `meanings` gives them."""
        wrong = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
        if advice := aliases.instead(wrong, flags):
            self.error(f"no option {wrong}; {advice}")
        ours = aliases.names(flags)
        near = difflib.get_close_matches(wrong.replace("_", "-"), ours, 1)
        hint = f"did you mean {ours[near[0]]}?" if near else f"{self.prog} --help lists all"
        self.error(f"no option {wrong}; {hint}")


def parse(options_class, prog, argv=None, examples=(), recipes=(), about=None):
    """Command line -> an `options_class`; exits with 2 and one line on a mistake. Others as for `build`."""
    parser = build(options_class, prog, examples, recipes, about)
    flags = meanings(parser, options_class)
    words = aliases.translate(sys.argv[1:] if argv is None else argv, flags)
    for word in words:
        if word.startswith("--") and word.endswith("=--"):  # argparse would take it for no value at all
            parser.error(f"{word[:-3]}: '--' is not a value")
    values, rest = parser.parse_known_args(words)
    if rest:
        parser.unknown(rest, flags)
    given = vars(values)
    config, save = given.pop("config", None), given.pop("save_config", None)
    try:
        for name, path in (("--config", config), ("--save-config", save)):
            if path == "":
                raise UserError(f"{name} is empty: name a file, or leave it out")
        given = (configs.config_options(config, options_class, given) if config else {}) | given
        if save:
            configs.write_options(save, given, options_class)
            print(f"written; to use it: {parser.prog} --config {shlex.quote(save)}")
            raise SystemExit(0)
        refuse_empty(given, options_class)
        if hasattr(options_class, "complete"):
            given = options_class.complete(given)
    except UserError as error:
        parser.error(str(error))
    for f in dataclasses.fields(options_class):
        if f.metadata["argparse"].get("required") and given.get(f.name) is None:
            parser.error(f"{spelled(f)} is required; {parser.prog} --help explains it")
    return options_class(**given)


def refuse_empty(given, options_class):
    """Refuse '' for an option, {name: value}, where it means nothing: as a path it would be the present folder.

    It comes from a variable of the shell that is not set (--out "$FOLDER"). Raises UserError.
    """
    for field in dataclasses.fields(options_class):
        value = given.get(field.name)
        if field.default != "" and (value == "" or (isinstance(value, list) and "" in value)):
            raise UserError(f"{spelled(field)} is empty: give it a value, or leave it out")


def build(options_class, prog, examples=(), recipes=(), about=None):
    """The argparse parser of a command; an option that is not given is absent from what it returns.

    examples: command lines for the end of --help. recipes: as `recipe_notes` takes them. about: what the command does
    [the docstring of its options].
    """
    parser = _Parser(
        prog=f"python -m {prog}", description=about or options_class.__doc__, allow_abbrev=False,
        epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
    )
    needed = [f for f in dataclasses.fields(options_class) if f.metadata["argparse"].get("required")]
    shown = "".join(
        f" {spelled(f)}" + ("" if is_word(f) else " " + f.metadata["argparse"].get("metavar", "TEXT")) for f in needed
    )
    parser.usage = f"%(prog)s{shown} [option …]"
    version = f"minibnn {__version__}"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    groups, notes = {}, recipe_notes(recipes)
    for f in dataclasses.fields(options_class):
        name, meta = f.metadata["group"], f.metadata
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        settings, help = dict(meta["argparse"]), meta["help"]
        if settings.pop("required", False):  # `parse` checks it: a mistyped option is told first
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
        help = re.sub(r"\{(\w+)\}", lambda name: notes.get(name[1], "recipe"), help)
        if settings.pop("word", False):
            number = "*" if f.type is list else "?"
            groups[name].add_argument(f.name, nargs=number, help=help.replace("%", "%%"), **settings)
        else:
            groups[name].add_argument(spelled(f), dest=f.name, help=help.replace("%", "%%"), **settings)
    files = parser.add_argument_group("options in files")
    files.add_argument("--config", metavar="FILE", help="take options from a TOML file, or from a run's config.json")
    files.add_argument("--save-config", metavar="FILE", help="write the given options as a TOML file, and stop")
    return parser


def meanings(parser, options_class):
    """{flag: what it means} of a parser that `build` made, for `aliases.py`."""
    others = {spelled(f): f.metadata["means"] for f in dataclasses.fields(options_class) if f.metadata["means"]}
    return {flag: flag for flag in parser._option_string_actions} | others


def is_word(field):
    """Whether it is given as a word of its own, without an option before it."""
    return field.metadata["argparse"].get("word", False)


def spelled(field):
    """How a field is written on the command line: --class-prompt, --as for `as_`, or RUN for a word of its own."""
    return field.metadata["argparse"]["metavar"] if is_word(field) else "--" + field.name.rstrip("_").replace("_", "-")


def recipe_notes(recipes):
    """{name: its values in words} for the help, as in "SD 5e-06, lora and oft 0.0001; tiny 0.0002".

    recipes: {whose: recipe}, where recipe["methods"] holds what differs in a method. Equal values are said once.
    """
    recipes, notes = dict(recipes), {}
    numbers = {key for recipe in recipes.values() for key, value in recipe.items() if isinstance(value, (int, float))}
    for name in numbers:
        said = {}
        for whose, recipe in recipes.items():
            others = {}  # value: the methods that have it instead
            for method, own in recipe["methods"].items():
                if own.get(name, recipe[name]) != recipe[name]:
                    others.setdefault(own[name], []).append(method)
            said[whose] = ", ".join([f"{recipe[name]:g}", *(f"{' and '.join(m)} {v:g}" for v, m in others.items())])
        same = len(set(said.values())) == 1
        notes[name] = next(iter(said.values())) if same else "; ".join(f"{w} {text}" for w, text in said.items())
    return notes


def readable(kind):
    """A converter, for argparse, whose complaint says what is wanted."""

    def convert(text):
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {KINDS.get(kind, 'valid')}") from None

    return convert
