"""The three phases of few-shot fine-tuning, measured: `python -m minibnn experiment corruption`.

Follows: the paper's §3.1 (Fig. 2) and §5. A run fine-tunes on the first n pictures, with or without BNN, as `train`
does. At log-spaced steps it draws, at θ = μ, pictures of the training prompt and of other prompts, and measures their
fidelity, noise and diversity, whether they show what was asked for, and σ₁. `stages.py` has the criterion, and
`report.py` draws the curves.

Leaves in --out, for each run, NAME.jsonl (a line for each step, view and group of prompts) and NAME.png (a row for
each step). A run whose last step is there is not repeated. An interrupted one is trained again, which gives the same
weights, and is measured from where it stopped.
"""

import contextlib
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from ... import data
from ...cli.train import fine_tune
from ...devices import training_dtype
from ...errors import UserError
from ...files.locks import locked
from ...files.rows import read_rows, write_rows
from ...files.schema import integer
from ...lab import sigma1_estimate
from ...options.training import TrainOptions
from ...pictures import grid, save_png
from ...pipeline import StableDiffusion
from ...progress import progress_bar
from ...runs import fingerprint
from ...train import at_the_mean
from ..prompts import world_prompts
from ..records import check_settings, note_shared
from ..views import draw
from .measures import WorldMeasures
from .settings import SETTINGS, Run, log_spaced

TRAINING_PICTURES = 8  # drawn of the training prompt
SIGMA1_TIMES = (20, 100, 300, 500, 700, 900)
SIGMA1_DRAWS = 8


class Observer:
    """Watches a training: measures at log-spaced steps, and keeps the running mean of μ if a view draws with it."""

    def __init__(self, it, options):
        self.it, self.options = it, options
        self.views = SETTINGS[it.setting].views
        self.prompt, _, self.prompts = prompts_of(options)
        self.steps = log_spaced(steps_of(it, options))
        self.path = path_of(it, options)
        self.strips = work_folder(it, options, "strips")  # a picture for each measured step
        self.rows = measured(it, options)
        self.done = {row["step"] for row in self.rows}
        self.average, self.base, self.latents, self.measures = {}, None, None, None
        self.began = time.monotonic()

    @torch.no_grad()
    def __call__(self, training):
        sd, step = training.sd, training.step
        if self.measures is None:
            self.start(sd)
        share = max(0.01, 1 / (step + 1))  # a running mean at first, then one that forgets within 100 steps
        for name, average in self.average.items():
            average.lerp_(sd.unet.get_parameter(name), share)
        if step in self.steps and step not in self.done:
            with at_the_mean(sd, getattr(torch, training_dtype(str(sd.device)))):
                self.measure(step, sd)

    def start(self, sd):
        """Prepare what is needed once: latents of the training pictures, the pretrained model, the running mean."""
        files = data.list_pictures(self.options.images)[: self.it.pictures]
        pictures = data.load_pictures(files, sd.recipe["resolution"])
        with at_the_mean(sd):
            self.measures = WorldMeasures(sd, pictures)
            self.latents = sigma1_estimate.latents_of(sd, pictures)
        if any(view.base for view in self.views):
            self.base = StableDiffusion.load("tiny").to(sd.device)
        if any(view.average for view in self.views):  # as much memory as the UNet itself
            means = ((name, p) for name, p in sd.unet.named_parameters() if not name.endswith("_sigma"))
            self.average = {name: p.detach().clone() for name, p in means}

    def measure(self, step, sd):
        """Draw and measure one checkpoint; its lines are written together."""
        rows, strip, seconds = [], [], round(time.monotonic() - self.began, 1)
        training = [(self.prompt, {"subject": self.options.kind})] * TRAINING_PICTURES
        predict = sigma1_estimate.predictor(sd, self.prompt)
        found = sigma1_estimate.estimate_sigma1(predict, self.latents, sd.alphas_cumprod, SIGMA1_TIMES, SIGMA1_DRAWS)
        sigma1 = {name: getattr(found, name) for name in ("t", "sigma1", "loss", "explained", "mean")}
        for view in self.views:
            for group, wanted in (("training", training), ("other", self.prompts)):
                pictures = self.generate(sd, view, [prompt for prompt, _ in wanted])
                row = {"run": self.it.name, "step": step, "view": view.name, "group": group, "seconds": seconds}
                rows.append(row | self.measures(pictures, wanted) | {"sigma1": sigma1})
                if view == self.views[0]:
                    strip += pictures[: 4 if group == "training" else 10]
        save_png(grid(strip, len(strip)), self.strips / f"{step:06d}.png")
        strips = [Image.open(path) for path in sorted(self.strips.iterdir())]
        save_png(grid(strips, 1), self.path.with_suffix(".png"), optimize=True)
        self.rows += rows
        write_rows(self.path, self.rows)

    def generate(self, sd, view, prompts):
        """Pictures of the prompts as the view draws them, with the same seed at every checkpoint."""
        with self.averaged(sd) if view.average else contextlib.nullcontext():
            return draw(sd, view, prompts, seed=1, batch_size=16, base=self.base)

    @contextlib.contextmanager
    def averaged(self, sd):
        """Inside, the running mean stands for the weights."""
        weights = [sd.unet.get_parameter(name).detach() for name in self.average]
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, list(self.average.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)


def prompts_of(options):
    """(training prompt, class prompt, [(other prompt, what it shows)], each `each` times)."""
    word, kind = options.word, options.kind
    return f"a photo of a {word} {kind}", f"a photo of a {kind}", world_prompts(word, kind) * options.each


def steps_of(it, options):
    """Optimiser steps of a run."""
    return options.steps or SETTINGS[it.setting].steps


def train_options(it, options, folder):
    """The options with which the command `train` makes this run; folder: the first n pictures."""
    prompt, class_prompt, _ = prompts_of(options)
    return TrainOptions(**(SETTINGS[it.setting].options | {
        "images": str(folder), "model": "tiny", "bayes": it.bayes, "seed": it.seed,
        "steps": steps_of(it, options), "prompt": prompt, "class_prompt": class_prompt,
        "class_images": str(Path(options.out) / "class_images"), "samples": 0, "monitor": False, "overwrite": True,
        "out": str(work_folder(it, options, "run")),
    }))


def path_of(it, options):
    """The file of a run's lines."""
    return Path(options.out) / f"{it.name}.jsonl"


def measured(it, options):
    """The lines of a run that are there."""
    return read_rows(path_of(it, options), {"step": integer(0)}, required=("step",))


def work_folder(it, options, purpose):
    """Where a run keeps something until it is done. Its name may hold a dot, as sigma-0.003 does."""
    return Path(options.out) / "training" / f"{it.name}.{purpose}"


def perform(it, options):
    """Train and measure one run; what it leaves besides lines and sheet is deleted at the end."""
    observer = Observer(it, options)
    work, folder = work_folder(it, options, "run"), work_folder(it, options, "pictures")
    clean(work, folder)  # an interrupted run is trained again
    if observer.steps[-1] not in observer.done:
        folder.mkdir(parents=True)
        for path in data.list_pictures(options.images)[: it.pictures]:
            shutil.copy(path, folder / path.name)
        fine_tune(train_options(it, options, folder), [observer])
    clean(work, folder, observer.strips)


def clean(*folders):
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def planned(options):
    """The runs that the options name, in order. Raises UserError for what cannot be."""
    names = options.settings
    if list(names) == ["all"]:
        names = list(SETTINGS)
    check_settings(names, SETTINGS)
    there = len(data.list_pictures(options.images))
    if max(options.pictures) > there or min(options.pictures) < 1:
        raise UserError(f"--pictures {' '.join(map(str, options.pictures))}: {options.images} holds {there}")
    return [
        Run(name, n, bayes, seed)
        for name in names for seed in options.seeds for n in options.pictures for bayes in SETTINGS[name].bayes
    ]


def claim(options):
    """Note what the runs of a folder share besides their names. Raises UserError if earlier runs had something else."""
    own = {name: getattr(options, name) for name in ("kind", "word", "each")}
    note_shared(options.out, own | {"images": fingerprint(data.list_pictures(options.images), captions=False)})


def _start_worker(folder):
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(Path(folder) / f"log-{os.getpid()}.txt", "a", buffering=1, encoding="utf-8")  # noqa: SIM115


def experiment(options):
    """Perform all runs that are not yet there."""
    runs, out, steps, measurements = planned(options), Path(options.out), [], 0
    for it in runs:
        looks, done = log_spaced(steps_of(it, options)), {row["step"] for row in measured(it, options)}
        if looks[-1] not in done:  # an interrupted run is trained again, but measured from where it stopped
            steps.append(looks[-1])
            measurements += len(set(looks) - done) * len(SETTINGS[it.setting].views)
    print(f"{len(steps)} of {len(runs)} runs are to be made: "
          f"{sum(steps)} steps, {measurements} measurements of a checkpoint")
    if options.plan:
        return
    with locked(out):
        claim(options)
        perform_all(runs, options)


def perform_all(runs, options):
    """Perform runs in worker processes. Raises KeyboardInterrupt, after which no worker lives."""
    out = Path(options.out)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, _start_worker, (out,)) as pool:
        waiting = [pool.submit(perform, it, options) for it in runs]
        try:
            for done in progress_bar(waiting, desc="runs"):
                done.result()
        except BaseException as error:
            for worker in multiprocessing.active_children():
                worker.kill()  # nothing is lost: files are written whole, and an interrupted run is trained again
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("stopped: the same command goes on with the runs that are not done") from None
            raise
