"""What does a busy machine do to the main job's speed, and which choice of threads suffers least?

    python benchmarks/busy.py                       the bundled model, 120 training steps, 16 pictures of 25 steps
    python benchmarks/busy.py --steps 40 --repeats 1 --threads 1 2 4

It runs the training command and the sampling command as they are, each alone on the machine ("idle") and while one
program that never rests runs for each core ("busy"), in turn, `--repeats` times, for each of these variants:

    own choice          what the commands choose by themselves
    1 thread            OMP_NUM_THREADS=1
    N threads, spin     OMP_NUM_THREADS=N; a thread that waits for others spins a while before it sleeps (the default
                        of OpenMP, asked for by an empty OMP_WAIT_POLICY)
    N threads, sleep    the same with OMP_WAIT_POLICY=PASSIVE: a waiting thread sleeps at once

Timed are the steps alone: the clock starts when the progress bar first shows a completed step and stops when it shows
the last one, or after `--limit` seconds. Imports and loading are left out. The tables show medians of the repeats.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOG = Path(__file__).parents[1] / "tutorials" / "dog"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
BUSY = """import os
parent = os.getppid()
while os.getppid() == parent:  # ends with the benchmark, also when that is killed
    for _ in range(10**6):
        pass
"""


@contextlib.contextmanager
def busy_machine(programs):
    """Inside, so many programs run that never rest."""
    running = []
    try:
        running += [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(programs)]
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def seconds_a_step(command, bar, variables, limit):
    """Seconds of one step of a command by its progress bar, whose first word is `bar`. Raises SystemExit.

    The command is stopped when its steps have taken more than `limit` seconds.
    """
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env=settings | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen, text = [], ""  # (steps done, when)
    try:
        while piece := os.read(process.stderr.fileno(), 65536):
            now, text = time.perf_counter(), text + piece.decode(errors="replace")
            done = [int(steps) for steps in re.findall(rf"{bar}: .*?(\d+)/\d+ \[", text)]
            if done and done[-1] and (not seen or done[-1] > seen[-1][0]):
                seen.append((done[-1], now))
            if len(seen) > 1 and now - seen[0][1] > limit:
                break
    finally:
        process.kill()
        process.wait()
    if len(seen) < 2:
        raise SystemExit(f"{' '.join(command)}: {len(seen)} steps seen\n{text[-2000:]}")
    (first, start), (last, end) = seen[0], seen[-1]
    return (end - start) / (last - first)


def variants(threads):
    """{words: environment variables}."""
    found = {"own choice": {}}
    for n in threads:
        if n == 1:
            found["1 thread"] = {"OMP_NUM_THREADS": "1"}
        else:
            found[f"{n} threads, spin"] = {"OMP_NUM_THREADS": str(n), "OMP_WAIT_POLICY": ""}
            found[f"{n} threads, sleep"] = {"OMP_NUM_THREADS": str(n), "OMP_WAIT_POLICY": "PASSIVE"}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="training steps of each run [120]")
    parser.add_argument("--repeats", type=int, default=3, help="[3]")
    parser.add_argument("--limit", type=float, default=30, help="seconds for the steps of one run [30]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to compare [1 2]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = [
            "minibnn.train", "--model", "tiny", "--images", str(DOG), "--steps", str(options.steps),
            "--samples", "0", "--no-monitor", "--class-count", "4",
            "--class-images", f"{folder}/classes", "--out", f"{folder}/run", "--overwrite",
        ]
        drawing = [
            "minibnn.sample", "--model", "tiny", "--prompt", "a red car on the beach", "--count", "16", "--steps", "25",
            "--out", f"{folder}/cars.png", "--overwrite",
        ]
        jobs = {"training": (training, "training"), "drawing": (drawing, "drawing")}
        seconds_a_step(training, "training", {}, 0)  # draws the class pictures, and fills the machine's file cache
        chosen, times = variants(options.threads), {}
        for _ in range(options.repeats):
            for what, variables in chosen.items():
                for job, (command, bar) in jobs.items():
                    for when, programs in (("idle", 0), ("busy", CORES)):
                        with busy_machine(programs):
                            seconds = seconds_a_step(command, bar, variables, options.limit)
                        times.setdefault((job, what, when), []).append(seconds)
                        print(f"{job}, {what}, {when}: {seconds * 1e3:.1f} ms a step", file=sys.stderr, flush=True)
    print(f"{CORES} cores, so many busy programs; {options.repeats} repeats; milliseconds a step")
    for job in jobs:
        print(f"\n{job:20s}{'idle':>8s}{'busy':>8s}{'busy / idle':>13s}   slowest busy")
        for what in chosen:
            idle, busy = (statistics.median(times[job, what, when]) for when in ("idle", "busy"))
            slowest = max(times[job, what, "busy"])
            print(f"{what:20s}{idle * 1e3:8.1f}{busy * 1e3:8.1f}{busy / idle:13.2f}{slowest * 1e3:15.1f}")


if __name__ == "__main__":
    main()
