"""A training as a process of its own, as a user starts it."""

import signal
import subprocess
import sys
import time

from ..errors import UserError


def train_apart(what, words):
    """Run `python -m minibnn train WORDS`; returns the seconds that it took.

    what: the run, for the message. Raises UserError, with the last line of the process or how it ended. The process
    does not outlive this call.
    """
    start, command = time.perf_counter(), [sys.executable, "-m", "minibnn", "train", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise UserError(f"{what}: {last_words(done.returncode, done.stderr.decode(errors='replace'))}")
    return time.perf_counter() - start


def last_words(code, said):
    """Why a process ended: the signal if one ended it, else its last line, else its exit status. said: its stderr."""
    if code < 0:
        return f"the training was ended by {signal.Signals(-code).name}"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"the training ended with exit status {code}, and said nothing"
