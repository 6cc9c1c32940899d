"""A run's folder: what is in it, when it may be written to, and how training resumes bit for bit.

    config.json               the options, all of them, and the versions
    log.jsonl                 one line for each step
    samples.png               the same prompts and seeds at the end (samples-000200.png, … with --sample-every)
    unet/ vae/ text_encoder/  the result, a diffusers folder
    class_images/             pictures of the class, drawn by the base model
    checkpoint/               for --resume: weights, optimiser and step

No random state is saved: every step draws from a generator seeded by (seed, step).
"""

import dataclasses
import json
import platform
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open

from .errors import UserError
from .weights import open_weights, read_json, write_json, write_tensors, write_text

STATE = Path("checkpoint") / "state.safetensors"
NOT_COMPARED = ("steps", "resume", "overwrite")  # the options that may differ when a run is resumed


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
    elif out.exists() and any(out.iterdir()):
        if not options.overwrite:
            raise UserError(f"--out {out} exists: go on with --resume, replace it with --overwrite, or name another")
        if not (out / "config.json").exists():
            raise UserError(f"--out {out} is no run of minibnn and is not overwritten; name another folder")
        if Path(options.model).resolve() == out.resolve():
            raise UserError(f"--out {out} is the model to start from; name another folder")


def check_same_options(options):
    """Refuse to resume with options that differ from the run's, --steps excepted. Raises UserError naming the first."""
    before = read_json(Path(options.out) / "config.json")["options"]
    for name, value in dataclasses.asdict(options).items():
        if name not in NOT_COMPARED and before.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is {value!r} but the run in {options.out} has {before.get(name)!r}; only --steps may change on --resume")  # fmt: skip


def start(options):
    """Make the folder, empty unless resuming, and write config.json.

    Overwriting keeps class pictures that the new run would draw again.
    """
    out = Path(options.out)
    if options.overwrite and out.exists():
        before = read_json(out / "config.json")["options"]
        same_class = all(before.get(k) == getattr(options, k) for k in ("model", "class_prompt", "resolution"))
        for path in out.iterdir():
            if not (path.name == "class_images" and same_class):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    packages = {name: version(name) for name in ("torch", "numpy", "safetensors", "pillow")}
    write_json(
        out / "config.json",
        {"format": "minibnn run", "options": dataclasses.asdict(options), "python": platform.python_version(), **packages},
    )


def save_checkpoint(out, step, network, optimiser, scaler):
    """Write everything that training needs to go on after `step` steps, as one file, whole or not at all."""
    tensors = {}
    for name, parameter in network.named_parameters():
        tensors[f"weight/{name}"] = parameter
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    scale = json.dumps(scaler.state_dict())
    write_tensors(Path(out) / STATE, tensors, {"completed_steps": str(step), "scaler": scale})


@torch.no_grad()
def load_checkpoint(out, network, optimiser, scaler):
    """Restore network, optimiser and loss scaling in place; returns the number of completed steps."""
    path = Path(out) / STATE
    open_weights(path)  # a readable error when it is damaged
    with safe_open(path, framework="pt") as file:
        for name, parameter in network.named_parameters():
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
        line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()})
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
