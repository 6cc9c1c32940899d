"""The command `python -m minibnn.train --images ./dog`: from options to a run's folder.

Opens the model, settles what the command line left open, hands the loop of `minibnn/train.py` its batches and its
observers (progress, samples, monitor, checkpoints), and writes the result at the posterior mean.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

import torch

from .. import data, runs
from ..devices import autocast, choose_device, choose_threads, half_dtype, make_deterministic
from ..errors import UserError
from ..files.store import NotFinite
from ..finetune import methods
from ..lab import monitor
from ..pictures import grid, save_png
from ..pipeline import StableDiffusion
from ..train import Batches, Diverged, at_the_mean, fine_tuning, train


def fine_tune(options, observers=()):
    """Do what TrainOptions ask for and leave the run's folder. Raises UserError, KeyboardInterrupt.

    observers: functions of the Training (`minibnn/train.py`), called before the first step and after each.
    """
    options = dataclasses.replace(options, out=str(options.out or Path("runs") / Path(options.images).resolve().name))
    out = Path(options.out)
    runs.check_folder(options)
    files = data.list_pictures(options.images)
    sd = StableDiffusion.load(options.model, options.tokenizer, torch.float32, options.prediction_type)
    options = settle(options, sd, len(files))
    sd.recipe |= {name: getattr(options, name) for name in ("prompt", "class_prompt", "resolution")}
    images = data.load_pictures(files, options.resolution)
    made_for = data.class_record(options.class_prompt, options.model, options.resolution)
    if options.prior_weight:  # before the folder is made: own class pictures may be broken
        data.check_class_pictures(options.class_images, made_for)
        for path in data.own_class_pictures(options.class_images)[: options.class_count]:
            data.load_picture(path, options.resolution)
    if options.resume:
        runs.check_same_run(options, files)
    runs.start(options, files)

    make_deterministic(options.device)
    choose_threads(options.device, sd.unet)
    sd.to(options.device)
    sources = [(images, options.prompt), *class_source(options, sd, made_for)]
    batches = Batches(sd, sources, options.batch_size, options.seed, options.null_dropout)
    training = fine_tuning(sd, options)
    if options.resume:
        runs.load_checkpoint(out, training)
    print(describe(options, sd.unet, len(files)))
    watching = [monitor.Monitor(options, sd, images)] if options.monitor else []
    with runs.Progress(out, training, options.steps) as progress, runs.CtrlC() as stop:
        checkpoints = runs.Checkpoints(options, stop, training.step)
        try:
            train(training, options, batches, [progress, Samples(options), *observers, *watching, checkpoints])
        except (Diverged, NotFinite) as error:
            last = f"the last checkpoint, after {checkpoints.saved} steps, is good"
            raise UserError(f"{error}; {last if checkpoints.saved else 'there is no checkpoint'}") from None
    del training, batches, checkpoints  # their memory is wanted for drawing
    kind = methods.save_result(sd, options, out)
    if options.single_file:
        sd.save_single_file(out / "model.safetensors")
    save_samples(sd, options, out / "samples.png")
    for monitored in watching:
        print(monitored.advice())
    shown = f"{out / 'samples.png'} shows it, " if options.samples else ""
    print(f"done: {shown}{out} is a {kind}. Draw with another prompt:")
    print(f'  python -m minibnn.sample --model {out} --prompt "{options.prompt} in the snow" --out picture.png')


def settle(options, sd, pictures):
    """Fill in what the command line left open, from the model's recipe, and check the whole. Raises UserError.

    pictures: how many there are of the subject.
    """
    options, recipe = methods.settle(options, sd.recipe)
    device = choose_device(options.device)
    own_prompt = options.prompt and options.prompt != recipe["prompt"]
    options = dataclasses.replace(
        options,
        prompt=options.prompt or recipe["prompt"],
        class_prompt=options.class_prompt or (None if own_prompt else recipe["class_prompt"]),
        class_images=options.class_images or str(Path(options.out) / "class_images"),
        class_count=options.class_count or recipe["class_pictures_per_picture"] * pictures,
        steps=options.steps or recipe["steps_per_picture"] * pictures,
        resolution=options.resolution or recipe["resolution"],
        device=device,
        dtype=options.dtype or (half_dtype(device) if device.startswith("cuda") else "float32"),
        kernel=options.kernel or default_kernel(device),
    )
    if not options.prompt:
        raise UserError('--prompt is required for this model, for instance --prompt "a photo of a sks dog"')
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
    return options


def default_kernel(device):
    """"triton" on a GPU where it is installed and can compile (from a T4 on), else "torch"."""
    cuda = device.startswith("cuda") and importlib.util.find_spec("triton") is not None
    return "triton" if cuda and torch.cuda.get_device_capability(device) >= (7, 5) else "torch"


def class_source(options, sd, made_for):
    """The class pictures and their prompt as a list of one source for `Batches`; those missing are drawn first."""
    if not options.prior_weight:
        return []
    try:
        with autocast(sd.device, getattr(torch, options.dtype)):
            paths = data.class_pictures(sd, options.class_images, options.class_count, made_for)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped while drawing class pictures: the same command goes on") from None
    return [((data.load_picture(path, options.resolution) for path in paths), options.class_prompt)]


def describe(options, unet, pictures):
    """One line about what is about to happen."""
    training = f"{options.steps} steps at lr {options.lr:g}, {options.dtype} on {options.device}"
    return f"{pictures} pictures, {training}; {methods.describe(unet, options)}"


# --- samples -------------------------------------------------------------------------------------------------------


class Samples:
    """An observer that draws samples-NNNNNN.png every `--sample-every` steps."""

    def __init__(self, options):
        self.options, self.every = options, options.sample_every

    def __call__(self, training):
        if self.every and training.losses and training.step % self.every == 0:
            save_samples(training.sd, self.options, Path(self.options.out) / f"samples-{training.step:06d}.png")


def sample_prompts(options):
    """The training prompt four times, the same with other places, the class, and so on."""
    places = ("on the beach", "in the snow", "on a wooden floor")
    eight = [options.prompt] * 4 + [f"{options.prompt} {place}" for place in places]
    eight.append(options.class_prompt or options.prompt)
    return [eight[i % 8] for i in range(options.samples)]


def save_samples(sd, options, path):
    """Draw the fixed prompts with fixed seeds at θ = μ, and save them as one picture."""
    if options.samples:
        with at_the_mean(sd, getattr(torch, options.dtype)):
            prompts = sample_prompts(options)
            pictures = sd.generate(prompts, seed=0, size=options.resolution, batch_size=4, progress=False)
        save_png(grid(pictures, 4, zoom=max(1, 192 // options.resolution)), path)
