"""Which device, dtype and number of threads is chosen, on pretended GPUs."""

import ast
import dataclasses
import inspect
from importlib import import_module

import pytest
import torch

from minibnn.__main__ import COMMANDS
from minibnn.cli.sample import sample
from minibnn.cli.train import fine_tune
from minibnn.devices import (
    choose_device,
    choose_threads,
    half_dtype,
    make_deterministic,
    training_dtype,
    unscaled_dtype,
)
from minibnn.errors import UserError
from minibnn.options.results import SampleOptions
from minibnn.options.running import explain
from minibnn.options.training import TrainOptions


def pretend(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "half", "unscaled"),
    [
        ((7, 0), "float16", "float32"),
        ((7, 5), "float16", "float32"),
        ((8, 0), "bfloat16", "bfloat16"),
        ((9, 0), "bfloat16", "bfloat16"),
    ],
)
def test_bfloat16_only_where_it_is_fast(monkeypatch, capability, half, unscaled):
    pretend(monkeypatch, capability)
    assert half_dtype("cuda:0") == training_dtype("cuda:0") == half and unscaled_dtype("cuda:0") == unscaled


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_training_is_in_float32(device):
    assert unscaled_dtype(device) == training_dtype(device) == "float32"


def test_devices_that_do_not_exist():
    assert choose_device("cpu") == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="--device mps: .*; try --device cpu"):
            choose_device("mps")
    with pytest.raises(UserError, match="--device tpu is not one of cpu, cuda"):
        choose_device("tpu")
    with pytest.raises(UserError, match="--device cuda:99: .*try --device cpu"):
        choose_device("cuda:99")


@pytest.mark.parametrize("there", [True, False])
def test_cuda_is_chosen_if_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    assert choose_device() == ("cuda" if there else "cpu")


@pytest.mark.parametrize(
    ("device", "width", "asked", "chosen"),
    [("cpu", 100, None, 1), ("cpu", 10_000, None, None), ("cpu", 100, "3", None), ("cuda:0", 100, None, None)],
    ids=["small", "large", "asked", "gpu"],
)
def test_one_thread_for_small_networks_unless_the_user_says_otherwise(monkeypatch, device, width, asked, chosen):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    choose_threads(device, torch.nn.Linear(width, width, device="meta"))
    assert calls == ([chosen] if chosen else [])


def test_a_command_gives_the_callers_threads_back(dog, micro, tmp_path, monkeypatch):
    """Bug of an earlier version: in a notebook all that came after a training had one thread."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own, seen = torch.get_num_threads(), []
    training = TrainOptions([str(dog)], model=str(micro), steps=1, prior_weight=0.0, samples=0, monitor=False,
                            device="cpu", out=str(tmp_path / "run"))
    torch.set_num_threads(2)
    try:
        fine_tune(training, [lambda _: seen.append(torch.get_num_threads())])
        assert seen == [1, 1] and torch.get_num_threads() == 2
        with pytest.raises(UserError, match="exists"):
            fine_tune(training)
        with pytest.raises(ZeroDivisionError):
            fine_tune(dataclasses.replace(training, overwrite=True), [lambda _: 1 / 0])
        assert torch.get_num_threads() == 2
        sample(SampleOptions(["a dog"], model=str(micro), steps=1, device="cpu", out=str(tmp_path / "a.png")))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own)


CHOOSE_NO_THREADS = {  # commands that leave PyTorch's number of threads as it is, or compute in processes of their own
    "export", "report", "photo-measures", "world", "pretrain", "experiment corruption", "experiment report",
    "experiment stage-report", "experiment stage-views", "experiment stage-starts", "experiment sd-gains",
}


def test_no_command_forgets_the_callers_threads():
    """Every other command, called as a function in a notebook, gives them back at its end."""
    forgetful = set()
    for name, (_, _, place, *_) in COMMANDS.items():
        module, function = place.split(":")
        command = inspect.unwrap(getattr(import_module(f"minibnn.{module}"), function))
        (tree,) = ast.parse(inspect.getsource(command)).body
        if "threads_kept()" not in map(ast.unparse, tree.decorator_list):
            forgetful.add(name)
    assert forgetful == CHOOSE_NO_THREADS


@pytest.mark.parametrize(("device", "calls"), [("cuda:1", [((True,), {})]), ("cpu", [])])
def test_deterministic_kernels_are_all_or_none(monkeypatch, device, calls):
    """Bug of an earlier version: with warn_only the fast backward of attention stayed, and no bit was the same."""
    seen = []
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *words, **more: seen.append((words, more)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    make_deterministic(device)
    assert seen == calls
    assert torch.utils.deterministic.fill_uninitialized_memory is (device == "cpu")


def test_an_operation_without_a_deterministic_kernel_is_named():
    said = explain(RuntimeError("put_cuda_ does not have a deterministic implementation, but you set 'torch.use_…"))
    assert said == "put_cuda_ has no kernel that gives the same bits twice: leave out --deterministic"
