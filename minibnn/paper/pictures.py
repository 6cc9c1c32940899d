"""Curves of the figures, and the best, average and worst pictures of runs."""

from PIL import Image

from ..lab import plot
from .kept import measures_of

THUMBNAIL = 192  # pixels
COLUMNS = 10  # subjects that a sheet shows, as many of each data set


def panels(item, lines, measure):
    """The plot.Panels of a measure: one, or for fig9 one for σ₀ and one for λ, whose points lie at equal distances."""
    own = [line for line in lines if line["measure"] == measure and line["mean"] is not None]
    groups = [[line for line in own if line["row"] == row] for row in ("sigma", "lambda")] if item == "fig9" else [own]
    for group in groups:
        curves = []
        for row in dict.fromkeys(line["row"] for line in group):
            of_row = [line for line in group if line["row"] == row]
            points = sorted((line["column"], line["mean"], line["deviation"] or 0) for line in of_row)
            x, y, spread = (list(values) for values in zip(*points, strict=True))
            low, high = ([m + sign * d for m, d in zip(y, spread, strict=True)] for sign in (-1, 1))
            curves.append(plot.Line(row, list(range(len(x))) if item == "fig9" else x, y, low, high))
        if curves:
            columns = sorted({line["column"] for line in group})
            numbered = ", ".join(f"{i}: {column:g}" for i, column in enumerate(columns))
            x_label = {"fig8": "pictures", "fig9": numbered}.get(item, "steps a picture")
            yield plot.Panel(measure, curves, x_label=x_label)


def case_pictures(bench, found, case):
    """(rows of PIL pictures or None, labels of the rows, names of the subjects) of a case, at the first seed."""
    places = {}
    for cell, values, _ in found:
        path = measures_of(bench, cell.run, cell.steps).with_name(f"{case}.png")
        if values is not None and path.exists():
            places.setdefault(cell.row, {}).setdefault((cell.run.subject.data, cell.run.subject.name), path)
    known = list(dict.fromkeys(key for of_row in places.values() for key in of_row))
    sets = list(dict.fromkeys(data for data, _ in known))
    subjects = [key for data in sets for key in [each for each in known if each[0] == data][: COLUMNS // len(sets)]]
    pictures = [[opened(of_row[key]) if key in of_row else None for key in subjects] for of_row in places.values()]
    return pictures, list(places), [name for _, name in subjects]


def opened(path):
    """A picture of at most THUMBNAIL pixels a side."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return picture
