"""The page of a training run, `report.html`: what it was given, what it drew, how it went, and how to repeat it.

    write_report("runs/dog")  ->  runs/dog/report.html
"""

from pathlib import Path

from .. import runs
from ..lab import curves
from . import html, svg
from .record import is_world, read_run, repeating

METHODS = {"dreambooth": "DreamBooth", "lora": "LoRA", "oft": "OFT"}
VERSIONS = ("python", "torch", "numpy", "safetensors", "pillow")


def write_report(run, out=None):
    """Write the page of the run in a folder; returns its path. out: another file than report.html in the run.

    Raises UserError when there is no run, a file in it is damaged, or the page cannot be written.
    """
    path = Path(out or Path(run) / "report.html")
    record = read_run(run)
    html.write_page(path, title(record), parts(record))
    return path


def title(record):
    """What the run learned, and how."""
    prompts = list(dict.fromkeys(record.options.prompt or ["no prompt"]))
    weights = "Bayesian" if record.options.bayes else "plain"
    return f"{', '.join(prompts)}: {weights} {METHODS[record.options.method]}"


def parts(record):
    """The sections of the page, those of which there is nothing left out."""
    advised = record.advice["step"] if record.advice else None
    return [part for part in (
        summary(record), training(record), samples(record), course(record, advised), drawn(record, advised),
        numbers(record), repeat(record),
    ) if part]


def summary(record):
    """What was trained, how far it is, and what the monitor advises; first what makes all of it worth little."""
    options = record.options
    pictures = sum(not name.endswith(".txt") for name in record.config["pictures"])
    warning = html.paragraph(html.element("strong", sentence(runs.TOO_MUCH)))
    found = [warning] if record.config.get("photographs") else []
    found += [html.paragraph(
        f"{pictures} picture{'s' * (pictures > 1)} in {', '.join(options.images)}, learned by the model "
        f"{options.model}: {record.done} of {options.steps} steps are done, at a rate of {options.lr:g}."
    )]
    found += [html.paragraph(sentence(line)) for line in (record.advice["said"] if record.advice else ())]
    return html.join(found + [html.paragraph(line) for line in record.missing])


def sentence(words):
    """Words that begin with a capital and end with a full stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def training(record):
    """The training pictures with their captions; of those of the class, some to unfold."""
    if not record.training:
        return ""
    found = [html.strip(*zip(*record.training, strict=True))]
    if record.of_class:
        shown = html.strip(*zip(*record.of_class, strict=True))
        found.append(html.details("Pictures of the class, for prior preservation", shown))
    return html.section("Training pictures", *found)


def samples(record):
    """The pictures of samples.png with their prompts; those drawn on the way beside them, if there are any."""
    if not record.samples:
        return ""
    by_step = dict(record.samples)  # with --sample-every the last step may have two sheets, which are the same
    *earlier, (step, last) = by_step.items()
    found = [html.paragraph(f"Drawn with the weights after step {step}, always from the same noise."),
             html.strip(*zip(*last, strict=True))]
    if earlier:
        found.append(html.details("On the way there", course_table(list(by_step.items()))))
    return html.section("Samples", *found)


def course(record, advised):
    """What the monitor drew at each look: a row for each prompt, a column for each step."""
    if not record.seen:
        return ""
    note = "Drawn in few sampling steps, each row from the same noise: this shows the course, not the best quality."
    shown = [step for step, _ in record.seen]
    marked = shown.index(advised) if advised in shown else None
    if marked is not None:
        note += f" The column of the advised step, {advised}, is marked."
    return html.section("What it drew while it learned", html.paragraph(note), course_table(record.seen, marked))


def course_table(sheets, marked=None):
    """[(step, [(picture, prompt)])] as a table with a column for each step; it has the prompts of the last."""
    prompts = [prompt for _, prompt in sheets[-1][1]]
    columns = [[picture for picture, _ in pictures] for _, pictures in sheets]
    rows = [[column[i] if i < len(column) else None for column in columns] for i in range(len(prompts))]
    return html.picture_table(rows, prompts, [f"step {step}" for step, _ in sheets], marked)


def drawn(record, advised):
    """The curves."""
    guidance = record.advice["guidance"] if record.advice else 1.0
    panels = curves.panels(record.steps, record.looks, is_world(record), guidance, advised)
    return html.section("Curves", svg.charts(panels)) if panels else ""


def numbers(record):
    """The figures of each look as a table."""
    if not record.looks:
        return ""
    names = [name for name in record.looks[-1] if name != "step"]
    head = ["step", *(name.replace("sigma1", "σ₁").replace(" at ", " at t = ") for name in names)]
    rows = [[str(row["step"]), *(row.get(name) for name in names)] for row in record.looks]
    return html.section("Figures", html.details("All figures of the monitor", html.table(head, rows)))


def repeat(record):
    """The command, all options, and the versions of what computed."""
    options = [[f"--{name.replace('_', '-')}", listed(value)] for name, value in vars(record.options).items()]
    versions = [[name, record.config[name]] for name in VERSIONS if name in record.config]
    versions += [[name, record.config[name]] for name in ("threads", "processes") if name in record.config]
    where = f" in the folder {record.config['folder']}" if "folder" in record.config else ""
    return html.section(
        "To repeat it", html.paragraph(f"This command{where} trains the same again. Change the folder after --out in "
                                       "it first, because this run is in the one that it names:"),
        html.command(repeating(record)), html.details("All options", html.table(["option", "value"], options)),
        html.details("Versions", html.table(["what", "version or number"], versions)),
    )


def listed(value):
    """An option's value as a cell: lists as lines of text, and nothing where it is not set."""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else None if value is None else str(value)
