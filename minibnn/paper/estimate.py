"""How much a study is: runs, steps, pictures, disk, and hours on this machine from about a minute of it."""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from .. import data
from ..cli.settle import settle
from ..devices import choose_threads
from ..pictures import save_png
from ..train import Batches, at_the_mean, fine_tuning, train
from .kept import is_done, measures_of
from .perform import (
    captions_of,
    class_count,
    class_folder,
    has_prior,
    images_of,
    judge_of,
    open_model,
    train_options,
    wanted_of,
)

WARM_UP, TIMED = 2, 4  # steps of each kind of training


@dataclasses.dataclass(frozen=True)
class Work:
    """What is still to be done. kinds: {(model, method, bayes): steps}."""

    runs: int
    of: int
    steps: int
    pictures: int
    class_pictures: int
    kinds: dict


def work(bench, todo):
    """The Work that remains of {run: steps at which it is measured}."""
    left, kinds, steps, pictures = 0, {}, 0, 0
    for run, measured in todo.items():
        missing = [each for each in measured if not measures_of(bench, run, each).exists()]
        if not is_done(bench, run, measured):
            left, steps = left + 1, steps + missing[-1]
            kind = run.model, run.method, run.bayes
            kinds[kind] = kinds.get(kind, 0) + missing[-1]
            pictures += len(missing) * len(wanted_of(bench, run.subject))
    wanted = class_pictures(bench, todo)
    there = sum(len(list(folder.glob("drawn-*.png"))) for folder in wanted if folder.is_dir())
    return Work(left, len(todo), steps, pictures, max(0, sum(count for _, count in wanted.values()) - there), kinds)


def class_pictures(bench, runs):
    """{folder: (a run that needs it, how many pictures)} of the class pictures that these runs learn from."""
    found = {}
    for run in runs:
        if has_prior(bench, run):
            folder, count = class_folder(bench, run), class_count(bench, run)
            if count > found.get(folder, (run, 0))[1]:
                found[folder] = run, count
    return found


def time_step(bench, run):
    """(seconds of a training step of this run's kind, the model in training, its pictures)."""
    sd = open_model(bench, run.model)
    options = settle(train_options(bench, run, WARM_UP), sd, 1)
    images = data.load_pictures(images_of(bench, run)[:1], options.resolution)
    choose_threads(options.device, sd.unet)
    sd.to(options.device)
    words = captions_of(bench, run.subject) if options.prior_weight else captions_of(bench, run.subject)[:1]
    batches = Batches(sd, [(images, [caption]) for caption in words], options.batch_size, options.seed)
    training = fine_tuning(sd, options)
    train(training, options, batches)
    start = time.perf_counter()
    train(training, dataclasses.replace(options, steps=WARM_UP + TIMED), batches)
    return (time.perf_counter() - start) / TIMED, sd, images


def time_picture(bench, run, sd, images):
    """(seconds to draw and measure a picture, its bytes as a file)."""
    judge = judge_of(bench, sd, images)
    each = bench.options.each
    prompts = -(-min(bench.options.batch_size, 4) // each)  # whole ones: diversity needs all pictures of a prompt
    wanted = wanted_of(bench, run.subject)[: prompts * each]
    start = time.perf_counter()
    with at_the_mean(sd, getattr(torch, bench.dtype)):
        settings = {"steps": bench.options.sample_steps, "sampler": "ddim" if bench.tiny else "pndm"}
        drawn = sd.generate([words for words, _ in wanted], **settings, batch_size=bench.options.batch_size,
                            progress=False)
    judge(drawn, wanted)
    seconds = (time.perf_counter() - start) / len(wanted)
    with tempfile.TemporaryDirectory() as folder:
        save_png(drawn[0], Path(folder) / "x.png")
        return seconds, (Path(folder) / "x.png").stat().st_size


def estimate(bench, todo, left):
    """(hours, bytes on disk) that the Work `left` of `todo` takes on this machine, from about a minute of it."""
    seconds, drawing, size = 0.0, 0.0, 0
    for kind, steps in left.kinds.items():
        run = next(run for run in todo if (run.model, run.method, run.bayes) == kind)
        own, sd, images = time_step(bench, run)
        seconds += own * steps
        if not size:
            drawing, size = time_picture(bench, run, sd, images)
    pictures = left.pictures + left.class_pictures
    kept = left.pictures if bench.options.keep_pictures else 0
    return (seconds + drawing * pictures) / 3600, size * (kept + left.class_pictures)


def describe(left, hours=None, size=None):
    """The Work in words."""
    said = f"{left.runs} of {left.of} runs to do: {left.steps} steps, {left.pictures} pictures to draw and measure, "
    said += f"{left.class_pictures} class pictures"
    if hours is not None:
        said += f"; about {hours:.1f} hours on one device like this one, {size / 1e9:.1f} GB of pictures on the disk"
    return said
