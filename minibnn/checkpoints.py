"""The checkpoint of a training: its weights, its optimiser and its step in one file, from which it goes on bit for bit.

No random state is saved: every forward draws from a generator seeded by (seed, its number).
"""

import json
import math
from pathlib import Path

import torch

from .files.schema import fitting, integer, number, record, text
from .files.store import parse_json
from .files.weights import WeightsError, check_finite, open_weights, shapes_of, write_tensors
from .finetune.adamw_bf16 import AdamWBfloat16

STATE = Path("checkpoint") / "state.safetensors"  # in a run's folder
SCALER = {  # of GradScaler's state; {} where it is not used
    "scale": number(above=0), "growth_factor": number(above=1), "backoff_factor": number(above=0, high=1),
    "growth_interval": integer(1), "_growth_tracker": integer(0),
}
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE_OF_ADAM = ("step", *MOMENTS)
HEADER = {"completed_steps": integer(0), "scaler": record(SCALER)}  # of the file, as JSON


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
    averages = training.average.mean if training.average else {}
    narrow = isinstance(training.optimiser, AdamWBfloat16)
    with open_weights(path) as file:
        _check_shapes(file, trained, averages, path)
        for name, parameter in trained.items():
            weight, *state = _read_state(file, name, torch.bfloat16 if narrow else torch.float32, path)
            parameter.copy_(weight)
            state = (tensor.to(parameter.device, copy=True) for tensor in state)
            training.optimiser.state[parameter] = dict(zip(STATE_OF_ADAM, state, strict=True))
        for name, mean in averages.items():
            mean.copy_(check_finite({name: file.get_tensor(f"ema/{name}")}, path)[name])
    training.scaler.load_state_dict(scaler)
    training.step = step


def _check_shapes(file, trained, averages, path):
    """Raises WeightsError unless an open file holds just these parameters with their state and these averages."""
    wanted = {f"{key}/{name}": p.shape for name, p in trained.items() for key in ("weight", *MOMENTS)}
    wanted |= {f"step/{name}": () for name in trained} | {f"ema/{name}": mean.shape for name, mean in averages.items()}
    shapes = shapes_of(file)
    for name in [*wanted, *shapes]:
        there, needed = (list(of[name]) if name in of else "none" for of in (shapes, wanted))
        if there != needed:
            raise WeightsError(f"{path} is not a checkpoint of this training: {name} is {there}, but needs {needed}")


def _read_state(file, name, moments, path):
    """The weight of one parameter and its STATE_OF_ADAM; moments: their dtype. Raises WeightsError."""
    tensors = [file.get_tensor(f"{key}/{name}") for key in ("weight", *STATE_OF_ADAM)]
    for key, tensor in zip(("weight", *STATE_OF_ADAM), tensors, strict=True):
        dtype = moments if key in MOMENTS else torch.float32
        least = 0 if key in ("step", "exp_avg_sq") else -math.inf  # Adam takes a root of exp_avg_sq
        check_finite({f"{key}/{name}": tensor}, path)
        if tensor.dtype != dtype or (tensor.numel() and tensor.min() < least):
            raise WeightsError(f"{path}: {key}/{name} cannot be a state of the optimiser")
    return tensors
