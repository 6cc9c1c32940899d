"""The paper's Tables 1 and 3 at the size of the bundled model: `python -m minibnn experiment methods`, and `… where`.

methods: DreamBooth, LoRA and OFT, each without and with BNN. where: DreamBooth with BNN in different layers. All runs
use the bundled model's recipe (900 steps of DreamBooth, 600 of the adapters, each at its rate); as in the paper,
DreamBooth has prior preservation and the adapters have none. After only 300 steps the dog is not learned yet, and such
a table says merely which method is slower.

Every run is a training command of its own, one thread, so that its processor time and peak memory are its own. Its
pictures are drawn at θ = μ: 8 of the training prompt, and one or more of each of twelve other prompts, from the same
noise for every run. `MEASURES` and `SPENT` say what is measured.

Intervals are two-sided 95 % t-intervals over seeds (`lab/intervals.py`) of each seed's mean over its pictures.
Differences "with − without" pair the same seed, prompt and noise. With three seeds they are wide; one seed has none.

Leaves in --out: runs.jsonl (a line for each run, with every picture's values; runs that are there are not repeated, and
must have been made with the same options and pictures), and for each table NAME.json, NAME.md and NAME.png (a row for
each method: 4 pictures of the training prompt, then 5 places; first seed).
"""

import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from .. import class_pictures, data
from ..devices import choose_threads, threads_kept
from ..errors import UserError
from ..files.locks import locked
from ..files.rows import read_rows, write_rows
from ..files.schema import fitting, integer, items, number, one_of, record
from ..files.store import write_json, write_text
from ..lab.intervals import bold, interval, require_scipy
from ..lab.sheets import sheet
from ..pictures import grid, save_png, to_tensor
from ..pipeline import StableDiffusion
from ..progress import progress_bar
from ..runs import fingerprint, read_config
from ..world import measures as world_measures
from ..world.classifier import reconstruct
from .children import train_apart
from .legends import LIKE_THE_LAST, explained
from .prompts import world_prompts
from .records import check_alike, figure

TRAINING_PICTURES = 8
ROWS = {  # the options of the command `train` that make a row
    "DreamBooth": ("--no-bayes",),
    "DreamBooth + BNN": (),
    "LoRA": ("--method", "lora", "--no-bayes"),
    "LoRA + BNN": ("--method", "lora"),
    "OFT": ("--method", "oft", "--no-bayes"),
    "OFT + BNN": ("--method", "oft"),
    "up": ("--where", "up"),
    "norm": ("--where", "norm"),
    "cross-attention": ("--where", "cross-attention"),
    "conv": ("--where", "conv"),
    "all": ("--where", "all"),
}
TABLES = {  # {what a row is called in this table: row}
    "methods": {name: name for name in list(ROWS)[:6]},
    "where": {"none": "DreamBooth", "paper": "DreamBooth + BNN", **{name: name for name in list(ROWS)[6:]}},
}
PAIRS = {  # {with: without}
    "methods": {"DreamBooth + BNN": "DreamBooth", "LoRA + BNN": "LoRA", "OFT + BNN": "OFT"},
    "where": {name: "none" for name in TABLES["where"] if name != "none"},
}
COMPARED = {"methods": "with − without", "where": "minus *none*"}  # the differences of PAIRS
MEASURES = {
    "fidelity": f"cosine of {TRAINING_PICTURES} pictures of the training prompt to the training pictures, as the VAE "
                "decodes them, in the features of a small network, between −1 and 1",
    "fidelity, others": "the same of the pictures of twelve other prompts",
    "noise": "energy of those pictures above that of clean drawings with the same background (10⁻³)",
    "dog": "share of those pictures on which a classifier sees a dog",
    "place": "share of those that were asked for one of ten places on which it sees that place",
    "diversity": "1 − mean cosine between the pictures of the training prompt, between 0 and 2",
}
SPENT = {
    "CPU s": "processor time and peak memory of the whole training command, of which some 5 s and 500 MB are Python "
             "and PyTorch",
    "peak MB": LIKE_THE_LAST,
    "state MB": "what is trained, with Adam's two moments",
    "file MB": "what the run leaves to be used",
}
LINE = {  # of runs.jsonl
    "row": one_of(*ROWS), "seed": integer(0), "settings": record({}), "steps": integer(1), "seconds": number(0),
    "memory": number(0), "state": number(0), "stored": number(0),
    "values": record(dict.fromkeys(MEASURES, items(figure))),
}
LEGEND = (
    "A cell is the mean over the seeds, of pictures with its 95 % t-interval. The differences below pair the same "
    "seed, prompt and noise, and are bold where the interval excludes 0."
)
COSTS = ("seconds", "memory", "state", "stored")


def read_runs(path):
    """{(row, seed): line} of runs.jsonl."""
    return {(line["row"], line["seed"]): line for line in read_rows(path, LINE, required=("row", "seed"))}


def settings_of(options):
    """What all runs of a table must share. images: a hash of the pictures' names and contents."""
    pictures = json.dumps(fingerprint(data.list_pictures(options.images), captions=False), sort_keys=True)
    return {"steps": options.steps, "each": options.each, "images": hashlib.sha256(pictures.encode()).hexdigest()[:16]}


def costs_of_training(row, seed, options, folder):
    """Run the command `train` as a process; returns its processor time in seconds and its peak memory in MB."""
    words = [
        "--model", "tiny", "--images", options.images, "--out", str(folder), "--seed", str(seed),
        *(("--steps", str(options.steps)) if options.steps else ()), "--samples", "0", "--no-monitor", "--overwrite",
        "--no-captions", *ROWS[row],
    ]
    if "--method" not in ROWS[row]:  # the adapters use no class pictures
        words += ["--class-images", str(Path(options.out) / "class_images")]
    if not hasattr(os, "wait4"):
        raise UserError("this experiment measures processor time and memory in a way that Windows does not know")
    _, used = train_apart(f"{row}, seed {seed}", words, {"OMP_NUM_THREADS": "1"})
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return {"seconds": round(used.ru_utime + used.ru_stime, 1), "memory": round(used.ru_maxrss / unit)}


def measure(pictures, wanted, training):
    """{measure: list of each picture's value}; training: the decoded training pictures (n, 3, 64, 64).

    wanted: (prompt, what it shows) of each picture; those of the training prompt come first.
    """
    images, n = to_tensor(pictures), TRAINING_PICTURES
    close, grain = world_measures.fidelity(images, training)[0].tolist(), world_measures.noise(images).tolist()
    right = world_measures.prompt_fidelity(images, [want for _, want in wanted])
    values = {
        "fidelity": close[:n], "fidelity, others": close[n:], "noise": grain[n:],
        "dog": [float(v) for v in right["subject"][n:]],
        "place": [float(v) for v in right["background"][n:] if v is not None],
        "diversity": [world_measures.diversity(images[:n])],
    }
    return {name: [round(v, 5) for v in of_each] for name, of_each in values.items()}


def perform(row, seed, options, training, settings):
    """Train and measure one run; returns its line and the pictures of its strip."""
    folder = Path(options.out) / "training"
    cost = costs_of_training(row, seed, options, folder)
    sd, steps = StableDiffusion.load(folder), read_config(folder)["options"]["steps"]
    files = list(folder.rglob("*.safetensors"))
    sizes = {  # in bytes: what is trained with Adam's two moments; the result
        "state": sum(p.stat().st_size for p in files if "checkpoint" in p.parts),
        "stored": sum(p.stat().st_size for p in files if "checkpoint" not in p.parts),
    }
    shutil.rmtree(folder)
    prompt = sd.recipe["prompt"]
    wanted = [(prompt, {"subject": "dog"})] * TRAINING_PICTURES + world_prompts("sks", "dog") * options.each
    pictures = sd.generate([words for words, _ in wanted], seed=1, batch_size=16, progress=False)
    values, n = measure(pictures, wanted, training), TRAINING_PICTURES
    line = {"row": row, "seed": seed, "settings": settings, "steps": steps, **cost, **sizes, "values": values}
    return line, pictures[:4] + pictures[n : n + 10 : 2]


# --- the table --------------------------------------------------------------------------------------------------------


def over_seeds(groups):
    """groups: each seed's list of values -> (mean, low, high) of the seeds' means."""
    return interval([float(np.mean(values)) for values in groups])


def summarise(table, found, seeds):
    """{row: {measure: (mean, low, high), "seconds": …}} and {with: {measure: (difference, low, high)}}."""
    lines = {name: [found[row, seed] for seed in seeds] for name, row in TABLES[table].items()}
    rows, differences = {}, {}
    for name, own in lines.items():
        rows[name] = {what: over_seeds([line["values"][what] for line in own]) for what in MEASURES}
        rows[name] |= {cost: float(np.mean([line[cost] for line in own])) for cost in COSTS}
    for name, base in PAIRS[table].items():
        pairs = [(a["values"], b["values"]) for a, b in zip(lines[name], lines[base], strict=True)]
        differences[name] = {what: over_seeds([np.subtract(a[what], b[what]) for a, b in pairs]) for what in MEASURES}
    return rows, differences


def markdown(rows, differences, compared):
    """What the columns mean and two tables in Markdown: the rows, then the differences, which are `compared`."""
    head = " | ".join(MEASURES)
    lines = [f"| | {head} | {' | '.join(SPENT)} |", "|---" * (len(MEASURES) + len(SPENT) + 1) + "|"]
    for name, row in rows.items():
        cells = [in_cell(row[what], "") for what in MEASURES]
        costs = f"{row['seconds']:.0f} | {row['memory']:.0f} | {row['state'] / 1e6:.3g} | {row['stored'] / 1e6:.2g}"
        lines.append(f"| {name} | {' | '.join(cells)} | {costs} |")
    absolute = explained("\n".join(lines), [*MEASURES.values(), *SPENT.values()])
    lines = [f"| {compared} | {head} |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, row in differences.items():
        cells = [bold(in_cell(row[what], "+"), *row[what][1:]) for what in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return f"{absolute}\n\n{LEGEND}\n\n" + "\n".join(lines) + "\n"


def in_cell(figures, sign):
    """Mean and interval as "0.500 (0.400 … 0.600)", the mean alone where one seed gives none. sign: "+" or ""."""
    mean, low, high = (f"{figure:{sign}.3f}" for figure in figures)
    return f"{mean} ({low} … {high})" if math.isfinite(figures[1]) else mean


def make_runs(todo, found, options, settings):
    """Perform the runs of todo [(row, seed)] and add each to found and to runs.jsonl."""
    sd, out = StableDiffusion.load("tiny"), Path(options.out)
    choose_threads("cpu", sd.unet)
    files = data.list_pictures(options.images)
    training = reconstruct(sd, data.load_pictures(files, sd.recipe["resolution"]))
    made_for = class_pictures.record(
        sd.recipe["class_prompt"], "tiny", sd.recipe["resolution"], sd.recipe["class_guidance"]
    )
    count = sd.recipe["class_pictures_per_picture"] * len(files)
    class_pictures.complete(sd, out / "class_images", count, made_for)  # now, so that no run is charged for them
    for row, seed in progress_bar(todo, desc="runs"):
        line, pictures = perform(row, seed, options, training, settings)
        if seed == options.seeds[0]:
            save_png(grid(pictures, len(pictures)), out / "strips" / f"{row}.png")
        found[row, seed] = line
        write_rows(out / "runs.jsonl", found.values())


@threads_kept()
def table(name, options):
    """Perform the runs of a table that are not yet there, and write it. Raises UserError."""
    if options.plan:
        still_to_do(name, options)
        return
    require_scipy()
    with locked(options.out):
        make_table(name, options)


def still_to_do(name, options):
    """Say how many runs of a table there are to make; returns (those that are there, the settings, what is to be made).

    Raises UserError when those that are there were made otherwise.
    """
    out = Path(options.out)
    found, settings = read_runs(out / "runs.jsonl"), settings_of(options)
    for (row, seed), line in found.items():
        check_alike(line.get("settings", {}), settings, f"{out / 'runs.jsonl'}: {row}, seed {seed}")
        fitting(line, record(LINE, required=LINE), f"{out / 'runs.jsonl'}: {row}, seed {seed}")
    todo = [(row, seed) for seed in options.seeds for row in TABLES[name].values() if (row, seed) not in found]
    print(f"{len(todo)} of {len(options.seeds) * len(TABLES[name])} runs are to be made")
    return found, settings, todo


def make_table(name, options):
    """The table in a folder that belongs to this process."""
    out, (found, settings, todo) = Path(options.out), still_to_do(name, options)
    if todo:
        make_runs(todo, found, options, settings)
    rows, differences = summarise(name, found, options.seeds)
    described = {
        "command": f"python -m minibnn experiment {name}",
        "steps": {row: found[row, options.seeds[0]]["steps"] for row in TABLES[name].values()},
        "seeds": list(options.seeds), "each": options.each, "images": settings["images"],
    }
    write_json(out / f"{name}.json", {"settings": described, "rows": rows, "with − without": differences})
    text = markdown(rows, differences, COMPARED[name])
    write_text(out / f"{name}.md", text)
    strips = [[Image.open(out / "strips" / f"{row}.png")] for row in TABLES[name].values()]
    save_png(sheet(strips, list(TABLES[name]), [""]).quantize(256), out / f"{name}.png", optimize=True)
    print(text)
