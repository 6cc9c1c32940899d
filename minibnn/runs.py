"""A run's folder: what is in it, what it was trained with, and what it takes to go on. When it may be written to is in
`ownership.py`, how it goes on bit for bit in `checkpoints.py`.

    config.json               the options, all of them, and the versions
    log.jsonl                 one line for each step
    samples.png               the same prompts and seeds at the end (samples-000200.png, … with --sample-every)
    unet/ vae/ text_encoder/  the result, a diffusers folder; or an adapter's file (see adapter_files.py)
    report.html               all of the run on one page (page/run.py)
    curves.jsonl curves.png   fidelity, noise and σ₁ while training; looks/ their pictures, faithful/ the best steps and
                              advice.json which one to use (monitor.py)
    class_images/             pictures of the class, drawn by the base model, and for what (.class.json)
    checkpoint/               for --resume: weights, optimiser and step; of a finished run only if small or asked for
"""

import dataclasses
import hashlib
import logging
import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch

from . import distributed
from .checkpoints import STATE, has_optimiser, read_progress
from .data import caption_file, open_picture
from .errors import UserError
from .files import digests
from .files.store import write_json
from .finetune.adapter_files import file_of, is_adapter
from .options import of_runs
from .options.kinds import BUNDLED, WORLD, full_name
from .options.of_runs import FORMAT, PATHS
from .options.training import TrainOptions

MAY_CHANGE = (  # on --resume: what leaves the weights as they would be
    "steps", "resume", "overwrite", "out", "images", "class_images", "class_guidance", "device", "deterministic",
    "gradient_checkpointing", "compile", "samples", "sample_every", "sample_prompts", "checkpoint_every", "monitor",
    "monitor_every", "monitor_dino", "single_file", "export", "keep_posterior", "keep_optimiser",
)
BY_CONTENT = ("model", "tokenizer")  # may lie elsewhere on --resume, as the pictures may, if they hold the same
SAME_WEIGHTS = ("reference", "triton")  # values of --kernel that draw the same
TOO_MUCH = ("pictures of this size are taken for photographs, and the bundled model knows drawings of 64 x 64 pixels "
            "alone: for photographs give Stable Diffusion as --model, with --prompt and --class-prompt")

log = logging.getLogger("minibnn")


def read_config(out):
    """config.json of a run. Raises UserError if the folder is none."""
    config = find_config(out)
    if config is None:
        raise UserError(f"--out {out} is not a run of minibnn; name another folder")
    return config


def find_config(folder):
    """config.json of the run in this folder; None if there is no run, as in the folder of another program's model.

    Raises UserError, naming the key, when it is a run's but a value is not what a run writes.
    """
    path = Path(folder) / "config.json"
    return of_runs.read(path, TrainOptions) if path.exists() else None


def options_of(folder):
    """The options that the run in this folder was trained with, as attributes; None if there is no run.

    Those that it does not name, because its version did not know them, have their defaults.
    """
    config = find_config(folder)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    return None if config is None else SimpleNamespace(**defaults | config["options"])


def images_of(folder):
    """The folders of the run's pictures, relative ones where `of_runs.moved` finds them.

    Raises UserError for a run without any, as one that learned from its own samples (GRAFT).
    """
    images = options_of(folder).images
    if not images:
        raise UserError(f"the run in {folder} was trained on no folder of pictures; pass --images")
    return of_runs.moved(images, read_config(folder))


def of_photographs(options, pictures):
    """Whether a model of drawn pictures is to learn what most likely are photographs, by the size of the first.

    options: settled TrainOptions. pictures: paths, perhaps none.
    """
    if options.model not in WORLD or not pictures:
        return False
    return min(open_picture(pictures[0]).size) >= 4 * options.resolution


def subject_of(options):
    """What a result's recipe says of its training: {"prompt", "class_prompt", "resolution"}, of the first subject."""
    of_class = options.class_prompt[0] if options.class_prompt else None
    return {"prompt": options.prompt[0], "class_prompt": of_class, "resolution": options.resolution}


def to_go_on(folder):
    """The command that goes on with the run in this folder, for the person who reads a message."""
    processes = read_config(folder).get("processes", 1)
    start = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    return f"{start} -m minibnn train --resume --out {shlex.quote(str(folder))}"


def is_adapter_run(folder):
    """True for a run of LoRA or OFT, which holds no model of its own. Raises UserError when it is not finished."""
    if (Path(folder) / "unet").is_dir() or find_config(folder) is None:
        return False
    if not is_adapter(folder):
        begun = (Path(folder) / STATE).exists()
        anew = "it has no checkpoint; run its training command again with --overwrite"
        how = f"to go on: {to_go_on(folder)}" if begun else anew
        raise UserError(f"the run in {folder} is not finished; {how}")
    return True


def base_of(folder):
    """What the run in this folder was trained from, for `StableDiffusion.load`: (model, tokenizer, prediction_type).

    Raises UserError when the model is not where it was.
    """
    config, options = read_config(folder), vars(options_of(folder))
    places = (config.get("base", options["model"]), options["model"])
    model = next((place for place in places if place in BUNDLED or Path(place).exists()), None)
    if model is None:
        gone = f"{folder} was trained from the model {options['model']}, which is not there"
        run = shlex.quote(str(folder))
        raise UserError(f"{gone}: put it back, or a link to it, or name its new place: `sample --model BASE --adapter "
                        f"{run}`, `export {run} --base BASE`, in the laboratory --base BASE")
    return model, tokenizer_of(folder), options["prediction_type"]


def tokenizer_of(folder):
    """The tokenizer's folder that the run in this folder was given, if it is there; None: the model has its own."""
    places = (read_config(folder).get("base_tokenizer"), options_of(folder).tokenizer)
    return next((place for place in places if place and Path(place).exists()), None)


def digests_of(sd, place):
    """`digests.of_model` of what was opened from a place, as --model names it; a run of LoRA or OFT by its file."""
    adapted = place not in BUNDLED and Path(place).is_dir() and is_adapter_run(place)
    return digests.of_model(sd, file_of(place) if adapted else None)


def other_parts(folder, model):
    """In which parts a model, as `digests_of` has it, is another than that which the run in this folder began with.

    Empty for a run of an earlier version, which did not note that.
    """
    return [part for part, digest in read_config(folder).get("model", {}).items() if model[part] != digest]


def is_finished(folder):
    """Whether the run in this folder has its result; False if there is no run."""
    return find_config(folder) is not None and ((Path(folder) / "unet").is_dir() or is_adapter(folder))


def check_bases(run):
    """Raises UserError when an adapter run's base, or the base of that, …, is the run itself."""
    seen, base = set(), run
    while Path(base).is_dir() and is_adapter_run(base):
        if Path(base).resolve() in seen:
            raise UserError(f"{run} names itself as the model that it was trained from; its config.json is damaged")
        seen.add(Path(base).resolve())
        base = base_of(base)[0]


def fingerprint(paths, captions=True):
    """{file name: first half of its SHA-256}: resuming with other pictures or captions would not be the same run.

    captions: whether the pictures' own captions count. Names begin with the number of their folder where there are
    several.
    """
    folders = list(dict.fromkeys(path.parent for path in paths))
    names = {}
    for path in paths:
        for file in (path, caption_file(path)) if captions and caption_file(path).exists() else (path,):
            number = f"{folders.index(path.parent)}/" if len(folders) > 1 else ""
            names[number + file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    return names


def check_method(options):
    """Refuse to resume a run by another method, before what belongs to that is missed. Raises UserError."""
    if options.method != (was := options_of(options.out).method):
        raise UserError(different("method", options.method, options.out, was))


def different(name, value, out, was):
    """What is wrong where an option of a resumed run is not as it was."""
    return (f"--{name.replace('_', '-')} is {value!r} but the run in {out} has {was!r}, which decides what is trained: "
            "leave it out, or start another run")


def check_base_is_there(options):
    """Refuse to resume a run whose model has gone, and say how to name its new place. Raises UserError."""
    config = read_config(options.out)
    was = of_runs.moved(config["options"]["model"], config)
    if options.model == was and was not in BUNDLED and not Path(was).exists():
        way = "put it back, or pass its new place as --model" if config.get("model") else "put it back, or a link to it"
        raise UserError(f"the run in {options.out} was trained from the model {was}, which is not there: {way}")


def check_same_run(options, pictures, model):
    """Refuse to resume with other options, pictures or model, or to fewer steps than are done. Raises UserError.

    model: `digests_of` that which was opened.
    """
    config = read_config(options.out)
    before, known = vars(options_of(options.out)), config.get("model", {})  # an older version did not note the model
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        was = before.get(name, field.default)  # an older version may not have known the option
        if name in MAY_CHANGE or was == value or (name == "kernel" and {was, value} == set(SAME_WEIGHTS)):
            continue
        if name in BY_CONTENT and known:
            continue
        place = of_runs.moved(was, config) if name in PATHS and was and value else None
        if place is None or Path(place).resolve() != Path(value).resolve():
            raise UserError(different(name, value, options.out, was))
    if (processes := config.get("processes", 1)) != distributed.world():
        number = f"{processes} processes" if processes > 1 else "one process"
        differs = f"the run in {options.out} was begun by {number} and cannot go on with"
        raise UserError(f"{differs} {distributed.world()}; to go on: {to_go_on(options.out)}")
    if other := other_parts(options.out, model):
        began = f"that which the run in {options.out} began with, {config['base']}"
        named = "--tokenizer" if other == ["tokenizer"] and options.tokenizer else "--model"
        raise UserError(f"{named} {getattr(options, named[2:])} is not {began}: it has another {' and '.join(other)}; "
                        "put that back, or name its new place")
    done, _ = read_progress(Path(options.out) / STATE)
    if done > options.steps:
        raise UserError(f"--steps {options.steps} lies before the checkpoint, which is after step {done}")
    if done < options.steps and not has_optimiser(Path(options.out) / STATE):
        stopped = f"the run in {options.out} was stopped after its last step, {done}, and without --keep-optimiser"
        raise UserError(f"--steps {options.steps}: {stopped} none can follow; to write its result: "
                        f"{to_go_on(options.out)}")
    if others := differences(config.get("pictures", {}), fingerprint(pictures, options.captions)):
        began = f"those that the run in {options.out} began with"
        told = f"the pictures or their captions are not {began}: {others}"
        raise UserError(f"--images {' '.join(options.images)}: {told}")


def differences(was, now, shown=3):
    """How two fingerprints of pictures differ, as "a.png, b.png changed; c.png new"; empty if they do not."""
    changed = [name for name in was if name in now and was[name] != now[name]]
    ways = {"changed": changed, "gone": was.keys() - now.keys(), "new": now.keys() - was.keys()}
    return "; ".join(
        ", ".join(sorted(names)[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "") + f" {way}"
        for way, names in ways.items() if names
    )


def class_folder_of(out):
    """Where the class pictures are that the run in this folder began with, or None."""
    config = read_config(out)
    before = config["options"]
    was = before.get("class_images")
    if was is None or was == str(Path(before.get("out") or "") / "class_images"):  # they move with the run
        return was and Path(out) / "class_images"
    return Path(of_runs.moved(was, config))


def restore_threads(out):
    """Compute with as many threads as the run in this folder did: on a CPU their number changes the last bits."""
    threads = read_config(out).get("threads")
    if threads and threads != torch.get_num_threads():
        log.warning("%s began with %d threads (now %d): going on with as many", out, threads, torch.get_num_threads())
        torch.set_num_threads(threads)


def start(options, pictures, model=None, folder=None):
    """Write config.json into the run's folder.

    model: `digests_of` what is trained, by which --resume knows it again; None: the run is not to be resumed.
    folder: where the run's folder is being made, if not in its place.
    """
    values, home = dataclasses.asdict(options), os.getcwd()
    if options.resume:
        values, home = of_runs.as_begun(values, read_config(options.out))
    write_json(Path(folder or options.out) / "config.json", {
        "format": FORMAT, "options": values, "base": full_name(options.model),
        "base_tokenizer": options.tokenizer and str(Path(options.tokenizer).resolve()), "folder": home,
        "processes": distributed.world(), "threads": torch.get_num_threads(),
        "pictures": fingerprint(pictures, options.captions), "model": model or {},
        "photographs": of_photographs(options, pictures),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "safetensors", "pillow")},
    })
