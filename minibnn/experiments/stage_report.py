"""The stage experiment judged and drawn: `python -m minibnn experiment stage-report`.

Reads the .jsonl files of --runs and writes into --out

    stage.jsonl     all lines, from which the report can be made again
    stage.md        tables: is there a stage, what each setting changes, what goes with fidelity, how the same weights
                    draw otherwise, what the gains foretell
    stage.png       fidelity, noise and gains against the step, for plain fine-tuning and its rivals
    gain_law.png    the noise that the law foretells from the gains, against the noise of the pictures, all runs
    stage_SUBJECT.png   pictures of one seed, a row for each setting, a column for each step

**The criterion**, fixed before the runs of the main comparison. From step EARLY to the mean over the LATE steps
(`stage_settings.py`), over all runs of a setting at guidance 7.5 and the training prompt: there is a corruption stage
if fidelity falls and noise rises, each by more than its 95 % t-interval. A setting cures if, paired by subject and seed
with the one beside it ("plain", mostly), its fidelity over the LATE steps is higher and its noise lower, each by more
than its interval. Runs are the unit: intervals are over subject and seed together, and the tables name how many there
are.

But: no correction for many comparisons. The five questions of `stage_settings.py` were asked first; all else are leads.
Three subjects are three subjects: the intervals say nothing of a fourth.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files.rows import read_rows
from ..files.store import write_text
from ..lab import plot
from ..lab.intervals import interval, require_scipy
from ..lab.sheets import sheet
from ..pictures import save_png
from ..world.textured import SIDE
from .stage import ZOOM
from .stage_law import guided, law, law_plot
from .stage_settings import EARLY, LATE, MAIN, SETTINGS, views_at

DRAWN = ("plain", "bnn", "null", "offset")  # the curves of stage.png


def read_runs(folders):
    """{(setting, model, subject, seed): its lines}. Raises UserError if there are none."""
    found = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*.jsonl")):
            for row in read_rows(path):
                if row.get("setting") in SETTINGS:
                    key = row["setting"], Path(row["model"]).name, Path(row["subject"]).name, row["seed"]
                    found.setdefault(key, []).append(row)
    if not found:
        raise UserError(f"--runs {' '.join(map(str, folders))}: no .jsonl of `experiment stage` in it")
    return found


def at(rows, step, view, group, name):
    """One value of a run."""
    line = next(r for r in rows if r["step"] == step and r["view"] == view.name and r["group"] == group)
    return line[name]


def late(rows, view, group, name):
    """The mean over the LATE steps, or over those there are: a long run has others."""
    steps = sorted({r["step"] for r in rows if r["view"] == view.name} & set(LATE))
    return float(np.mean([at(rows, step, view, group, name) for step in steps]))


def change(rows, view, group, name):
    """From EARLY to LATE."""
    return late(rows, view, group, name) - at(rows, EARLY, view, group, name)


def gain_at(rows, step, time, guidance=None):
    """The guided gain at one step and time; guidance 1 is c, 0 is u."""
    row = next(r for r in rows if r["step"] == step)
    return guided(row, guidance)[row["times"].index(time)]


def colour_gain(rows, step, time=300):
    """The gain of the mean colour with the prompt, at one step and time."""
    row = next(r for r in rows if r["step"] == step)
    return row["colour_c"][row["times"].index(time)]


def of(runs, setting, model):
    """{(subject, seed): rows} of one setting and pretrained model."""
    return {key[2:]: rows for key, rows in runs.items() if key[:2] == (setting, model)}


def settings_of(runs):
    """All (setting, model), the bundled model first, in the order of SETTINGS."""
    order = list(SETTINGS)
    return sorted({key[:2] for key in runs}, key=lambda it: (it[1] != "textured", it[1], order.index(it[0])))


def words(triple, digits=3):
    """mean [low, high], bold where the interval excludes 0."""
    mean, low, high = triple
    if not math.isfinite(low):
        return f"{mean:+.{digits}f} (one run)"
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


# --- tables -----------------------------------------------------------------------------------------------------------


def stages(runs):
    """Is there a corruption stage, for every setting, at guidance 7.5, 3 and 1."""
    text = [
        f"| setting | pretrained | runs | guidance | fidelity, steps {EARLY} → {min(LATE)}-{max(LATE)} | noise "
        f"| c, u, guided gain at t = 100, step {max(LATE)} | gain of the mean colour at t = 300 "
        f"| tint at guidance 7.5, steps {EARLY}, {LATE[-1]} |",
        "|" + "---|" * 9,
    ]
    for setting, model in settings_of(runs):
        own = of(runs, setting, model)
        tints = [np.mean([at(rows, step, MAIN, "training", "tint") for rows in own.values()])
                 for step in (EARLY, LATE[-1])]
        for view in views_at(EARLY, None):
            moved = [interval([change(rows, view, "training", name) for rows in own.values()])
                     for name in ("fidelity", "noise")]
            last = [gain_at(rows, max(LATE), 100, g) for g in (1, 0, view.guidance) for rows in own.values()]
            c, u, g = np.array(last).reshape(3, -1).mean(1)
            colour = np.mean([colour_gain(rows, max(LATE)) for rows in own.values()])
            text.append(f"| {setting} | {model} | {len(own)} | {view.guidance:g} | {words(moved[0])} "
                        f"| {words(moved[1], 1)} | {c:.3f}, {u:.3f}, {g:.2f} | {colour:.2f} "
                        f"| {tints[0]:.3f}, {tints[1]:.3f} |")
    return "\n".join(text)


def best(rows):
    """(fidelity, step) of the look with the highest fidelity at guidance 7.5: what who stops in time gets."""
    return max((r["fidelity"], r["step"]) for r in rows if r["view"] == MAIN.name and r["group"] == "training")


def loss_late(rows):
    """The conditional loss, mean over LATE."""
    return float(np.mean([loss for step, loss in {r["step"]: r["loss"] for r in rows}.items() if step in LATE]))


def equal_loss(rows, loss):
    """(fidelity, noise) of a run, interpolated over its looks to where its conditional loss is `loss`.

    The looks are sorted by loss first, which falls with some noise. Outside of the run's range: its nearest look.
    """
    looks = sorted((r["loss"], r["fidelity"], r["noise"]) for r in rows
                   if r["view"] == MAIN.name and r["group"] == "training" and r["step"] > 0)
    losses, fidelity, noise = zip(*looks, strict=True)
    return np.interp(loss, losses, fidelity), np.interp(loss, losses, noise)


def difference(pairs, group, name, digits=3):
    """In words: the first of each pair of runs minus the second, at guidance 7.5, mean over LATE."""
    found = [late(one, MAIN, group, name) - late(other, MAIN, group, name) for one, other in pairs]
    return words(interval(found), digits)


def cures(runs):
    """Every setting minus the one beside it, paired by subject and seed, at guidance 7.5, over LATE; and its costs."""
    text = [
        "| setting | pretrained | runs | fidelity | noise | at equal loss: fidelity | noise "
        "| best look: fidelity | other prompts: fidelity | their noise | spread | loss (the other's) |",
        "|" + "---|" * 12,
    ]
    for setting, model in settings_of(runs):
        if setting == "plain" or SETTINGS[setting].pictures > 1 or SETTINGS[setting].flat:
            continue
        own, other = of(runs, setting, model), of(runs, SETTINGS[setting].beside, model)
        common = sorted(own.keys() & other.keys())
        if not common:
            continue
        pairs = [(own[key], other[key]) for key in common]
        cells = [difference(pairs, "training", "fidelity"), difference(pairs, "training", "noise", 1)]
        matched = [equal_loss(b, loss_late(a)) for a, b in pairs]
        for number, (name, digits) in enumerate((("fidelity", 3), ("noise", 1))):
            found = [late(a, MAIN, "training", name) - m[number] for (a, _), m in zip(pairs, matched, strict=True)]
            cells.append(words(interval(found), digits))
        cells.append(words(interval([best(a)[0] - best(b)[0] for a, b in pairs])))
        cells += [difference(pairs, "other", "fidelity"), difference(pairs, "other", "noise", 1)]
        cells.append(difference(pairs, "other", "spread"))
        losses = [np.mean([loss_late(rows) for rows in side]) for side in zip(*pairs, strict=True)]
        cells.append(f"{losses[0]:.4f} ({losses[1]:.4f})")
        text.append(f"| {setting} − {SETTINGS[setting].beside} | {model} | {len(common)} | {' | '.join(cells)} |")
    return "\n".join(text)


def companions(runs):
    """What goes with fidelity at guidance 7.5: rank correlations over all looks after the first step, by setting."""
    stats = require_scipy()
    text = [
        "| setting | pretrained | looks | tint | noise | guided gain at t = 100 | u − c at t = 100 | loss |",
        "|" + "---|" * 8,
    ]
    for setting, model in settings_of(runs):
        looks = [row for rows in of(runs, setting, model).values() for row in rows
                 if row["view"] == MAIN.name and row["group"] == "training" and row["step"]]
        at_100 = looks[0]["times"].index(100)
        columns = [[row[name] for row in looks] for name in ("tint", "noise", "loss")]
        columns[2:2] = [[guided(row, MAIN.guidance)[at_100] for row in looks],
                        [row["u"][at_100] - row["c"][at_100] for row in looks]]
        fidelity = [row["fidelity"] for row in looks]
        cells = [f"{stats.spearmanr(fidelity, column).statistic:+.2f}" if np.ptp(column) else "" for column in columns]
        text.append(f"| {setting} | {model} | {len(looks)} | {' | '.join(cells)} |")
    return "\n".join(text)


def drawings(runs):
    """The same last weights drawn in other ways, minus the main view, paired."""
    text = [
        "| weights | pretrained | runs | drawn with | fidelity | noise | fidelity − main | noise − main |",
        "|" + "---|" * 8,
    ]
    for setting, model in settings_of(runs):
        own, last = of(runs, setting, model).values(), SETTINGS[setting].looks[-1]
        for view in views_at(last, last):
            cells, moved = [], []
            for name, digits in (("fidelity", 3), ("noise", 1)):
                values = [at(rows, last, view, "training", name) for rows in own]
                main = [at(rows, last, MAIN, "training", name) for rows in own]
                cells.append(f"{np.mean(values):.{digits}f}")
                moved.append("" if view == MAIN else words(interval(np.subtract(values, main)), digits))
            text.append(f"| {setting} | {model} | {len(own)} | {view.name} | {' | '.join(cells + moved)} |")
    return "\n".join(text)


# --- pictures ---------------------------------------------------------------------------------------------------------


def curve(runs, setting, model, value):
    """A plot.Line of the mean over runs with its interval; value: (rows, step) -> number."""
    own, looks = of(runs, setting, model), SETTINGS[setting].looks
    found = [interval([value(rows, step) for rows in own.values()]) for step in looks]
    mean, low, high = map(list, zip(*found, strict=True))
    return plot.Line(f"{setting} ({len(own)} runs)", list(looks), mean, low, high)


def curves(runs, model="textured"):
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
    for guidance, label in ((1, "c"), (0, "u"), (7.5, "guided, 7.5")):
        line = curve(runs, there[0], model, lambda rows, step, g=guidance: gain_at(rows, step, 100, g))
        line.label = f"{label}, {there[0]}"
        gains.append(line)
    panels.append(plot.Panel("gains at t = 100", gains))
    guided_gains = [curve(runs, s, model, lambda rows, step: gain_at(rows, step, 100, 7.5)) for s in there]
    panels.append(plot.Panel("guided gain at t = 100, guidance 7.5", guided_gains))
    panels.append(plot.Panel("gain of the mean colour at t = 300", [
        curve(runs, s, model, lambda rows, step: colour_gain(rows, step)) for s in there
    ]))
    return plot.chart(panels)


def strips(folder, subject, seed, model="textured"):
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


def report(options):
    """Write all of it."""
    require_scipy()
    runs, out = read_runs(options.runs), Path(options.out)
    write_text(out / "stage.jsonl", "".join(json.dumps(row) + "\n" for rows in runs.values() for row in rows))
    parts = {
        "Is there a corruption stage?": stages, "What does each setting change?": cures,
        "What goes with fidelity?": companions, "The same weights, drawn otherwise": drawings, "The gain law": law,
    }
    text = "\n\n".join(f"## {title}\n\n{table(runs)}" for title, table in parts.items()) + "\n"
    write_text(out / "stage.md", text)
    save_png(curves(runs), out / "stage.png", optimize=True)
    save_png(law_plot(runs), out / "gain_law.png", optimize=True)
    for subject in sorted({key[2] for key in runs}):
        for folder in options.runs:
            image = strips(folder, subject, options.seed)
            if image:
                save_png(image.quantize(256), out / f"stage_{subject}.png", optimize=True)
    print(text)
