"""How long does the README's first command take, alone on the machine and while all its cores are busy?

    python benchmarks/first_command.py

It runs `python -m minibnn.train --images tutorials/dog` twice, into a temporary folder: on the machine as it is
("idle", if nothing else runs), and while one program that never rests runs for each core ("busy", as in busy.py).
Printed are the seconds until the first pictures of the monitor lie in the run's folder, and until the command ends.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from busy import CORES, DOG, busy_machine


def first_command(out):
    """(seconds until there are pictures to look at, seconds until its end). Raises CalledProcessError."""
    command = [sys.executable, "-m", "minibnn.train", "--images", str(DOG), "--out", str(out)]
    start, seen = time.perf_counter(), None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if seen is None and any((out / "looks").glob("*.png")):
                seen = time.perf_counter() - start
            time.sleep(0.2)
    finally:
        process.kill()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seen, time.perf_counter() - start


def main():
    for name, others in (("idle", contextlib.nullcontext()), ("busy", busy_machine(CORES))):
        with tempfile.TemporaryDirectory() as folder, others:
            seen, end = first_command(Path(folder) / "run")
        print(f"{name}: pictures after {seen:.0f} s, done after {end:.0f} s ({CORES} cores)", flush=True)


if __name__ == "__main__":
    main()
