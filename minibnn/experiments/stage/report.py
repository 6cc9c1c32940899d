"""The stage experiment judged and drawn: `python -m minibnn experiment stage-report`.

Reads the .jsonl files of --runs and writes into --out

    stage.jsonl     all lines, from which the report can be made again
    stage.md        tables, each with a list of what its columns mean: is there a stage, at what levels, what each
                    setting changes, what goes with fidelity, how the same weights draw otherwise, what gains predict
    stage.png       fidelity, noise and gains against the step, for plain fine-tuning and its rivals
    gain_law.png    the noise of the pictures against that which the law predicts from the gains: all looks of all runs
    stage_SUBJECT.png   pictures of one seed, a row for each setting, a column for each step
    stage_long_SUBJECT.png      pictures of one run of the setting "long", a row for each step
    stage_long-null_SUBJECT.png     the same of "long-null"

stage.png and stage_SUBJECT.png are of the bundled model, those of another MODEL are called MODEL_stage.png and
MODEL_stage_SUBJECT.png.

**The criterion**, fixed before the runs of the main comparison. From step EARLY to the mean over the LATE steps
(`settings.py`), over all runs of a setting at guidance 7.5 and the training prompt: there is a corruption stage
if fidelity falls and noise rises, each by more than its 95 % t-interval. A setting cures if, paired by subject and seed
with the one beside it ("plain", mostly), its fidelity over the LATE steps is higher and its noise lower, each by more
than its interval. Seeds are the unit of the intervals (`tables.over_seeds`). That was changed after the runs: at first
it was a run, a pair of subject and seed, until a change along the runs that six runs of two seeds had shown was not
found in nine runs of three others.

But: no correction for many comparisons. The questions of `settings.py` were asked first; everything else is only a
lead. Three subjects are three subjects: the intervals say nothing of a fourth.
"""

import dataclasses
from pathlib import Path

from PIL import Image

from ...errors import UserError
from ...files.rows import read_rows, write_rows
from ...files.store import write_text
from ...lab import plot
from ...lab.intervals import require_scipy
from ...lab.sheets import sheet
from ...pictures import save_png
from ...world.textured import SIDE
from ..legends import explained
from . import legends
from .every_look import drawn_otherwise, every_look
from .law import law, law_plot
from .long_runs import long_runs, long_strip
from .settings import MAIN, SETTINGS
from .tables import at, colour_gain, companions, cures, drawings, gain_at, levels, of, over_seeds, phases, stages
from .trainings import ZOOM

DRAWN = {  # the curves of stage.png, and what they are called there
    "plain": "plain", "bnn": "BNN", "null": "empty prompt in 10 %", "offset": "noise offset",
    "offset-spread": "offset and varied strength",
}
OTHER_COLOURS = ("#7f7f7f", "#8c564b", "#17becf")  # of what is not a setting
ROW = {"run", "setting", "model", "subject", "seed", "step", "view", "group"}  # what tells the lines apart


def read_runs(folders):
    """{(setting, model, subject, seed): its lines}, each line once. Raises UserError if there are none."""
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*.jsonl")):
            for row in read_rows(path):
                if not ROW <= row.keys() or row["setting"] not in SETTINGS:  # of another experiment
                    continue
                key = row["setting"], Path(row["model"]).name, Path(row["subject"]).name, row["seed"]
                lines, look = found.setdefault(key, {}), (row["step"], row["view"], row["group"])
                if lines.setdefault(look, row) != row:
                    raise UserError(f"{path}: another run has the same name, {row['run']}; give one of them in --runs")
    found = {key: list(lines.values()) for key, lines in found.items()}
    if not found:
        raise UserError(f"--runs {' '.join(map(str, folders))}: no .jsonl of `experiment stage` in it")
    return found


# --- pictures ---------------------------------------------------------------------------------------------------------


def curve(runs, setting, model, value):
    """A plot.Line of the mean with its interval over seeds; value: (rows, step) -> number."""
    own, looks = of(runs, setting, model), SETTINGS[setting].looks
    found = [over_seeds({run: value(rows, step) for run, rows in own.items()}) for step in looks]
    mean, low, high = map(list, zip(*found, strict=True))
    return plot.Line(f"{DRAWN[setting]} ({len(own)})", list(looks), mean, low, high)


def curves(runs, model):
    """Fidelity, noise and gains against the step."""
    there = [name for name in DRAWN if of(runs, name, model)]
    panels = []
    for group in ("training", "other"):
        for name in ("fidelity", "noise"):
            def value(rows, step, group=group, name=name):
                return at(rows, step, MAIN, group, name)

            title = f"{name}, {group} prompt{'s' * (group == 'other')}, guidance 7.5"
            panels.append(plot.Panel(title, [curve(runs, setting, model, value) for setting in there]))
    panels.append(plot.Panel("tint, training prompt, guidance 7.5", [
        curve(runs, s, model, lambda rows, step: at(rows, step, MAIN, "training", "tint")) for s in there
    ]))
    gains = []
    scales = ((1, "with the prompt"), (0, "without"), (7.5, "guided, 7.5"))
    for (guidance, label), colour in zip(scales, OTHER_COLOURS, strict=True):
        line = curve(runs, there[0], model, lambda rows, step, g=guidance: gain_at(rows, step, 100, g))
        gains.append(dataclasses.replace(line, label=label, colour=colour))
    panels.append(plot.Panel(f"gains of {DRAWN[there[0]]} at t = 100", gains))
    guided_gains = [curve(runs, s, model, lambda rows, step: gain_at(rows, step, 100, 7.5)) for s in there]
    panels.append(plot.Panel("guided gain at t = 100, guidance 7.5", guided_gains))
    panels.append(plot.Panel("gain of the mean colour at t = 300", [curve(runs, s, model, colour_gain) for s in there]))
    return plot.chart(panels)


def strips(folder, model, subject, seed):
    """One seed's pictures at guidance 7.5: a row for each setting, a column for each look. None if there are none."""
    rows, labels = [], []
    for setting in SETTINGS:
        path = Path(folder) / f"{setting}-{subject}-{model}-{seed}.png"
        if not path.exists() or SETTINGS[setting].looks != SETTINGS["plain"].looks:
            continue
        strip = Image.open(path)
        side, pitch = SIDE * ZOOM, (SIDE + 2) * ZOOM
        rows.append([strip.crop((0, pitch * i, side, pitch * i + side)) for i in range(len(SETTINGS["plain"].looks))])
        labels.append(setting)
    if not rows:
        return None
    return sheet(rows, labels, [f"step {step}" for step in SETTINGS["plain"].looks], 2)


def beginning(model):
    """How the names of a model's pictures begin."""
    return "stage" if model == "textured" else f"{model}_stage"


def page(runs):
    """stage.md as text."""
    parts = {
        "Is there a corruption stage?": (stages, legends.STAGES), "How good, and how noisy?": (levels, legends.LEVELS),
        "Does it fall and recover?": (phases, legends.PHASES), "What does each setting change?": (cures, legends.CURES),
        "What goes with fidelity?": (companions, legends.COMPANIONS),
        "The same weights, drawn otherwise": (drawings, legends.DRAWINGS), "The gain law": (law, legends.LAW),
    }
    if long_runs(runs):
        parts["Five times as long"] = long_runs, legends.LONG_RUNS
    if drawn_otherwise(runs):
        parts["Drawn otherwise at every look"] = every_look, legends.EVERY_LOOK
    tables = [f"## {title}\n\n{explained(table(runs), own)}" for title, (table, own) in parts.items()]
    return "\n\n".join([legends.opening(runs), *tables]) + "\n"


def report(options):
    """Write all of it."""
    require_scipy()
    runs, out = read_runs(options.runs), Path(options.out)
    write_rows(out / "stage.jsonl", (row for rows in runs.values() for row in rows))
    text = page(runs)
    write_text(out / "stage.md", text)
    models = {key[1] for key in runs}
    for model in models:
        if any(of(runs, name, model) for name in DRAWN):
            save_png(curves(runs, model), out / f"{beginning(model)}.png", optimize=True)
    save_png(law_plot(runs), out / "gain_law.png", optimize=True)
    for subject in {key[2] for key in runs}:
        for folder in options.runs:
            images = {beginning(model): strips(folder, model, subject, options.seed) for model in models}
            images |= {f"stage_{name}": long_strip(folder, name, subject, options.seed) for name in SETTINGS}
            for name, image in images.items():
                if image:
                    save_png(image.quantize(256), out / f"{name}_{subject}.png", optimize=True)
    print(text)
