"""Options from files: a TOML file, or the config.json of an earlier run; and a command's options written as TOML.

A file holds options by their names, with - or _, and values of the kinds that the command line takes; several values
stand in a list. What it does not hold keeps its default, and the command line wins over the file.

    images = "photos/rex"
    prompt = "a photo of a sks dog"
    lr = 5e-6
    bayes = false
"""

import dataclasses
import difflib
import json
import tomllib
from pathlib import Path

from ..errors import UserError
from .kinds import BUNDLED, KINDS, words

MACHINE = ("device", "kernel")  # what a run settled for the machine that it ran on
OF_METHOD = (  # what a run settled for its method
    "where", "rank", "alpha", "blocks", "coft", "layers", "lr", "steps", "prior_weight", "class_count",
)
OUTPUTS = ("out", "work")  # options that name folders, but none that are read
PATHS = ("images", "model", "tokenizer", "class_images", "sample_prompts", "monitor_dino")  # options of `train`


def read_options(path, options_class):
    """{name: value} of the options in a .toml file, in a run's config.json or in a run's folder.

    What belongs to one call and not to a training (--out, --resume, --overwrite) is left out of a run's options.
    Raises UserError naming file and option.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            return typed(tomllib.loads(text), options_class, path)
        config = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # both decoders raise kinds of ValueError
        kind = "TOML" if path.suffix == ".toml" else "JSON (a configuration file ends with .toml)"
        raise UserError(f"{path} is no valid {kind}: {error}") from None
    options = config.get("options") if isinstance(config, dict) else None
    if not isinstance(options, dict):
        raise UserError(f"{path} is no config.json of a run; a configuration file ends with .toml")
    values = typed({name: value for name, value in options.items() if value is not None}, options_class, path)
    return {name: value for name, value in values.items() if name not in ("out", "resume", "overwrite")}


def config_options(path, options_class, given):
    """{name: value} of the options that --config takes from a file or a run, beside those `given` on the command line.

    Relative paths are those of the file's folder, or of the folder in which the run was started, if they are there. Of
    a run the device and the kernel, which belong to its machine, are left out, and with another --method also what was
    settled for the run's own. Raises UserError as `read_options`.
    """
    values, file = read_options(path, options_class), Path(path)
    if file.suffix == ".toml":
        return beside(values, options_class, file.parent)
    file = file / "config.json" if file.is_dir() else file
    home = json.loads(file.read_text(encoding="utf-8")).get("folder", ".")
    other = given.get("method", values.get("method")) != values.get("method")
    left_out = MACHINE + (OF_METHOD if other else ())
    return beside({k: v for k, v in values.items() if k not in left_out}, options_class, Path(home))


def beside(values, options_class, home):
    """Options whose relative paths are taken from the folder `home`, where they are there."""
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    return {name: _found(value, home) if is_path(fields[name]) else value for name, value in values.items()}


def is_path(field):
    """Whether an option names a file or folder that is read."""
    kind = field.metadata["argparse"].get("metavar")
    return field.name not in OUTPUTS and kind in ("DIR", "FILE", "PATH", "MODEL")


def _found(value, home):
    if isinstance(value, list):
        return [_found(each, home) for each in value]
    there = value not in BUNDLED and not Path(value).is_absolute() and (home / value).exists()
    return str(home / value) if there else value


def run_options(out, options_class):
    """{name: value} of the options of the run in the folder `out`, as far as they belong to the training.

    Relative paths are those of the folder in which the run was started. Raises UserError when there is no run.
    """
    out = Path(out)
    if not (out / "config.json").exists():
        raise UserError(f"no checkpoint in {out}: nothing to resume; start without --resume")
    values = read_options(out, options_class)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if values.get("class_images") == str(Path(config["options"]["out"]) / "class_images"):
        del values["class_images"]  # they move with the run
    home = Path(config.get("folder", "."))
    if home.resolve() != Path.cwd():
        values |= {name: _moved(values[name], home) for name in PATHS if name in values}
    return values


def _moved(value, home):
    """A relative path, or a list of them, from another working folder. A bundled model's name is no path."""
    if isinstance(value, list):
        return [_moved(each, home) for each in value]
    return value if value in BUNDLED else str(home / value)


def write_options(path, values):
    """Write {field: value} as a TOML file that `read_options` reads. Raises UserError when it exists.

    In another folder than the present one relative paths would mean something else, and become absolute.
    """
    if Path(path).resolve().parent != Path.cwd():
        home = Path.cwd()
        values = {name: _found(value, home) if name in PATHS else value for name, value in values.items()}
    try:
        with open(path, "x", encoding="utf-8") as file:
            words = {name.rstrip("_").replace("_", "-"): toml(value) for name, value in values.items()}
            file.write("".join(f"{name} = {value}\n" for name, value in words.items()))
    except (OSError, UnicodeError) as error:
        raise UserError(f"--save-config {path}: {getattr(error, 'strerror', error)}; name another file") from None


def toml(value):
    """A text, number, truth value or list of them in TOML. (No runtime package writes TOML.)"""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's texts are TOML's, but for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


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
