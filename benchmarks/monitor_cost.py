"""What share of a training is the monitor's?

    python benchmarks/monitor_cost.py --images tutorials/dog

Trains once with the recipe and the monitor, and adds up, in that one run, the time spent in the monitor (its set-up,
each look, the steps it saves) and in everything else from the first step on. Class pictures and samples, for which a
user waits, too, are not counted, so that the share does not look smaller than it is.
"""

import argparse
import tempfile
import time

import torch

from minibnn.cli.train import fine_tune
from minibnn.lab import monitor
from minibnn.options.parsing import parse
from minibnn.options.training import TrainOptions


def timed(function, spent):
    """`function`, adding the seconds of each call to the list `spent`."""

    def call(*args):
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent.append(time.perf_counter() - start)

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--steps", type=int, help="optimiser steps [recipe]")
    options = parser.parse_args()
    spent, moments = [], []
    monitor.Monitor.__init__ = timed(monitor.Monitor.__init__, spent)
    monitor.Monitor.__call__ = timed(monitor.Monitor.__call__, spent)
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", "tiny", "--images", options.images, "--monitor", "--samples", "0", "--overwrite"]
        words += ["--out", f"{folder}/run"]
        words += ["--steps", str(options.steps)] if options.steps else []
        fine_tune(parse(TrainOptions, "minibnn.train", words), [lambda training: moments.append(time.perf_counter())])
    looks = [seconds for seconds in spent[1:] if seconds > 0.01]  # between looks a call returns at once
    total = spent[0] + moments[-1] - moments[0] + spent[-1]  # a moment is taken just before the monitor's look
    share = sum(spent) / total
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads: {len(moments) - 1} steps in {total:.1f} s")
    print(
        f"of which the monitor {sum(spent):.1f} s: {share:.1%} "
        f"({len(looks)} looks of {sum(looks) / len(looks):.2f} s, set-up {spent[0]:.2f} s)"
    )


if __name__ == "__main__":
    main()
