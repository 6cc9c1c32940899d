"""When a run's folder may be written to, and what may be deleted in it: nothing that a run did not write itself.

    check    refuses before anything is written; a refused run leaves no folder
    owned    the folder belongs to one process at a time
    clear    what killed writes have left, and with --overwrite the earlier run
"""

import contextlib
import dataclasses
import logging
import os
import re
from pathlib import Path

from .checkpoints import STATE
from .errors import UserError
from .files.locks import LOCK, TEMPORARY, locked, remove_leftovers
from .runs import base_of, find_config, is_adapter_run, is_finished, read_config

log = logging.getLogger("minibnn")

OURS = re.compile(  # what a run writes, and --overwrite deletes
    r"(config|log|advice|graft)\.jsonl?|report\.html|looks/\d{6}\.png|samples(-\d+)?\.png|curves\.(jsonl|png)|(posterior|model|lora_kohya)\.safetensors"
    r"|checkpoint/state\.safetensors"
    r"|(faithful/\d{6}/)?(config|model_index|recipe|adapter_config)\.json"
    r"|(faithful/\d{6}/)?(pytorch_lora_weights|adapter_model)\.safetensors"
    r"|(faithful/\d{6}/)?(unet|vae|text_encoder|scheduler)/(\w*config\.json|\w*model\.safetensors)"
    r"|(faithful/\d{6}/)?tokenizer/(vocab\.json|merges\.txt|special_tokens_map\.json|tokenizer_config\.json)"
)


def is_fresh(out):
    """True if nothing would be lost: an empty folder, or a run stopped before it had a checkpoint or a kept model."""
    names = {p.name for p in out.iterdir() if not TEMPORARY.fullmatch(p.name)} if out.exists() else set()
    if names <= {"class_images", LOCK}:
        return True
    begun = {"config.json", "class_images", "log.jsonl", "curves.jsonl", "curves.png", "looks", "advice.json",
             "report.html", LOCK}
    if (out / STATE.parent).is_dir() and all(TEMPORARY.fullmatch(p.name) for p in (out / STATE.parent).iterdir()):
        begun.add(STATE.parent.name)  # stopped while the first one was written
    return names <= begun and find_config(out) is not None


def check(options):
    """Refuse, before anything is written, a folder that may not be used. Raises UserError."""
    out = Path(options.out)
    if options.resume and options.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if options.resume:
        if not (out / STATE).exists():
            if out.is_dir() and is_finished(out):
                raise UserError(
                    f"the run in {out} is finished and kept no state of the optimiser (--keep-optimiser), so that it "
                    f"cannot go on: train anew with --overwrite and more --steps, or begin another run with --model "
                    f"{out}; `minibnn sample` and `minibnn export` make more pictures and files of it"
                )
            start = "start without --resume" if is_fresh(out) else "start with --overwrite, or name another --out"
            raise UserError(f"no checkpoint in {out}: nothing to resume; {start}")
        read_config(out)
    elif not is_fresh(out):
        if not options.overwrite:
            go_on = "go on with --resume, " if (out / STATE).exists() else ""
            raise UserError(f"--out {out} exists: {go_on}replace it with --overwrite, or name another")
        read_config(out)
        for option, path in needed(options):
            if is_inside(path, out) and path != out / "class_images":
                raise UserError(f"--overwrite would delete {option} {path}, which is inside {out}")
    check_class_folder(options)


def needed(options):
    """[(option, path)] of all files and folders that the options name and that are there; a run with what it needs."""
    paths = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        words = value if isinstance(value, (list, tuple)) else [value]
        there = [word for word in words if isinstance(word, str) and os.path.exists(word) and field.name != "out"]
        paths += [("--" + field.name.replace("_", "-"), Path(word)) for word in there]
    base, seen = Path(options.model), set()
    while base.is_dir() and base.resolve() not in seen and is_adapter_run(base):  # a run that is made from another
        seen.add(base.resolve())
        base = Path(base_of(base)[0])
        paths.append(("--model", base))
    return paths


def is_inside(path, folder):
    """Whether a path lies in a folder, as it is written or where it leads."""
    return any(where(path).is_relative_to(where(folder)) for where in (Path.absolute, Path.resolve))


def check_class_folder(options):
    """Refuse a folder for drawn class pictures that holds something else. Raises UserError."""
    folder = Path(options.class_images or Path(options.out) / "class_images")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--class-images {folder} is a file; name a folder")
    images = options.images if isinstance(options.images, (list, tuple)) else [options.images]
    for option, other in (("--out", options.out), *(("--images", path) for path in images)):
        if folder.resolve() == Path(other).resolve():
            raise UserError(f"--class-images {folder} is {option} too, and class pictures are drawn into it: "
                            "name another folder")


@contextlib.contextmanager
def owned(options):
    """Inside, the run's folder belongs to this process. Raises UserError as `check`, or if another process has it."""
    check(options)  # before the folder is made
    with locked(options.out):
        check(options)  # it may have changed since
        yield


def clear(options):
    """Delete what killed writes have left in the folder and, with --overwrite, the earlier run."""
    remove_leftovers(options.out)
    if options.overwrite:
        delete_run(Path(options.out))


def own_files(out):
    """The files in a run's folder that a run writes, those of its class pictures excepted."""
    found = (path for path in sorted(out.rglob("*")) if path.is_file() or path.is_symlink())
    return [path for path in found if OURS.fullmatch(path.relative_to(out).as_posix())]


def delete_run(out):
    """Delete what a run has left in a folder, and nothing else: other files stay, with a notice."""
    for path in own_files(out):
        path.unlink()
    for folder in sorted((path for path in out.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if it is empty
    if kept := sorted({path.name for path in out.iterdir()} - {"class_images", LOCK}):
        log.warning("%s: %s stay, which this run did not write", out, ", ".join(kept))
