"""What a training run has left in its folder, read back for its page. Whatever is missing is None or empty."""

import dataclasses
import re
import shlex
from pathlib import Path

from PIL import Image, ImageOps

from .. import data, runs
from ..class_pictures import places
from ..errors import UserError
from ..files.rows import read_rows
from ..lab import curves, monitor
from ..lab.captioned import read_sheet
from ..options.training import TrainOptions
from .html import LARGEST

SHEET = re.compile(r"samples(-(\d{6}))?\.png")
SHOWN = 12  # training pictures at most; as many class pictures


@dataclasses.dataclass
class Record:
    """A run as its folder tells it."""

    folder: Path
    config: dict  # config.json
    options: object  # of `runs.options_of`
    steps: list  # rows of log.jsonl
    looks: list  # rows of curves.jsonl
    advice: dict  # of `curves.advice_of`, or None
    samples: list  # [(step, [(picture, prompt)])] of samples-NNNNNN.png and samples.png, in order
    seen: list  # the same of looks/NNNNNN.png
    training: list  # [(picture, caption)]
    of_class: list  # [(picture, prompt)]
    missing: list  # what of it cannot be shown, in words

    @property
    def done(self):
        """Completed steps."""
        return self.steps[-1]["step"] if self.steps else 0


def read_run(folder):
    """The Record of the run in this folder. Raises UserError when there is none, or when a file in it is damaged."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if runs.find_config(folder) is None:
        raise UserError(f"{folder} is not a training run of minibnn: it holds no config.json of one")
    options, missing = runs.options_of(folder), []
    looks = read_rows(folder / "curves.jsonl", curves.LOOK, curves.LOOK)
    there = {row["step"] for row in looks}
    seen = [read_sheet(path) for path in sorted((folder / "looks").glob("[0-9]" * 6 + ".png"))]
    seen = [(about["step"], group.pictures) for groups, about in filter(None, seen) for group in groups[-1:]]
    return Record(
        folder, runs.read_config(folder), options, read_rows(folder / "log.jsonl", curves.STEP, curves.STEP), looks,
        curves.advice_of(folder), samples_of(folder, missing),
        [(step, pictures) for step, pictures in seen if step in there], training_pictures(folder, options, missing),
        class_pictures(folder, options), missing,
    )


def samples_of(folder, missing):
    """[(step, [(picture, prompt)])] of the sheets of samples in a run's folder."""
    found = []
    for path in sorted((path for path in folder.glob("samples*.png") if SHEET.fullmatch(path.name)),
                       key=lambda path: (path.stem == "samples", path.stem)):
        read = read_sheet(path)
        if read is None:
            missing.append(f"{path.name} is of an earlier version, which did not keep its prompts in it.")
        else:
            found.append((read[1]["step"], read[0][-1].pictures))
    return found


def training_pictures(folder, options, missing):
    """[(picture, caption)] of the first of each subject, cropped as they were trained on; [] if they are others now."""
    found, prompts = [], options.prompt or [""] * len(options.images)
    try:
        subjects = [data.list_pictures(images, notice=False) for images in runs.images_of(folder)]  # at every look
        there = runs.fingerprint([path for paths in subjects for path in paths], options.captions)
        if there != runs.read_config(folder).get("pictures", there):
            raise UserError("they, or their captions, have changed since.")
        for paths, prompt in zip(subjects, prompts, strict=False):
            paths = paths[: max(1, SHOWN // len(subjects))]
            captions = data.captions(paths, prompt, options.captions)
            found += [(square(path, options.resolution), f"{path.name}: {caption}")
                      for path, caption in zip(paths, captions, strict=True)]
    except (UserError, OSError) as error:
        missing.append(f"The training pictures cannot be shown: {error}")
        return []
    return found


def class_pictures(folder, options):
    """[(picture, prompt)] of the first pictures of each class that are in the run's own folder."""
    own = places(folder / "class_images", options.class_prompt or [])
    paths = [(path, prompt) for prompt, place in own.items() for path in sorted(place.glob("*.png"))]
    return [(square(path, options.resolution), prompt) for path, prompt in paths[:SHOWN]]


def square(path, resolution):
    """The picture of a file, cropped to the central square as for training, and no larger than a page needs."""
    side = min(resolution or LARGEST, LARGEST)
    return ImageOps.fit(data.open_picture(path), (side, side), Image.Resampling.LANCZOS)


def repeating(record):
    """The command line that trains the same again. Paths are as they were given."""
    words = ["python", "-m", "minibnn", "train"]
    for field in dataclasses.fields(TrainOptions):
        value, name = getattr(record.options, field.name), "--" + field.name.replace("_", "-")
        if value == field.default or field.name in ("resume", "overwrite"):
            continue
        if value == str(Path(record.options.out) / "class_images"):
            continue  # they are drawn again
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        else:
            words += [name, *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def is_world(record):
    """Whether the monitor measured with the bundled world's own measures."""
    return monitor.is_world(record.options.model, record.options.resolution)
