"""The command `python -m minibnn.train --images ./dog`: from options to a run's folder.

Opens the model, settles what the command line left open, hands the loop of `minibnn/train.py` its batches and its
observers (progress, samples, monitor, checkpoints), and writes the result at the posterior mean.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shlex
from pathlib import Path

import torch

from .. import data, distributed, ownership, runs
from ..devices import autocast, choose_device, choose_threads, half_dtype, make_deterministic
from ..errors import UserError
from ..files import headers
from ..files.store import NotFinite
from ..finetune import ema, methods
from ..finetune.adapter_files import KOHYA
from ..finetune.kernel import choose_kernel
from ..lab import curves, monitor
from ..lab.captioned import Group, save_sheet
from ..options.commands import run_folder
from ..page.run import write_report
from ..pictures import to_pil
from ..pipeline import StableDiffusion
from ..progress import Course
from ..train import Batches, Diverged, at_the_mean, fine_tuning, train
from . import programs

log = logging.getLogger("minibnn")

GIVEN = 8  # training pictures on samples.png


@distributed.one_of_several
def fine_tune(options, observers=()):
    """Do what TrainOptions ask for and leave the run's folder. Raises UserError, KeyboardInterrupt.

    observers: functions of the Training (`minibnn/train.py`), called before the first step and after each.
    """
    options = dataclasses.replace(options, out=str(options.out or run_folder(options.images)))
    with ownership.owned(options) if distributed.rank() == 0 else contextlib.nullcontext():
        fine_tune_there(options, observers)


def fine_tune_there(options, observers):
    """The same in a folder that belongs to this process and may be used."""
    folders = [data.list_pictures(folder) for folder in options.images]
    files = [path for folder in folders for path in folder]
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd, len(files))
    sd.recipe |= runs.subject_of(options)
    of_folders = zip(folders, options.prompt, strict=True)
    own = options.captions
    captions = [caption for folder, prompt in of_folders for caption in data.captions(folder, prompt, own)]
    images = data.load_pictures(files, options.resolution)
    samples = Samples(options, images[:GIVEN], captions[:GIVEN])
    classes = class_folders(options, [len(folder) for folder in folders]) if options.prior_weight else []
    for each in classes:  # before the folder is made: own class pictures may be broken
        data.check_class_pictures(each.folder, each.made_for)
        for path in data.own_class_pictures(each.folder)[: each.count]:
            data.load_picture(path, options.resolution)
    if options.resume:
        runs.check_same_run(options, files)
    if options.deterministic:
        make_deterministic(options.device)
    choose_threads(options.device, sd.unet)
    out = Path(options.out)
    if options.resume:
        runs.restore_threads(out)
    distributed.first_alone(begin, options, files)
    sd.to(options.device)
    sources = [(images, captions), *class_source(options, sd, classes)]
    batches = Batches(sd, sources, options.batch_size, options.seed, options.null_dropout)
    training = fine_tuning(sd, options)
    if options.resume:
        runs.load_checkpoint(out, training)
    print(describe(options, sd.unet, captions))
    if options.monitor:
        print(f"first pictures soon in {out / 'report.html'}, which is renewed at each look")
    first = distributed.rank() == 0
    watching = [monitor.Monitor(options, sd, images[: len(folders[0])])] if options.monitor and first else []
    pages = [lambda training: write_page(options, training.step, watching[0])] if watching else []
    drawing = [samples, *observers, *watching, *pages] if first else []
    timed = course(options, sd, samples, watching)
    with runs.Progress(out, training, options.steps, course=timed) as progress, runs.CtrlC() as stop:
        checkpoints = runs.Checkpoints(options, stop, training.step, progress)
        try:
            train(training, options, batches, [progress, *drawing, checkpoints])
        except (Diverged, NotFinite) as error:
            last = f"the last checkpoint, after {checkpoints.saved} steps, is good"
            raise UserError(f"{error}; {last if checkpoints.saved else 'there is no checkpoint'}") from None
    if not first:
        return
    del training, batches, checkpoints  # their memory is wanted for drawing
    try:
        finish(options, sd, samples, watching)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped while writing the result: the same command with --resume goes on") from None


def course(options, sd, samples, watching):
    """When looks and samples make steps longer, for the time to the end; the last samples are counted in looks."""
    steps = range(options.steps + 1)
    drawn = [step for step in steps if step and samples.every and step % samples.every == 0]
    looks = [step for step in steps if any(watch.looks_after(step) for watch in watching)]
    evaluations = len(samples.prompts) * sd.recipe["sample_steps"]
    return Course(options.steps, {*drawn, *looks}, evaluations / monitor.EVALUATIONS if looks else bool(drawn))


def finish(options, sd, samples, watching):
    """Write the result of a training, draw samples, and say how to go on. watching: [Monitor], or none."""
    out = Path(options.out)
    ema.settle(sd.unet)
    kind = methods.save_result(sd, options, out)
    if options.single_file:
        sd.save_single_file(out / "model.safetensors", header=headers.model_header(headers.about_run(sd, options)))
    samples.draw(sd, options.steps, out / "samples.png")
    for monitored in watching:
        print(monitored.advice())
    page = write_page(options, options.steps)
    tell_of_other_programs(sd, options, out)
    shown = f", {out / 'samples.png'} shows what it draws" if samples.prompts else ""
    shown += f", {page} how it went" if page else ""
    print(f"done: {out} is {kind}{shown}. Draw with another prompt:")
    advice = curves.advice_of(out)
    model = out / advice["model"] if advice and advice["model"] else out
    prompt = shlex.quote(f"{options.prompt[0]} in the snow")
    print(f"  python -m minibnn.sample --model {shlex.quote(str(model))} --prompt {prompt} --out picture.png")


def write_page(options, step, watching=None):
    """Make the run's page and return its path; with a Monitor only where it has just looked, else None.

    A page that cannot be made stops no training.
    """
    if watching and (not watching.rows or watching.rows[-1]["step"] != step):
        return None
    try:
        return write_report(options.out)
    except UserError as error:
        log.warning("the page of the run is not made: %s", error)
        return None


def begin(options, files):
    """Empty the run's folder where that is asked for, and write what it begins with."""
    ownership.clear(options)
    runs.start(options, files)


def tell_of_other_programs(sd, options, out):
    """Name each file that --single-file and --export wrote, and where it goes."""
    paths = {"single-file": out / "model.safetensors", "kohya": out / KOHYA, "peft": out}
    asked = ["single-file"] * options.single_file + (options.export.split(",") if options.export else [])
    for kind in asked:
        print(programs.how_to_open(paths[kind], kind, headers.model_header(headers.about_run(sd, options))))


def settle(options, sd, pictures):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError.

    pictures: how many there are of the subject.
    """
    options, recipe = methods.settle(options, sd.recipe)
    device = choose_device(options.device)
    one = [recipe["prompt"]] if recipe["prompt"] else None  # the recipe knows a single subject
    of_class = [recipe["class_prompt"]] if recipe["class_prompt"] and options.prompt in (None, one) else None
    prompts, subjects = options.prompt or one, len(options.images)
    options = dataclasses.replace(
        options,
        prompt=prompts,
        class_prompt=for_each(options.class_prompt or of_class, subjects, "--class-prompt"),
        class_images=options.class_images or str(Path(options.out) / "class_images"),
        class_count=options.class_count or recipe["class_pictures_per_picture"] * pictures,
        steps=options.steps or recipe["steps_per_picture"] * pictures,
        resolution=options.resolution or recipe["resolution"],
        device=device,
        dtype=options.dtype or (half_dtype(device) if device.startswith("cuda") else "float32"),
    )
    if not options.prompt:
        raise UserError('--prompt is required for this model, for instance --prompt "a photo of a sks dog"')
    if len(options.prompt) != subjects:
        raise UserError(f"--prompt: {len(options.prompt)} given for {subjects} folders of --images; give one for each")
    if options.prior_weight and not options.class_prompt:
        raise UserError('--class-prompt is required, for instance "a photo of a dog"; or --prior-weight 0')
    if options.resolution % sd.vae.factor:
        raise UserError(f"--resolution {options.resolution} is no multiple of {sd.vae.factor}")
    methods.check(sd.unet, options)
    options = monitor.settle(options)
    if options.kernel == "triton" and not (device.startswith("cuda") or os.environ.get("TRITON_INTERPRET") == "1"):
        raise UserError("--kernel triton needs a GPU; on a CPU --kernel reference draws the same weights")
    if not options.bayes and (options.lambda_kl or options.keep_posterior):
        raise UserError("--lambda-kl and --keep-posterior need --bayes")
    kernel = choose_kernel(options.kernel, device, getattr(torch, options.dtype)) if options.bayes else "torch"
    return dataclasses.replace(options, kernel=kernel)


def for_each(values, number, option):
    """A list of `number` values: one value counts for all. None stays None. Raises UserError naming the option."""
    if values is None or len(values) == number:
        return values
    if len(values) > 1:
        raise UserError(f"{option}: {len(values)} given for {number} folders of --images; give one, or one for each")
    return values * number


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """Where the pictures of one class are, how many are wanted, and what the drawn ones are made for."""

    folder: str
    count: int
    made_for: dict


def class_folders(options, pictures):
    """A ClassFolder for each class prompt; several prompts share --class-count as their subjects share the pictures.

    pictures: how many each subject has. With several prompts each has a folder of its own in --class-images.
    """
    prompts = list(dict.fromkeys(options.class_prompt))
    folders = []
    for prompt in prompts:
        own = sum(n for n, other in zip(pictures, options.class_prompt, strict=True) if other == prompt)
        name = re.sub(r"\W+", "-", prompt) if len(prompts) > 1 else ""
        made_for = data.class_record(prompt, options.model, options.resolution)
        count = max(1, round(options.class_count * own / sum(pictures)))
        folders.append(ClassFolder(str(Path(options.class_images) / name), count, made_for))
    return folders


def class_source(options, sd, classes):
    """The class pictures and their prompts as a list of one source for `Batches`; those missing are drawn first."""
    paths, prompts = [], []
    try:
        with autocast(sd.device, getattr(torch, options.dtype)):
            for each in classes:
                paths += data.class_pictures(sd, each.folder, each.count, each.made_for)
                prompts += [each.made_for["prompt"]] * each.count
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped while drawing class pictures: the same command goes on") from None
    return [(data.Pictures(paths, options.resolution), prompts)] if classes else []


def describe(options, unet, captions):
    """One line about what is about to happen. captions: one for each picture."""
    subjects, own = len(options.images), sum(caption not in options.prompt for caption in captions)
    said = f"{len(captions)} picture{'s' if len(captions) > 1 else ''}"
    said += f" of {subjects} subjects" if subjects > 1 else ""
    said += f", {own} with a caption of {'their' if own > 1 else 'its'} own" if own else ""
    training = f"{options.steps} steps at lr {options.lr:g}, {options.dtype} on {options.device}"
    return f"{said}, {training}; {methods.describe(unet, options)}"


# --- samples -------------------------------------------------------------------------------------------------------


class Samples:
    """Draws the fixed prompts with fixed seeds; as an observer samples-NNNNNN.png every `--sample-every` steps.

    images (n, 3, H, W) and captions: of the training pictures that are shown beside them.
    """

    def __init__(self, options, images, captions):
        self.options, self.every, self.prompts = options, options.sample_every, sample_prompts(options)
        self.given = given(images, captions)

    def __call__(self, training):
        if self.every and training.figures and training.step % self.every == 0:
            self.draw(training.sd, training.step, Path(self.options.out) / f"samples-{training.step:06d}.png")

    def draw(self, sd, step, path):
        """Draw at θ = μ, and save the pictures as one; nothing with --samples 0."""
        if self.prompts:
            with at_the_mean(sd, getattr(torch, self.options.dtype)):
                side = self.options.resolution
                pictures = sd.generate(self.prompts, seed=0, size=side, batch_size=4, progress=False)
            drawn = Group(f"drawn after step {step}", list(zip(pictures, self.prompts, strict=True)))
            save_sheet([self.given, drawn], path, {"step": step})


def given(images, captions):
    """The training pictures (n, 3, H, W) in [-1, 1] as a Group for samples.png: large ones at half the size."""
    pictures, rows = to_pil(images), 2
    if images.shape[-1] > 192:
        pictures, rows = [picture.reduce(2) for picture in pictures], 4
    return Group("training pictures", list(zip(pictures, captions, strict=True)), -(-len(pictures) // rows))


def sample_prompts(options):
    """The prompts of samples.png: those of --sample-prompts; or the training prompt four times, the same with other
    places, the class, and so on. Several subjects take turns, each beginning with its prompt and then the places."""
    if options.sample_prompts:
        prompts = data.read_prompts(options.sample_prompts, "--sample-prompts")
        return [prompts[i % len(prompts)] for i in range(len(prompts) if options.samples is None else options.samples)]
    places = ("on the beach", "in the snow", "on a wooden floor")
    of_each = []
    for number, prompt in enumerate(options.prompt):
        own = [prompt] * (4 if len(options.prompt) == 1 else 1) + [f"{prompt} {place}" for place in places]
        of_each.append([*own, options.class_prompt[number] if options.class_prompt else prompt])
    prompts = [prompt for turn in zip(*of_each, strict=True) for prompt in turn]
    return [prompts[i % len(prompts)] for i in range(8 if options.samples is None else options.samples)]
