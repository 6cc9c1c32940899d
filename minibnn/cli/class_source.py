"""The class pictures of a training: where they lie, how many each class has, and drawing those that are missing."""

import dataclasses
from pathlib import Path

import torch

from .. import class_pictures, data, runs
from ..devices import autocast
from ..errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassFolder:
    """Where the pictures of one class are, how many are wanted, and what the drawn ones are made for."""

    folder: str
    count: int
    made_for: dict


def class_folders(options, pictures, model=None):
    """A ClassFolder for each class prompt; several prompts share --class-count as their subjects share the pictures.

    pictures: how many each subject has. With several prompts each has a folder of its own in --class-images. model:
    `runs.digests_of` that which draws; None: it is known by its place alone.
    """
    folders = []
    for prompt, folder in class_pictures.places(options.class_images, options.class_prompt).items():
        own = sum(n for n, other in zip(pictures, options.class_prompt, strict=True) if other == prompt)
        made_for = class_pictures.record(prompt, options.model, options.resolution, options.class_guidance, model)
        count = max(1, round(options.class_count * own / sum(pictures)))
        folders.append(ClassFolder(str(folder), count, made_for))
    return folders


def in_the_run(options):
    """Whether the class pictures lie in the run's own folder, and not behind a link in it."""
    own = Path(options.out) / "class_images"
    return not own.is_symlink() and Path(options.class_images).resolve() == own.resolve()


def check_own(classes, options):
    """Refuse ClassFolders drawn for something else, and pictures of one's own that cannot be read. Raises UserError.

    Those that an earlier run drew into the run's own folder are no obstacle where --overwrite replaces that run.
    """
    if options.resume and classes:
        check_resumed(classes, options)
    for each in classes:
        if not options.resume and not (options.overwrite and in_the_run(options)):
            remedy = "--overwrite draws them anew" if in_the_run(options) else "name another folder"
            class_pictures.check(each.folder, each.made_for, remedy)
        for path in class_pictures.own(each.folder)[: each.count]:
            data.load_picture(path, options.resolution)


def check_resumed(classes, options):
    """Refuse other class pictures than the run began with, as long as those are there. Raises UserError.

    Where the model lies does not count: that it is the same has been looked at by what it holds.
    """
    made_for = [{key: each.made_for[key] for key in each.made_for if key != "model"} for each in classes]
    began, given = runs.class_folder_of(options.out), Path(options.class_images)
    if began and began.exists() and began.resolve() != given.resolve():
        there = [began / Path(each.folder).relative_to(given) for each in classes]
        if not any(map(class_pictures.difference, there, made_for)):
            raise UserError(f"--class-images {given} is not the folder that the run in {options.out} began with, "
                            f"{began}: leave it out, or start another run")
    for each, now in zip(classes, made_for, strict=True):
        differs = class_pictures.difference(each.folder, now) or ""
        guided = differs.startswith("for guidance")
        remedy = "leave --class-guidance out" if guided else "name an empty folder, where they are drawn as they were"
        class_pictures.check(each.folder, now, remedy)


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
