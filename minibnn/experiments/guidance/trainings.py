"""Guidance with the base's unconditional prediction, and its controls: `python -m minibnn experiment guidance`

For each subject and seed the bundled model is fine-tuned on six drawings of one spotted animal, for 400 steps without
class pictures and without BNN (with `--method lora` by LoRA), and then draws 16 pictures for each *anchor* and each
scale w, always from the same noise:

    ε̂ = ε_anchor + w·(ε(c) − ε_anchor)

    none         w = 1: the prompt alone, no anchor
    own          the fine-tuned model with the empty prompt: ordinary guidance
    base         the model before fine-tuning with the empty prompt: the method
    base class   the model before fine-tuning with "a photo of a dog": a control. It knows the class, so it is no
                 unconditional prior; if it does as well, what helps is to move from *the base* to the fine-tuned model.

Measured for each (see `world/measures.py`), 4 pictures of the training prompt and 12 with a place:

    fidelity     cosine to the training pictures, mean over all
    place        share of the pictures with a place whose background is judged to be the prompted one
    subject      share judged to show the subject's class (of real spotted dogs the classifier calls 79 % a dog)
    noise        high-frequency energy of calm areas above clean drawings', × 1000
    clipped      share of channel values at 0 or 255: saturation
    drift        share of 48 pictures drawn from the empty prompt alone that show the class, of each model
    gains        c with the prompt and u of each anchor around the training pictures (`lab/gains.py`); guided gains
                 w·c − (w−1)·u above 1 take out too much noise, below 1 too little

Criterion (settled before the runs): each question of QUESTIONS is a difference paired by seed, with its 95 % t-interval
over the seeds of a subject, and over all runs of all subjects. "more" or "less" if the interval excludes 0, else "not
shown".

Prints the tables, and what the corruption laboratory's trainings of six seeds say (`corruption_runs.py`) where --out
holds their lines. Leaves guidance.jsonl (a line for each training; what is there is not repeated), of the first subject
and seed guidance-samples.png, and guidance.png with curves of means.
"""

import shutil
from pathlib import Path

from PIL import Image

from ... import data
from ...cli.train import fine_tune
from ...devices import choose_threads, threads_kept
from ...files.locks import locked
from ...files.rows import read_rows, write_rows
from ...files.schema import integer, items, mapping, number, one_of, record
from ...lab import gains
from ...lab.intervals import in_words, interval, require_scipy, verdict
from ...lab.plot import Line, Panel, chart
from ...lab.sheets import sheet
from ...lab.sigma1_estimate import latents_of, predictor
from ...neighbours import guidance
from ...options.training import TrainOptions
from ...pictures import save_png, to_tensor
from ...pipeline import StableDiffusion
from ...progress import progress_bar
from ...world import measures as world_measures
from ...world import scenes as world
from ...world.classifier import reconstruct
from ..records import check_alike
from . import corruption_runs

SCALES = (1.5, 3.0, 7.5)
ANCHORS = ("own", "base", "base class")
PLACES = ("beach", "snow", "night", "wood")
MEASURES = ("fidelity", "place", "subject", "noise", "clipped")
DRIFT = 48  # pictures from the empty prompt
ROW = {
    "method": one_of("dreambooth", "lora"), "subject": one_of(*world.ANIMALS), "seed": integer(0), "steps": integer(1),
    "cells": mapping(mapping(record(dict.fromkeys(MEASURES, number()), MEASURES))), "drift": mapping(number()),
    "gains": mapping(items(number())),
}
QUESTIONS = {  # what is asked: (measure, anchor and scale, anchor and scale of what it is compared with)
    "base − own, w = 1.5": ("fidelity", ("base", "1.5"), ("own", "1.5")),
    "base − own, w = 3": ("fidelity", ("base", "3"), ("own", "3")),
    "base − own, w = 7.5": ("fidelity", ("base", "7.5"), ("own", "7.5")),
    "base − base class, w = 1.5": ("fidelity", ("base", "1.5"), ("base class", "1.5")),
    "base − no guidance, w = 1.5": ("fidelity", ("base", "1.5"), ("none", "1")),
    "base class − own, w = 1.5": ("fidelity", ("base class", "1.5"), ("own", "1.5")),
    "place: base − own, w = 1.5": ("place", ("base", "1.5"), ("own", "1.5")),
    "place: base − own, w = 3": ("place", ("base", "3"), ("own", "3")),  # asked when the results were there
    "place: base − own, w = 7.5": ("place", ("base", "7.5"), ("own", "7.5")),
    "noise: base − own, w = 1.5": ("noise", ("base", "1.5"), ("own", "1.5")),
    "noise: base − own, w = 3": ("noise", ("base", "3"), ("own", "3")),
    "noise: base − own, w = 7.5": ("noise", ("base", "7.5"), ("own", "7.5")),
    "clipped: base − own, w = 7.5": ("clipped", ("base", "7.5"), ("own", "7.5")),
    "subject: base − own, w = 1.5": ("subject", ("base", "1.5"), ("own", "1.5")),  # these three afterwards, too
    "subject: base − own, w = 3": ("subject", ("base", "3"), ("own", "3")),
    "subject: base − own, w = 7.5": ("subject", ("base", "7.5"), ("own", "7.5")),
}


def prompts_and_places(prompt):
    """Four times the prompt alone, then three times each with four places: 16 prompts, 16 places or None."""
    places = [None] * 4 + [place for place in PLACES for _ in range(3)]
    return [f"{prompt} {world.BACKGROUNDS[place]}" if place else prompt for place in places], places


def measure(pictures, places, training, kind="dog"):
    """MEASURES of the pictures of one scale; training: the decoded training pictures (n, 3, 64, 64)."""
    images = to_tensor(pictures)
    wanted = [{"subject": kind} | ({"background": place} if place else {}) for place in places]
    right = world_measures.prompt_fidelity(images, wanted)
    told = [value for value in right["background"] if value is not None]
    return {
        "fidelity": world_measures.fidelity(images, training)[0].mean().item(),
        "place": sum(told) / len(told),
        "subject": sum(right["subject"]) / len(pictures),
        "noise": world_measures.noise(images).mean().item(),
        "clipped": (images.abs() == 1).float().mean().item(),
    }


def class_drift(sd, kind):
    """Share of pictures from the empty prompt, without guidance, that the classifier calls a `kind`."""
    pictures = sd.generate([""] * DRIFT, guidance=1, batch_size=16, seed=7, progress=False)
    return world_measures.recognise(to_tensor(pictures))["subject"].count(kind) / DRIFT


def gains_of(sd, base, latents, prompt, class_prompt):
    """The mean gains around the training pictures: {"t", "c", and for each anchor its u: one number for each t}."""
    anchors = {"own": predictor(sd, ""), "base": guidance.unconditional_of(base, sd)}
    anchors["base class"] = guidance.unconditional_of(base, sd, class_prompt)
    measured = {name: gains.measure(sd, latents, prompt, unconditional=anchor) for name, anchor in anchors.items()}
    own = {name: gains.mean(found.u) for name, found in measured.items()}
    return {"t": list(gains.TIMES), "c": gains.mean(measured["own"].c)} | own


def one_run(base, options, kind, seed):
    """Train and measure one run: its line, and the rows of pictures of its sheet."""
    work = Path(options.work)
    prompt, class_prompt = f"a photo of a sks {kind}", f"a photo of a {kind}"
    images, folder = work / kind, work / f"{options.method}-{kind}-{seed}"
    for i, scene in enumerate(world.animal_scenes(kind)):
        save_png(world.draw(scene), images / f"{i:02d}.png")
    fine_tune(TrainOptions(
        images=str(images), model="tiny", prompt=prompt, prior_weight=0.0, method=options.method, bayes=False,
        steps=options.steps, seed=seed, out=str(folder), samples=0, monitor=False, overwrite=True,
    ))
    sd = StableDiffusion.load(folder)
    shutil.rmtree(folder)
    drawn = data.load_pictures(data.list_pictures(images), base.recipe["resolution"])
    training, (prompts, places) = reconstruct(base, drawn), prompts_and_places(prompt)
    predictors = {
        "own": None, "base": guidance.one_condition(sd, guidance.unconditional_of(base, sd)),
        "base class": guidance.one_condition(sd, guidance.unconditional_of(base, sd, class_prompt)),
    }

    def drawing(scale, anchor=None):
        return sd.generate(prompts, guidance=scale, batch_size=16, predictor=anchor, progress=False)

    cells, shown = {"none": {"1": measure(drawing(1.0), places, training, kind)}}, []
    for name, anchor in predictors.items():
        cells[name] = {}
        shown.append([])
        for scale in progress_bar(SCALES, desc=f"{kind}, seed {seed}, anchor: {name}"):
            pictures = drawing(scale, anchor)
            cells[name][f"{scale:g}"] = measure(pictures, places, training, kind)
            shown[-1] += [pictures[i] for i in (0, 4, 7, 10)]
    line = {
        "method": options.method, "subject": kind, "seed": seed, "steps": options.steps, "cells": cells,
        "drift": {"own": class_drift(sd, kind), "base": class_drift(base, kind)},
        "gains": gains_of(sd, base, latents_of(sd, drawn), prompt, class_prompt),
    }
    return line, shown


def rounded(value):
    """The same JSON with five digits after the point."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


@threads_kept()
def experiment(options):
    """Do the runs of GuidanceOptions that are not there yet, and report all that are."""
    require_scipy()
    with locked(options.out, ".guidance.lock"):
        experiment_there(options)


def experiment_there(options):
    """The same in a folder that belongs to this process."""
    out = Path(options.out)
    path = out / "guidance.jsonl"
    rows = read_rows(path, ROW, required=ROW)
    for row in rows:
        if row["method"] == options.method:
            check_alike(row, {"steps": options.steps}, path)
    done = {(row["method"], row["subject"], row["seed"]) for row in rows}
    base = StableDiffusion.load("tiny")
    choose_threads("cpu", base.unet)
    for kind in options.subjects:
        for seed in options.seeds:
            if (options.method, kind, seed) in done:
                continue
            line, shown = one_run(base, options, kind, seed)
            rows.append(rounded(line))
            write_rows(path, rows)
            if (kind, seed) == (options.subjects[0], options.seeds[0]):
                columns = [f"w = {scale:g}" if i == 0 else "" for scale in SCALES for i in range(4)]
                picture = sheet(shown, list(ANCHORS), columns).quantize(256, dither=Image.Dither.NONE)
                suffix = "" if options.method == "dreambooth" else f"-{options.method}"
                save_png(picture, out / f"guidance-samples{suffix}.png", optimize=True)
    if plain := [row for row in rows if row["method"] == "dreambooth"]:
        save_png(curves(plain), out / "guidance.png")
    print(report(rows))
    if laboratory := read_rows(out / "corruption.jsonl"):
        print(corruption_runs.table(laboratory))


def grouped(rows):
    """{"method, subject": its rows, in the order of their seeds}, and of several subjects "method, all subjects"."""
    groups = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault(row["method"], {}).setdefault(row["subject"], []).append(row)
    found = {}
    for method, subjects in groups.items():
        found |= {f"{method}, {kind}": own for kind, own in subjects.items()}
        if len(subjects) > 1:
            found[f"{method}, all subjects"] = [row for own in subjects.values() for row in own]
    return found


def curves(rows):
    """The measures over the scale, means over all rows, a panel for each measure: a PIL picture."""
    panels = []
    for key in MEASURES:
        lines = []
        for anchor in ANCHORS:
            of_scales = [[row["cells"][anchor][f"{scale:g}"][key] for row in rows] for scale in SCALES]
            means = [sum(values) / len(values) for values in of_scales]
            lines.append(Line(anchor, list(SCALES), means, list(map(min, of_scales)), list(map(max, of_scales))))
        panels.append(Panel(key, lines, "guidance w"))
    return chart(panels, columns=3)


def report(rows):
    """The tables of the page, in Markdown: means of each anchor and scale, then the questions, drift and gains."""
    lines = []
    for group, own in grouped(rows).items():
        lines += [f"### {group}, {len(own)} runs", "", "| anchor | measure | w = 1 | "
                  + " | ".join(f"{scale:g}" for scale in SCALES) + " |", "|---|---|---|" + "---|" * len(SCALES)]
        for anchor in ("none", *ANCHORS):
            for key in MEASURES:
                of_each = [row["cells"][anchor] for row in own]
                scales = ["1", *(f"{scale:g}" for scale in SCALES)]
                shown = [f"{mean([c[w][key] for c in of_each]):.2f}" if w in of_each[0] else "" for w in scales]
                lines.append(f"| {anchor} | {key} | {' | '.join(shown)} |")
        lines += ["", "| question | difference | verdict |", "|---|---|---|"]
        for name, (key, (a, at), (b, bt)) in QUESTIONS.items():
            differences = [row["cells"][a][at][key] - row["cells"][b][bt][key] for row in own]
            lines.append(f"| {name} | {answer(differences)} |")
        lines.append(f"| class drift: own − base | {answer([r['drift']['own'] - r['drift']['base'] for r in own])} |")
        times = own[0]["gains"]["t"]
        lines += ["", f"| gain at t | {' | '.join(map(str, times))} |", "|---|" + "---|" * len(times)]
        for name in ("c", *ANCHORS):
            of_each = zip(*(row["gains"][name] for row in own), strict=True)
            lines.append(f"| {name} | " + " | ".join(f"{mean(values):.3f}" for values in of_each) + " |")
        for scale in SCALES:
            for name in ANCHORS:
                pairs = zip(*((row["gains"]["c"], row["gains"][name]) for row in own), strict=True)
                c, u = ([mean(each) for each in zip(*values, strict=True)] for values in pairs)
                guided = [gains.guided_gain(a, b, scale) for a, b in zip(c, u, strict=True)]
                lines.append(f"| guided, w = {scale:g}, {name} | " + " | ".join(f"{v:.2f}" for v in guided) + " |")
        lines.append("")
    return "\n".join(lines)


def mean(values):
    """The mean of some numbers."""
    return sum(values) / len(values)


def answer(differences):
    """Mean, interval and verdict of differences paired by seed, as two cells of a table."""
    middle, low, high = interval(differences)
    return f"{in_words(middle, low, high)} | {verdict(low, high, 'more', 'less')}"
