"""The command `python -m minibnn train --images ./dog`: from options to a run's folder.

Opens the model, settles what the command line left open, hands the loop of `minibnn/train.py` its batches and its
observers (progress, samples, monitor, checkpoints), and writes the result at the posterior mean.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path

import torch

from .. import data, disk, distributed, ownership, runs
from ..checkpoints import delete_checkpoint, is_kept, load_checkpoint
from ..devices import choose_device, choose_threads, make_deterministic, threads_kept
from ..errors import UserError
from ..files import headers
from ..files.weights import NotFinite
from ..finetune import ema, methods
from ..lab import monitor
from ..observers import Checkpoints, CtrlC, Progress
from ..options.training import run_folder
from ..page.run import write_report
from ..pipeline import StableDiffusion
from ..progress import Course
from ..train import Batches, Diverged, fine_tuning, train
from . import announcements
from .class_source import check_own, class_folders, class_source, forget_others
from .run_samples import Samples
from .settle import settle

CLASS_NULL = 0.25  # share of the class pictures that hold ε(∅) where the pretrained model teaches
log = logging.getLogger("minibnn")


@distributed.one_of_several
@threads_kept()
def fine_tune(options, observers=()):
    """Do what TrainOptions ask for and leave the run's folder. Raises UserError, KeyboardInterrupt.

    observers: functions of the Training (`minibnn/train.py`), called before the first step and after each.
    """
    if not options.images:
        raise UserError("--images is required: the folder with the pictures of your subject")
    options = dataclasses.replace(options, out=str(options.out or run_folder(options.images)))
    with ownership.owned(options) if distributed.rank() == 0 else contextlib.nullcontext():
        fine_tune_there(options, observers)


def fine_tune_there(options, observers):
    """The same in a folder that belongs to this process and may be used."""
    folders = [data.list_pictures(folder) for folder in options.images]
    files = [path for folder in folders for path in folder]
    if options.resume:
        runs.check_method(options)
        runs.check_base_is_there(options)
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    model = runs.digests_of(sd, options.model)
    if options.deterministic:
        make_deterministic(choose_device(options.device))  # before `settle` rehearses kernels
    asked, options = options, settle(options, sd, len(files))
    sd.recipe |= runs.subject_of(options)
    of_folders = zip(folders, options.prompt, strict=True)
    own = options.captions
    captions = [caption for folder, prompt in of_folders for caption in data.captions(folder, prompt, own)]
    images = data.load_pictures(files, options.resolution)
    samples = Samples(options, images, captions)
    classes = class_folders(options, [len(folder) for folder in folders], model) if options.prior_weight else []
    if options.resume:
        runs.check_same_run(options, files, model)
    check_own(classes, options)  # these two before the folder is made
    disk.check_result(options, sd)
    choose_threads(options.device, sd.unet)
    if options.resume:
        runs.restore_threads(options.out)
    distributed.first_alone(begin, options, files, model, classes)
    announcements.at_the_start(asked, options, files)
    sd.to(options.device)
    sources = [(images, captions), *class_source(options, sd, classes)]
    first = distributed.rank() == 0
    watching = [monitor.Monitor(options, sd, images[: len(folders[0])])] if options.monitor and first else []
    pages = [lambda training: write_page(options, training.step, watching[0])] if watching else []
    seen_by = [samples, *observers, *watching, *pages] if first else []
    keep = train_watched(options, sd, sources, seen_by, course(options, sd, samples, watching))
    if not first:
        return
    try:
        finish(options, sd, samples, watching, keep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped while writing the result; to go on: {runs.to_go_on(options.out)}") from None


def train_watched(options, sd, sources, observers, timed):
    """Train to the last step, or on to it, with these observers, progress and checkpoints.

    Returns whether the checkpoint stays after the last step.
    sources: of `Batches`. timed: the Course of the steps.
    """
    class_null = max(options.null_dropout, CLASS_NULL) if options.prior_target == "pretrained" else None
    batches = Batches(sd, sources, options.batch_size, options.seed, options.null_dropout, class_null)
    training = fine_tuning(sd, options)
    if options.resume:
        load_checkpoint(Path(options.out), training)
    keep = is_kept(options, training)
    announcements.before_the_first_step(options, training, captions=sources[0][1], keep=keep)
    with Progress(Path(options.out), training, options.steps, course=timed) as progress, CtrlC() as stop:
        checkpoints = Checkpoints(options, stop, training.step, progress, keep=keep)
        try:
            train(training, options, batches, [progress, *observers, checkpoints])
        except (Diverged, NotFinite) as error:
            last = f"the last checkpoint, after {checkpoints.saved} steps, is good"
            raise UserError(f"{error}; {last if checkpoints.saved else 'there is no checkpoint'}") from None
    return keep


def course(options, sd, samples, watching):
    """When looks and samples make steps longer, for the time to the end; the last samples are counted in looks."""
    steps = range(options.steps + 1)
    drawn = [step for step in steps if step and samples.every and step % samples.every == 0]
    looks = [step for step in steps if any(watch.looks_after(step) for watch in watching)]
    evaluations = len(samples.prompts) * sd.recipe["sample_steps"]
    return Course(options.steps, {*drawn, *looks}, evaluations / monitor.EVALUATIONS if looks else bool(drawn))


def finish(options, sd, samples, watching, keep):
    """Write the result of a training, draw samples, and say how to go on.

    watching: [Monitor], or none. keep: whether the checkpoint stays.
    """
    out = Path(options.out)
    ema.take_over(sd.unet)
    kind = methods.save_result(sd, options, out)
    if options.single_file:
        sd.save_single_file(out / "model.safetensors", header=headers.model_header(headers.about_run(sd, options)))
    samples.draw(sd, options.steps, out / "samples.png")
    for monitored in watching:
        monitored.save_chart()
        print(monitored.advice())
    page = write_page(options, options.steps)
    if not keep:
        delete_checkpoint(out)
    announcements.at_the_end(options, sd, kind, page, bool(samples.prompts))


def write_page(options, step, watching=None):
    """Make the run's page and return its path; with a Monitor only where it has just looked, else None.

    A page that cannot be made stops no training.
    """
    if watching and (not watching.rows or watching.rows[-1]["step"] != step):
        return None
    try:
        return write_report(options.out)
    except (UserError, OSError) as error:
        log.warning("the page of the run is not made: %s", error)
        return None


def begin(options, files, model, classes):
    """Empty the run's folder where that is asked for, and write what it begins with."""
    ownership.clear(options)
    if options.overwrite:
        forget_others(classes, options)
    runs.start(options, files, model)
