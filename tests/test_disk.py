"""Room on the disk is asked for before a training, and a full one after the last step costs the checkpoint alone."""

import re
from types import SimpleNamespace

import pytest

from minibnn import checkpoints, disk, observers
from minibnn.cli import train
from minibnn.errors import UserError
from minibnn.files.store import CannotWrite
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions


@pytest.fixture
def options(dog, tmp_path, micro):
    def make(*arguments, out="run"):
        words = ["--images", str(dog), "--out", str(tmp_path / out), "--model", str(micro), "--samples", "0"]
        return parse(TrainOptions, "minibnn.train", [*words, "--prior-weight", "0", *arguments])

    return make


def room(monkeypatch, *free):
    """Each time that it is asked for, the next number of bytes."""
    left = iter(free)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: SimpleNamespace(free=next(left)))


@pytest.mark.parametrize("arguments", [
    [], ["--no-bayes", "--ema", "0.9"], ["--single-file"], ["--no-keep-optimiser"],
    ["--no-keep-optimiser", "--ema", "0.9"], ["--optimiser", "adamw-bf16"],
])
def test_what_a_run_writes_is_what_was_counted(options, tmp_path, monkeypatch, caplog, arguments):
    """Bugs it would catch: σ is counted as a part of the result; a checkpoint is counted without its moments."""
    written, out = {}, tmp_path / "run"

    def save(*given):
        checkpoints.save_checkpoint(*given)
        written["checkpoint"] = (out / checkpoints.STATE).stat().st_size

    monkeypatch.setattr(observers, "save_checkpoint", save)
    room(monkeypatch, 10**12, 0)  # before the folder is made, and before the first step
    train.fine_tune(options("--steps", "1", *arguments))
    [said] = [line for line in caplog.messages if "and this run may need more" in line]
    counted = [1e6 * float(number) for number in re.findall(r"([\d.e-]+) MB for", said)]
    result = [path.stat().st_size for path in out.rglob("*.safetensors") if "checkpoint" not in path.parts]
    written["result"] = sum(result)
    assert counted == pytest.approx([written["result"], written["checkpoint"]], rel=0.1)


def test_a_result_without_room_is_refused_before_anything_is_written(options, tmp_path, monkeypatch):
    room(monkeypatch, 1000)
    with pytest.raises(UserError, match="its disk has 0.001 MB free, and the result takes .* MB: free some space or"):
        train.fine_tune(options())
    assert not any(path.is_file() for path in (tmp_path / "run").rglob("*"))
    room(monkeypatch, 1000, 1000)  # an adapter is small
    train.fine_tune(options("--method", "lora", "--steps", "1"))


def test_a_full_disk_after_the_last_step_costs_the_checkpoint_alone(options, tmp_path, monkeypatch, caplog):
    """Bug: all steps were lost, though the result, a third as large, would have found room."""
    def full(*given):
        raise CannotWrite("cannot write state.safetensors: No space left on device")

    monkeypatch.setattr(observers, "save_checkpoint", full)
    train.fine_tune(options("--steps", "2"))
    assert (tmp_path / "run" / "unet").is_dir() and "All steps are done, and the result is written" in caplog.text
    with pytest.raises(CannotWrite):  # there are steps to come, which would be trained for nothing
        train.fine_tune(options("--steps", "2", "--checkpoint-every", "1", out="second"))
