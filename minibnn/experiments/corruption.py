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
from PIL import Image
from tqdm import tqdm

from .. import data
from ..errors import UserError
from ..files.store import read_json, write_json, write_text, write_whole
from ..lab import sigma1_estimate
from ..neighbours import guidance
from ..options.commands import TrainOptions
from ..options.parsing import option, parse, run, seed_number, whole
from ..pictures import grid
from ..pipeline import StableDiffusion
from ..runs import fingerprint
from ..train import at_the_mean, train
from .measures import PhotoJudge, WorldJudge
from .prompts import table5_object, table5_subject, world_prompts
from .settings import SETTINGS, Run, log_spaced

TRAINING_PICTURES = 8  # drawn of the training prompt
SIGMA1_TIMES = (20, 100, 300, 500, 700, 900)
SIGMA1_DRAWS = 8
BEYOND = 4  # times the paper's steps, for SD


@dataclass(frozen=True)
class CorruptionOptions:
    """Fine-tune on 1-6 pictures with and without BNN, and measure pictures, noise and σ₁ on the way."""

    images: str = option("tutorials/dog", "folder of the training pictures; runs take the first of them", "what", metavar="DIR")
    model: str = option("tiny", '"tiny", or an SD model for the settings called paper', "what")
    tokenizer: str = option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")
    kind: str = option("dog", "the subject's class word", "what")
    word: str = option("sks", "the rare word that names it", "what")
    settings: list = option(("main",), "names of experiments/settings.py; all: those for the bundled model", "what", nargs="+", metavar="NAME")
    pictures: list = option((1, 2, 4, 6), "numbers of training pictures", "what", nargs="+", type=whole, metavar="N")
    seeds: list = option((0, 1, 2), "seeds of training", "what", nargs="+", type=seed_number, metavar="N")
    steps: int = option(None, f"optimiser steps of each run [800; long: 3200; paper: {BEYOND} times the paper's]", "what", type=whole)
    each: int = option(2, "pictures for each of the other prompts; the paper draws 4", "what", type=whole)
    dino: str = option(None, "facebook/dino-vits16: fidelity of photographs", "photographs", metavar="DIR")
    clip: str = option(None, "openai/clip-vit-large-patch14, for Clip-T", "photographs", metavar="DIR")
    lpips: str = option(None, "torchvision's AlexNet and Lpips' linear layers", "photographs", metavar="DIR")
    clip_iqa: str = option(None, "timm/resnet50_clip.openai", "photographs", metavar="DIR")
    gradient_checkpointing: bool = option(False, "less memory, more time", "photographs")
    processes: int = option(1, "runs at once, one thread each", "how", type=whole)
    plan: bool = option(False, "say what would be done, and stop", "how")
    out: str = option("runs/corruption", "folder", "how", metavar="DIR")


def read_rows(path):
    """The lines of a run's file, oldest first; none if it does not exist. A torn last line is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class Observer:
    """Called by `train` at every step: keeps the running mean of μ, and measures at the steps asked for."""

    def __init__(self, it, options):
        self.it, self.options = it, options
        self.views = SETTINGS[it.setting].views
        self.world = options.model == "tiny"
        self.prompt, _, self.prompts = prompts_of(it, options)
        self.steps = log_spaced(steps_of(it, options))
        self.path = Path(options.out) / f"{it.name}.jsonl"
        self.rows = read_rows(self.path)
        self.done = {row["step"] for row in self.rows}
        self.base = self.average = self.latents = self.judge = None
        self.sheet = {}  # step -> pictures of its row
        if self.done and self.path.with_suffix(".png").exists():
            self.sheet = read_sheet(self.path.with_suffix(".png"), sorted(self.done))
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
            with at_the_mean(sd, DRAWING[sd.device.type]):
                self.measure(step, sd)

    def start(self, sd):
        """What is needed once: latents of the training pictures, the pretrained model, the running mean."""
        files = data.list_pictures(self.options.images)[: self.it.pictures]
        training = data.load_pictures(files, sd.recipe["resolution"])
        with at_the_mean(sd):
            self.judge = WorldJudge(sd, training) if self.world else PhotoJudge(sd, training, self.options)
            self.latents = sigma1_estimate.latents_of(sd, training)
        if any(view.base for view in self.views):
            self.base = StableDiffusion.load(self.options.model, self.options.tokenizer, torch.float32).to(sd.device)
        self.average = {name: value.clone() for name, value in self.means(sd)}

    def means(self, sd):
        return [(n, p.detach()) for n, p in sd.unet.named_parameters() if not n.endswith("_sigma")]

    def measure(self, step, sd):
        """Draw and measure one checkpoint; its lines are written together."""
        rows, seconds = [], round(time.monotonic() - self.began, 1)
        groups = {"training": [(self.prompt, {"subject": self.options.kind})] * TRAINING_PICTURES, "other": self.prompts}
        predict = sigma1_estimate.predictor(sd, self.prompt)
        found = sigma1_estimate.estimate_sigma1(predict, self.latents, sd.alphas_cumprod, SIGMA1_TIMES, SIGMA1_DRAWS)
        sigma1 = {"t": found.t, "sigma1": found.sigma1, "loss": found.loss, "explained": found.explained, "mean": found.mean}
        for view in self.views:
            for group, wanted in groups.items():
                pictures = self.draw(sd, view, [prompt for prompt, _ in wanted])
                row = {"run": self.it.name, "step": step, "view": view.name, "group": group, "seconds": seconds}
                rows.append(row | self.judge(pictures, wanted) | {"sigma1": sigma1})
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
            prompts, view.steps, view.guidance, seed=1, sampler=view.sampler, batch_size=16 if self.world else 4,
            progress=False, predictor=predictor,
        )  # fmt: skip
        if own:
            torch._foreach_copy_([p for _, p in self.means(sd)], list(own.values()))
        return pictures

    def save_sheet(self):
        """One row for each step: four of the training prompt, then ten places."""
        rows = [picture for step in sorted(self.sheet) for picture in self.sheet[step]]
        sheet = grid(rows, len(rows) // len(self.sheet))
        write_whole(self.path.with_suffix(".png"), lambda path: sheet.save(path, format="PNG", optimize=True))


def read_sheet(path, steps):
    """What `Observer.save_sheet` saved for these steps: step -> pictures. Nothing if it has not as many rows."""
    sheet = Image.open(path)
    size = (sheet.height + 2) // len(steps) - 2
    if (size + 2) * len(steps) != sheet.height + 2 or (sheet.width + 2) % (size + 2):
        return {}
    places = range(0, sheet.width, size + 2)
    return {step: [sheet.crop((x, y, x + size, y + size)) for x in places] for step, y in zip(steps, range(0, sheet.height, size + 2), strict=True)}


DRAWING = {"cpu": torch.float32, "cuda": torch.bfloat16}


def prompts_of(it, options):
    """(training prompt, class prompt, [(other prompt, what it shows)], each `each` times)."""
    kind = "person" if SETTINGS[it.setting].person else options.kind
    if options.model == "tiny":
        others = world_prompts(options.word, kind)
    else:
        texts = table5_subject(options.word) if SETTINGS[it.setting].person else table5_object(options.word, kind)
        others = [(text, {}) for text in texts]
    return f"a photo of a {options.word} {kind}", f"a photo of a {kind}", others * options.each


def steps_of(it, options):
    """Optimiser steps of a run."""
    setting = SETTINGS[it.setting]
    return options.steps or (BEYOND * setting.steps_per_picture * it.pictures if setting.steps_per_picture else setting.steps)


def train_options(it, options, folder):
    """The options with which `minibnn.train` makes this run; folder: the first n pictures."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
    prompt, class_prompt, _ = prompts_of(it, options)
    return TrainOptions(**(defaults | SETTINGS[it.setting].options | {
        "images": str(folder), "model": options.model, "tokenizer": options.tokenizer, "bayes": it.bayes, "seed": it.seed,
        "steps": steps_of(it, options), "prompt": prompt, "class_prompt": class_prompt,
        "class_images": str(Path(options.out) / "class_images"), "gradient_checkpointing": options.gradient_checkpointing,
        "out": str(Path(options.out) / "training" / it.name), "samples": 0, "monitor": False, "overwrite": True,
    }))  # fmt: skip


def perform(it, options):
    """Train and measure one run; what training leaves is deleted at the end."""
    observer = Observer(it, options)
    work = Path(options.out) / "training" / it.name
    folder = work.with_name(f"{it.name}.pictures")  # the name may hold a dot, as sigma-0.003 does
    clean(work, folder)  # an interrupted run is trained again
    if observer.steps[-1] in observer.done:
        return
    folder.mkdir(parents=True)
    for path in data.list_pictures(options.images)[: it.pictures]:
        shutil.copy(path, folder / path.name)
    train(train_options(it, options, folder), observer)
    clean(work, folder)


def clean(*folders):
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def planned(options):
    """The runs that the options name, in order. Raises UserError for what cannot be."""
    names = options.settings
    if list(names) == ["all"]:
        names = [name for name, setting in SETTINGS.items() if setting.steps_per_picture is None]
    for name in names:
        if name not in SETTINGS:
            raise UserError(f"--settings {name}: there are {', '.join(SETTINGS)}")
        if (SETTINGS[name].steps_per_picture is None) != (options.model == "tiny"):
            raise UserError(f"--settings {name} does not go with --model {options.model}: paper… is for SD, the others for tiny")
    if options.model != "tiny" and not options.dino:
        raise UserError("--dino is required for photographs: the folder of facebook/dino-vits16")
    there = len(data.list_pictures(options.images))
    if max(options.pictures) > there or min(options.pictures) < 1:
        raise UserError(f"--pictures {' '.join(map(str, options.pictures))}: {options.images} holds {there}")
    runs = [
        Run(name, n, bayes, seed)
        for name in names for seed in options.seeds for n in options.pictures for bayes in SETTINGS[name].bayes
    ]  # fmt: skip
    return list(dict.fromkeys(runs))  # what is named twice is done once


def claim(options):
    """Note what the runs of a folder have in common, besides what their names say. Raises UserError if it differs from earlier."""
    path = Path(options.out) / "experiment.json"
    own = {name: getattr(options, name) for name in ("model", "kind", "word", "each")}
    own["images"] = fingerprint(data.list_pictures(options.images))
    before = read_json(path) if path.exists() else own
    changed = [f"--{name}" for name in own if own[name] != before.get(name)]
    if changed:
        raise UserError(f"--out {options.out} holds runs of other {', '.join(changed)}: name another folder")
    write_json(path, own)


def _start_worker(folder):
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(Path(folder) / f"log-{os.getpid()}.txt", "a", buffering=1)  # noqa: SIM115


def experiment(options):
    """Perform all runs that are not yet there."""
    todo, out = planned(options), Path(options.out)
    measurements = sum(len(log_spaced(steps_of(it, options))) * len(SETTINGS[it.setting].views) for it in todo)
    print(f"{len(todo)} runs, {sum(steps_of(it, options) for it in todo)} steps, {measurements} measurements of a checkpoint")
    if options.plan:
        return
    out.mkdir(parents=True, exist_ok=True)
    claim(options)
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
