"""The command `python -m minibnn train --images ./dog`: from options to a run's folder.

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

from .. import class_pictures, data, distributed, ownership, runs
from ..checkpoints import delete_checkpoint, is_kept, load_checkpoint, size_of
from ..devices import autocast, check_compiler, choose_device, choose_threads, make_deterministic, training_dtype
from ..errors import UserError
from ..files import headers
from ..files.weights import NotFinite
from ..finetune import ema, methods
from ..finetune.adapter_files import KOHYA
from ..finetune.kernel import choose_kernel
from ..lab import curves, monitor
from ..observers import Checkpoints, CtrlC, Progress
from ..options.kinds import BUNDLED, refuse
from ..options.training import run_folder
from ..page.run import write_report
from ..pipeline import StableDiffusion
from ..progress import Course
from ..train import Batches, Diverged, fine_tuning, train
from . import programs
from .run_samples import Samples

CLASS_NULL = 0.25  # share of the class pictures that hold ε(∅) where the pretrained model teaches
log = logging.getLogger("minibnn")


@distributed.one_of_several
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
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    if options.deterministic:
        make_deterministic(choose_device(options.device))  # before `settle` rehearses kernels
    asked, options = options, settle(options, sd, len(files))
    sd.recipe |= runs.subject_of(options)
    of_folders = zip(folders, options.prompt, strict=True)
    own = options.captions
    captions = [caption for folder, prompt in of_folders for caption in data.captions(folder, prompt, own)]
    images = data.load_pictures(files, options.resolution)
    samples = Samples(options, images, captions)
    classes = class_folders(options, [len(folder) for folder in folders]) if options.prior_weight else []
    for each in classes:  # before the folder is made: own class pictures may be broken
        class_pictures.check(each.folder, each.made_for)
        for path in class_pictures.own(each.folder)[: each.count]:
            data.load_picture(path, options.resolution)
    if options.resume:
        runs.check_same_run(options, files)
    choose_threads(options.device, sd.unet)
    out = Path(options.out)
    if options.resume:
        runs.restore_threads(out)
    distributed.first_alone(begin, options, files)
    told = [about_prompts(options), about_class_pictures(asked, options), about_photographs(options, files)]
    print("\n".join(filter(None, told)))
    sd.to(options.device)
    sources = [(images, captions), *class_source(options, sd, classes)]
    class_null = max(options.null_dropout, CLASS_NULL) if options.prior_target == "pretrained" else None
    batches = Batches(sd, sources, options.batch_size, options.seed, options.null_dropout, class_null)
    training = fine_tuning(sd, options)
    if options.resume:
        load_checkpoint(out, training)
    print(describe(options, sd.unet, captions))
    keep = is_kept(options, training)
    if not keep and options.keep_optimiser is None and training.step < options.steps:
        print(f"the finished run is the model alone, without its checkpoint of {size_of(training) / 1e9:.3g} GB; with "
              "--keep-optimiser it keeps that, so that more --steps can follow")
    if options.monitor:
        print(f"the monitor draws a few pictures now and again; {out / 'report.html'} shows them: open it in a browser")
    first = distributed.rank() == 0
    watching = [monitor.Monitor(options, sd, images[: len(folders[0])])] if options.monitor and first else []
    pages = [lambda training: write_page(options, training.step, watching[0])] if watching else []
    drawing = [samples, *observers, *watching, *pages] if first else []
    timed = course(options, sd, samples, watching)
    with Progress(out, training, options.steps, course=timed) as progress, CtrlC() as stop:
        checkpoints = Checkpoints(options, stop, training.step, progress, keep=keep)
        try:
            train(training, options, batches, [progress, *drawing, checkpoints])
        except (Diverged, NotFinite) as error:
            last = f"the last checkpoint, after {checkpoints.saved} steps, is good"
            raise UserError(f"{error}; {last if checkpoints.saved else 'there is no checkpoint'}") from None
    if not first:
        return
    del training, batches, checkpoints  # their memory is wanted for drawing
    try:
        finish(options, sd, samples, watching, keep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped while writing the result; to go on: {runs.to_go_on(options.out)}") from None


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
        print(monitored.advice())
    page = write_page(options, options.steps)
    if not keep:
        delete_checkpoint(out)
    tell_of_other_programs(sd, options, out)
    shown = f", {out / 'samples.png'} shows what it draws" if samples.prompts else ""
    shown += f", {page} how it went" if page else ""
    print(f"done: {out} is {kind}{shown}. Draw with another prompt:")
    advice = curves.advice_of(out)
    model = out / advice["model"] if advice and advice["model"] else out
    prompt = shlex.quote(f"{options.prompt[0]} in the snow")
    print(f"  python -m minibnn sample --model {shlex.quote(str(model))} --prompt {prompt} --out picture.png")


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
    asked, (options, recipe) = options, methods.settle(options, sd.recipe)
    if not options.resume:
        refuse_ignored(asked, recipe)
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
        class_guidance=recipe["class_guidance"] if options.class_guidance is None else options.class_guidance,
        steps=options.steps or recipe["steps_per_picture"] * pictures,
        batch_size=options.batch_size or recipe["batch_size"],
        resolution=options.resolution or recipe["resolution"],
        device=device,
        dtype=options.dtype or training_dtype(device),
    )
    if not options.prompt:
        raise UserError('--prompt is required for this model, for instance --prompt "a photo of a sks dog"')
    if len(options.prompt) != subjects:
        raise UserError(f"--prompt: {len(options.prompt)} given for {subjects} folders of --images; give one for each")
    if options.prior_weight and not options.class_prompt:
        raise UserError('--class-prompt is required, for instance "a photo of a dog"; or --prior-weight 0')
    if options.resolution % sd.vae.factor:
        raise UserError(f"--resolution {options.resolution} is not a multiple of {sd.vae.factor}")
    methods.check(sd.unet, options)
    options = monitor.settle(options)
    if options.kernel == "triton" and not (device.startswith("cuda") or os.environ.get("TRITON_INTERPRET") == "1"):
        raise UserError("--kernel triton needs a GPU; on a CPU --kernel reference draws the same weights")
    if not options.bayes and (options.lambda_kl or options.keep_posterior):
        raise UserError("--lambda-kl and --keep-posterior need --bayes")
    if options.compile and distributed.world() > 1:
        raise UserError("--compile works in one process; with torchrun say --no-compile")
    if options.compile:
        check_compiler(device)
    kernel = choose_kernel(options.kernel, device, getattr(torch, options.dtype)) if options.bayes else "torch"
    return dataclasses.replace(options, kernel=kernel)


def refuse_ignored(options, recipe):
    """Refuse options of random weights and of the KL that would do nothing. Raises UserError naming one.

    What config.json of a run without random weights holds all the same, the recipe's σ for instance, is let through.
    """
    if not options.bayes:
        usual = {"where": methods.OWN[options.method].get("where"), "sigma": recipe["sigma"], "kernel": "torch"}
        names = [name for name in ("sigma", "where", "kernel", "kl", "prior_sigma")
                 if getattr(options, name) != usual.get(name)]
        refuse(options, names, "belongs to random weights: leave out either it or --no-bayes")
    if not options.lambda_kl:
        refuse(options, ("kl", "prior_sigma"), "belongs to the KL divergence: leave it out, or add --lambda-kl")


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
        made_for = class_pictures.record(prompt, options.model, options.resolution, options.class_guidance)
        count = max(1, round(options.class_count * own / sum(pictures)))
        folders.append(ClassFolder(str(Path(options.class_images) / name), count, made_for))
    return folders


def class_source(options, sd, classes):
    """The class pictures and their prompts as a list of one source for `Batches`; those missing are drawn first."""
    paths, prompts = [], []
    try:
        with autocast(sd.device, getattr(torch, options.dtype)):
            for each in classes:
                paths += class_pictures.complete(sd, each.folder, each.count, each.made_for)
                prompts += [each.made_for["prompt"]] * each.count
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped while drawing class pictures; to go on, run the same command again") from None
    return [(data.Pictures(paths, options.resolution), prompts)] if classes else []


def about_prompts(options):
    """What subjects are called in the prompts, and their classes where class pictures are used."""
    quoted = lambda prompts: ", ".join(f'"{prompt}"' for prompt in dict.fromkeys(prompts))  # noqa: E731
    of_class = f"; class prompt {quoted(options.class_prompt)}" if options.prior_weight else ""
    return f"prompt {quoted(options.prompt)}{of_class}"


def about_class_pictures(asked, options):
    """A note to whoever asks for something of class pictures where none are used; None where there is nothing to say.

    asked: the options before they were settled.
    """
    names = ("class_prompt", "class_count", "class_guidance", "class_images")
    flags = [f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) is not None]
    if options.prior_weight or options.resume or not flags:
        return None
    why = f"--method {options.method} uses no class pictures unless --prior-weight is given"
    if asked.prior_weight is not None:
        why = "--prior-weight 0 means no class pictures"
    return f"note: {', '.join(flags)} {'teach' if len(flags) > 1 else 'teaches'} nothing here: {why}"


def about_photographs(options, files):
    """A warning to whoever gives photographs to a bundled model; None where there is nothing to say."""
    side = options.resolution
    if options.model not in BUNDLED or min(data.open_picture(files[0]).size) < 4 * side:
        return None
    return (f"the bundled model knows drawings of {side} x {side} pixels, and photographs are too much for it: "
            "give Stable Diffusion as --model, with --prompt and --class-prompt")


def describe(options, unet, captions):
    """One line about what is about to happen. captions: one for each picture."""
    subjects, own = len(options.images), sum(caption not in options.prompt for caption in captions)
    said = f"{len(captions)} picture{'s' if len(captions) > 1 else ''}"
    said += f" of {subjects} subjects" if subjects > 1 else ""
    said += f", {own} with a caption of {'their' if own > 1 else 'its'} own" if own else ""
    training = f"{options.steps} steps at lr {options.lr:g}, {options.dtype} on {options.device}"
    return f"{said}, {training}; {methods.describe(unet, options)}"
