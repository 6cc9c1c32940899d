"""Will what a training writes find room on the disk? Asked at its start, while nothing is lost yet.

Counted are the files of weights, which are nearly all of it: the result, the checkpoint, and the models that the
monitor keeps.
"""

import shutil
from pathlib import Path

from .checkpoints import size_of
from .errors import UserError
from .lab.monitor import KEPT


def model_size(sd):
    """Bytes of a model's files of weights, without its σ."""
    parts = (sd.unet, sd.vae, sd.text_encoder)
    return sum(p.numel() * p.element_size() for part in parts for name, p in part.named_parameters()
               if not name.endswith("_sigma"))


def free_at(folder):
    """Bytes that are free where a folder is or will be."""
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_result(options, sd):
    """Raises UserError where the result alone of a training finds no room. Before the run's folder is made.

    sd: the model before it is made trainable. What LoRA and OFT write is small, and not counted; and --overwrite may
    make room.
    """
    need, free = model_size(sd) * ((options.method == "dreambooth") + options.single_file), free_at(options.out)
    if free < need and not options.overwrite:
        has = f"its disk has {in_words(free)} free, and the result takes {in_words(need)}"
        raise UserError(f"--out {options.out}: {has}: free some space or choose another place")


def about_room(options, training, keep):
    """A warning where not all that a training may write finds room beside what is there; None where it does.

    training: about to begin or to go on. keep: whether the checkpoint stays when all is done.
    """
    before_the_end = options.checkpoint_every and training.step + options.checkpoint_every < options.steps
    checkpoint = size_of(training, optimiser=keep or bool(before_the_end))
    trained = 4 * sum(p.numel() for _, p in training.network.named_parameters() if p.requires_grad)
    result = model_size(training.sd) if options.method == "dreambooth" else trained
    kept = KEPT * result if options.monitor else 0
    result += model_size(training.sd) * options.single_file
    free = free_at(options.out)
    if free >= result + checkpoint + kept:
        return None
    parts = [f"{in_words(result)} for the result", f"{in_words(checkpoint)} for a checkpoint"]
    parts += [f"{in_words(kept)} for the models that --monitor keeps"] if kept else []
    return f"the disk of {options.out} has {in_words(free)} free, and this run may need more: {', '.join(parts)}"


def in_words(size):
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
