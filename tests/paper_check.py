"""All of `paper` at a hundredth of the width, with processes that are killed, and every number worked out again.

    python tests/paper_check.py FOLDER [options of `paper`, such as --only table1 table3]

Makes small random models, photo networks and a data set (`small_paper.py`) in FOLDER, if they are not there yet. Then

1. gives the command to three processes, as three tasks of a SLURM array, and kills one at a random moment, twice;
2. compares every place of every table, and every difference, with what the pictures on the disk give, measured one by
   one and averaged by numpy;
3. gives it for one table, subject and seed to `torchrun --nproc-per-node 2`, in another folder, and compares the
   pictures and measures there with those of the first, byte by byte;
4. deletes one run of that folder and the measures of another, gives the same command again, and compares again.

Three of the 25 prompts are drawn, and Lpips looks at small pictures; else the command is as users have it. All tables
with two seeds take a few minutes of a core.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import small_paper
from photo_oracle import measured_slowly
from PIL import Image

from minibnn.__main__ import main as command_line
from minibnn.options.experiments import PaperOptions
from minibnn.options.parsing import parse
from minibnn.paper import command, dataset
from minibnn.paper.perform import images_of
from minibnn.paper.plan import plan
from minibnn.photo import measures as photo

KILLS, PROCESSES = 2, 3
MEASURES = ["Clip-T", "Clip-I", "Dino", "Lpips", "Clip-IQA"]
FEW = ("--sigmas", "0.01", "0.1", "--lambdas", "0", "0.1", "--seeds", "0", "1")  # so that it does not take long


def be_quick():
    """Draw three prompts instead of 25, and let Lpips look at 64 × 64 pixels instead of 512 × 512."""
    prompts = dataset.prompts
    dataset.prompts = lambda source, kind: prompts(source, kind)[:6:2]
    photo.LPIPS_SIDE = 64


def start(call, log, environment=None):
    """Start a process that writes to a file; its environment has no trace of a job that we are part of."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK", "WORLD_"))}
    with open(log, "a") as file:
        own = clean | {"OMP_NUM_THREADS": "1"} | (environment or {})
        return subprocess.Popen(call, env=own, stdout=file, stderr=file)


def task(words, root, number):
    """Start task `number` of an array of PROCESSES tasks, as SLURM numbers them from 1."""
    array = {"SLURM_ARRAY_TASK_ID": number + 1, "SLURM_ARRAY_TASK_MIN": 1, "SLURM_ARRAY_TASK_COUNT": PROCESSES,
             "SLURM_NTASKS": 1, "SLURM_PROCID": 0, "SLURM_LOCALID": 0}
    call = [sys.executable, __file__, "as-process", *words]
    return start(call, root / f"log-{number}.txt", {name: str(value) for name, value in array.items()})


def run_with_kills(words, root):
    """Give the command to several processes and kill some; returns when those that were left have ended."""
    rng, running = random.Random(), [task(words, root, number) for number in range(PROCESSES)]
    killed = 0
    for _ in range(KILLS):
        before = measured(root / "out")
        while measured(root / "out") < before + 3 and any(process.poll() is None for process in running):
            time.sleep(0.1)
        time.sleep(2 * rng.random())
        number = rng.randrange(PROCESSES)
        killed += running[number].poll() is None
        running[number].send_signal(signal.SIGKILL)
        running[number].wait()
        print(f"killed task {number} after {measured(root / 'out')} measurements", flush=True)
        running[number] = task(words, root, number)
    codes = [process.wait() for process in running]
    assert codes == [0] * PROCESSES, f"the processes ended with {codes}; see {root}/log-*.txt"
    return killed


def measured(out):
    return len(list(out.glob("runs/*/*/measures.json")))


# --- every number once more -------------------------------------------------------------------------------------------


def compare(bench):
    """The largest deviation of a number of the tables from what the pictures on the disk give, and how many."""
    networks = photo.load_networks({name: f"{bench.options.networks}/{name}" for name in photo.LOADERS}, "cpu")
    known, worst, count = {}, 0.0, 0

    def values_of(run, steps):
        folder = bench.out / "runs" / run.name / f"{steps:06d}"
        if folder not in known:
            training = [Image.open(path).convert("RGB") for path in images_of(bench, run)]
            known[folder] = np.array(measured_slowly(folder, training, networks))
        return known[folder]

    cells = plan(bench.study)
    for item in bench.study.items:
        table = json.loads((bench.out / "tables" / f"{item}.json").read_text())
        of_item = [cell for cell in cells if cell.item == item]
        for lines, worked_out in ((table["rows"], mean_and_deviation), (table["with − without"], difference)):
            for place in dict.fromkeys((line["row"], line["column"]) for line in lines):
                own = [line for line in lines if (line["row"], line["column"]) == place]
                assert [line["measure"] for line in own] == MEASURES
                chosen = [(cell.run, cell.steps) for cell in of_item if (cell.row, cell.column) == place]
                for name, wanted in worked_out(chosen, of_item, values_of).items():
                    found = [line[name] for line in own]
                    assert (None in found) == (wanted is None), (item, place, name)
                    if wanted is not None:
                        worst, count = max(worst, np.abs(np.array(found) - wanted).max()), count + len(found)
    return worst, count


def mean_and_deviation(chosen, _, values_of):
    """Of the seeds' means over the subjects, n − 1 in the denominator: {"mean", "deviation"}, each (5,) or None."""
    seeds = sorted({run.seed for run, _ in chosen})
    means = np.array([np.mean([values_of(*each) for each in chosen if each[0].seed == seed], axis=0) for seed in seeds])
    return {"mean": means.mean(0), "deviation": means.std(0, ddof=1) if len(means) > 1 else None}


def difference(chosen, of_item, values_of):
    """The mean over all of them of: this run minus the one that differs only in having no BNN."""
    def key(run):
        return run.subject, run.pictures, run.seed, run.method, run.model

    plain = {(key(cell.run), cell.steps): cell.run for cell in of_item if not cell.run.bayes}
    pairs = [values_of(run, steps) - values_of(plain[key(run), steps], steps) for run, steps in chosen]
    return {"difference": np.mean(pairs, axis=0)}


def compare_folders(out, other):
    """How many files of the runs in the folder `other` are in `out` too; each must have the same bytes there."""
    files = [path for path in sorted((other / "runs").rglob("*")) if path.suffix in (".png", ".json")]
    for path in files:
        twin = out / path.relative_to(other)
        assert path.read_bytes() == twin.read_bytes(), f"{path} and {twin} differ"
    return len(files)


def main():
    be_quick()
    if sys.argv[1] == "as-process":
        sys.argv[1:] = sys.argv[2:]
        return command_line("paper")
    root, more, began = Path(sys.argv[1]).resolve(), sys.argv[2:], time.monotonic()
    if not (root / "sd-v1").exists():
        small_paper.make(root, people=2, layers=1, versions=("v1", "v2"))
    models = ["--model-v14", str(root / "sd-v1"), "--model-v20", str(root / "sd-v2")]
    words = small_paper.words(root, "--celeba", str(root / "celeba"), *models, *FEW, *more)
    bench = command.open_bench(parse(PaperOptions, "paper", words))
    killed = run_with_kills(words, root)
    print(f"all is done, with {killed} processes killed; {time.monotonic() - began:.0f} s", flush=True)
    worst, count = compare(bench)
    print(f"{count} numbers of {', '.join(bench.study.items)}: at most {worst:.1e} from the pictures on the disk; "
          f"{time.monotonic() - began:.0f} s", flush=True)
    study = bench.study
    part = [*words, "--only", study.items[0], "--classes", study.subjects[0].name, "--seeds", str(study.seeds[-1]),
            "--out", str(root / "part")]
    under_torchrun(part, root)
    same = compare_folders(bench.out, root / "part")
    print(f"under torchrun {same} files have the same bytes; {time.monotonic() - began:.0f} s", flush=True)
    lost, *_, unmeasured = sorted((root / "part" / "runs").iterdir())
    shutil.rmtree(lost)
    for path in unmeasured.rglob("measures.json"):
        path.unlink()
    under_torchrun(part, root)
    again = compare_folders(bench.out, root / "part")
    print(f"begun, and ended under torchrun, {again} files; {time.monotonic() - began:.0f} s")
    raise SystemExit(worst > 2e-6 or not same or again != same)


def under_torchrun(words, root):
    """Give the command to two processes that torchrun starts; it must end well."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code = start([*torchrun, __file__, "as-process", *words], root / "log-torchrun.txt").wait()
    assert code == 0, f"torchrun ended with {code}; see {root}/log-torchrun.txt"


if __name__ == "__main__":
    main()
