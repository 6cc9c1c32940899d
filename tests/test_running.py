"""How commands end: signals, a reader of the output that goes away, exceptions that become one line."""

import functools
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from minibnn import UserError, progress, runs
from minibnn.errors import visible
from minibnn.files.store import parse_json, read_json
from minibnn.files.weights import open_weights
from minibnn.options import running

if os.name == "nt":
    pytest.skip("fork and POSIX signals", allow_module_level=True)

import forked

QUICK = ["--samples", "0", "--no-monitor", "--prior-weight", "0", "--method", "lora"]


def train(dog, micro, out, *more, **settings):
    return forked.start(["train", "--images", dog, "--model", micro, "--out", out, *QUICK, *more], **settings)


def wait_for_step(out, process, steps=3):
    for _ in range(4000):
        log = out / "log.jsonl"
        if log.exists() and len(log.read_text().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stderr.read_text()
        time.sleep(0.005)
    raise AssertionError("training did not start")


def steps_saved(out):
    return int(open_weights(out / runs.STATE).metadata()["completed_steps"])


@pytest.mark.parametrize(
    ("numbers", "code"),
    [([signal.SIGINT], 130), ([signal.SIGTERM], 143), ([signal.SIGHUP], 129),
     ([signal.SIGTERM, signal.SIGTERM], 143), ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP], 129)],
)
def test_a_signal_saves_and_says_how_to_go_on(dog, micro, tmp_path, numbers, code):
    """SIGTERM is what a cluster sends before it kills; a terminal that closes may send SIGHUP twice."""
    out = tmp_path / "run"
    process = train(dog, micro, out, "--steps", "4000")
    wait_for_step(out, process)
    for number in numbers:
        process.send(number)
    ended, _, errors = process.wait()
    assert ended == code, errors
    assert "Traceback" not in errors and "train --resume --out" in errors.splitlines()[-1]
    assert steps_saved(out) == len((out / "log.jsonl").read_text().splitlines()) >= 3


def test_a_second_ctrl_c_stops_at_once(dog, micro, tmp_path):
    process = train(dog, micro, tmp_path / "run", "--steps", "4000", "--batch-size", "6", "--accumulate", "400")
    time.sleep(2)
    process.send(signal.SIGINT)
    time.sleep(0.3)
    process.send(signal.SIGINT)
    code, _, errors = process.wait(20)
    assert code == 130 and "Traceback" not in errors, errors


def test_a_signal_that_is_ignored_stays_ignored(dog, micro, tmp_path):
    """As after `nohup`."""
    out = tmp_path / "run"
    process = train(dog, micro, out, "--steps", "12", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_step(out, process)
    process.send(signal.SIGHUP)
    assert process.wait()[0] == 0 and steps_saved(out) == 12


def often():
    """Have it say how far it is ten times a second instead of once a minute."""
    progress.EVERY = 0.1


def test_training_is_saved_when_nobody_reads_its_output_any_more(dog, micro, tmp_path):
    reading, writing = os.pipe()
    out = tmp_path / "run"
    process = train(dog, micro, out, "--steps", "4000", output=writing, before=often)
    os.close(writing)
    wait_for_step(out, process)
    os.close(reading)
    code, *_ = process.wait()
    assert code == 130 and steps_saved(out) == len((out / "log.jsonl").read_text().splitlines()) >= 3


def test_help_into_a_closed_pipe_is_silent():
    reading, writing = os.pipe()
    os.close(reading)
    earlier = functools.partial(running.note_signal, signal.SIGINT)  # bug: that of a command before hid this one's
    process = forked.start(["train", "--help"], output=writing, before=earlier)
    os.close(writing)
    assert process.wait()[0] == 130


# --- exceptions -------------------------------------------------------------------------------------------------------


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


FORESEEN = {
    "a CPU that has no memory": (lambda: torch.empty(2**60, dtype=torch.uint8), "out of memory: try"),
    "more than an address": (lambda: torch.empty(2**62, 2**62), "out of memory: try"),
    "more than a number": (lambda: torch.empty(10**30), "out of memory: try"),
    "no memory": (lambda: bytearray(2**60), "out of memory: try"),
    "out of the GPU's memory": (lambda: exec("raise torch.OutOfMemoryError('CUDA out of memory. Tried')"), "out of"),
    "the user's mistake": (lambda: exec("raise UserError('--x 3 is\\n odd')"), "--x 3 is odd"),
    "a missing file": (lambda: os.stat("/nowhere/at/all"), "[Errno 2] No such file or directory: '/nowhere/at/all'"),
    "a missing package": (lambda: exec("import no_such_package"), "the package no_such_package is missing"),
    "a loop of links": (lambda: exec("raise RuntimeError(\"Symlink loop from '/x'\")"), "Symlink loop from '/x'"),
    "another encoding": (lambda: b"\xff".decode(), "a text is not valid in its encoding"),
    "a surrogate": (lambda: "a/b\udcff.png".encode(), r"the name 'b\udcff.png' is not valid UTF-8: rename that file"),
}


@pytest.mark.parametrize("name", FORESEEN)
def test_what_a_user_or_a_machine_can_cause_is_explained(name):
    from minibnn.options.training import TrainOptions

    cause, message = FORESEEN[name]
    said = running.explain(raised(cause), TrainOptions())
    assert said.startswith(message) and "\n" not in said
    assert ("--gradient-checkpointing" in said) == said.startswith("out of memory: ")


@pytest.mark.parametrize("cause", [lambda: 1 / 0, lambda: {}["key"], lambda: exec("import minibnn.nothing")])
def test_a_bug_keeps_its_traceback(cause):
    assert running.explain(raised(cause)) is None
    with pytest.raises((ZeroDivisionError, KeyError, ModuleNotFoundError)), running.one_line():
        cause()


def test_control_characters_are_shown(capsys):
    assert visible("a\x1b[31m\r\u202e b\u00e9\u4e2d") == "a\\x1b[31m\\r\\u202e b\u00e9\u4e2d"
    with pytest.raises(SystemExit), running.one_line():
        raise UserError("no model at \x1b[2Jx")
    assert capsys.readouterr().err == "error: no model at \\x1b[2Jx\n"
    record = logging.LogRecord("", 30, "", 0, "%s: skipped", ("\x1b]0;title",), None)
    assert running._OneLine("%(message)s").format(record) == "\\x1b]0;title: skipped"
    running.Output(sys.stdout, clean=True).write("one\x07\n\ttwo\n")
    assert capsys.readouterr().out == "one\\x07\n\ttwo\n"


HOSTILE = {
    "nested": "[" * 100_000, "a long number": '{"a": ' + "9" * 5000 + "}", "NaN": '{"a": NaN}', "a list": "[]",
    "infinity": '{"a": -Infinity}', "empty": "", "a word": "null", "half": '{"a": 1',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_one_line(tmp_path, name):
    path = tmp_path / "x.json"
    path.write_text(HOSTILE[name])
    with pytest.raises(UserError, match="x.json (is not valid JSON|holds no JSON object)"):
        read_json(path)


def test_json_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not text in UTF-8 .invalid start byte at byte 7"):
        read_json(tmp_path / "x.json")
    assert parse_json("[1]", "x") == [1]


@pytest.mark.parametrize("late", [
    "os.kill(os.getpid(), signal.SIGTERM)", "atexit.register(os.kill, os.getpid(), signal.SIGTERM)",
])
def test_a_signal_while_python_ends_is_silent(late):
    """torchrun sends one to the processes that are left; what Python runs at its end may take seconds."""
    script = f"""
import atexit, os, signal
from minibnn.options.running import run
from minibnn.options.training import TrainOptions
run(lambda options: None, TrainOptions(images=["x"]))
{late}
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGTERM, "")


def test_ctrl_c_while_python_ends_is_silent():
    script = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)  # before `run`, thus called after what that registers
from minibnn.options.running import run
from minibnn.options.training import TrainOptions
run(lambda options: None, TrainOptions(images=["x"]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")
