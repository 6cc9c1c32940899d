"""What watches a training (`train.py`): the progress on the terminal and in log.jsonl, the checkpoints, and Ctrl-C."""

import contextlib
import json
import logging
import math
import os
import signal
from pathlib import Path

from . import distributed
from .checkpoints import STATE, save_checkpoint
from .files.store import CannotWrite, append_text, read_text, write_text
from .options.running import interrupt, note_signal, on_stop
from .progress import Course, progress_bar
from .runs import to_go_on

log = logging.getLogger("minibnn")


class Checkpoints:
    """Saves after every `every` steps (0: never), after the last one, and when `stop` (CtrlC) asks; then it also stops.

    `saved` is the number of steps after which the last checkpoint was written; 0: there is none. go_on(folder): the
    command that goes on from there. keep: whether the one after the last step holds the optimiser's state, too.
    """

    def __init__(self, options, stop, saved, progress, go_on=to_go_on, keep=True):
        self.out, self.every, self.steps = Path(options.out), options.checkpoint_every, options.steps
        self.stop, self.saved, self.progress, self.go_on, self.keep = stop, saved, progress, go_on, keep

    def __call__(self, training):
        done = training.step
        if done == self.saved:
            return
        stopping = distributed.any_of(self.stop.asked)
        if stopping or done == self.steps or (self.every and done % self.every == 0):
            training.check()
            self.progress.write()  # a log that ends before the checkpoint could not be completed
            distributed.first_alone(self.save, training)
            self.saved = done
        if stopping and done < self.steps:
            saved = f"stopped after step {done}, saved in {self.out / STATE.parent}"
            raise KeyboardInterrupt(f"{saved}; to go on: {self.go_on(self.out)}")


    def save(self, training):
        """Write the checkpoint. After the last step a full disk does not keep the result from being written."""
        done = training.step
        try:
            save_checkpoint(self.out, training, self.keep or done < self.steps)
        except CannotWrite as error:
            if done < self.steps:
                raise
            log.warning("%s. All steps are done, and the result is written without a checkpoint", error)


class Progress:
    """A bar on the terminal and, in a run's folder, log.jsonl with one line for each step; `with Progress(…) as look:`.

    A line is written a step late, when the step's figures have arrived from the GPU. On resume, the lines after the
    checkpoint are dropped. out: the folder, or None for the bar alone. course: a `progress.Course` of longer work, or
    None where all steps take alike.
    """

    def __init__(self, out, training, steps, label="training", course=None):
        shown = distributed.rank() == 0
        self.path = Path(out) / "log.jsonl" if out and shown else None
        if self.path:
            lines = read_text(self.path).splitlines()[: training.step] if self.path.exists() and training.step else []
            write_text(self.path, "".join(line + "\n" for line in lines))
        self.bar = progress_bar(total=steps, initial=training.step, desc=label, disable=not shown)
        self.waiting, self.course = None, course or Course(steps)  # waiting: the figures of the last step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.write()
        self.bar.close()

    def __call__(self, training):
        self.course.passed(training.step)
        if training.figures is None:  # before the first step
            return
        self.write()
        self.waiting = training.figures
        self.bar.to_go = self.course.to_go()
        self.bar.update()

    def write(self):
        """Write the line of the step whose figures have been waited for, if there is one."""
        if self.waiting is None:
            return
        figures, step = self.waiting.read(), self.waiting.step
        self.waiting = None
        if self.path and math.isfinite(figures["diffusion"] + figures["prior"] + figures["kl"]):
            values = {name: float(f"{figures[name]:.6g}") for name in ("diffusion", "prior", "kl", "sigma")}
            append_text(self.path, json.dumps({"step": step, **values}) + "\n")
        self.bar.set_postfix(loss=f"{figures['diffusion']:.3f}", refresh=False)


class CtrlC:
    """`with CtrlC() as stop:` turns the first Ctrl-C, SIGTERM or SIGHUP into `stop.asked`.

    The step at hand is finished before the training ends.

    A second Ctrl-C interrupts at once. SIGTERM and SIGHUP may come several times, and then mean nothing more.
    """

    def __enter__(self):
        self.asked = False
        self.before = on_stop(self._note)
        return self

    def _note(self, number, _frame):
        note_signal(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, interrupt)
        if not self.asked:
            self.asked = True
            # not print: what is interrupted may itself be writing to the buffered stderr; and there may be no terminal
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping after this step, and saving; Ctrl-C again stops at once, without saving\n")

    def __exit__(self, *_):
        for each, handler in self.before.items():
            signal.signal(each, handler)
