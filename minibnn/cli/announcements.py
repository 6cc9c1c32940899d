"""What `train` says: before it starts, and with its result."""

import logging
import shlex
from pathlib import Path

from .. import disk, runs
from ..checkpoints import size_of
from ..files import headers
from ..finetune import methods
from ..finetune.adapter_files import KOHYA
from ..lab import curves
from ..world.captions import elsewhere
from . import programs

log = logging.getLogger("minibnn")


def at_the_start(asked, options, files):
    """Before class pictures are drawn. asked: the TrainOptions before they were settled. files: the user's pictures."""
    say(about_prompts(options), about_class_pictures(asked, options), about_photographs(options, files))


def before_the_first_step(options, training, captions, keep):
    """captions: one for each picture. keep: whether the checkpoint stays when all is done."""
    say(describe(options, training.sd.unet, captions), about_finished(options, training),
        None if keep else about_checkpoint(options, training), about_monitor(options))
    if lacking := disk.about_room(options, training, keep):
        log.warning("%s", lacking)


def at_the_end(options, sd, kind, page, drawn):
    """kind: what was written, in words. page: path of the run's page, or None. drawn: whether samples.png was."""
    say(about_other_programs(options, sd), about_result(options, kind, page, drawn))


def say(*lines):
    """Print what there is to say; None is nothing."""
    print("\n".join(filter(None, lines)))


def about_prompts(options):
    """What subjects are called in the prompts, and their classes where class pictures are used."""
    of_class = f"; class prompt {quoted(options.class_prompt)}" if options.prior_weight else ""
    return f"prompt {quoted(options.prompt)}{of_class}"


def quoted(prompts):
    """Prompts, each once, as a list in words."""
    return ", ".join(f'"{prompt}"' for prompt in dict.fromkeys(prompts))


def about_class_pictures(asked, options):
    """A note where options of class pictures are given and none are used; None where there is nothing to say.

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
    return runs.TOO_MUCH if runs.of_photographs(options, files) else None


def describe(options, unet, captions):
    """One line about what is about to happen. captions: one for each picture."""
    subjects, own = len(options.images), sum(caption not in options.prompt for caption in captions)
    said = f"{len(captions)} picture{'s' if len(captions) > 1 else ''}"
    said += f" of {subjects} subjects" if subjects > 1 else ""
    said += f", {own} with a caption of {'their' if own > 1 else 'its'} own" if own else ""
    steps = f"{options.steps} step{'s' * (options.steps != 1)}"
    training = f"{steps} at lr {options.lr:g}, {options.dtype} on {options.device}"
    return f"{said}, {training}; {methods.describe(unet, options)}"


def about_finished(options, training):
    """A line to whoever resumes a run that has all its steps; None for any other."""
    if training.step < options.steps:
        return None
    return f"all {options.steps} steps are done already; what is left is to write the result"


def about_checkpoint(options, training):
    """A line to whoever might want more steps later, for a run whose checkpoint will not be kept."""
    if options.keep_optimiser is not None or training.step >= options.steps:
        return None
    return (f"the finished run is the model alone, without its checkpoint of {size_of(training) / 1e9:.3g} GB; with "
            "--keep-optimiser it keeps that, so that more --steps can follow")


def about_monitor(options):
    """Where the monitor's looks are to be seen; None without it."""
    if not options.monitor:
        return None
    page = Path(options.out) / "report.html"
    return f"the monitor draws a few pictures now and again; {page} shows them: open it in a browser"


def about_other_programs(options, sd):
    """A text for each file that --single-file and --export wrote: where it goes. None without such files."""
    out = Path(options.out)
    paths = {"single-file": out / "model.safetensors", "kohya": out / KOHYA, "peft": out}
    asked = ["single-file"] * options.single_file + (options.export.split(",") if options.export else [])
    header = headers.model_header(headers.about_run(sd, options)) if asked else None
    return "\n".join(programs.how_to_open(paths[kind], kind, header) for kind in asked)


def about_result(options, kind, page, drawn):
    """What the run's folder is, what to look at, and a command that draws with it. Arguments as `at_the_end`'s."""
    out = Path(options.out)
    shown = f", {out / 'samples.png'} shows what it draws" if drawn else ""
    shown += f", {page} how it went" if page else ""
    advice = curves.advice_of(out)
    model = out / advice["model"] if advice and advice["model"] else out
    prompt = shlex.quote(elsewhere(options.prompt[0], options.model)[1])
    return (f"done: {out} is {kind}{shown}. Draw more pictures, also with other prompts:\n"
            f"  python -m minibnn sample --model {shlex.quote(str(model))} --prompt {prompt} --out picture.png")
