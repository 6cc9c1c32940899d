"""The tables of the stage experiment, which `report.py` writes, of {(setting, model, subject, seed): lines}.

Seeds are the unit of every interval (`over_seeds`). What each table asks stands in its docstring, and the criterion in
the report's.
"""


import numpy as np

from ...lab.intervals import bold, in_words, interval, require_scipy
from .law import guided
from .settings import EARLY, LATE, MAIN, SETTINGS, SIDE_VIEWS, views_at


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


def gain_at(rows, step, time, guidance):
    """The guided gain at one step and time; guidance 1 is c, 0 is u."""
    row = next(r for r in rows if r["step"] == step)
    return guided(row, guidance)[row["times"].index(time)]


def colour_gain(rows, step):
    """The gain of the mean colour with the prompt at t = 300, at one step."""
    row = next(r for r in rows if r["step"] == step)
    return row["colour_c"][row["times"].index(300)]


def of(runs, setting, model):
    """{(subject, seed): rows} of one setting and pretrained model."""
    return {key[2:]: rows for key, rows in runs.items() if key[:2] == (setting, model)}


def over_seeds(values):
    """(mean, low, high) of {(subject, seed): value}, where the unit of the interval is a seed's mean over its subjects.

    Runs of one seed share the times and noises of their steps and the starting noise of their pictures, and rise and
    fall together from look to look. Taken as independent, they gave too narrow intervals of changes along a run.
    """
    of_seed = {}
    for (_, seed), value in values.items():
        of_seed.setdefault(seed, []).append(value)
    return interval([np.mean(each) for each in of_seed.values()])


def settings_of(runs):
    """All (setting, model), the bundled model first, in the order of SETTINGS."""
    order = list(SETTINGS)
    return sorted({key[:2] for key in runs}, key=lambda it: (it[1] != "textured", it[1], order.index(it[0])))


def words(triple, digits=3):
    """mean [low, high], bold where the interval excludes 0."""
    _, low, high = triple
    return bold(in_words(*triple, digits), low, high)


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
            moved = [over_seeds({run: change(rows, view, "training", name) for run, rows in own.items()})
                     for name in ("fidelity", "noise")]
            last = [gain_at(rows, max(LATE), 100, g) for g in (1, 0, view.guidance) for rows in own.values()]
            c, u, g = np.array(last).reshape(3, -1).mean(1)
            colour = np.mean([colour_gain(rows, max(LATE)) for rows in own.values()])
            text.append(f"| {setting} | {model} | {len(own)} | {view.guidance:g} | {words(moved[0])} "
                        f"| {words(moved[1], 1)} | {c:.3f}, {u:.3f}, {g:.2f} | {colour:.2f} "
                        f"| {tints[0]:.3f}, {tints[1]:.3f} |")
    return "\n".join(text)


def levels(runs):
    """Mean fidelity and noise at EARLY and each of LATE, at guidance 7.5 and the training prompt."""
    steps = (EARLY, *LATE)
    head = f"| setting | pretrained | runs | fidelity at steps {', '.join(map(str, steps))} | noise |"
    text = [head, "|" + "---|" * 5]
    for setting, model in settings_of(runs):
        own = of(runs, setting, model).values()
        cells = []
        for name, digits in (("fidelity", 3), ("noise", 1)):
            means = [np.mean([at(rows, step, MAIN, "training", name) for rows in own]) for step in steps]
            cells.append(", ".join(f"{mean:.{digits}f}" for mean in means))
        text.append(f"| {setting} | {model} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(text)


def phases(runs):
    """From EARLY to the first of LATE, and from there to the last, at guidance 7.5: a fall, and a recovery?

    Asked after the first six runs of each setting had been seen, in which fidelity was lowest at the first of LATE.
    """
    first, last = LATE[0], LATE[-1]
    text = [
        f"| setting | pretrained | runs | prompts | fidelity, {EARLY} → {first} | {first} → {last} "
        f"| noise, {EARLY} → {first} | {first} → {last} | tint, {EARLY} → {first} | {first} → {last} |",
        "|" + "---|" * 10,
    ]
    for setting, model in settings_of(runs):
        own = of(runs, setting, model)
        for group in ("training", "other"):
            cells = []
            for name, digits in (("fidelity", 3), ("noise", 1), ("tint", 3)):
                for begin, end in ((EARLY, first), (first, last)):
                    moved = {run: at(rows, end, MAIN, group, name) - at(rows, begin, MAIN, group, name)
                             for run, rows in own.items()}
                    cells.append(words(over_seeds(moved), digits))
            text.append(f"| {setting} | {model} | {len(own)} | {group} | {' | '.join(cells)} |")
    return "\n".join(text)


def best(rows):
    """(fidelity, step) of the look with the highest fidelity at guidance 7.5, the best that a stop could reach."""
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


def difference(pairs, group, name, digits=3, view=MAIN):
    """In words: the first of each pair of runs minus the second, mean over LATE, at guidance 7.5 or as `view` draws.

    pairs: {(subject, seed): two runs}.
    """
    found = {run: late(one, view, group, name) - late(other, view, group, name) for run, (one, other) in pairs.items()}
    return words(over_seeds(found), digits)


def cures(runs):
    """Every setting minus the one beside it, paired by subject and seed, over LATE: at guidance 7.5, and at 3 and 1."""
    text = [
        "| setting | pretrained | runs | fidelity | noise | at equal loss: fidelity | noise "
        "| best look: fidelity | other prompts: fidelity | their noise | spread | loss (the other's) "
        + "".join(f"| at guidance {view.guidance:g}: fidelity | noise " for view in SIDE_VIEWS) + "|",
        "|" + "---|" * (12 + 2 * len(SIDE_VIEWS)),
    ]
    for setting, model in settings_of(runs):
        beside = SETTINGS[setting].beside
        if beside is None:
            continue
        own, other = of(runs, setting, model), of(runs, beside, model)
        common = sorted(own.keys() & other.keys())
        if not common:
            continue
        pairs = {run: (own[run], other[run]) for run in common}
        cells = [difference(pairs, "training", "fidelity"), difference(pairs, "training", "noise", 1)]
        matched = {run: equal_loss(b, loss_late(a)) for run, (a, b) in pairs.items()}
        for number, (name, digits) in enumerate((("fidelity", 3), ("noise", 1))):
            found = {run: late(own[run], MAIN, "training", name) - matched[run][number] for run in common}
            cells.append(words(over_seeds(found), digits))
        cells.append(words(over_seeds({run: best(a)[0] - best(b)[0] for run, (a, b) in pairs.items()})))
        cells += [difference(pairs, "other", "fidelity"), difference(pairs, "other", "noise", 1)]
        cells.append(difference(pairs, "other", "spread"))
        losses = [np.mean([loss_late(rows) for rows in side]) for side in zip(*pairs.values(), strict=True)]
        cells.append(f"{losses[0]:.4f} ({losses[1]:.4f})")
        for view in SIDE_VIEWS:
            cells.append(difference(pairs, "training", "fidelity", view=view))
            cells.append(difference(pairs, "training", "noise", 1, view))
        text.append(f"| {setting} − {beside} | {model} | {len(common)} | {' | '.join(cells)} |")
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
    """The same last weights drawn in other ways: minus the main view, and minus plain runs in the main view, paired."""
    text = [
        "| weights | pretrained | runs | drawn with | fidelity | noise | fidelity − main | noise − main "
        "| fidelity − plain | noise − plain |",
        "|" + "---|" * 10,
    ]
    for setting, model in settings_of(runs):
        own, last = of(runs, setting, model), SETTINGS[setting].looks[-1]
        for view in views_at(last, last):
            cells, moved = [], []
            for name, digits in (("fidelity", 3), ("noise", 1)):
                values = {run: at(rows, last, view, "training", name) for run, rows in own.items()}
                beyond_main = {run: values[run] - at(rows, last, MAIN, "training", name) for run, rows in own.items()}
                cells.append(f"{np.mean(list(values.values())):.{digits}f}")
                moved.append("" if view == MAIN else words(over_seeds(beyond_main), digits))
            beyond = [cure(runs, setting, model, view, name) for name in ("fidelity", "noise")]
            moved += [words(found, digits) if found else "" for found, digits in zip(beyond, (3, 1), strict=True)]
            text.append(f"| {setting} | {model} | {len(own)} | {view.name} | {' | '.join(cells + moved)} |")
    return "\n".join(text)


def cure(runs, setting, model, view, name):
    """How far a measure of the last weights, drawn as `view` does, lies above that of plain runs in the main view.

    (mean, low, high), paired by subject and seed; None for plain runs in that view, without a plain run beside them, or
    where the picture that was learned is another.
    """
    own, plain, last = of(runs, setting, model), of(runs, "plain", model), SETTINGS[setting].looks[-1]
    both = sorted(own.keys() & plain.keys())
    if not both or (setting == "plain" and view == MAIN) or SETTINGS[setting].flat:
        return None
    return over_seeds({run: at(own[run], last, view, "training", name)
                       - at(plain[run], SETTINGS["plain"].looks[-1], MAIN, "training", name) for run in both})
