"""The three phases of few-shot fine-tuning, measured: `python -m minibnn.experiments corruption`.

Follows: the paper's §3.1 (Fig. 2) and §5. A run fine-tunes on the first n pictures, with or without BNN, by the command's
own training loop. At log-spaced steps it draws, at θ = μ, pictures of the training prompt and of other prompts, and
measures fidelity, noise, prompt fidelity, diversity and σ₁. `stages.py` judges; `report.py` draws the curves.

Leaves in --out, for each run, NAME.jsonl (one line a step, view and group of prompts) and NAME.png (a row for each step).
A run whose last step is there is not repeated; an interrupted one is trained again, which gives the same weights, and
measured from where it stopped.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from .. import corruption, data, guidance, metrics
from ..errors import UserError
from ..evaluate import reconstruct
from ..options import TrainOptions, option, parse, run
from ..pipeline import StableDiffusion, grid
from ..train import at_the_mean, train
from ..weights import write_text, write_whole
from .prompts import world_prompts

TRAINING_PICTURES = 8  # drawn of the training prompt
SIGMA1_TIMES = (20, 100, 300, 500, 700, 900)
SIGMA1_DRAWS = 8


@dataclass(frozen=True)
class CorruptionOptions:
    """Fine-tune on 1-6 pictures with and without BNN, and measure pictures, noise and σ₁ on the way."""

    images: str = option("tutorials/dog", "folder of the training pictures; runs take the first of them", "what", metavar="DIR")
    model: str = option("tiny", "the pretrained model", "what")
    settings: list = option(("main",), "names of SETTINGS in this file, or all", "what", nargs="+", metavar="NAME")
    pictures: list = option((1, 2, 4, 6), "numbers of training pictures", "what", nargs="+", type=int, metavar="N")
    seeds: list = option((0, 1, 2), "seeds of training", "what", nargs="+", type=int, metavar="N")
    steps: int = option(1600, "optimiser steps of each run", "what", type=int)
    each: int = option(2, "pictures for each of the other prompts", "what", type=int)
    processes: int = option(1, "runs at once, one thread each", "how", type=int)
    plan: bool = option(False, "say what would be done, and stop", "how")
    out: str = option("runs/corruption", "folder", "how", metavar="DIR")


@dataclass(frozen=True)
class View:
    """How pictures are drawn from a checkpoint. average: with the running mean of μ; base: ε(∅) of the pretrained model."""

    sampler: str = "ddim"
    steps: int = 25
    guidance: float = 3.0
    average: bool = False
    base: bool = False

    @property
    def name(self):
        return f"{self.sampler}-{self.steps}-g{self.guidance:g}" + "-average" * self.average + "-base" * self.base


@dataclass(frozen=True)
class Setting:
    """One factor changed. options: of `minibnn.train`; views: how checkpoints are drawn; bayes: which of (False, True)."""

    what: str
    options: dict = dataclasses.field(default_factory=dict)
    views: tuple = (View(),)
    bayes: tuple = (False, True)


PLAIN_AND_PAPER = (View(), View("pndm", 50, 7.5))
SAMPLERS = tuple(
    View(sampler, steps, guidance)
    for sampler, steps in (("ddim", 25), ("ddim", 50), ("ddim", 250), ("pndm", 25), ("pndm", 50))
    for guidance in (1.0, 3.0, 7.5)
)
RIVALS = (View(), View(average=True), View(base=True), View(guidance=7.5), View(guidance=7.5, base=True), View("pndm", 50, 7.5))
SETTINGS = {
    "main": Setting("the recipe's rate, no prior preservation (as in the paper's §3.3)"),
    "views": Setting("main, drawn otherwise: averaged weights, base's ε(∅), guidance 7.5, PNDM", views=RIVALS),
    "samplers": Setting("main, drawn with 5 samplers × 3 guidances", views=SAMPLERS),
    "prior": Setting("with prior preservation", {"prior_weight": 1.0}),
    "lr-5e-5": Setting("a quarter of the rate", {"lr": 5e-5}),
    "lr-4e-4": Setting("twice the rate", {"lr": 4e-4}),
    "warm-up": Setting("the rate rises over 200 steps", {"lr_warmup_steps": 200}),
    "batch-4": Setting("four pictures a step", {"batch_size": 4}),
    "sigma-0.003": Setting("σ₀ = 0.003", {"sigma": 0.003}, bayes=(True,)),
    "sigma-0.03": Setting("σ₀ = 0.03", {"sigma": 0.03}, bayes=(True,)),
    "sigma-0.1": Setting("σ₀ = 0.1", {"sigma": 0.1}, bayes=(True,)),
    "lambda-1e-6": Setting("λ = 1e-6", {"lambda_kl": 1e-6}, bayes=(True,)),
    "lambda-1e-4": Setting("λ = 1e-4", {"lambda_kl": 1e-4}, bayes=(True,)),
    "where-up": Setting("random: up", {"where": "up"}, bayes=(True,)),
    "where-norm": Setting("random: norm", {"where": "norm"}, bayes=(True,)),
    "where-cross": Setting("random: cross-attention", {"where": "cross-attention"}, bayes=(True,)),
    "where-conv": Setting("random: conv", {"where": "conv"}, bayes=(True,)),
    "where-all": Setting("random: all", {"where": "all"}, bayes=(True,)),
}


@dataclass(frozen=True)
class Run:
    """One fine-tuning to be measured."""

    setting: str
    pictures: int
    bayes: bool
    seed: int

    @property
    def name(self):
        return f"{self.setting}-{self.pictures}-{'bnn' if self.bayes else 'plain'}-{self.seed}"


def log_spaced(last):
    """0 and the doublings of 25 up to `last`, which is always there."""
    steps = [0]
    while 25 * 2 ** (len(steps) - 1) < last:
        steps.append(25 * 2 ** (len(steps) - 1))
    return [*steps, last]


def read_rows(path):
    """The lines of a run's file, oldest first; none if it does not exist. A torn last line is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class Observer:
    """Called by `train` at every step: keeps the running mean of μ, and measures at the steps asked for."""

    def __init__(self, it, options, prompts):
        self.it, self.options, self.prompts = it, options, prompts
        self.views = SETTINGS[it.setting].views
        self.steps = log_spaced(options.steps)
        self.path = Path(options.out) / f"{it.name}.jsonl"
        self.rows = read_rows(self.path)
        self.done = {row["step"] for row in self.rows}
        self.base = self.average = self.latents = None
        self.sheet = {}
        self.began = time.monotonic()

    @torch.no_grad()
    def __call__(self, step, sd):
        if self.latents is None:
            self.start(sd)
        if any(view.average for view in self.views):
            share = max(0.01, 1 / (step + 1))  # a running mean first, then one that forgets within 100 steps
            for name, value in self.means(sd):
                self.average[name].lerp_(value, share)
        if step in self.steps and step not in self.done:
            with at_the_mean(sd):
                self.measure(step, sd)

    def start(self, sd):
        """What is needed once: latents of the training pictures, the pretrained model, the running mean."""
        files = data.list_pictures(self.options.images)[: self.it.pictures]
        self.training = data.load_pictures(files, sd.recipe["resolution"])
        with at_the_mean(sd):
            self.seen = reconstruct(sd, self.training)  # what the decoder cannot draw is no fault of the UNet
            mean, _ = data.latent_moments(sd.vae, self.training)
            self.latents = mean * sd.vae.config.scaling_factor
        if any(view.base for view in self.views):
            self.base = StableDiffusion.load(self.options.model)
        self.average = {name: value.clone() for name, value in self.means(sd)}

    def means(self, sd):
        return [(n, p.detach()) for n, p in sd.unet.named_parameters() if not n.endswith("_sigma")]

    def measure(self, step, sd):
        """Draw and measure one checkpoint; its lines are written together."""
        rows, seconds = [], round(time.monotonic() - self.began, 1)
        prompt = sd.recipe["prompt"]
        groups = {"training": [(prompt, {"subject": "dog"})] * TRAINING_PICTURES, "other": self.prompts}
        predict = corruption.predictor(sd, prompt)
        found = corruption.estimate_sigma1(predict, self.latents, sd.alphas_cumprod, SIGMA1_TIMES, SIGMA1_DRAWS)
        sigma1 = {"t": found.t, "sigma1": found.sigma1, "loss": found.loss, "explained": found.explained, "mean": found.mean}
        for view in self.views:
            for group, wanted in groups.items():
                pictures = self.draw(sd, view, [prompt for prompt, _ in wanted])
                row = {"run": self.it.name, "step": step, "view": view.name, "group": group, "seconds": seconds}
                rows.append(row | measures(data.to_tensor(pictures), wanted, self.seen) | {"sigma1": sigma1})
                if view == self.views[0]:
                    self.sheet.setdefault(step, []).extend(pictures[:4] if group == "training" else pictures[:10])
        self.rows += rows
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.save_sheet()

    def draw(self, sd, view, prompts):
        """Pictures of the prompts, the same seed at every checkpoint."""
        own = {name: value.clone() for name, value in self.means(sd)} if view.average else {}
        if own:
            torch._foreach_copy_([p for _, p in self.means(sd)], list(self.average.values()))
        predictor = guidance.one_condition(sd, guidance.unconditional_of(self.base, sd)) if view.base else None
        pictures = sd.generate(
            prompts, view.steps, view.guidance, seed=1, sampler=view.sampler, batch_size=16, progress=False,
            predictor=predictor,
        )  # fmt: skip
        if own:
            torch._foreach_copy_([p for _, p in self.means(sd)], list(own.values()))
        return pictures

    def save_sheet(self):
        """One row for each step of this session: four of the training prompt, then ten places."""
        rows = [picture for step in sorted(self.sheet) for picture in self.sheet[step]]
        sheet = grid(rows, len(rows) // len(self.sheet))
        write_whole(self.path.with_suffix(".png"), lambda path: sheet.save(path, format="PNG", optimize=True))


def measures(images, wanted, training):
    """All measures of `metrics`, averaged over the pictures (B, 3, 64, 64); wanted: B pairs (prompt, what it shows)."""
    mean, nearest = metrics.fidelity(images, training)
    right = metrics.prompt_fidelity(images, [want for _, want in wanted])
    by_prompt = {}
    for image, (prompt, _) in zip(images, wanted, strict=True):
        by_prompt.setdefault(prompt, []).append(image)
    alike = [metrics.diversity(torch.stack(group)) for group in by_prompt.values() if len(group) > 1]
    values = {
        "fidelity": mean.mean().item(), "nearest": nearest.mean().item(), "noise": metrics.noise(images).mean().item(),
        "worst_noise": metrics.noise(images).quantile(0.9).item(), "immerkaer": metrics.immerkaer(images).mean().item(),
        "diversity": sum(alike) / len(alike) if alike else None,
    }  # fmt: skip
    for name in ("subject", "background"):
        known = [value for value in right[name] if value is not None]
        values[name] = sum(known) / len(known) if known else None
    return {name: None if value is None else round(value, 5) for name, value in values.items()}


def train_options(it, options, folder):
    """The options with which `minibnn.train` makes this run; folder: the first n pictures."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    chosen = {"prior_weight": 0.0} | SETTINGS[it.setting].options
    fixed = {"images": str(folder), "model": options.model, "bayes": it.bayes, "seed": it.seed, "steps": options.steps}
    out = str(Path(options.out) / "training" / it.name)
    return TrainOptions(**(defaults | chosen | fixed | {"out": out, "samples": 0, "overwrite": True}))


def perform(it, options):
    """Train and measure one run; what training leaves is deleted at the end."""
    files = data.list_pictures(options.images)
    if it.pictures > len(files):
        raise UserError(f"--pictures {it.pictures}: {options.images} holds {len(files)}")
    observer = Observer(it, options, world_prompts("sks", "dog") * options.each)
    if options.steps in observer.done:
        return
    work = Path(options.out) / "training" / it.name
    folder = work.with_suffix(".pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for path in files[: it.pictures]:
        shutil.copy(path, folder / path.name)
    train(train_options(it, options, folder), observer)
    shutil.rmtree(work)
    shutil.rmtree(folder)


def planned(options):
    """The runs that the options name, in order. Raises UserError for an unknown setting."""
    names = list(SETTINGS) if list(options.settings) == ["all"] else options.settings
    for name in names:
        if name not in SETTINGS:
            raise UserError(f"--settings {name}: there are {', '.join(SETTINGS)}")
    return [
        Run(name, n, bayes, seed)
        for name in names for seed in options.seeds for n in options.pictures for bayes in SETTINGS[name].bayes
    ]  # fmt: skip


def _start_worker(folder):
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(Path(folder) / f"log-{os.getpid()}.txt", "a", buffering=1)  # noqa: SIM115


def experiment(options):
    """Perform all runs that are not yet there."""
    todo, out = planned(options), Path(options.out)
    measurements = sum(len(log_spaced(options.steps)) * len(SETTINGS[it.setting].views) for it in todo)
    print(f"{len(todo)} runs of {options.steps} steps, {measurements} measurements of a checkpoint")
    if options.plan:
        return
    out.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, _start_worker, (out,)) as pool:
        waiting = [pool.submit(perform, it, options) for it in todo]
        try:
            for done in tqdm(waiting, desc="runs"):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(arguments):
    run(experiment, parse(CorruptionOptions, "minibnn.experiments corruption", arguments))
