"""Does the picture follow the hint? `python -m minibnn experiment bps`

Branches are trained on 12, 40 and 200 pairs (sketch, drawing, caption) of the world and then draw 24 unseen sketches
with their captions. A judge trained on the world says which pixels the drawn subject covers (intersection over union,
IoU, with the exact mask that the sketch was made from) and which subject, colour and background it is. The frozen base
and fewer places (`variants.py`) stand beside it, under the same steps, pairs, batch and rate.

Leaves in --out bps_STEPS.png, and bps.json, which names the runs by their steps, variant, pairs and seed; what is there
is not repeated. Two other parts ask questions of their own: `--part anchors` (`anchors.py`) and `--part places`
(`places.py`).
"""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from ...devices import choose_threads, threads_kept
from ...errors import UserError
from ...files.locks import locked
from ...files.schema import mapping
from ...files.store import write_json
from ...lab import sheets
from ...lab.intervals import require_scipy
from ...options.experiments import BpsExperimentOptions
from ...pictures import grid, save_png, to_pil
from ...pipeline import StableDiffusion
from ...world.classifier import reconstruct
from ..records import kept
from . import anchors, places
from .judge import JUDGED, RESULT, judged, train_judge
from .variants import BATCH, LR, SAMPLE_STEPS, TEST_SEED, TESTS, followed, trained, world_pairs

RUNS = [("base", 0), ("bps", 40), ("skip", 40), ("encoder", 40), ("bps", 12), ("bps", 200)]


def one(sd, judge, variant, count, seed, steps):
    """Train one branch and judge what it draws: {measure: value}, the pictures."""
    started = time.process_time()
    branch = trained(sd, variant, count, seed, steps)
    seconds = time.process_time() - started
    values, pictures = followed(sd, judge, variant, branch, world_pairs(TESTS, TEST_SEED), seed)
    return values | {"training seconds": round(seconds, 1)}, pictures


def strip(options, variant, count, seed):
    """The file of a run's first eight pictures."""
    return Path(options.work) / f"steps-{options.steps}" / f"{variant}-{count}-{seed}.png"


@threads_kept()
def experiment(options):
    """Do the runs of BpsExperimentOptions that are not there yet, and report all that are. Raises UserError."""
    if options.part != "pairs" and set(options.variants) != set(BpsExperimentOptions.variants):
        raise UserError(f"--variants does not go with --part {options.part}, which settles what it compares")
    if options.part != "pairs":
        require_scipy()
    with locked(options.out, ".bps.lock"):
        experiment_there(options)


def experiment_there(options):
    """The same in a folder that belongs to this process."""
    sd = StableDiffusion.load("tiny")
    choose_threads("cpu", sd.unet)
    judge = train_judge(Path(options.work) / "judge.safetensors")
    {"pairs": compare, "anchors": anchors.compare, "places": places.compare}[options.part](sd, judge, options)


def compare(sd, judge, options):
    """Do the runs that are not there yet, keep them in bps.json, and print all."""
    out, key = Path(options.out), f"{options.steps} steps"
    fixed = {"batch": BATCH, "lr": LR, "sampling steps": SAMPLE_STEPS, "hints": TESTS}
    before = kept(out / "bps.json", fixed, {key: mapping(mapping(RESULT))})
    results = before.get(key, {})
    for variant, count in RUNS:
        for seed in options.seeds if variant in options.variants else ():
            runs = results.setdefault(f"{variant} {count}", {})
            if str(seed) not in runs:
                runs[str(seed)], pictures = one(sd, judge, variant, count, seed, options.steps)
                save_png(grid(pictures[:8], 8), strip(options, variant, count, seed))
                write_json(out / "bps.json", fixed | before | {key: results})

    scenes, hints, images, masks = world_pairs(TESTS, TEST_SEED)
    limit = {
        "real drawings": judged(judge, images, masks, scenes),
        "real drawings through the VAE": judged(judge, reconstruct(sd, images), masks, scenes),
    }
    write_json(out / "bps.json", fixed | {"judge": limit} | before | {key: results})
    picture, path = side_by_side(options, hints, images), out / f"bps_{options.steps}.png"
    if not path.exists() or picture.height >= Image.open(path).height:  # fewer runs replace no sheet of more
        save_png(picture, path, optimize=True)
    for name, values in limit.items():
        print(f"{name:32s}" + "".join(f"  {key} {values[key]:.3f}" for key in JUDGED))
    for name, runs in results.items():
        print(f"{name:32s}", end="")
        for key in JUDGED:
            values = np.array([run[key] for run in runs.values()])
            print(f"  {key} {values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}", end="")
        print()


def side_by_side(options, hints, images):
    """Eight columns: a hint, its drawing, and what each of the runs of the first seed drew for it, if it is there."""
    rows = {"sketch": grid(to_pil(2 * hints[:8].expand(-1, 3, -1, -1) - 1), 8), "drawing": grid(to_pil(images[:8]), 8)}
    for variant, count in sorted(RUNS):
        path = strip(options, variant, count, options.seeds[0])
        if path.exists():
            rows[f"{variant}, {count} pairs" if count else "frozen"] = Image.open(path)
    return sheets.sheet([[row] for row in rows.values()], list(rows), [""]).quantize(256)  # a third of the bytes
