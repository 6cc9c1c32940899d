"""The gain law against the runs of the stage experiment: the noise that gains predict, and that which was measured.

`gain_law.py` derives what a sampler leaves from the mean gains of a network around its picture. Here it is asked of
every look of every run. Follows: the tables and the plot of `report.py`.
"""

import math

import numpy as np

from ...lab import gain_law, plot
from ...lab.gains import guided_gain
from ...lab.intervals import require_scipy
from ...schedule import alphas_cumprod, timesteps
from .settings import EARLY, SETTINGS, views_at

FAMILIES = {  # of settings, which share a colour in gain_law.png: the first of these options that a setting has
    "prior_weight": "class pictures", "noise_offset": "noise offset", "null_dropout": "empty prompt",
    "bayes": "weight noise alone",
}
PLOTTED = ("ddim-20-g7.5", "ddim-20-g3", "ddim-20-g1", "ddim-20-g7.5-eta1")  # the panels of gain_law.png
GREY = 1 / math.sqrt(3)  # noise_level is that of the mean of three colours


def guided(row, guidance):
    """Guided gains of a line at the measured times; guidance 1 gives c, and 0 gives u."""
    return [guided_gain(c, u, guidance) for c, u in zip(row["c"], row["u"], strict=True)]


def law_points(runs):
    """[(predicted, measured, step, view, setting)] of all looks and views whose gains are those of the drawn weights.

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
            points.append((predicted, row["noise"] / 100 / GREY, row["step"], view, row["setting"]))
    return points


def perfect():
    """The noise that perfect gains leave in 20 steps of DDIM."""
    return gain_law.noise_left([1.0] * 20, timesteps(20), alphas_cumprod())


def agreement(points):
    """(R² of the law itself, R² of the best line, rank correlation, n) of (predicted, measured, …).

    The first three are NaN for fewer than three points, as in the last views of a single run, or where nothing differs.
    """
    stats = require_scipy()
    predicted, measured = np.array([p[:2] for p in points]).T
    if len(points) < 3 or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return math.nan, math.nan, math.nan, len(points)
    total = ((measured - measured.mean()) ** 2).sum()
    above = predicted - perfect()
    line = np.polyval(np.polyfit(predicted, measured, 1), predicted)
    return (1 - ((measured - above) ** 2).sum() / total, 1 - ((measured - line) ** 2).sum() / total,
            float(stats.spearmanr(predicted, measured).statistic), len(points))


def family(setting):
    """To which of FAMILIES a setting belongs, or "plain"."""
    return next((name for option, name in FAMILIES.items() if SETTINGS[setting].options.get(option)), "plain")


def law_plot(runs):
    """Measured against predicted noise: a panel for each way of drawing, a point for each look, a colour for a family.

    The line is what the law says.
    """
    points, panels, floor = law_points(runs), [], perfect()
    families = list(dict.fromkeys(family(name) for name in SETTINGS if any(point[4] == name for point in points)))
    for drawn in PLOTTED:
        own = [point for point in points if point[3].name == drawn]
        if not own:
            continue
        ends = [min(p[0] for p in own), max(p[0] for p in own)]
        lines = [plot.Line("the law", ends, [end - floor for end in ends], colour="#222222")]
        for name, colour in zip(families, plot.COLOURS, strict=False):
            x, y = zip(*[p[:2] for p in own if family(p[4]) == name] or [((), ())], strict=True)
            lines.append(plot.Line(name, list(x), list(y), colour=colour, joined=False))
        explained = agreement(own)[0]
        title = f"noise, {drawn}" + ("" if math.isnan(explained) else f"; R² of the law {explained:.2f}")
        panels.append(plot.Panel(title, lines, "predicted from the mean gains"))
    return plot.chart(panels)


def law(runs):
    """The agreement of the law in one table: all views, and each view alone."""
    points = law_points(runs)
    text = [
        "| drawn with | looks | mean predicted | mean measured | R² of the law | R² of a line | rank correlation |",
        "|" + "---|" * 7,
    ]
    names = dict.fromkeys(p[3].name for p in points)
    for label, chosen in [("all", points), *((name, [p for p in points if p[3].name == name]) for name in names)]:
        *agreed, n = agreement(chosen)
        predicted, measured = np.mean([p[:2] for p in chosen], axis=0)
        own, line, rank = ("" if math.isnan(value) else f"{value:.2f}" for value in agreed)
        text.append(f"| {label} | {n} | {predicted:.3f} | {measured:.3f} | {own} | {line} | {rank} |")
    return "\n".join(text)
