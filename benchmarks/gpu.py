"""Everything that is worth knowing about a GPU in a short hour: `python benchmarks/gpu.py`, or in three calls

    python benchmarks/gpu.py --sections gates ceilings tiles layers --budget 540
    python benchmarks/gpu.py --sections steps sampling --budget 540
    python benchmarks/gpu.py --sections end-to-end memory --budget 540

    gates       do the kernels compile, run and agree with the reference and with float64? else nothing else counts
    ceilings    bytes a second of a copy, operations a second of a matmul, normal numbers a second of the kernels
    tiles       the kernels with other tiles
    layers      the random linear layers of SD v1.5: plain, the authors' way, ours in its ways; the host's time apart
    steps       whole training steps: ours in its variants, diffusers' UNet in the same loop, the authors' loop
    sampling    50 steps of DDIM, and the decoder; ours and diffusers'
    end-to-end  the training command: its phases; twice the same, and stopped and resumed: are the bits equal?
    memory      what trains in 24 and in 16 GB, with the rest of the GPU's memory taken

Weights are random, in the sizes of SD v1.5; nothing is downloaded. Each section runs in a process of its own and writes
OUT/SECTION.json after each figure, so that nothing is lost when the time is over or a kernel fails. It gets its share
of the seconds that are left, and is stopped some seconds later. At the end stands a table of goals, also of the
sections of earlier calls, in OUT/goals.md.

It runs in a checkout without an installation, on torch ≥ 2.6; what is missing (diffusers, triton) is said and left out.
`--tiny` runs the same code at small sizes on a CPU: then figures mean nothing, but a typing error shows.
"""

import importlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_sections.record import Section, goals_table

from minibnn.errors import UserError
from minibnn.options.kinds import option, positive
from minibnn.options.parsing import parse
from minibnn.options.running import run

SECTIONS = {  # name: (module, seconds that it would like)
    "gates": ("gates", 120), "ceilings": ("ceilings", 30), "tiles": ("tiles", 80), "layers": ("layers", 120),
    "steps": ("steps", 220), "sampling": ("sampling", 120), "end-to-end": ("end_to_end", 240),
    "memory": ("memory", 120),
}
GRACE = 10  # seconds after which a section that does not end by itself is stopped
FORK = multiprocessing.get_context("fork")  # torch is imported once; CUDA starts in the sections alone


@dataclass(frozen=True)
class GpuOptions:
    """Measure this GPU: correctness, ceilings, layers, training steps, sampling, the command, memory."""

    sections: list = option(tuple(SECTIONS), "which", "what", nargs="+", choices=tuple(SECTIONS))
    budget: float = option(1500.0, "seconds for all of them", "what", type=positive)
    tiny: bool = option(False, "small sizes on a CPU, to try the code", "what")
    out: str = option("runs/gpu", "folder of the results; those of other sections stay", "output", metavar="DIR")


def shares(names, seconds):
    """The seconds of the first of the sections `names`, by what each would like; the last gets all that are left."""
    wishes = [SECTIONS[name][1] for name in names]
    return seconds * wishes[0] / sum(wishes)


def inside(name, path, seconds, tiny):
    """Run one section in this process."""
    os.setsid()  # so that what it starts can be stopped with it
    if tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported
        torch.set_num_threads(1)
    section = Section(name, path, seconds, tiny)
    try:
        importlib.import_module(f"gpu_sections.{SECTIONS[name][0]}").run(section)
    except BaseException:
        section.end(f"failed: {traceback.format_exc()}")
        traceback.print_exc()
        os._exit(1)
    section.end("done")
    os._exit(0)  # without waiting for what CUDA would tidy up


def run_section(name, path, seconds, tiny):
    """Run a section in a process of its own; returns in words how it ended."""
    path.unlink(missing_ok=True)
    process = FORK.Process(target=inside, args=(name, path, seconds, tiny))
    process.start()
    process.join(seconds + GRACE)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return f"stopped after {seconds + GRACE:.0f} s; what was measured until then is kept"
    state = json.loads(path.read_text())["state"] if path.exists() else "failed before its first figure"
    return state if process.exitcode >= 0 else f"ended by signal {-process.exitcode}"


def has_gpu():
    """Asked in a process of its own, because a process that has asked can no longer fork."""
    process = FORK.Process(target=lambda: os._exit(torch.cuda.is_available()))
    process.start()
    process.join()
    return process.exitcode == 1


def main(options):
    """Raises UserError without a GPU, and when a section failed or a gate did not pass."""
    end = time.monotonic() + options.budget
    if not options.tiny and not has_gpu():
        raise UserError("this benchmark needs a CUDA GPU; --tiny tries its code on a CPU")
    out, left, states = Path(options.out), [name for name in SECTIONS if name in options.sections], {}
    while left:
        seconds = shares(left, end - time.monotonic())
        name = left.pop(0)
        print(f"\n{name}: {seconds:.0f} s at most", flush=True)
        states[name] = run_section(name, out / f"{name}.json", seconds, options.tiny)
        print(f"{name}: {states[name].strip().splitlines()[-1]}", flush=True)
    table = goals_table(out, SECTIONS)
    (out / "goals.md").write_text(table)
    print("\n" + table)
    if bad := [name for name, state in states.items() if state != "done"]:
        raise UserError(f"not all is measured: {', '.join(bad)}")


if __name__ == "__main__":
    run(main, parse(GpuOptions, "benchmarks.gpu"))
