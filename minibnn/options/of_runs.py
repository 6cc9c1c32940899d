"""The options of a run as its folder holds them: `runs.start` writes config.json, and this is its one reader."""

import os
from pathlib import Path

from ..errors import UserError
from ..files.schema import fields_of, fitting, integer, mapping, optional, record, text, truth
from ..files.store import read_json
from .kinds import BUNDLED, full_name
from .typed import typed

FORMAT = "minibnn run"
SCHEMA = {  # besides the options
    "base": text, "base_tokenizer": optional(text), "pictures": mapping(text), "threads": integer(1, 4096),
    "processes": integer(1), "folder": text, "photographs": truth, "model": mapping(text),
}
ONE_CALL = ("out", "resume", "overwrite")  # options that belong to one call, and not to the training
PATHS = ("images", "model", "tokenizer", "class_images", "sample_prompts", "monitor_dino")  # options of `train`


def read(path, options_class):
    """What is in config.json of a run of this class of options, a dict; None if the file is not a run's.

    "options" may lack those that its version did not know. Raises UserError, naming the key, when it is a run's but a
    value is not what a run writes.
    """
    config = read_json(path)
    if config.get("format") != FORMAT or "options" not in config:
        return None
    fitting(config, record(SCHEMA | {"options": record(fields_of(options_class))}), path)
    options = config["options"]
    for name in ("images", "prompt", "class_prompt"):  # runs of the first version had one subject, and no lists
        if isinstance(options.get(name), str):
            options[name] = [options[name]]
    if not options.get("prior_weight") or "prior_target" not in options:  # version 0.2 and before knew no other
        options["prior_target"] = "noise"
    options["ema"] = options.get("ema") or 0.0  # nor a 0 for no average
    return config


def training_options(path, options_class):
    """{name: value} of a run's options, as far as they belong to the training, and its config.json as `read` gives it.

    path: of that file. A run that learned from its own samples (GRAFT) has no images. Raises UserError naming file and
    option.
    """
    config = read(path, options_class)
    if config is None:
        raise UserError(f"{path} is not a config.json of a run; a configuration file ends with .toml")
    values = {k: value for k, value in config["options"].items() if value not in (None, []) and k not in ONE_CALL}
    return typed(values, options_class, path), config


def resumed_options(out, options_class):
    """{name: value} of the options with which the run in the folder `out` goes on.

    Relative paths are those of the folder in which the run was started (`moved`). Raises UserError when there is no
    run.
    """
    path = Path(out) / "config.json"
    if not path.exists():
        raise UserError(f"no checkpoint in {out}: nothing to resume; start without --resume")
    values, config = training_options(path, options_class)
    if "images" not in values:
        raise UserError(f"the run in {out} was trained on no folder of pictures, and is finished: begin another with "
                        f"--model {out}")
    if values.get("class_images") == str(Path(config["options"].get("out") or "") / "class_images"):
        del values["class_images"]  # they move with the run
    return values | {name: moved(values[name], config) for name in PATHS if name in values}


def as_begun(values, config):
    """({name: value} of a run that goes on, the folder to which its relative paths belong): the one in which it began.

    A path that was not given anew stands as it did, so that the project can be moved after a run went on from
    elsewhere. config: of the run, as it was.
    """
    home, before, paths = config.get("folder", "."), config["options"], {}
    if Path(home).resolve() == Path.cwd() or not Path(home).exists():
        return values, os.getcwd()
    for name in PATHS:
        was, now = before.get(name), values[name]
        if now and moved(was or "", config) == now:
            paths[name] = was
        elif now and now != str(Path(values["out"]) / "class_images"):  # which moves with the run
            paths[name] = [str(Path(each).absolute()) for each in now] if isinstance(now, list) else full_name(now)
    return values | paths, home


def moved(value, config):
    """Where a path of a run's config is now, or a list of them, as seen from the working folder.

    A relative one belongs to the folder in which the run was started. Where that is gone, the project has moved with
    all that is in it, and the path is taken as it stands. A bundled model's name is not a path.
    """
    if isinstance(value, (list, tuple)):
        return [moved(each, config) for each in value]
    home = Path(config.get("folder", "."))
    here = home.resolve() == Path.cwd() or (not home.exists() and Path(value).exists())
    return value if value in BUNDLED or here else str(home / value)
