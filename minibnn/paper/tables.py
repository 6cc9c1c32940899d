"""From the measures on disk to the paper's tables, with what they say and how sure that is.

A place of a table is a mean over its subjects and seeds, ± a standard deviation: that of the seeds' means over all
subjects (as in the paper's Table 6, whose caption does not say over what; n − 1 in the denominator), none for a single
seed. What is not there yet, or diverged, is counted and not guessed.

"With − without" pairs a run with BNN with the one that differs in that alone. Its interval, a two-sided 95 % t-interval
of the mean, is over the subjects where there are several, and over the seeds where there is one subject.
"""

import csv
import io
import statistics
from collections import defaultdict
from dataclasses import replace

from ..errors import UserError
from ..lab.intervals import bold, interval
from .judges import PHOTO, ROLES, WORLD
from .kept import folder_of, is_done, measures_of, read_costs, read_measures
from .perform import class_folder, class_task, has_prior
from .plan import trainings

TITLES = {
    "table1": "Table 1: methods", "table2": "Table 2: pretrained models", "table3": "Table 3: where to apply BNNs",
    "fig2": "Figure 2: fidelity by the number of training pictures, without BNN",
    "fig7": "Figure 7: steps per picture", "fig8": "Figure 8: number of training pictures",
    "fig9": "Figure 9: σ₀ and λ", "fig13": "Figure 13: the worst pictures",
}
ALL_CASES = ("best", "average", "worst")  # of App. I
PRINTED = {"up": "about 13.8 %", "norm": "about 0.02 %"}  # random shares that the paper's text gives for its Table 3


def collect(bench, cells):
    """[(cell, values {measure: mean over the pictures}, cases {case: {measure: value}})]; None where there are none."""
    found, known = [], {}
    for cell in cells:
        path = measures_of(bench, cell.run, cell.steps)
        if path not in known:
            known[path] = summary_of(path) if path.exists() else (None, None)
        found.append((cell, *known[path]))
    return found


def summary_of(path):
    """(mean of each measure, each case's value of each measure) of a file of `measures_of`."""
    held = read_measures(path)
    values = held["values"]
    if wrong := [name for name, each in values.items() if len(each) != len(held["prompts"])]:
        raise UserError(f"{path}: {wrong[0]} has {len(values[wrong[0]])} values for {len(held['prompts'])} pictures; "
                        "delete its folder and run the command again")
    chosen = {case: {name: each[i] for name, each in values.items()} for case, i in held["cases"].items()}
    return {name: statistics.fmean(each) for name, each in values.items()}, chosen


def measures_there(found):
    """The measures of which there are values, in the order of the paper."""
    there = {name for _, values, _ in found if values for name in values}
    return [name for name in (*PHOTO, *WORLD) if name in there]


def places(found):
    """{(row, column): [(run, values)]} of what `collect` found for one item, in its order; values may be None."""
    table = defaultdict(list)
    for cell, values, _ in found:
        table[cell.row, cell.column].append((cell.run, values))
    return dict(table)


def mean_and_deviation(runs, name):
    """(mean, standard deviation or None, number of runs) of a measure over [(run, values)]; (None, None, 0) of none.

    Each seed's mean over its subjects counts alike.
    """
    of_seed = defaultdict(list)
    for run, values in runs:
        if values is not None:
            of_seed[run.seed].append(values[name])
    if not of_seed:
        return None, None, 0
    means = [statistics.fmean(values) for values in of_seed.values()]
    deviation = statistics.stdev(means) if len(means) > 1 else None
    return statistics.fmean(means), deviation, sum(map(len, of_seed.values()))


def rows_of(item, found):
    """The table of an item as a list of flat dicts: item, row, column, measure, mean, deviation, runs, of."""
    lines = []
    for (row, column), runs in places(found).items():
        for name in measures_there(found):
            mean, deviation, count = mean_and_deviation(runs, name)
            lines.append({"item": item, "row": row, "column": column, "measure": name, "mean": mean,
                          "deviation": deviation, "runs": count, "of": len(runs)})
    return lines


# --- with − without ---------------------------------------------------------------------------------------------------


def without(run):
    """The run that differs from this one only in having no BNN."""
    plain = {"bayes": False, "where": "default", "lambda_kl": 0.0}
    return replace(run, **plain, sigma=type(run).sigma)


def differences(item, found):
    """With − without, as a list of dicts: item, row, column, measure, difference, low, high, over."""
    known = {(cell.run, cell.steps): values for cell, values, _ in found if values is not None}
    pairs = defaultdict(list)
    for cell, values, _ in found:
        plain = known.get((without(cell.run), cell.steps))
        if cell.run.bayes and values is not None and plain is not None:
            pairs[cell.row, cell.column].append((cell.run, values, plain))
    lines = []
    for (row, column), of_place in pairs.items():
        by_subject = len({run.subject for run, _, _ in of_place}) > 1
        for name in measures_there(found):
            groups = defaultdict(list)
            for run, values, plain in of_place:
                groups[run.subject if by_subject else run.seed].append(values[name] - plain[name])
            mean, low, high = interval([statistics.fmean(each) for each in groups.values()])
            one = len(groups) == 1
            lines.append({
                "item": item, "row": row, "column": column, "measure": name, "difference": mean,
                "low": None if one else low, "high": None if one else high,
                "over": f"{len(groups)} {'subject' if by_subject else 'seed'}{'s' * (not one)}",
            })
    return lines


# --- cases and costs --------------------------------------------------------------------------------------------------


def case_rows(found):
    """App. I: the measures of the best, average and worst picture of each run, as `rows_of` with a "case" each."""
    lines = []
    for case in ALL_CASES:
        of_case = [(cell, chosen and chosen[case], None) for cell, _, chosen in found]
        lines += [line | {"case": case} for line in rows_of("cases", of_case)]
    return lines


def cost_rows(bench, found):
    """What training cost, by row: means over its runs; empty where there are none."""
    by_row = defaultdict(list)
    for cell, _, _ in found:
        path = bench.out / "costs" / f"{cell.run.name}.json"
        if path.exists():
            by_row[cell.row].append((cell.steps, read_costs(path)))
    lines = []
    for row, costs in by_row.items():
        peaks = [each["peak bytes"] for _, each in costs if each["peak bytes"]]
        lines.append({
            "row": row, "random parameters": statistics.fmean(each["random share"] for _, each in costs),
            "trained GB": statistics.fmean(each["trained bytes"] for _, each in costs) / 1e9,
            "peak GB": max(peaks) / 1e9 if peaks else None,
            "minutes": statistics.fmean(steps * each["seconds of a step"] for steps, each in costs) / 60,
            "device": costs[0][1]["device"], "printed": PRINTED.get(row),
        })
    return lines


def diverged(bench, found):
    """The names of the runs whose loss became NaN or infinite."""
    runs = dict.fromkeys(cell.run for cell, _, _ in found)
    return [run.name for run in runs if (folder_of(bench, run) / "diverged.json").exists()]


def failed(bench, found, noted):
    """{name of a run that failed: why}. noted: of `Failures`; a run fails with the class pictures that it needs."""
    why = {}
    steps = trainings([cell for cell, _, _ in found])
    for run in (run for run in steps if not is_done(bench, run, steps[run])):
        pictures = noted.get(class_task(class_folder(bench, run))) if has_prior(bench, run) else None
        if run.name in noted:
            why[run.name] = noted[run.name]["why"]
        elif pictures:
            why[run.name] = f"its class pictures: {pictures['why']}"
    return why


# --- text -------------------------------------------------------------------------------------------------------------


def number(value, deviation=None):
    """A number of a table: "0.6412 ± 0.0031"; "–" for none."""
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def pivoted(lines):
    """(measures, rows) of what `rows_of` gives; rows: [(row, column, [a cell for each measure])]."""
    measures = list(dict.fromkeys(line["measure"] for line in lines))
    cells = {(line["row"], line["column"], line["measure"]): line for line in lines}
    keys = dict.fromkeys((line["row"], line["column"]) for line in lines)
    return measures, [(*key, [cells[*key, name] for name in measures]) for key in keys]


def label(column):
    """A column's name, or its number."""
    return f"{column:g}" if isinstance(column, (int, float)) else column


def markdown(lines):
    """The table in Markdown; a line for each row and column."""
    measures, rows = pivoted(lines)
    text = [f"| | | {' | '.join(measures)} | runs |", "|---" * (len(measures) + 3) + "|"]
    for row, column, cells in rows:
        shown = " | ".join(number(cell["mean"], cell["deviation"]) for cell in cells)
        text.append(f"| {row} | {label(column)} | {shown} | {cells[0]['runs']} of {cells[0]['of']} |")
    return "\n".join(text) + "\n"


def markdown_differences(lines):
    """With − without in Markdown; bold where the interval excludes 0."""
    measures, rows = pivoted(lines)
    text = [f"| with − without | | {' | '.join(measures)} | interval over |", "|---" * (len(measures) + 3) + "|"]
    for row, column, cells in rows:
        shown = " | ".join(difference(cell) for cell in cells)
        text.append(f"| {row} | {label(column)} | {shown} | {cells[0]['over']} |")
    return "\n".join(text) + "\n"


def difference(line):
    """A difference with its interval, bold where that excludes 0."""
    if line["low"] is None:
        return f"{line['difference']:+.4f}"
    text = f"{line['difference']:+.4f} [{line['low']:+.4f}, {line['high']:+.4f}]"
    return bold(text, line["low"], line["high"])


def csv_text(lines):
    """Flat dicts as CSV with a head; numbers with all their digits."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n") if lines else None
    if writer:
        writer.writeheader()
        writer.writerows(lines)
    return file.getvalue()


def by_role(measures, role):
    """The measure that plays a role of `judges.ROLES`, or None."""
    return next((name for name in ROLES[role] if name in measures), None)
