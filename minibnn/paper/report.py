"""The paper's tables and figures from what is on disk: JSON, CSV, Markdown, pictures and a web page.

    OUT/report.html          all of it to look at, in one file; OUT/report.md: to read
    OUT/tables/ITEM.json     rows, with − without, what diverged or failed, and for table1 the cases of App. I
    OUT/tables/ITEM.csv      the rows alone
    OUT/tables/costs.json    of table3: share of parameters, memory and time, which are not the same twice
    OUT/figures/ITEM.png     curves of the figures; ITEM-CASE.png: the best, average and worst pictures

Any process may write it at any time: it says how much is there.
"""

import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import version

from .. import __version__
from ..files.failures import Failures
from ..files.store import write_json, write_text
from ..lab import plot, sheets
from ..pictures import save_png
from . import deviations, tables, web
from .kept import failures_folder
from .pictures import case_pictures, panels
from .plan import ITEMS
from .statements import statements

CURVES = {"fig2": ("fidelity",), "fig7": ("fidelity", "quality"), "fig8": ("fidelity", "quality"),
          "fig9": ("fidelity", "quality", "diversity")}


@dataclass(frozen=True)
class Contents:
    """What a report says, by item: what was collected, rows, with − without; and beside them the rest."""

    found: dict
    rows: dict
    pairs: dict
    said: list
    costs: list
    drawn: dict  # {item: measures of which there are curves}
    failed: dict  # {item: {name of a run: why it failed}}


def gather(bench, cells):
    """The Contents of a report on these cells. Raises UserError for damaged files."""
    items = [item for item in ITEMS if any(cell.item == item for cell in cells)]
    found = {item: tables.collect(bench, [cell for cell in cells if cell.item == item]) for item in items}
    rows = {item: tables.rows_of(item, each) for item, each in found.items()}
    pairs = {item: tables.differences(item, each) for item, each in found.items()}
    costs = tables.cost_rows(bench, found["table3"]) if "table3" in found else []
    drawn = {}
    for item, roles in CURVES.items():
        measures = {line["measure"] for line in rows.get(item, ())}
        drawn[item] = [name for name in (tables.by_role(measures, role) for role in roles) if name]
    noted = Failures(failures_folder(bench)).noted()
    failed = {item: tables.failed(bench, each, noted) for item, each in found.items()}
    return Contents(found, rows, pairs, statements(rows, pairs), costs, drawn, failed)


def report(bench, cells):
    """Write all of it; returns the names of the items. Raises UserError for damaged files."""
    contents = gather(bench, cells)
    for item, found in contents.found.items():
        whole = {"rows": contents.rows[item], "with − without": contents.pairs[item],
                 "diverged": tables.diverged(bench, found), "failed": contents.failed[item]}
        if item == "table1":
            whole["cases"] = tables.case_rows(found)
        write_json(bench.out / "tables" / f"{item}.json", whole)
        write_text(bench.out / "tables" / f"{item}.csv", tables.csv_text(contents.rows[item]))
    write_json(bench.out / "tables" / "statements.json", {"statements": contents.said})
    write_json(bench.out / "tables" / "costs.json", {"rows": contents.costs})
    write_text(bench.out / "report.md", markdown(bench, contents, draw(bench, contents)))
    web.write(bench, contents)
    return list(contents.found)


def draw(bench, contents):
    """Draw what can be drawn; returns {item: names of its files in OUT/figures}."""
    drawn, folder = {}, bench.out / "figures"
    for item, names in contents.drawn.items():
        if names:
            curves = [panel for name in names for panel in panels(item, contents.rows[item], name)]
            save_png(plot.chart(curves), folder / f"{item}.png", optimize=True)
            drawn[item] = [f"{item}.png"]
    for item, cases in web.CASES.items():
        for case in cases:
            pictures, labels, names = case_pictures(bench, contents.found.get(item, ()), case)
            if names:
                save_png(sheets.sheet(pictures, labels, names), folder / f"{item}-{case}.png", optimize=True)
                drawn.setdefault(item, []).append(f"{item}-{case}.png")
    return drawn


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(bench, contents, figures):
    """The whole report in Markdown. figures: {item: names of files}."""
    words = [f"# {'The twins of the paper' if bench.tiny else 'The paper'} by minibnn {__version__}\n", command(bench)]
    for item, found in contents.found.items():
        rows, pairs = contents.rows[item], contents.pairs[item]
        words += [f"## {tables.TITLES[item]}\n", tables.markdown(rows) if rows else "Nothing is measured yet.\n"]
        if pairs:
            words.append(tables.markdown_differences(pairs))
        if item == "table1" and rows:
            cases = tables.case_rows(found)
            for case in tables.ALL_CASES:
                own = [line for line in cases if line["case"] == case]
                words += [f"### The {case} picture of each run (App. I)\n", tables.markdown(own)]
        if item == "table3" and contents.costs:
            words.append(costs_markdown(contents.costs))
        if lost := tables.diverged(bench, found):
            words.append(f"Diverged, and left out above: {', '.join(lost)}.\n")
        if failed := contents.failed[item]:
            reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
            words.append(f"Failed, and left out above: {reasons}.\n")
        words += [f"![{tables.TITLES[item]}](figures/{name})\n" for name in figures.get(item, ())]
    words += ["## What the paper says of it\n", "| item | the paper says | found | figures |\n|---|---|---|---|\n"]
    words[-1] += "".join(f"| {s['item']} | {s['says']} | {s['verdict']} | {s['figures']} |\n" for s in contents.said)
    words += ["## Differences\n", deviations.markdown()]
    words += ["## How\n", f"{tables.__doc__.partition(chr(10) * 2)[2].strip()}\n"]
    return "\n".join(words)


def command(bench):
    """How the runs were made."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pillow"))
    called = shlex.join(["python", "-m", "minibnn", *sys.argv[1:]])
    return f"```\n{called}\n```\n\n`--as {bench.study.source}`, {bench.dtype}; {packages}.\n"


def costs_markdown(costs):
    """Table 3's share of parameters, memory and time."""
    text = ["| BNN in | random parameters | the paper says | trained, GB | peak, GB | minutes | on |",
            "|---" * 7 + "|"]
    for line in costs:
        peak = "–" if line["peak GB"] is None else f"{line['peak GB']:.2f}"
        text.append(f"| {line['row']} | {line['random parameters']:.3%} | {line['printed'] or '–'} "
                    f"| {line['trained GB']:.3g} | {peak} | {line['minutes']:.2f} | {line['device']} |")
    return "\n".join(text) + "\n"
