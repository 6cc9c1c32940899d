"""The class pictures of a training: where they lie, how many each class has, and drawing those that are missing."""

import dataclasses
import re
from pathlib import Path

import torch

from .. import class_pictures, data
from ..devices import autocast


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """Where the pictures of one class are, how many are wanted, and what the drawn ones are made for."""

    folder: str
    count: int
    made_for: dict


def class_folders(options, pictures, model=None):
    """A ClassFolder for each class prompt; several prompts share --class-count as their subjects share the pictures.

    pictures: how many each subject has. With several prompts each has a folder of its own in --class-images. model:
    `digests.of_model` of that which draws; None: it is known by its place alone.
    """
    prompts = list(dict.fromkeys(options.class_prompt))
    folders = []
    for prompt in prompts:
        own = sum(n for n, other in zip(pictures, options.class_prompt, strict=True) if other == prompt)
        name = re.sub(r"\W+", "-", prompt) if len(prompts) > 1 else ""
        made_for = class_pictures.record(prompt, options.model, options.resolution, options.class_guidance, model)
        count = max(1, round(options.class_count * own / sum(pictures)))
        folders.append(ClassFolder(str(Path(options.class_images) / name), count, made_for))
    return folders


def in_the_run(options):
    """Whether the class pictures lie in the run's folder, where nobody but its trainings draws any."""
    return Path(options.class_images).resolve() == (Path(options.out) / "class_images").resolve()


def check_own(classes, options):
    """Refuse ClassFolders drawn for something else, and pictures of one's own that cannot be read. Raises UserError.

    Those that an earlier run drew into the run's own folder are no obstacle where --overwrite replaces that run.
    """
    for each in classes:
        if options.resume:
            class_pictures.check(each.folder, each.made_for, "leave that out, as the run has begun with the former")
        elif not in_the_run(options):
            class_pictures.check(each.folder, each.made_for)
        elif not options.overwrite:
            class_pictures.check(each.folder, each.made_for, "--overwrite draws them anew")
        for path in class_pictures.own(each.folder)[: each.count]:
            data.load_picture(path, options.resolution)


def forget_others(classes, options):
    """Delete the pictures that an earlier run drew into the run's own folder for something else."""
    for each in classes if in_the_run(options) else []:
        if class_pictures.difference(each.folder, each.made_for):
            class_pictures.delete_drawn(each.folder)


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
