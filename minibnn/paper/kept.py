"""What is kept of the runs, where, and how it is read.

    OUT/runs/NAME/000800/00-0.png …   the pictures: number of the prompt, number of the picture
    OUT/runs/NAME/000800/measures.json   written last: {"run", "steps", "prompts", "values": {measure: one for each
                                         picture}, "cases": {"best", "average", "worst": number of the picture}}
    OUT/runs/NAME/diverged.json       in place of the rest, if the loss became NaN or infinite
    OUT/costs/NAME.json               seconds of a step, memory, random parameters; not the same twice
    OUT/failed/NAME.json              why it, or the drawing of the class pictures that it needs, failed
"""

from ..files.schema import integer, items, mapping, number, optional, record, text
from ..files.store import read_json

MEASURED = {
    "run": text, "steps": integer(0), "prompts": items(text, 1), "values": mapping(items(number(), 1)),
    "cases": mapping(integer(0)),
}
COST = {"run": text, "seconds of a step": number(0), "random share": number(0, 1), "trained bytes": number(0),
        "peak bytes": optional(number(0)), "device": text}


def folder_of(bench, run):
    return bench.out / "runs" / run.name


def measures_of(bench, run, steps):
    """The file that is written when the pictures of a run after so many steps are measured."""
    return folder_of(bench, run) / f"{steps:06d}" / "measures.json"


def read_measures(path):
    """What a file of `measures_of` holds. Raises UserError when it is damaged."""
    return read_json(path, record(MEASURED, required=MEASURED))


def read_costs(path):
    """What a file of a run's costs holds. Raises UserError when it is damaged."""
    return read_json(path, record(COST, required=COST))


def failures_folder(bench):
    return bench.out / "failed"


def is_done(bench, run, steps):
    """Whether nothing of the run remains to be measured at these steps."""
    if (folder_of(bench, run) / "diverged.json").exists():
        return True
    return all(measures_of(bench, run, each).exists() for each in steps)
