"""A run's folder: what is in it, and how training resumes bit for bit. When it may be written to: `ownership.py`.

    config.json               the options, all of them, and the versions
    log.jsonl                 one line for each step
    samples.png               the same prompts and seeds at the end (samples-000200.png, … with --sample-every)
    unet/ vae/ text_encoder/  the result, a diffusers folder; or an adapter's file (see adapter_files.py)
    report.html               all of the run on one page (page/run.py)
    curves.jsonl curves.png   fidelity, noise and σ₁ while training; looks/ their pictures, faithful/ the best steps and
                              advice.json which one to use (monitor.py)
    class_images/             pictures of the class, drawn by the base model, and for what (.class.json)
    checkpoint/               for --resume: weights, optimiser and step

No random state is saved: every forward draws from a generator seeded by (seed, its number).
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import platform
import signal
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch

from . import distributed
from .data import caption_file, full_name
from .errors import UserError
from .files.schema import fields_of, fitting, integer, mapping, number, optional, record, text
from .files.store import (
    WeightsError,
    append_text,
    check_finite,
    open_weights,
    parse_json,
    read_json,
    read_text,
    shapes_of,
    write_json,
    write_tensors,
    write_text,
)
from .finetune.adamw_bf16 import AdamWBfloat16
from .finetune.adapter_files import is_adapter
from .options.commands import TrainOptions
from .options.configs import PATHS
from .options.kinds import BUNDLED
from .options.running import interrupt, note_signal, on_stop
from .progress import Course, progress_bar

STATE = Path("checkpoint") / "state.safetensors"
SCALER = {  # of GradScaler's state; {} where it is not used
    "scale": number(above=0), "growth_factor": number(above=1), "backoff_factor": number(above=0, high=1),
    "growth_interval": integer(1), "_growth_tracker": integer(0),
}
CONFIG = {  # config.json
    "options": record(fields_of(TrainOptions)), "base": text, "base_tokenizer": optional(text),
    "pictures": mapping(text), "threads": integer(1, 4096), "processes": integer(1),
}
HEADER = {"completed_steps": integer(0), "scaler": record(SCALER)}  # of a checkpoint's file, as JSON
FORMAT = "minibnn run"
MAY_CHANGE = (  # on --resume: what leaves the weights as they would be. Pictures are compared by their content.
    "steps", "resume", "overwrite", "out", "images", "class_images", "device", "deterministic",
    "gradient_checkpointing", "samples", "sample_every", "sample_prompts", "checkpoint_every", "monitor",
    "monitor_every", "monitor_dino", "single_file", "export", "keep_posterior",
)
SAME_WEIGHTS = ("reference", "triton")  # values of --kernel that draw the same

log = logging.getLogger("minibnn")


def read_config(out):
    """config.json of a run. Raises UserError if the folder is none."""
    config = find_config(out)
    if config is None:
        raise UserError(f"--out {out} is no run of minibnn; name another folder")
    return config


def find_config(folder):
    """config.json of the run in this folder; None if there is no run, as in the folder of another program's model.

    Raises UserError, naming the key, when it is a run's but a value is not what a run writes.
    """
    path = Path(folder) / "config.json"
    config = read_json(path) if path.exists() else {}
    if config.get("format") != FORMAT or "options" not in config:
        return None
    fitting(config, record(CONFIG), path)
    options = config["options"]
    for name in ("images", "prompt", "class_prompt"):  # runs of the first version had one subject, and no lists
        options[name] = [options[name]] if isinstance(options.get(name), str) else options.get(name)
    return config


def options_of(folder):
    """The options that the run in this folder was trained with, as attributes; None if there is no run.

    Those that it does not name, because its version did not know them, have their defaults.
    """
    config = find_config(folder)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    return None if config is None else SimpleNamespace(**defaults | config["options"])


def images_of(folder):
    """The folders of the run's pictures, as seen from the folder in which the run was started."""
    home = Path(read_config(folder).get("folder", "."))
    images = options_of(folder).images
    return [str(home / path) if (home / path).exists() else path for path in images]


def subject_of(options):
    """What a result's recipe says of its training: {"prompt", "class_prompt", "resolution"}, of the first subject."""
    of_class = options.class_prompt[0] if options.class_prompt else None
    return {"prompt": options.prompt[0], "class_prompt": of_class, "resolution": options.resolution}


def is_adapter_run(folder):
    """True for a run of LoRA or OFT, which holds no model of its own. Raises UserError when it is not finished."""
    if (Path(folder) / "unet").is_dir() or find_config(folder) is None:
        return False
    if not is_adapter(folder):
        raise UserError(f"the run in {folder} is not finished: its training command with --resume goes on")
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
        raise UserError(f"{gone}: put it back, or pass --model BASE --adapter {folder} (in the laboratory --base BASE)")
    places = (config.get("base_tokenizer"), options["tokenizer"])
    tokenizer = next((place for place in places if place and Path(place).exists()), None)
    return model, tokenizer, options["prediction_type"]


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


def check_same_run(options, pictures):
    """Refuse to resume with other options or pictures, or to fewer steps than are done. Raises UserError."""
    config = read_config(options.out)
    before = vars(options_of(options.out))
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        was = before.get(name, field.default)  # an older version may not have known the option
        if name in MAY_CHANGE or was == value or (name == "kernel" and {was, value} == set(SAME_WEIGHTS)):
            continue
        here = name in PATHS and was and value and (Path(config.get("folder", ".")) / was).resolve()
        if here != Path(str(value)).resolve():
            differs = f"--{name.replace('_', '-')} is {value!r} but the run in {options.out} has {was!r}"
            raise UserError(f"{differs}, which decides what is trained: leave it out, or start another run")
    if (processes := config.get("processes", 1)) != distributed.world():
        differs = f"the run in {options.out} was begun by {processes} processes and cannot go on with"
        raise UserError(f"{differs} {distributed.world()}: torchrun --nproc-per-node {processes} goes on")
    check_class_folder(options, config)
    done, _ = read_progress(Path(options.out) / STATE)
    if done > options.steps:
        raise UserError(f"--steps {options.steps} lies before the checkpoint, which is after step {done}")
    if config["pictures"] != fingerprint(pictures):
        began = f"those that the run in {options.out} began with"
        raise UserError(f"--images {' '.join(options.images)}: the pictures are not {began}")


def check_class_folder(options, config):
    """Refuse other class pictures than the run began with, as long as those are there. Raises UserError."""
    before, own = config["options"], Path(options.out) / "class_images"
    was = before.get("class_images")
    if not options.prior_weight or was is None:
        return
    inside = was == str(Path(before.get("out") or "") / "class_images")  # they move with the run
    was = own if inside else Path(config.get("folder", ".")) / was
    if was.exists() and was.resolve() != Path(options.class_images).resolve():
        raise UserError(f"--class-images {options.class_images} is not the folder that the run in {options.out} began "
                        f"with, {was}: leave it out, or start another run")


def restore_threads(out):
    """Compute with as many threads as the run in this folder did: on a CPU their number changes the last bits."""
    threads = read_config(out).get("threads")
    if threads and threads != torch.get_num_threads():
        log.warning("%s began with %d threads (now %d): going on with as many", out, threads, torch.get_num_threads())
        torch.set_num_threads(threads)


def start(options, pictures):
    """Write config.json into the folder."""
    write_json(Path(options.out) / "config.json", {
        "format": FORMAT, "options": dataclasses.asdict(options), "base": full_name(options.model),
        "base_tokenizer": options.tokenizer and str(Path(options.tokenizer).resolve()), "folder": os.getcwd(),
        "processes": distributed.world(), "threads": torch.get_num_threads(), "pictures": fingerprint(pictures),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "safetensors", "pillow")},
    })


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _trainable(network):
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def save_checkpoint(out, training):
    """Write everything that a Training (`train.py`) needs to go on, as one file, whole or not at all."""
    tensors = {}
    for name, parameter in _trainable(training.network):
        tensors[f"weight/{name}"] = parameter
        for key, value in training.optimiser.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    if training.average:
        tensors |= {f"ema/{name}": mean for name, mean in training.average.mean.items()}
    scale = json.dumps(training.scaler.state_dict())
    write_tensors(Path(out) / STATE, tensors, {"completed_steps": str(training.step), "scaler": scale})


def read_progress(path):
    """(completed steps, state of the loss scaling) of a checkpoint's file. Raises UserError when it is damaged."""
    with open_weights(path) as file:
        header = fitting(file.metadata(), record({"completed_steps": text, "scaler": text}, HEADER), path)
    values = {key: parse_json(header[key], f"{path}: {key}") for key in HEADER}
    fitting(values, record(HEADER), path)
    return values["completed_steps"], values["scaler"]


@torch.no_grad()
def load_checkpoint(out, training):
    """Restore the network, the optimiser, the loss scaling and the number of completed steps in place.

    Raises UserError unless the file holds just what is trained, in the same shapes and finite: the optimiser trusts
    its state, and one of another shape makes it write beyond the end of a tensor.
    """
    path = Path(out) / STATE
    step, scaler = read_progress(path)
    if training.scaler.is_enabled():
        fitting(scaler, record(SCALER, required=SCALER), f"{path}: scaler")
    trained = dict(_trainable(training.network))
    wanted = {f"{key}/{name}": p.shape for name, p in trained.items() for key in ("weight", "exp_avg", "exp_avg_sq")}
    wanted |= {f"step/{name}": () for name in trained}
    averages = training.average.mean if training.average else {}
    wanted |= {f"ema/{name}": mean.shape for name, mean in averages.items()}
    with open_weights(path) as file:
        shapes = shapes_of(file)
        for name in [*wanted, *shapes]:
            there, needed = (list(of[name]) if name in of else "none" for of in (shapes, wanted))
            if there != needed:
                raise WeightsError(f"{path} is no checkpoint of this training: {name} is {there}, but needs {needed}")
        narrow = isinstance(training.optimiser, AdamWBfloat16)
        moments = dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.bfloat16 if narrow else torch.float32)
        for name, parameter in trained.items():
            keys = [f"{key}/{name}" for key in ("weight", "step", "exp_avg", "exp_avg_sq")]
            tensors = check_finite({key: file.get_tensor(key) for key in keys}, path)
            for key, tensor in tensors.items():
                least = 0 if key.startswith(("step/", "exp_avg_sq/")) else -math.inf  # Adam takes a root of exp_avg_sq
                dtype = moments.get(key.partition("/")[0], torch.float32)
                if tensor.dtype != dtype or (tensor.numel() and tensor.min() < least):
                    raise WeightsError(f"{path}: {key} cannot be a state of the optimiser")
            weight, *state = (tensor.to(parameter.device, copy=True) for tensor in tensors.values())
            parameter.copy_(weight)
            training.optimiser.state[parameter] = dict(zip(("step", "exp_avg", "exp_avg_sq"), state, strict=True))
        for name, mean in averages.items():
            mean.copy_(check_finite({name: file.get_tensor(f"ema/{name}")}, path)[name])
    training.scaler.load_state_dict(scaler)
    training.step = step


# --- observers of a training ------------------------------------------------------------------------------------------


class Checkpoints:
    """Saves after every `every` steps (0: never), after the last one, and when `stop` (CtrlC) asks; then it also stops.

    `saved` is the number of steps after which the last checkpoint was written; 0: there is none.
    """

    def __init__(self, options, stop, saved, progress):
        self.out, self.every, self.steps = Path(options.out), options.checkpoint_every, options.steps
        self.stop, self.saved, self.progress = stop, saved, progress

    def __call__(self, training):
        done = training.step
        if done == self.saved:
            return
        stopping = distributed.any_of(self.stop.asked)
        if stopping or done == self.steps or (self.every and done % self.every == 0):
            training.check()
            self.progress.write()  # a log that ends before the checkpoint could not be completed
            distributed.first_alone(save_checkpoint, self.out, training)
            self.saved = done
        if stopping and done < self.steps:
            saved = f"stopped after step {done}, saved in {self.out / STATE.parent}"
            raise KeyboardInterrupt(f"{saved}: the same command with --resume goes on")


class Progress:
    """A bar on the terminal and, in a run's folder, log.jsonl with one line for each step; `with Progress(…) as look:`.

    A line is written a step late, when the step's figures have arrived from the GPU. On resume, the lines after the
    checkpoint are dropped. out: the folder, or None for the bar alone. course: a `progress.Course` of longer work, or
    None where all steps take alike.
    """

    def __init__(self, out, training, steps, label="training", course=None):
        shown = distributed.rank() == 0
        self.path = Path(out) / "log.jsonl" if out and shown else None
        if self.path:
            lines = read_text(self.path).splitlines()[: training.step] if self.path.exists() and training.step else []
            write_text(self.path, "".join(line + "\n" for line in lines))
        self.bar = progress_bar(total=steps, initial=training.step, desc=label, disable=not shown)
        self.waiting, self.course = None, course or Course(steps)  # waiting: the figures of the last step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.write()
        self.bar.close()

    def __call__(self, training):
        self.course.passed(training.step)
        if training.figures is None:  # before the first step
            return
        self.write()
        self.waiting = training.figures
        self.bar.to_go = self.course.to_go()
        self.bar.update()

    def write(self):
        """Write the line of the step whose figures have been waited for, if there is one."""
        if self.waiting is None:
            return
        figures, step = self.waiting.read(), self.waiting.step
        self.waiting = None
        if self.path and math.isfinite(figures["diffusion"] + figures["prior"] + figures["kl"]):
            values = {name: float(f"{figures[name]:.6g}") for name in ("diffusion", "prior", "kl", "sigma")}
            append_text(self.path, json.dumps({"step": step, **values}) + "\n")
        self.bar.set_postfix(loss=f"{figures['diffusion']:.3f}", refresh=False)


class CtrlC:
    """`with CtrlC() as stop:` turns the first Ctrl-C, SIGTERM or SIGHUP into `stop.asked`: a step ends before training.

    A second Ctrl-C interrupts at once. SIGTERM and SIGHUP may come several times, and then mean nothing more.
    """

    def __enter__(self):
        self.asked = False
        self.before = on_stop(self._note)
        return self

    def _note(self, number, _frame):
        note_signal(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, interrupt)
        if not self.asked:
            self.asked = True
            # not print: what is interrupted may itself be writing to the buffered stderr; and there may be no terminal
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, and the step is lost\n")

    def __exit__(self, *_):
        for each, handler in self.before.items():
            signal.signal(each, handler)
