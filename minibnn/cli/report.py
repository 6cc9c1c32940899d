"""The command `python -m minibnn report runs/dog`: the page of a training run, made from its folder."""

from pathlib import Path

from ..errors import UserError
from ..page.run import write_report


def report(options):
    """Write the page of each run that RunReportOptions name; returns their paths. Raises UserError."""
    if options.out:
        if len(options.runs) > 1:
            raise UserError("--out names one file: give one run, or leave it out, and each page lies in its run")
        if Path(options.out).suffix.lower() != ".html":
            raise UserError(f"--out {options.out}: the name must end with .html")
        if Path(options.out).exists() and not options.overwrite:
            raise UserError(f"--out: {options.out} exists; name another file or pass --overwrite")
    paths = []
    for run in options.runs:
        paths.append(write_report(run, options.out))
        print(f"{paths[-1]}: the page of {run}; it opens in any browser")
    return paths
