"""What `trainings.py` found: tables, curves, and whether the corrector network was worth its training.

A row is one measurement: {"what", "n", "corrector steps", "FLOPs", "distance", "seed", …}; some may be missing.
"""

import math

import numpy as np

from ...lab.intervals import in_words, interval, verdict
from ...lab.plot import Line, Panel, chart


def tables(result):
    """{data: its `table`} of all that has been measured: {"plane": {data: rows of each seed}, "world": rows}."""
    found = {name: table([row for seed in seeds for row in seed]) for name, seeds in result.get("plane", {}).items()}
    return found | ({"world": table(result["world"])} if "world" in result else {})


def table(rows):
    """[{what, n, corrector steps, mean, standard deviation over seeds, MFLOPs}] of rows of several seeds."""
    groups = {}
    for row in rows:
        if "distance" in row:
            key = row["what"], row.get("n"), row.get("corrector steps"), row.get("FLOPs")
            groups.setdefault(key, []).append(row["distance"])
    result = []
    for (what, n, k, cost), values in groups.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        result.append({"what": what, "n": n, "corrector steps": k, "MFLOPs": cost and cost / 1e6,
                       "distance": float(np.mean(values)), "±": spread, "seeds": len(values)})
    return result


def by_seed(seeds, what, n, k=None):
    """The distances of one row in the lists of rows of several seeds; None for seeds that lack it."""
    def has(row):
        return (row["what"], row.get("n"), row.get("corrector steps")) == (what, n, k)

    return [next((row["distance"] for row in rows if has(row)), None) for rows in seeds]


def contests(plane_seeds, world):
    """[(data, n, what is compared, mean, low, high, seeds)]: paired differences to 20 steps of the corrector network.

    Positive: the network is better. plane_seeds: {data: rows of each seed}; world: its rows, in which a seed stands.
    """
    groups, found = dict(plane_seeds), []
    if world:
        seeds = sorted({row["seed"] for row in world if "seed" in row})
        groups["world"] = [[row for row in world if row.get("seed") == seed] for seed in seeds]
    for name, seeds in groups.items():
        for n in sorted({row["n"] for rows in seeds for row in rows if row["what"] == "corrected"}):
            network = by_seed(seeds, "corrected", n, 20)
            for what in ("gaussian", "scaled", "flow trained on", "flow"):
                other = by_seed(seeds, what, 2 * n if what == "flow" else n)
                pairs = [(a, b) for a, b in zip(other, network, strict=True) if None not in (a, b)]
                if pairs:
                    label = f"flow with {2 * n} steps" if what == "flow" else what
                    found.append((name, n, label, *interval([a - b for a, b in pairs]), len(pairs)))
    return found


def curves(tables):
    """The logarithm of the distance ± its deviation against FLOPs, a panel for each data set: a PIL picture."""
    panels = []
    for name, rows in tables.items():
        groups = {}
        for row in rows:
            if row["what"] in ("flow", "corrected", "gaussian"):
                label = row["what"] if row["what"] == "flow" else f"{row['what']}, n = {row['n']:2}"
                cost, mean, spread = float(f"{row['MFLOPs']:.3g}"), row["distance"], row["±"]
                heights = [math.log10(y) if y > 0 else None for y in (mean, mean - spread, mean + spread)]
                groups.setdefault(label, []).append((cost, *heights))
        order = sorted(groups, key=lambda label: (label != "flow", label))  # one colour each in the plane
        lines = [Line(label, *map(list, zip(*sorted(groups[label]), strict=True))) for label in order]
        panels.append(Panel(f"{name}: log10 of the energy distance", lines, "MFLOPs for one sample", stretch=1e-3))
    return chart(panels, len(panels))


def report(result):
    """Print the tables and the verdicts; result: what is in the experiment's file."""
    for name, rows in result["tables"].items():
        for row in rows:
            print(f"{name:6s} {row['what']:24s} n {row['n'] or '':4} corrector {row['corrector steps'] or '':4} "
                  f"MFLOPs {row['MFLOPs'] or 0:9.3f}  distance {row['distance']:.4f} ± {row['±']:.4f} ({row['seeds']})")
    print("paired differences of the distance to 20 steps of the corrector; above 0: the network is better")
    for name, n, what, middle, low, high, count in contests(result.get("plane", {}), result.get("world", [])):
        said = verdict(low, high, "network better", "network worse")
        print(f"{name:8s} n {n:2}  {what} − corrected: {in_words(middle, low, high, 4)} ({count}) {said}")
