"""The table of what is drawn in another way at every look: measured noise beside that which the gain law predicts.

Only settings with `everywhere` are drawn so. Follows: the tables of `report.py`.
"""

import numpy as np

from ...lab import gain_law
from ...schedule import alphas_cumprod
from .law import GREY, guided, perfect
from .settings import EARLY, LATE, LOOKS, SETTINGS
from .tables import at, change, difference, of, over_seeds, settings_of, words

STEPS = LOOKS[1:]  # those at which something has been learned


def predicted(rows, step, view):
    """The noise that the law predicts of a run's pictures at a step, in the unit of `noise`."""
    row = next(r for r in rows if r["step"] == step)
    left = gain_law.predicted_noise(
        row["times"], guided(row, view.guidance), alphas_cumprod(), view.steps, view.eta, view.sampler
    )
    return 100 * GREY * (left - perfect())


def drawn(runs, view):
    """Those of the runs {(subject, seed): rows} that were drawn in this way at every look."""
    return {run: rows for run, rows in runs.items()
            if {r["step"] for r in rows if r["view"] == view.name} >= set(STEPS)}


def drawn_otherwise(runs):
    """[(setting, model, view, {(subject, seed): rows})] of all ways of drawing besides those of every setting."""
    all_of_them = [(setting, model, view, drawn(of(runs, setting, model), view))
                   for setting, model in settings_of(runs) for view in SETTINGS[setting].everywhere]
    return [found for found in all_of_them if found[-1]]


def every_look(runs):
    """A row for each of `drawn_otherwise`."""
    late = f"{EARLY} → {min(LATE)}-{max(LATE)}"
    text = [
        f"| setting | pretrained | runs | drawn with | fidelity at steps {', '.join(map(str, STEPS))} | noise "
        f"| noise by the law | fidelity, {late} | noise, {late} | fidelity − the setting beside it | noise − that |",
        "|" + "---|" * 11,
    ]
    for setting, model, view, own in drawn_otherwise(runs):
        cells = []
        for name, digits in (("fidelity", 3), ("noise", 1)):
            means = [np.mean([at(rows, step, view, "training", name) for rows in own.values()]) for step in STEPS]
            cells.append(", ".join(f"{mean:.{digits}f}" for mean in means))
        means = [np.mean([predicted(rows, step, view) for rows in own.values()]) for step in STEPS]
        cells.append(", ".join(f"{mean:.1f}" for mean in means))
        for name, digits in (("fidelity", 3), ("noise", 1)):
            moved = {run: change(rows, view, "training", name) for run, rows in own.items()}
            cells.append(words(over_seeds(moved), digits))
        other = drawn(of(runs, SETTINGS[setting].beside, model), view)
        pairs = {run: (own[run], other[run]) for run in sorted(own.keys() & other.keys())}
        for name, digits in (("fidelity", 3), ("noise", 1)):
            cells.append(difference(pairs, "training", name, digits, view) if pairs else "")
        text.append(f"| {setting} | {model} | {len(own)} | {view.name} | {' | '.join(cells)} |")
    return "\n".join(text)
