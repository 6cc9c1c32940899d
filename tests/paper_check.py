"""All of `paper` at a hundredth of the width, with processes that are killed, and every number worked out again.

    python tests/paper_check.py FOLDER [options of `paper`, such as --only table1 table3]

Makes small random models, photo networks and a data set (`small_paper.py`) in FOLDER, if they are not there yet; gives
the command to three processes, of which it kills one at a random moment again and again, until three have been killed;
gives it once more; and then compares every place of every table with what its pictures on the disk give, measured one
by one. All tables with two seeds take about a quarter of an hour of a core.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import small_paper
from photo_oracle import measured_slowly
from PIL import Image

from minibnn.options.experiments import PaperOptions
from minibnn.options.parsing import parse
from minibnn.paper import command
from minibnn.paper.perform import images_of
from minibnn.paper.plan import plan
from minibnn.photo import measures as photo

KILLS, PROCESSES = 3, 3


def start(words, number):
    """Start process `number` of the command; it writes to FOLDER/log-N.txt."""
    place = {"SLURM_PROCID": str(number), "SLURM_NTASKS": str(PROCESSES), "OMP_NUM_THREADS": "1"}
    log = open(Path(words[words.index("--out") + 1]).parent / f"log-{number}.txt", "a")  # noqa: SIM115
    call = [sys.executable, "-m", "minibnn", "paper", *words]
    return subprocess.Popen(call, env=os.environ | place, stdout=log, stderr=log)


def run_with_kills(words, out):
    """Give the command to several processes and kill some; returns when those that were left have ended."""
    rng, running = random.Random(), [start(words, number) for number in range(PROCESSES)]
    for _ in range(KILLS):
        before = len(list(out.glob("runs/*/*/measures.json")))
        while len(list(out.glob("runs/*/*/measures.json"))) < before + 3 and any(p.poll() is None for p in running):
            time.sleep(0.1)
        time.sleep(2 * rng.random())
        number = rng.randrange(PROCESSES)
        running[number].send_signal(signal.SIGKILL)
        running[number].wait()
        print(f"killed process {number} after {before + 3} measurements", flush=True)
        running[number] = start(words, number)
    codes = [process.wait() for process in running]
    assert codes == [0] * PROCESSES, codes


def compare(bench):
    """The largest deviation of a mean or standard deviation from what the pictures on the disk give, and how many."""
    networks = photo.load_networks({name: f"{bench.options.networks}/{name}" for name in photo.LOADERS}, "cpu")
    known, worst, count = {}, 0.0, 0
    cells = plan(bench.study)
    for item in bench.study.items:
        lines = json.loads((bench.out / "tables" / f"{item}.json").read_text())["rows"]
        for row, column in dict.fromkeys((line["row"], line["column"]) for line in lines):
            of_seed = {}
            for cell in (c for c in cells if (c.item, c.row, c.column) == (item, row, column)):
                folder = bench.out / "runs" / cell.run.name / f"{cell.steps:06d}"
                if folder not in known:
                    training = [Image.open(path).convert("RGB") for path in images_of(bench, cell.run)]
                    known[folder] = measured_slowly(folder, training, networks)
                of_seed.setdefault(cell.run.seed, []).append(known[folder])
            means = np.array([np.mean(values, axis=0) for values in of_seed.values()])
            own = [line for line in lines if (line["row"], line["column"]) == (row, column)]
            assert [line["measure"] for line in own] == ["Clip-T", "Clip-I", "Dino", "Lpips", "Clip-IQA"]
            pairs = [(line["mean"], line["deviation"]) for line in own]
            wanted = zip(means.mean(0), means.std(0, ddof=1) if len(means) > 1 else [None] * 5, strict=True)
            for (mean, deviation), (mean_wanted, deviation_wanted) in zip(pairs, wanted, strict=True):
                worst, count = max(worst, abs(mean - mean_wanted)), count + 1
                if deviation_wanted is not None:
                    worst = max(worst, abs(deviation - deviation_wanted))
    return worst, count


def main():
    root, more = Path(sys.argv[1]), sys.argv[2:]
    if not (root / "sd-v1").exists():
        small_paper.make(root, people=2, versions=("v1", "v2"))
    models = ["--model-v14", str(root / "sd-v1"), "--model-v20", str(root / "sd-v2")]
    words = small_paper.words(root, "--celeba", str(root / "celeba"), *models, "--seeds", "0", "1", *more)
    began = time.monotonic()
    bench = command.open_bench(parse(PaperOptions, "paper", words))
    run_with_kills(words, bench.out)
    worst, count = compare(bench)
    print(f"{count} places of {', '.join(bench.study.items)}: at most {worst:.1e} from the pictures on the disk; "
          f"{time.monotonic() - began:.0f} s")
    raise SystemExit(worst > 2e-6)


if __name__ == "__main__":
    main()
