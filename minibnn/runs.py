"""A run's folder: what is in it, when it may be written to, and how training resumes bit for bit.

    config.json               the options, all of them, and the versions
    log.jsonl                 one line for each step
    samples.png               the same prompts and seeds at the end (samples-000200.png, … with --sample-every)
    unet/ vae/ text_encoder/  the result, a diffusers folder; or an adapter's file (see adapter_files.py)
    curves.jsonl curves.png   fidelity, noise and σ₁ while training, and faithful/ the best steps (monitor.py)
    class_images/             pictures of the class, drawn by the base model, and for what (.class.json)
    checkpoint/               for --resume: weights, optimiser and step

No random state is saved: every step draws from a generator seeded by (seed, step).
"""

import dataclasses
import hashlib
import json
import platform
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import torch

from .data import full_name
from .errors import UserError
from .files.store import open_weights, read_json, write_json, write_tensors, write_text
from .finetune.adapter_files import is_adapter

STATE = Path("checkpoint") / "state.safetensors"
FORMAT = "minibnn run"
NOT_COMPARED = ("steps", "resume", "overwrite", "out", "class_images")  # the options that may differ on --resume
PATHS = ("images", "model", "tokenizer")


def read_config(out):
    """config.json of a run. Raises UserError if the folder is none."""
    config = read_json(Path(out) / "config.json")
    if config.get("format") != FORMAT or "options" not in config:
        raise UserError(f"--out {out} is no run of minibnn; name another folder")
    return config


def adapter_run(folder):
    """(path of the base model, options) of a run of LoRA or OFT; None if the folder is another kind of model.

    Raises UserError when the run is not finished or its base is not where it was.
    """
    config = Path(folder) / "config.json"
    config = read_json(config) if config.exists() and not (Path(folder) / "unet").is_dir() else {}
    if config.get("format") != FORMAT:
        return None
    options = config["options"]
    if not is_adapter(folder):
        raise UserError(f"the run in {folder} is not finished: its training command with --resume goes on")
    base = next((b for b in (config["base"], options["model"]) if b == "tiny" or Path(b).exists()), None)
    if base is None:
        raise UserError(f"{folder} adapts the model {options['model']}, which is not there: pass --model BASE --adapter {folder}")
    return base, options


def is_fresh(out):
    """True if nothing would be lost: an absent or empty folder, or a run stopped before its first checkpoint."""
    names = {p.name for p in out.iterdir()} if out.exists() else set()
    if names <= {"class_images"}:
        return True
    if not names <= {"config.json", "class_images", "log.jsonl", "curves.jsonl", "curves.png", "faithful"}:
        return False
    return "config.json" in names and read_json(out / "config.json").get("format") == FORMAT


def check_folder(options):
    """Refuse, before anything is written, a folder that may not be used. Raises UserError."""
    out = Path(options.out)
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if options.resume:
        if not (out / STATE).exists():
            raise UserError(f"no checkpoint in {out}: nothing to resume; start without --resume")
        read_config(out)
    elif not is_fresh(out):
        if not options.overwrite:
            raise UserError(f"--out {out} exists: go on with --resume, replace it with --overwrite, or name another")
        read_config(out)
        for name in ("images", "model", "tokenizer", "class_images"):
            value = getattr(options, name)
            if value and Path(value).resolve().is_relative_to(out.resolve()) and Path(value) != out / "class_images":
                raise UserError(f"--overwrite would delete --{name.replace('_', '-')} {value}, which is inside {out}")


def fingerprint(paths):
    """{file name: first half of its SHA-256}: resuming with other pictures would not be the same run."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in paths}


def check_same_run(options, pictures):
    """Refuse to resume with other options (fewer steps than done included) or pictures. Raises UserError naming them."""
    config = read_config(options.out)
    before = config["options"]
    for name, value in dataclasses.asdict(options).items():
        was = before.get(name)
        same = was == value or (name in PATHS and was and value and Path(was).resolve() == Path(value).resolve())
        if name not in NOT_COMPARED and not same:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} is {value!r} but the run in {options.out} has {was!r}; only --steps may change on --resume"
            )
    with open_weights(Path(options.out) / STATE) as file:
        done = int(file.metadata()["completed_steps"])
    if done > options.steps:
        raise UserError(f"--steps {options.steps} lies before the checkpoint, which is after step {done}")
    if config["pictures"] != fingerprint(pictures):
        raise UserError(f"--images {options.images}: the pictures are not those that the run in {options.out} began with")


def start(options, pictures):
    """Make the folder, empty unless resuming, and write config.json. Overwriting keeps OUT/class_images."""
    out = Path(options.out)
    if options.overwrite and out.exists():
        for path in out.iterdir():
            if path.name != "class_images":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    packages = {name: version(name) for name in ("torch", "numpy", "safetensors", "pillow")}
    content = {"options": dataclasses.asdict(options), "base": full_name(options.model), "pictures": fingerprint(pictures)}
    write_json(out / "config.json", {"format": FORMAT, **content, "python": platform.python_version(), **packages})


def _trainable(network):
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def save_checkpoint(out, step, network, optimiser, scaler):
    """Write everything that training needs to go on after `step` steps, as one file, whole or not at all."""
    tensors = {}
    for name, parameter in _trainable(network):
        tensors[f"weight/{name}"] = parameter
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    scale = json.dumps(scaler.state_dict())
    write_tensors(Path(out) / STATE, tensors, {"completed_steps": str(step), "scaler": scale})


@torch.no_grad()
def load_checkpoint(out, network, optimiser, scaler):
    """Restore network, optimiser and loss scaling in place; returns the number of completed steps."""
    with open_weights(Path(out) / STATE) as file:
        for name, parameter in _trainable(network):
            parameter.copy_(file.get_tensor(f"weight/{name}"))
            optimiser.state[parameter] = {
                key: file.get_tensor(f"{key}/{name}").to(parameter.device, copy=True)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        scaler.load_state_dict(json.loads(file.metadata()["scaler"]))
        return int(file.metadata()["completed_steps"])


class Log:
    """log.jsonl: one line for each step; on resume the lines after the checkpoint are dropped."""

    def __init__(self, out, completed_steps):
        self.path = Path(out) / "log.jsonl"
        lines = self.path.read_text().splitlines()[:completed_steps] if self.path.exists() and completed_steps else []
        write_text(self.path, "".join(line + "\n" for line in lines))

    def write(self, values):
        line = json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()})
        with open(self.path, "a") as file:
            file.write(line + "\n")


class CtrlC:
    """`with CtrlC() as stop:` turns the first Ctrl-C into `stop.asked`, so that a step ends before training stops.

    A second Ctrl-C interrupts at once.
    """

    def __enter__(self):
        self.asked = False
        try:
            self.before = signal.signal(signal.SIGINT, self._note)
        except ValueError:  # not in the main thread, as in some notebooks
            self.before = None
        return self

    def _note(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_):
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
