"""Curves, verdicts and tables of what `experiment corruption` measured: `python -m minibnn experiment report`.

Reads the .jsonl files of --runs, applies the criterion of `stages.py` to each setting, and writes into --out

    corruption.jsonl        all lines, shortened, so that the report can be made again from them
    corruption.md           verdicts, and the effect of the BNN as a paired difference with its interval; above each
                            table a list of what its columns mean
    corruption-NAME.png     curves of settings with three seeds or more, with bootstrap intervals (percentiles, 95 %);
                            of three seeds they are the whole range and hold the true mean in three cases of four
    corruption-NAME.webp    pictures of one run, a row for each step
"""

import math
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ...errors import UserError
from ...files.rows import read_rows, write_rows
from ...files.schema import anything, fitting, integer, items, number, record, text
from ...files.store import write_text, write_whole
from ...lab import plot
from ...lab.intervals import in_words, interval, require_scipy
from ...pictures import save_png
from ..legends import LIKE_THE_LAST, explained
from ..records import figure
from .settings import SETTINGS
from .stages import MARGIN, corruption_stage, noise_stage

CURVES = {  # what is drawn: (title, group of prompts)
    "fidelity": ("fidelity to the training pictures, other prompts", "other"),
    "noise": ("noise above clean drawings (x 1000), other prompts", "other"),
    "nearest": ("fidelity to the nearest picture, training prompt", "training"),
    "background": ("place drawn as asked, other prompts", "other"),
    "diversity": ("diversity, training prompt", "training"),
    "sigma1": ("sigma_1 at t = 100 (Eq. 2)", "training"),
}
KINDS = {"plain": "plain", "bnn": "BNN"}
OPENING = """\
# The corruption stage in the model `tiny`

`python -m minibnn experiment report` makes this page; what it says is in [RESULTS.md](../RESULTS.md). "a [b, c]" is a
mean over seeds with its 95 % t-interval, paired by seed. The measures are

- **fidelity**: cosine of the pictures and the training pictures in a network's features, −1 to 1
- **noise**: energy of the finest structure in the calm parts of the pictures, minus that of clean drawings with the
  same background, in thousandths

both of prompts other than the training one. The settings are"""
VERDICTS = [
    "what was trained (above)", "training pictures", "plain, or with a BNN",
    "sampler, number of steps and guidance (g); *average* with the running mean of the weights, *base* with the "
    "pretrained model's prediction for the empty prompt", "number of runs",
    "the criterion: *present* if at the dip fidelity has fallen, noise is above its first and its last level, and "
    "fidelity recovers, each by more than the interval; *absent* if at each step one of these is surely less than "
    f"{MARGIN['fidelity']} of fidelity or {MARGIN['noise']} of noise; else *undecided*",
    "the step at which fidelity lies farthest below its earlier maximum, and how far; where that is negative, it only "
    "rose", "the same criterion for the noise alone",
    "the step at which noise is highest, and how far above the pretrained model's",
]
EFFECTS = [
    None, None, None, "first that at which the plain runs are noisiest, then the last",
    "of the BNN minus that of plain", LIKE_THE_LAST,
    "share of the pictures on which a network sees the place that the prompt names, 0 to 1: difference",
    "1 minus the mean cosine between pictures of the training prompt in a network's features, 0 to 2: difference",
]
KEPT = ("fidelity", "nearest", "noise", "worst_noise", "immerkaer", "diversity", "subject", "background")
NAME = re.compile(r".+-\d{1,9}-(plain|bnn)-\d{1,19}")
ROW = {"run": text, "step": integer(0), "view": text, "group": text, "seconds": number(0), "sigma1": anything}
ROW |= dict.fromkeys(KEPT, figure)
FIGURES = items(figure, 1)
SHORTENED = dict.fromkeys(("t", "sigma1", "loss", "explained"), FIGURES)
MEASURED = {"sigma1": record(SHORTENED, required=SHORTENED)}


def shorten(row):
    """A line without what the report does not use, numbers with four digits."""
    sigma1 = {k: [float(f"{v:.4g}") for v in row["sigma1"][k]] for k in ("sigma1", "loss", "explained")}
    kept = {k: None if row[k] is None else float(f"{row[k]:.4g}") for k in KEPT}
    fixed = {k: row[k] for k in ("run", "step", "view", "group", "seconds")}
    return fixed | kept | {"t": row["sigma1"]["t"]} | sigma1


def read_all(folders):
    """All lines of all runs; those of `experiment stage`, which name their setting, are left out.

    Raises UserError if there are none.
    """
    rows = []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.jsonl")):
            own = [row for row in read_rows(path) if {"run", "view"} <= row.keys() and "setting" not in row]
            for row in own:
                fitting(row, record(ROW | (MEASURED if "t" not in row else SHORTENED), required=ROW), path)
                if not NAME.fullmatch(row["run"]):
                    raise UserError(f"{path}: {row['run']!r} is not a name of a run, such as main-4-bnn-0")
            unknown = {row["run"] for row in own if _parts(row["run"])[0] not in SETTINGS}
            if unknown:
                known = "minibnn/experiments/corruption/settings.py"
                raise UserError(f"{path}: the setting of {min(unknown)} is not in {known}")
            rows += [shorten(row) if isinstance(row["sigma1"], dict) else row for row in own]
    if not rows:
        raise UserError(f"--runs {' '.join(map(str, folders))}: no .jsonl of `experiment corruption` in it")
    return rows


def value_of(row, name):
    """A measure of a line; "sigma1" means σ₁ at t = 100."""
    return row["sigma1"][row["t"].index(100)] if name == "sigma1" else row[name]


def table(rows, setting, pictures, kind, view, group, name):
    """(steps, seeds, values (seeds, steps)) of the runs that are complete; kind: "plain" or "bnn"."""
    found, start = defaultdict(dict), f"{setting}-{pictures}-{kind}-"
    for row in rows:
        if row["view"] == view and row["group"] == group and row["run"].startswith(start):
            value = value_of(row, name)
            found[int(row["run"].removeprefix(start))][row["step"]] = float("nan") if value is None else value
    steps = sorted(max(found.values(), key=len, default={}))
    found = {seed: values for seed, values in sorted(found.items()) if values.keys() >= set(steps)}
    return steps, list(found), [[values[s] for s in steps] for values in found.values()]


def bootstrap(values, resamples=2000):
    """values (seeds, steps) -> (low, high) of the mean over seeds, percentile bootstrap, 95 %: two lists."""
    values = torch.tensor(values, dtype=torch.float64)
    picked = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[picked].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return low.tolist(), high.tolist()


def line(rows, setting, pictures, kind, view, group, name, label=None):
    """A curve over steps with its band, or None where nothing was measured. label: of the kind where none is given."""
    steps, seeds, values = table(rows, setting, pictures, kind, view, group, name)
    if not seeds:
        return None
    mean = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
    low, high = bootstrap(values) if len(seeds) > 1 else (None, None)
    return plot.Line(label or KINDS[kind], steps, mean, low, high)


def curves(rows, setting, pictures, view):
    """The six curves of one setting, plain and BNN: a PIL picture."""
    panels = []
    for name, (title, group) in CURVES.items():
        both = [line(rows, setting, pictures, kind, view, group, name) for kind in KINDS]
        panels.append(plot.Panel(title, [one for one in both if one], stretch=25))
    return plot.chart(panels, 3)


def by_pictures(rows, setting, view, counts):
    """Fidelity and noise, plain, one curve for each number of pictures: the paper's Fig. 2."""
    panels = []
    for name in ("fidelity", "noise", "nearest"):
        title, group = CURVES[name]
        lines = [line(rows, setting, n, "plain", view, group, name, f"{n} picture{'s' * (n > 1)}") for n in counts]
        panels.append(plot.Panel(title + ", plain", [one for one in lines if one], stretch=25))
    return plot.chart(panels, 3)


def _interval(difference):
    return "not measured" if math.isnan(difference[0]) else in_words(*difference)


def verdicts(rows):
    """Markdown: the two criteria for every setting, number of pictures, kind and view."""
    text = [
        "| setting | pictures | weights | drawn with | seeds | corruption stage | fall of fidelity at the dip "
        "| noise stage | rise of noise at the peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting, n, kind, view in cases(rows):
        steps, seeds, fidelity = table(rows, setting, n, kind, view, "other", "fidelity")
        if len(steps) < 3:  # just begun: there is nothing between the first step and the last
            continue
        noise = table(rows, setting, n, kind, view, "other", "noise")[2]
        stage, found, dip = corruption_stage(fidelity, noise)
        noisy, peaks, peak = noise_stage(noise)
        fall = _interval(found["fidelity below its earlier maximum"])
        rise = _interval(peaks["noise above the pretrained model"])
        text.append(
            f"| {setting} | {n} | {kind} | {view} | {len(seeds)} | {stage} | step {steps[dip]}: {fall} "
            f"| {noisy} | step {steps[peak]}: {rise} |"
        )
    return "\n".join(text)


def cases(rows):
    """All (setting, pictures, kind, view) of which there are lines, in the order of SETTINGS."""
    found = {(*_parts(row["run"]), row["view"]) for row in rows}
    return sorted(found, key=lambda c: (list(SETTINGS).index(c[0]), c[1], c[3], c[2] == "bnn"))


def _parts(run):
    *words, n, kind, _seed = run.split("-")
    return "-".join(words), int(n), kind


def plain_of(rows, setting, pictures, view):
    """The setting with whose plain runs the BNN of `setting` is compared.

    A setting that only the BNN knows (σ₀, λ, where) is compared with runs trained as "main" that were drawn with the
    same view from as many pictures: those of "pndm" or "base", or of "main" where there are none.
    """
    if False in SETTINGS[setting].bayes:
        return setting
    there = {_parts(row["run"]) for row in rows if row["view"] == view}
    return next((name for name in ("pndm", "base", "main") if (name, pictures, "plain") in there), setting)


def effects(rows):
    """Markdown: BNN − plain at the same seed, at two steps: that of the highest noise of plain, and the last.

    The first step is picked by the noise of plain, which favours the BNN there; only the last step is free of that.
    """
    text = [
        "| setting | pictures | drawn with | step | fidelity | noise | place as asked | diversity (training prompt) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    measured = (("fidelity", "other"), ("noise", "other"), ("background", "other"), ("diversity", "training"))
    for setting, n, kind, view in cases(rows):
        if kind != "bnn":
            continue
        reference = plain_of(rows, setting, n, view)
        steps, seeds, noise = table(rows, reference, n, "plain", view, "other", "noise")
        own_steps, own_seeds, _ = table(rows, setting, n, "bnn", view, "other", "noise")
        common, shared = [s for s in own_seeds if s in seeds], [s for s in own_steps if s in steps]
        if not common or len(shared) < 3:
            continue
        peak = max(shared[1:-1], key=lambda s: sum(run[steps.index(s)] for run in noise))
        for step in (peak, shared[-1]):
            cells = []
            for name, group in measured:
                plain = values_at(step, table(rows, reference, n, "plain", view, group, name))
                bnn = values_at(step, table(rows, setting, n, "bnn", view, group, name))
                cells.append(_interval(interval([bnn[seed] - plain[seed] for seed in common])))
            text.append(f"| {setting} | {n} | {view} | {step} | {' | '.join(cells)} |")
    return "\n".join(text)


def values_at(step, found):
    """{seed: value} of what `table` returned, at one step."""
    steps, seeds, values = found
    return {seed: run[steps.index(step)] for seed, run in zip(seeds, values, strict=True)}


def page(rows):
    """corruption.md as text."""
    own = sorted({_parts(row["run"])[0] for row in rows}, key=list(SETTINGS).index)
    settings = "\n".join(f"- *{name}*: {SETTINGS[name].what}" for name in own)
    verdict, effect = explained(verdicts(rows), VERDICTS), explained(effects(rows), EFFECTS)
    return f"{OPENING}\n\n{settings}\n\n## Is there a stage?\n\n{verdict}\n\n## BNN minus plain\n\n{effect}\n"


def report(options):
    """Write all of it."""
    require_scipy()
    rows, out = read_all(options.runs), Path(options.out)
    write_rows(out / "corruption.jsonl", rows)
    for setting, n, view in sorted({(s, n, v) for s, n, _, v in cases(rows)}):
        if max(len(table(rows, setting, n, kind, view, "other", "noise")[1]) for kind in KINDS) >= 3:
            path = out / f"corruption-{setting}-{n}-{view}.png"  # the tables hold those with fewer seeds
            save_png(curves(rows, setting, n, view), path, optimize=True)
    counts = sorted({n for s, n, _, _ in cases(rows) if s == "main"})
    for view in sorted({v for s, _, _, v in cases(rows) if s == "main"}):
        save_png(by_pictures(rows, "main", view, counts), out / f"corruption-pictures-{view}.png", optimize=True)
    for path in (p for folder in options.runs for p in sorted(Path(folder).glob("main-*-0.png"))):
        save = partial(Image.open(path).save, format="WEBP", quality=95, method=6)  # a fifth of the size of a PNG
        write_whole(out / f"corruption-{path.stem}.webp", save)
    write_text(out / "corruption.md", page(rows))
    print(f"{out / 'corruption.md'}: {len(rows)} lines of {len({row['run'] for row in rows})} runs")
