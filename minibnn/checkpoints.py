"""The checkpoint of a training: its weights, its optimiser and its step in one file, from which it goes on bit for bit.

No random state is saved: every forward draws from a generator seeded by (seed, its number).

After the last step the optimiser is needed no more, unless steps are added later. A large one is then left out
(`is_kept`): such a checkpoint holds the weights alone, for a run that is stopped while its result is written, and is
deleted when that is there.
"""

import contextlib
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
SMALL = 10**9  # bytes; a smaller checkpoint is kept when its run is finished
HEADER = {"completed_steps": integer(0), "scaler": record(SCALER)}  # of the file, as JSON


def _trainable(network):
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def size_of(training, optimiser=True):
    """The bytes of a checkpoint: for each trained number its value in float32 and Adam's two moments; the averages.

    optimiser: whether the moments are in it.
    """
    moments = (4 if isinstance(training.optimiser, AdamWBfloat16) else 8) * optimiser
    averaged = sum(mean.numel() for mean in training.average.mean.values()) if training.average else 0
    return (4 + moments) * sum(parameter.numel() for _, parameter in _trainable(training.network)) + 4 * averaged


def is_kept(options, training):
    """Whether a finished run keeps its checkpoint: as --keep-optimiser says, or else if it is smaller than SMALL.

    To be called before the first step. A checkpoint that was loaded without the optimiser's state is not kept, because
    no step can follow it.
    """
    if training.step == options.steps and not training.optimiser.state:
        return False
    return size_of(training) < SMALL if options.keep_optimiser is None else options.keep_optimiser


def save_checkpoint(out, training, optimiser=True):
    """Write everything that a Training (`train.py`) needs to go on, as one file, whole or not at all.

    optimiser: whether its state is written too, without which no step can follow.
    """
    tensors = {}
    for name, parameter in _trainable(training.network):
        tensors[f"weight/{name}"] = parameter
        for key, value in training.optimiser.state[parameter].items() if optimiser else ():
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


def has_optimiser(path):
    """Whether a checkpoint's file holds a state of the optimiser, so that steps can follow. Raises UserError."""
    with open_weights(path) as file:
        return any(name.split("/")[0] in STATE_OF_ADAM for name in file.keys())  # noqa: SIM118


def delete_checkpoint(out):
    """Delete the checkpoint of a run whose result is written."""
    (Path(out) / STATE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what somebody else put there stays
        (Path(out) / STATE.parent).rmdir()


@torch.no_grad()
def load_checkpoint(out, training):
    """Restore the network, the optimiser, the loss scaling and the number of completed steps in place.

    From a checkpoint of the weights alone the optimiser is not restored. Raises UserError unless the file holds just
    what is trained, in the same shapes and finite: the optimiser trusts its state, and one of another shape makes it
    write beyond the end of a tensor.
    """
    path = Path(out) / STATE
    step, scaler = read_progress(path)
    if training.scaler.is_enabled():
        fitting(scaler, record(SCALER, required=SCALER), f"{path}: scaler")
    trained = dict(_trainable(training.network))
    averages = training.average.mean if training.average else {}
    moments = torch.bfloat16 if isinstance(training.optimiser, AdamWBfloat16) else torch.float32
    of_adam = STATE_OF_ADAM if has_optimiser(path) else ()
    with open_weights(path) as file:
        _check_shapes(file, trained, averages, of_adam, path)
        for name, parameter in trained.items():
            weight, *state = _read_state(file, name, of_adam, moments, path)
            parameter.copy_(weight)
            if of_adam:
                state = (tensor.to(parameter.device, copy=True) for tensor in state)
                training.optimiser.state[parameter] = dict(zip(of_adam, state, strict=True))
        for name, mean in averages.items():
            mean.copy_(check_finite({name: file.get_tensor(f"ema/{name}")}, path)[name])
    training.scaler.load_state_dict(scaler)
    training.step = step


def _check_shapes(file, trained, averages, of_adam, path):
    """Raises WeightsError unless an open file holds just these parameters with `of_adam` of each and these averages."""
    wanted = {
        f"{key}/{name}": () if key == "step" else p.shape for name, p in trained.items() for key in ("weight", *of_adam)
    }
    wanted |= {f"ema/{name}": mean.shape for name, mean in averages.items()}
    shapes = shapes_of(file)
    for name in [*wanted, *shapes]:
        there, needed = (list(of[name]) if name in of else "none" for of in (shapes, wanted))
        if there != needed:
            raise WeightsError(f"{path} is not a checkpoint of this training: {name} is {there}, but needs {needed}")


def _read_state(file, name, of_adam, moments, path):
    """The weight of one parameter and what `of_adam` names; moments: their dtype. Raises WeightsError."""
    tensors = [file.get_tensor(f"{key}/{name}") for key in ("weight", *of_adam)]
    for key, tensor in zip(("weight", *of_adam), tensors, strict=True):
        dtype = moments if key in MOMENTS else torch.float32
        least = 0 if key in ("step", "exp_avg_sq") else -math.inf  # Adam takes a root of exp_avg_sq
        check_finite({f"{key}/{name}": tensor}, path)
        if tensor.dtype != dtype or (tensor.numel() and tensor.min() < least):
            raise WeightsError(f"{path}: {key}/{name} cannot be a state of the optimiser")
    return tensors
