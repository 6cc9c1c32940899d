"""A run's folder: one process at a time, no dead ends after a kill, and nothing deleted that a run did not write."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from minibnn import UserError, class_pictures, ownership, runs
from minibnn.cli import class_source, sample
from minibnn.cli.train import fine_tune
from minibnn.files import folders, locks, store
from minibnn.neighbours import graft_run
from minibnn.options import experiments, neighbours, world
from minibnn.options.neighbours import GraftOptions
from minibnn.options.parsing import parse
from minibnn.options.results import SampleOptions
from minibnn.options.training import TrainOptions
from minibnn.pictures import save_png


@pytest.fixture
def options(dog, micro, tmp_path):
    """options("--steps", "1", …) -> TrainOptions of a quick LoRA training into tmp_path/run."""

    def make(*words, out="run", method="lora"):
        common = ["--images", dog, "--model", micro, "--samples", 0, "--prior-weight", 0, "--method", method]
        return parse(TrainOptions, "train", [*map(str, common), "--out", str(tmp_path / out), "--steps", "1", *words])

    return make


# --- one process at a time --------------------------------------------------------------------------------------------


def holder(folder):
    """A process that has locked a folder, and has said so."""
    script = ("import sys; sys.path.insert(0, '.'); from minibnn.files.locks import locked\n"
              "with locked(sys.argv[1]): print('locked', flush=True); sys.stdin.read()")
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_run_in_a_folder_is_refused_and_names_the_first(options, tmp_path):
    out = tmp_path / "run"
    process = holder(out)
    try:
        for words in ([], ["--overwrite"]):
            with pytest.raises(UserError, match=f"run is in use by process {process.pid} on .*, since 2.*; wait"):
                fine_tune(options(*words))
        assert [p.name for p in out.iterdir()] == [".lock"]
    finally:
        process.kill()  # leaves its lock's file
        process.wait()
    assert (out / ".lock").exists()
    fine_tune(options())  # which is taken over
    assert not (out / ".lock").exists() and (out / runs.STATE).exists()


OTHERS = {  # commands that write into a folder for long: (module, function, what it takes before the options, options)
    "pretrain": ("world.pretrain", "pretrain", (), lambda out, dog: world.PretrainOptions(work=out, processes=1)),
    "pretrain-textured": (
        "world.textured", "pretrain", (), lambda out, dog: world.PretrainTexturedOptions(work=out)),
    "flow": ("neighbours.flow", "train_or_draw", (),
             lambda out, dog: neighbours.FlowOptions(train=True, out=out, overwrite=True)),
    "bps": ("neighbours.bps_run", "train_or_draw", (),
            lambda out, dog: neighbours.BpsOptions(hints=dog, out=out, overwrite=True)),
    "sd-gains": ("experiments.sd_gains.trainings", "experiment", (),
                 lambda out, dog: experiments.SdGainsOptions(model="tiny", images=dog, out=out, arms=["plain"])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands_refuse_a_folder_that_is_in_use(name, tmp_path, dog):
    module, function, leading, options = OTHERS[name]
    out = tmp_path / "out"
    with locks.locked(out):
        with pytest.raises(UserError, match=f"out is in use by process {os.getpid()} on"):
            getattr(import_module(f"minibnn.{module}"), function)(*leading, options(str(out), str(dog)))
        assert [path.name for path in out.iterdir()] == [".lock"]


def test_resuming_with_other_class_pictures_is_refused(tmp_path):
    """As long as those that the run began with are there; where they were moved, others must do."""
    for name in ("mine", "others", "run/class_images"):
        (tmp_path / name).mkdir(parents=True)

    def check(was, now, **own):
        options = TrainOptions(images="p", out=str(tmp_path / "run"), prior_weight=1.0, resume=True,
                               class_images=str(tmp_path / now))
        config = {"format": runs.FORMAT, "folder": str(tmp_path), "options": {"out": "before", "class_images": was}}
        store.write_json(tmp_path / "run" / "config.json", config | own)
        made_for = class_pictures.record("a dog", "tiny", 64, 3.0)
        class_source.check_own([class_source.ClassFolder(str(tmp_path / now), 0, made_for)], options)

    check("mine", "mine")
    check(str(tmp_path / "mine"), "others/../mine")
    check("before/class_images", "run/class_images")  # a run that was moved, with its pictures
    check("gone", "others")
    with pytest.raises(UserError, match=r"--class-images .*others is not the folder that the run in .* began with"):
        check("mine", "others")
    with pytest.raises(UserError, match="leave it out, or start another run"):
        check("before/class_images", "others")


def test_a_lock_is_taken_over_only_when_its_process_is_gone(tmp_path):
    again = locks.locked(tmp_path / "a")
    with locks.locked(tmp_path / "a"), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), again:
        pass
    assert not (tmp_path / "a").exists()  # nothing was put in
    with locks.locked(tmp_path / "a"):
        (tmp_path / "a" / "x").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]
    (tmp_path / "a" / ".lock").write_text("no JSON")
    with locks.locked(tmp_path / "a"):
        assert json.loads((tmp_path / "a" / ".lock").read_text())["process"] == os.getpid()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="it is /proc that tells")
@pytest.mark.parametrize(("stat", "lives"), [(b"", True), (b"1 (a) b) Z 1", False), (b"1 (Z) S 1", True)])
def test_a_dead_process_that_keeps_its_number_does_not_live(monkeypatch, stat, lives):
    """Its state stands after its name, in which anything may stand. Nothing at all is read while it ends."""
    monkeypatch.setattr(Path, "read_bytes", lambda path: stat)
    assert locks.lives(os.getpid()) == lives


def test_two_runs_that_begin_together_do_not_mix(options, tmp_path, monkeypatch):
    """The second passes the first look, and before it has the lock the first begins and ends."""

    def meanwhile(folder):
        monkeypatch.undo()
        fine_tune(options("--seed", "1"))
        return ownership.locked(folder)

    monkeypatch.setattr(ownership, "locked", meanwhile)
    with pytest.raises(UserError, match="exists: go on with --resume, replace it"):
        fine_tune(options("--seed", "2"))
    assert runs.read_config(tmp_path / "run")["options"]["seed"] == 1


# --- leftovers, and no dead ends --------------------------------------------------------------------------------------


def test_leftovers_of_killed_writes_go_with_the_next_run(options, tmp_path):
    out = tmp_path / "run"
    fine_tune(options())
    left = [out / ".config.json.123.tmp", out / "checkpoint" / ".state.safetensors.45.tmp", out / ".samples.png.1.tmp"]
    mine = [out / ".notes.tmp", out / "x.12.tmp", out / ".x.12.tmp.bak"]
    for path in left + mine:
        path.touch()
    fine_tune(options("--steps", "2", "--resume"))
    assert not any(path.exists() for path in left) and all(path.exists() for path in mine)


STOPPED = {  # what a kill may leave before the first checkpoint is whole
    "nothing yet": [],
    "the lock": [".lock"],
    "a part of config.json": [".lock", ".config.json.7.tmp"],
    "config.json": ["config.json"],
    "a part of log.jsonl": ["config.json", ".log.jsonl.8.tmp"],
    "an empty checkpoint/": ["config.json", "log.jsonl", "checkpoint/"],
    "a part of the first checkpoint": ["config.json", "log.jsonl", "checkpoint/.state.safetensors.9.tmp"],
    "the same with curves": ["config.json", "curves.jsonl", ".curves.png.3.tmp", "checkpoint/.state.safetensors.9.tmp"],
}


@pytest.mark.parametrize("stage", STOPPED)
def test_a_run_killed_before_its_first_checkpoint_has_a_way_on(options, tmp_path, stage, micro):
    out = tmp_path / "run"
    out.mkdir()
    for name in STOPPED[stage]:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).mkdir() if name.endswith("/") else (out / name).touch()
    if (out / "config.json").exists():
        runs.start(options(), [])
    with pytest.raises(UserError, match="nothing to resume; start without --resume"):
        fine_tune(options("--resume"))
    ownership.check(options("--overwrite"))
    fine_tune(options())
    assert (out / runs.STATE).exists() and not list(out.rglob("*.tmp")) and not (out / ".lock").exists()


def test_a_run_with_a_damaged_checkpoint_has_a_way_on(options, tmp_path):
    fine_tune(options())
    (tmp_path / "run" / runs.STATE).write_bytes(b"torn")
    with pytest.raises(UserError, match="state.safetensors .4 bytes. is damaged"):
        fine_tune(options("--resume"))
    fine_tune(options("--overwrite"))


# --- nothing of the user's is deleted or written into -----------------------------------------------------------------


def test_class_pictures_are_not_drawn_into_the_photographs(options, dog, tmp_path):
    shutil.copytree(dog, tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    before = sorted(p.name for p in (tmp_path / "photos").iterdir())
    for folder in ("photos", "link", "photos/../photos"):
        words = ["--images", str(tmp_path / "photos"), "--class-images", str(tmp_path / folder), "--prior-weight", "1"]
        with pytest.raises(UserError, match="--class-images .* is --images too, and class pictures are drawn into it"):
            fine_tune(options(*words))
    with pytest.raises(UserError, match="--class-images .* is --out too"):
        fine_tune(options("--class-images", str(tmp_path / "run"), "--prior-weight", "1"))
    with pytest.raises(UserError, match="00.png is a file; name a folder"):
        fine_tune(options("--class-images", str(tmp_path / "photos" / "00.png"), "--prior-weight", "1"))
    assert sorted(p.name for p in (tmp_path / "photos").iterdir()) == before and not (tmp_path / "run").exists()


def test_overwriting_keeps_what_a_run_did_not_write(options, tmp_path, caplog):
    out = tmp_path / "run"
    fine_tune(options("--keep-posterior", method="dreambooth"))
    mine = ["notes.txt", "unet/mine.txt", "faithful/best/model.safetensors", "samples-best.png", "checkpoint/x"]
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True, parents=True)
        (out / name).write_text("mine")
    (out / "class_images").mkdir()
    (out / "class_images" / "drawn-00000.png").write_text("kept")
    (out / "elsewhere").symlink_to(tmp_path)
    fine_tune(options("--overwrite"))
    assert all((out / name).read_text() == "mine" for name in mine) and (out / "elsewhere").is_symlink()
    assert (out / "class_images" / "drawn-00000.png").exists()
    assert not (out / "posterior.safetensors").exists() and not list(out.glob("unet/*.safetensors"))
    assert "notes.txt, samples-best.png, unet stay, which this run did not write" in caplog.text
    assert not (out / "vae").exists() and not (out / "model_index.json").exists()


def test_everything_a_run_writes_is_known_as_its_own(options, tmp_path):
    """A file of a new kind must be added to ownership.OURS, or it would survive --overwrite."""
    fine_tune(options("--monitor", "--samples", "1", "--sample-every", "1", "--single-file", "--keep-posterior",
                      method="dreambooth"))
    fine_tune(options("--export", "kohya,peft", out="lora"))
    fine_tune(options(out="oft", method="oft"))
    for name in ("run", "lora", "oft"):
        out = tmp_path / name
        there = {path for path in out.rglob("*") if path.is_file() and "class_images" not in path.parts}
        assert there and not {p.relative_to(out).as_posix() for p in there - set(ownership.own_files(out))}


@pytest.mark.parametrize("option", ["--images", "--tokenizer", "--monitor-dino"])
def test_overwriting_deletes_nothing_that_it_is_given(options, tmp_path, dog, option):
    fine_tune(options())
    (tmp_path / "run" / "nets").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "nets")
    for folder in (tmp_path / "run" / "nets", tmp_path / "link"):
        with pytest.raises(UserError, match=f"--overwrite would delete {option} .*, which is inside"):
            fine_tune(options(option, str(folder), "--overwrite"))
    assert (tmp_path / "run" / runs.STATE).exists()


def test_overwriting_deletes_no_run_from_which_the_model_was_made(options, tmp_path):
    fine_tune(options())
    fine_tune(options("--model", str(tmp_path / "run"), out="second"))
    fine_tune(options("--model", str(tmp_path / "second"), out="third"))
    with pytest.raises(UserError, match="--overwrite would delete --model .*run, which is inside"):
        fine_tune(options("--model", str(tmp_path / "third"), "--overwrite"))


def test_a_run_that_is_its_own_base_is_refused(options, tmp_path):
    fine_tune(options())
    fine_tune(options("--model", str(tmp_path / "run"), out="second"))
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base": str(tmp_path / "second")}))
    with pytest.raises(UserError, match="names itself as the model that it was trained from"):
        runs.check_bases(tmp_path / "run")


def test_pictures_that_minibnn_did_not_draw_are_not_replaced(dog, tmp_path):
    """`--out photos.png --overwrite` empties the folder photos/ of earlier drawings, and of nothing else."""
    shutil.copytree(dog, tmp_path / "photos")
    photo = (dog / "00.png").read_bytes()
    (tmp_path / "photos" / "007.png").write_bytes(photo)
    words = ["--prompt", "a dog", "a cat", "--out", str(tmp_path / "photos.png"), "--overwrite"]
    with pytest.raises(UserError, match="would replace .*007.png, which minibnn did not draw"):
        sample.sample(parse(SampleOptions, "sample", words))
    assert (tmp_path / "photos" / "007.png").read_bytes() == photo
    save_png(Image.new("RGB", (8, 8)), tmp_path / "drawn" / "000.png", {"prompt": "a dog"})
    shutil.copy(dog / "00.png", tmp_path / "drawn" / "001.png")
    sample.write_folder(tmp_path / "drawn", {}, [], {})
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["001.png"]


def test_a_file_in_the_place_of_the_folder_is_told_before_anything_is_drawn(tmp_path):
    """Bug: the command failed after the drawing, and spoke of space on the disk."""
    (tmp_path / "dog").touch()
    words = ["--prompt", "a dog", "a cat", "--out", str(tmp_path / "dog.png"), "--overwrite", "--model", "nowhere"]
    with pytest.raises(UserError, match="go into a folder .*dog, which is a file"):
        sample.sample(parse(SampleOptions, "sample", words))


def test_a_killed_replacement_is_undone(tmp_path):
    """GRAFT moves the old folder away before it puts the new one in place."""
    out = tmp_path / "graft"
    for name in (".graft.12.old", ".graft.12.tmp", ".graft2.12.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    folders.restore(out)
    assert (out / "x").read_text() == ".graft.12.old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".graft2.12.tmp", "graft"]
    (tmp_path / ".graft.13.old").mkdir()
    folders.restore(out)
    assert (out / "x").exists() and not (tmp_path / ".graft.13.old").exists()


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    out = tmp_path / "graft"
    out.mkdir()
    for name in ("graft.json", "notes.txt"):
        (out / name).touch()
    options = parse(GraftOptions, "graft", ["--reward", "redness", "--out", str(out), "--overwrite"])
    with pytest.raises(UserError, match="holds notes.txt, which this command did not write: move it"):
        graft_run.check_folder(options, out)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_a_run_resumes_with_the_threads_that_it_began_with(options, tmp_path, caplog):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runs.start(options(), [])
        assert store.read_json(tmp_path / "run" / "config.json")["threads"] == 2
        torch.set_num_threads(1)
        runs.restore_threads(tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "began with 2 threads (now 1): going on with as many" in caplog.text


def test_a_lock_on_a_full_disk_names_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write to .*run: No space left"):
        patch.setattr(locks.os, "write", full)
        with locks.locked(tmp_path / "run"):
            raise AssertionError("the folder was given away")
    assert not list(tmp_path.iterdir())
