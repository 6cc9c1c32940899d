"""From what the command line of `train` asked for to what is done: the model's recipe fills what was left open."""

import dataclasses
import os
from pathlib import Path

import torch

from .. import distributed
from ..devices import check_compiler, choose_device, training_dtype
from ..errors import UserError
from ..finetune import methods
from ..finetune.kernel import choose_kernel
from ..lab import monitor
from ..options.kinds import refuse
from ..options.of_methods import OWN


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
    if options.kernel == "reference" and device.startswith("mps"):
        raise UserError("--kernel reference computes in float64, which mps does not have; say --kernel torch")
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
        usual = {"where": OWN[options.method].get("where"), "sigma": recipe["sigma"], "kernel": "torch"}
        names = [name for name in ("sigma", "where", "kernel", "kl", "prior_sigma")
                 if getattr(options, name) != usual.get(name)]
        refuse(options, names, "belongs to random weights: leave it out, or add --bayes")
    if not options.lambda_kl:
        refuse(options, ("kl", "prior_sigma"), "belongs to the KL divergence: leave it out, or add --lambda-kl")


def for_each(values, number, option):
    """A list of `number` values: one value counts for all. None stays None. Raises UserError naming the option."""
    if values is None or len(values) == number:
        return values
    if len(values) > 1:
        raise UserError(f"{option}: {len(values)} given for {number} folders of --images; give one, or one for each")
    return values * number
