"""samples.png of a run: its training pictures, and what the model draws at fixed prompts and seeds."""

from pathlib import Path

import torch

from .. import data
from ..lab.captioned import Group, save_sheet
from ..pictures import to_pil
from ..train import at_the_mean
from ..world.captions import elsewhere

GIVEN = 8  # training pictures that are shown


class Samples:
    """Draws the fixed prompts with fixed seeds; as an observer samples-NNNNNN.png every `--sample-every` steps.

    images (n, 3, H, W) and captions: of the training pictures, the first of which are shown beside them.
    """

    def __init__(self, options, images, captions):
        self.options, self.every, self.prompts = options, options.sample_every, sample_prompts(options)
        self.given = given(images[:GIVEN], captions[:GIVEN])

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
    """The prompts of samples.png: those of --sample-prompts; or the training prompt four times, the same in
    other places or another light, the class, and so on. Several subjects take turns, beginning with their prompts."""
    if options.sample_prompts:
        prompts = data.read_prompts(options.sample_prompts, "--sample-prompts")
        number = len(prompts)
    else:
        of_each, number = [], 8
        for i, prompt in enumerate(options.prompt):
            own = [prompt] * (4 if len(options.prompt) == 1 else 1) + elsewhere(prompt, options.model)
            of_each.append([*own, options.class_prompt[i] if options.class_prompt else prompt])
        prompts = [prompt for turn in zip(*of_each, strict=True) for prompt in turn]
    return [prompts[i % len(prompts)] for i in range(number if options.samples is None else options.samples)]
