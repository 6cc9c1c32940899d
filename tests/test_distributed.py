"""Training in several processes, as torchrun starts them, on a CPU with gloo: the bits of one process, one voice."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from minibnn import UserError, distributed, runs
from minibnn.cli.train import fine_tune
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions

TAUGHT = ["--class-count", "6", "--prior-weight", "1", "--prior-target", "pretrained"]  # by the network beneath
CASES = {  # with random weights, each of its own in every process, and class pictures that the processes share out
    "full": ["--class-count", "6"],
    "lora": ["--method", "lora", "--lr", "0.01", *TAUGHT],
    "oft": ["--method", "oft", "--lr", "0.01", "--coft", "0.01", "--monitor",  # one looks, the others wait
            "--monitor-every", "3"],
}
SCRIPT = """
import sys, torch
from minibnn import data, distributed, schedule
from minibnn.cli.train import fine_tune
from minibnn.options.training import TrainOptions
from minibnn.options.parsing import parse
from minibnn.options.running import run
"""


def words(dog, micro, out, *more):
    return ["--images", str(dog), "--model", str(micro), "--device", "cpu", "--steps", "3", "--samples", "0",
            "--no-monitor", "--out", str(out), *more]


def torchrun(processes, *command):
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", *launcher, *command], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=settings)


def finished(process, code=0):
    """stdout and stderr of a process that ended so."""
    out, errors = process.communicate(timeout=500)
    assert process.returncode == code, errors[:3000]
    return out, errors


def assert_same_run(a, b):
    """The same weights, optimiser states and log, and at least one σ has moved."""
    left, right = (load_file(folder / runs.STATE) for folder in (a, b))
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, different[:5]
    assert (a / "log.jsonl").read_text() == (b / "log.jsonl").read_text()
    assert any(name.startswith("weight/") and name.endswith("_sigma") for name in left)


def test_two_processes_equal_two_forwards_of_one_bit_for_bit(dog, micro, tmp_path):
    script = tmp_path / "train.py"
    runs_of_script = [words(dog, micro, tmp_path / "several" / case, *CASES[case]) for case in CASES]
    script.write_text(SCRIPT + f"""
for words in {runs_of_script!r}:
    fine_tune(parse(TrainOptions, "train", words))
""")
    said, _ = finished(torchrun(2, str(script)))
    assert said.count("done:") == len(CASES)  # one process speaks
    for case in CASES:
        one = words(dog, micro, tmp_path / "one" / case, *CASES[case], "--accumulate", "2")
        fine_tune(parse(TrainOptions, "train", one))
        assert_same_run(tmp_path / "several" / case, tmp_path / "one" / case)
    for name in ("full/class_images/drawn-00000.png", "full/class_images/drawn-00005.png"):  # one of each group
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    several, one = (tmp_path / folder / "oft" / "curves.jsonl" for folder in ("several", "one"))
    assert several.read_text() == one.read_text()


def test_gradients_are_added_in_the_order_of_the_processes(monkeypatch):
    """As one process adds those of its forwards: with more than two the order shows in the last bit."""
    gradients = [torch.tensor([1.0]), torch.tensor([1e8]), torch.tensor([-1e8])]

    def all_gather(parts, mine, async_op):
        for part, gradient in zip(parts, gradients, strict=True):
            part.copy_(gradient)
        future = torch.futures.Future()
        future.set_result(None)
        return SimpleNamespace(get_future=lambda: future)

    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed.dist, "all_gather", all_gather)
    bucket = SimpleNamespace(buffer=lambda: gradients[1])
    assert distributed.summed(None, bucket).wait() == (gradients[0] + gradients[1]) + gradients[2] == 0


def test_ctrl_c_saves_once_and_one_process_cannot_go_on(dog, micro, tmp_path):
    out, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    long = words(dog, micro, out, "--steps", "4000", "--prior-weight", "0")
    process = torchrun(2, "-m", "minibnn.train", *long)
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert errors.count("torchrun --nproc-per-node 2 -m minibnn train --resume --out") == 1, errors
    assert "minibnn/" not in errors, errors  # no traceback of ours, though torchrun may print its own
    done = len(log.read_text().splitlines())
    assert json.loads((out / "config.json").read_text())["processes"] == 2
    assert load_file(out / runs.STATE)["step/conv_in.weight"] == done
    with pytest.raises(UserError, match="begun by 2 processes and cannot go on with 1; .* torchrun --nproc-per-node 2"):
        fine_tune(parse(TrainOptions, "train", [*long, "--resume"]))


def errors_where_process_1(does, dog, micro, out):
    """stderr of a run of two processes, of which process 1 does this, a line of Python, in its second step."""
    script = out.with_suffix(".py")
    script.write_text(SCRIPT + f"""
import os, signal

original, calls = schedule.q_sample, []

def broken(x0, eps, abar):
    calls.append(1)
    if len(calls) == 2 and distributed.rank() == 1:
        {does}
    return original(x0, eps, abar)

schedule.q_sample = broken
words = {words(dog, micro, out, "--prior-weight", "0", "--checkpoint-every", "1")!r}
run(fine_tune, parse(TrainOptions, "train", words))
""")
    return finished(torchrun(2, str(script)), code=1)[1]


def test_what_ends_one_process_ends_all_and_is_said_once(dog, micro, tmp_path):
    """The second step of process 1 diverges."""
    errors = errors_where_process_1("x0 = x0 * float('nan')", dog, micro, tmp_path / "run")
    assert errors.count("error: the loss is nan at step 2") == 1, errors
    assert errors.count("the last checkpoint, after 1 steps, is good") == 1
    state = load_file(tmp_path / "run" / runs.STATE)
    assert all(torch.isfinite(tensor).all() for tensor in state.values()) and state["step/conv_in.weight"] == 1


def test_the_others_say_in_one_line_that_one_was_killed(dog, micro, tmp_path):
    """As by the kernel when memory is short; the run goes on from its last checkpoint."""
    errors = errors_where_process_1("os.kill(os.getpid(), signal.SIGKILL)", dog, micro, tmp_path / "run")
    assert errors.count("error: another of the processes has ended without a word") == 1, errors
    assert "minibnn/" not in errors and "KeyboardInterrupt" not in errors, errors
    assert load_file(tmp_path / "run" / runs.STATE)["step/conv_in.weight"] == 1
