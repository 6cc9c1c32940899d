"""The report as a web page of one file: tables with intervals, curves, pictures at each step, the best and worst."""

import shlex
import sys

from .. import __version__
from ..page import html, svg
from . import deviations, tables
from .kept import measures_of
from .pictures import case_pictures, opened, panels

PER_STEP = ("fig2", "fig7")  # figures whose pictures are shown at each step
CASES = {"table1": ("best", "average"), "fig13": ("worst",)}


def write(bench, contents):
    """Write OUT/report.html. contents: `report.Contents`."""
    parts = [
        html.command(shlex.join(["python", "-m", "minibnn", *sys.argv[1:]])),
        html.paragraph(f"minibnn {__version__}, --as {bench.study.source}, {bench.dtype}. {about()}"),
    ]
    parts += [html.section(tables.TITLES[item], *of_item(bench, contents, item)) for item in contents.found]
    said = [[line["says"], line["item"], line["verdict"], line["figures"]] for line in contents.said]
    head = ["the paper says", "of", "found", "figures"]
    parts.append(html.section("What the paper says of it", html.table(head, said)))
    head = ["point", "the paper's text", "the authors' scripts", "here"]
    parts.append(html.section("Differences", html.table(head, [list(row) for row in deviations.DEVIATIONS])))
    title = f"The {'twins of the paper' if bench.tiny else 'paper'}, reproduced"
    html.write_page(bench.out / "report.html", title, parts)


def about():
    """What the numbers are."""
    return ("Numbers are means over subjects and seeds ± the standard deviation of the seeds' means. With − without "
            "BNN has 95 % t-intervals, over the subjects where there are several, else over the seeds; those in bold "
            "exclude 0.")


def of_item(bench, contents, item):
    """What the page shows of a table or figure."""
    rows, pairs, found = contents.rows[item], contents.pairs[item], contents.found[item]
    if not rows:
        return [html.paragraph("Nothing is measured yet."), *failures(contents.failed[item])]
    parts = [table(rows, "runs", counted, valued)]
    if pairs:
        parts.append(table(pairs, "interval over", lambda cell: cell["over"], difference))
    drawn = [panel for name in contents.drawn.get(item, ()) for panel in panels(item, rows, name)]
    parts += [svg.charts(drawn)] if drawn else []
    if item in PER_STEP:
        parts += per_step(bench, found)
    for case in CASES.get(item, ()):
        places, labels, names = case_pictures(bench, found, case)
        if names:
            parts += [html.paragraph(f"The {case} picture of each run, first seed:"),
                      html.picture_table(places, labels, names)]
    if item == "table1":
        cases = tables.case_rows(found)
        own = {case: [line for line in cases if line["case"] == case] for case in tables.ALL_CASES}
        shown = [table(lines, "runs", counted, valued, case) for case, lines in own.items()]
        parts.append(html.details("Best, average and worst pictures in numbers (App. I)", *shown))
    if item == "table3" and contents.costs:
        parts.append(costs(contents.costs))
    if lost := tables.diverged(bench, found):
        parts.append(html.paragraph(f"Diverged, and left out: {', '.join(lost)}."))
    return parts + failures(contents.failed[item])


def failures(failed):
    """The runs that failed, if there are any: {name: why}."""
    return [html.table(["failed, and left out", "why"], [list(row) for row in failed.items()])] if failed else []


def table(lines, last, of_place, of_cell, caption=None):
    """A table of `tables.pivoted` lines; of_place, of_cell: line -> what stands in the last and in each other cell."""
    measures, rows = tables.pivoted(lines)
    body = [[row, tables.label(column), *map(of_cell, cells), of_place(cells[0])] for row, column, cells in rows]
    return html.table(["", "", *measures, last], body, caption)


def valued(cell):
    """A mean with its deviation."""
    return tables.number(cell["mean"], cell["deviation"])


def counted(cell):
    """How many of the runs are there."""
    return f"{cell['runs']} of {cell['of']}"


def difference(cell):
    """A difference with its interval; bold where that excludes 0."""
    text = tables.difference(cell)
    return html.element("b", text.strip("*")) if text.startswith("**") else text


def costs(lines):
    """Table 3's share of parameters, memory and time."""
    rows = [[line["row"], f"{line['random parameters']:.3%}", line["printed"], line["trained GB"], line["peak GB"],
             line["minutes"], line["device"]] for line in lines]
    head = ["BNN in", "random parameters", "the paper says", "trained, GB", "peak, GB", "minutes", "on"]
    return html.table(head, rows, "memory and time, without drawing")


def per_step(bench, found):
    """The same picture at each step: a row for each row of the figure; first subject and first seed."""
    first = next((cell.run for cell, values, _ in found if values is not None), None)
    if first is None:
        return []
    places = {}
    for cell, values, _ in found:
        if values is not None and (cell.run.subject, cell.run.seed) == (first.subject, first.seed):
            places.setdefault(cell.row, {})[cell.column] = measures_of(bench, cell.run, cell.steps)
    columns = sorted({column for of_row in places.values() for column in of_row})
    pictures = [[picture_of(of_row.get(column)) for column in columns] for of_row in places.values()]
    prompt = f"One prompt, the same noise, at each number of steps a picture ({first.subject.name}, seed {first.seed}):"
    return [html.paragraph(prompt), html.picture_table(pictures, list(places), [f"{column:g}" for column in columns])]


def picture_of(path):
    """The first picture of a checkpoint, or where pictures are not kept its average one; None where there is none."""
    names = ("00-0.png", "average.png") if path else ()
    return next((opened(path.with_name(name)) for name in names if path.with_name(name).exists()), None)
