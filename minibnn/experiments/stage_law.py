"""The gain law against the runs of the stage experiment: the noise that gains foretell, and that which was measured.

`gain_law.py` derives what a sampler leaves from the mean gains of a network around its picture. Here it is asked of
every look of every run. Follows: the tables and the plot of `stage_report.py`.
"""

import math

import numpy as np
import torch

from ..lab import gain_law, plot
from ..lab.gains import guided_gain
from ..lab.intervals import require_scipy
from ..schedule import alphas_cumprod
from .stage_settings import EARLY, views_at

GREY = 1 / math.sqrt(3)  # noise_level is that of the mean of three colours


def guided(row, guidance):
    """Guided gains of a line at the measured times; guidance 1 gives c, and 0 gives u."""
    return [guided_gain(c, u, guidance) for c, u in zip(row["c"], row["u"], strict=True)]


def law_points(runs):
    """[(predicted, measured, step, view)] of all runs, looks and views whose gains are those of the drawn weights.

    The first two are standard deviations of noise in the pixels of a picture, in [-1, 1]; measured is that above the
    true one.
    """
    abar, points = alphas_cumprod(), []
    by_name = {view.name: view for view in views_at(EARLY, EARLY)}
    for rows in runs.values():
        for row in rows:
            view = by_name.get(row["view"])
            if view is None or view.average or view.base or row["group"] != "training" or not row["step"]:
                continue
            predicted = gain_law.predicted_noise(
                row["times"], guided(row, view.guidance), abar, view.steps, view.eta, view.sampler
            )
            points.append((predicted, row["noise"] / 100 / GREY, row["step"], view))
    return points


def agreement(points):
    """(R² of the law itself, R² of the best line, rank correlation, n) of (predicted, measured, …)."""
    stats = require_scipy()
    predicted, measured = np.array([p[:2] for p in points]).T
    total = ((measured - measured.mean()) ** 2).sum()
    floor = predicted - gain_law.noise_left([1.0] * 20, torch.arange(951, 0, -50), alphas_cumprod())
    line = np.polyval(np.polyfit(predicted, measured, 1), predicted)
    return (1 - ((measured - floor) ** 2).sum() / total, 1 - ((measured - line) ** 2).sum() / total,
            float(stats.spearmanr(predicted, measured).statistic), len(points))


def law_plot(runs):
    """Foretold against measured noise, a colour for each way of drawing, in ten groups of equally many looks each."""
    points, lines = law_points(runs), []
    for name in dict.fromkeys(p[3].name for p in points):
        own = sorted((p[0], p[1]) for p in points if p[3].name == name)
        groups = [np.mean(group, axis=0) for group in np.array_split(np.array(own), min(10, len(own)))]
        lines.append(plot.Line(name, [g[0] for g in groups], [g[1] for g in groups]))
    panel = plot.Panel("noise of the pictures against the noise foretold", lines, "foretold from the gains")
    return plot.chart([panel], 1)


def law(runs):
    """The agreement of the law in one table: all views, and each view alone."""
    points = law_points(runs)
    text = [
        "| drawn with | looks | mean foretold | mean measured | R² of the law | R² of a line | rank correlation |",
        "|" + "---|" * 7,
    ]
    names = dict.fromkeys(p[3].name for p in points)
    for label, chosen in [("all", points), *((name, [p for p in points if p[3].name == name]) for name in names)]:
        own, line, rank, n = agreement(chosen)
        foretold, measured = np.mean([p[:2] for p in chosen], axis=0)
        text.append(f"| {label} | {n} | {foretold:.3f} | {measured:.3f} | {own:.2f} | {line:.2f} | {rank:.2f} |")
    return "\n".join(text)
