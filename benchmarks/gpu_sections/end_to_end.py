"""End to end: the training command on the six pictures of the tutorials, with the model in a folder on the disk.

    first      30 steps with 8 class pictures drawn first; when what happened is read from the run's folder
    whole      the same with the same class pictures and --deterministic
    stopped    the same again, stopped by SIGTERM on the way and resumed: are the weights equal to the last bit?

The commands run in forks of this process, which does not use the GPU itself.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from minibnn.__main__ import main
from minibnn.files.weights import open_weights

from . import ROOT, models

FORK = multiprocessing.get_context("fork")


def run(section):
    folder = Path(tempfile.mkdtemp(prefix="minibnn-end-"))
    try:
        if section.measure("write the model", saved, section, folder / "model", needs=60) is None:
            return
        first = section.measure("first", trained, section, folder, "first", needs=40)
        whole = section.measure("whole", trained, section, folder, "whole", needs=40) if first else None
        stopped = whole and section.measure("stopped", trained, section, folder, "stopped", True, needs=60)
        equal = stopped and section.measure("stopped and resumed, compared", compared, folder, "whole", "stopped")
        section.goal("with --deterministic a run that was stopped and resumed gives the same bits",
                     equal and equal["differ"] == 0)
    finally:
        shutil.rmtree(folder)


def forked(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def saved(section, folder):
    """Write the model, from another process, so that this one does not start CUDA."""
    start = time.perf_counter()
    process = forked(lambda: models.model(section).to("cpu").save(folder))
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the model could not be written: exit code {process.exitcode}")
    return {"seconds": time.perf_counter() - start}


def command(section, words, log):
    """Run `minibnn train` with these words; its output goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["minibnn", *words]
    main("train")


def trained(section, folder, name, stop=False):
    """{what: seconds since the start}; with `stop` it is stopped in the middle and resumed. Raises RuntimeError."""
    steps, count = ("6", "2") if section.tiny else ("30", "8")
    out, classes, log = folder / name, folder / "classes", folder / f"{name}.log"
    words = ["--images", str(ROOT / "tutorials" / "dog"), "--model", str(folder / "model"), "--out", str(out),
             "--prompt", "a photo of a sks dog", "--class-prompt", "a photo of a dog", "--class-count", count,
             "--class-images", str(classes), "--steps", steps, "--samples", "0" if section.tiny else "4",
             "--no-monitor", "--device", section.device, *(["--deterministic"] if name != "first" else [])]
    start, seen = time.perf_counter(), {}
    process = forked(command, section, words, log)
    while process.is_alive():
        lines = (out / "log.jsonl").read_text().count("\n") if (out / "log.jsonl").exists() else 0
        happened = {"class pictures drawn": len(list(classes.glob("*.png"))) >= int(count), "first step": lines >= 1,
                    "half of the steps": lines >= int(steps) // 2, "last step but one": lines >= int(steps) - 1}
        for what, true in happened.items():
            if true and what not in seen:
                seen[what] = round(time.perf_counter() - start, 2)
        if stop and happened["half of the steps"]:
            os.kill(process.pid, signal.SIGTERM)
            stop = False
        if section.left() < 3:
            process.kill()
        time.sleep(0.01)
    process.join()
    seen["end"] = round(time.perf_counter() - start, 2)
    if process.exitcode == 143:
        seen["stopped"], again = seen.pop("end"), forked(command, section, ["--resume", "--out", str(out)], log)
        again.join(section.left() - 3)
        again.kill()
        again.join()
        seen |= {"end": round(time.perf_counter() - start, 2)}
        process = again
    if process.exitcode:
        said = log.read_text(errors="replace")[-1500:] if log.exists() else "nothing was said"
        raise RuntimeError(f"exit code {process.exitcode}: {said}")
    return seen


def compared(folder, *names):
    """{"tensors", "differ": how many are not equal to the bit, "largest": difference} of two runs' UNets."""
    paths = [next((folder / name / "unet").glob("*.safetensors")) for name in names]
    differ, largest = 0, 0.0
    with open_weights(paths[0]) as first, open_weights(paths[1]) as second:
        names = list(first.keys())
        for name in names:
            a, b = first.get_tensor(name), second.get_tensor(name)
            if not torch.equal(a, b):
                differ, largest = differ + 1, max(largest, (a - b).abs().max().item())
    return {"tensors": len(names), "differ": differ, "largest": largest}
