"""The table and the pictures of runs that are longer than the others: do they recover?

Follows: the tables of `report.py`.
"""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from ...lab.sheets import sheet
from ...world.textured import SIDE
from .settings import LONG_LOOKS, LOOKS, MAIN, OTHER_PROMPTS, PICTURES, SETTINGS
from .tables import at, gain_at, of, over_seeds, settings_of, words
from .trainings import ZOOM

STEPS = LONG_LOOKS[1:]  # those at which something has been learned


def together_and_apart(own):
    """{name: runs}: all runs of a setting and, where they have several subjects, those of each."""
    subjects = sorted({subject for subject, _ in own})
    found = {subject: {run: rows for run, rows in own.items() if run[0] == subject} for subject in subjects}
    return found if len(subjects) == 1 else {"all": own, **found}


def long_runs(runs):
    """A row for each setting of LONG_LOOKS, subject and group of prompts, at guidance 7.5; "" where there is none."""
    begin, end = LOOKS[-1], LONG_LOOKS[-1]
    text = [
        f"| setting | pretrained | subject | runs | prompts | fidelity at steps {', '.join(map(str, STEPS))} "
        f"| noise | tint | u − c at t = 100 | fidelity, {begin} → {end} | noise, {begin} → {end} "
        f"| tint, {begin} → {end} |",
        "|" + "---|" * 12,
    ]
    for setting, model in settings_of(runs):
        if SETTINGS[setting].looks != LONG_LOOKS:
            continue
        parts = together_and_apart(of(runs, setting, model))
        for (subject, own), group in product(parts.items(), ("training", "other")):
            levels, changes = [], []
            for name, digits in (("fidelity", 3), ("noise", 1), ("tint", 3)):
                means = [np.mean([at(rows, step, MAIN, group, name) for rows in own.values()]) for step in STEPS]
                levels.append(", ".join(f"{mean:.{digits}f}" for mean in means))
                moved = {run: at(rows, end, MAIN, group, name) - at(rows, begin, MAIN, group, name)
                         for run, rows in own.items()}
                changes.append(words(over_seeds(moved), digits))
            apart = [np.mean([gain_at(rows, step, 100, 0) - gain_at(rows, step, 100, 1) for rows in own.values()])
                     for step in STEPS]
            levels.append(", ".join(f"{gain:.3f}" for gain in apart))
            text.append(f"| {setting} | {model} | {subject} | {len(own)} | {group} | {' | '.join(levels + changes)} |")
    return "\n".join(text) if len(text) > 2 else ""


def long_strip(folder, setting, subject, seed):
    """The pictures of one run in a folder, a row for each look. None if it is not there or no long one."""
    path = Path(folder) / f"{setting}-{subject}-textured-{seed}.png"
    if SETTINGS[setting].looks != LONG_LOOKS or not path.exists():
        return None
    strip, side, pitch = Image.open(path), SIDE * ZOOM, (SIDE + 2) * ZOOM
    columns = ["training"] * PICTURES + ["other"] * len(OTHER_PROMPTS)
    rows = [[strip.crop((pitch * j, pitch * i, pitch * j + side, pitch * i + side)) for j in range(len(columns))]
            for i in range(len(LONG_LOOKS))]
    return sheet(rows, [f"step {step}" for step in LONG_LOOKS], columns)
