"""A training as a process of its own, so that its processor time and its memory are its own."""

import os
import signal
import subprocess
import sys
import time

from ..errors import UserError


def train_apart(what, words, variables=None):
    """Run `python -m minibnn train WORDS`: (seconds, what `os.wait4` says of its use of the machine, None on Windows).

    what: the run, for the message. variables: {name: value} of its environment, beside ours. Raises UserError, with the
    last line of the process or how it ended. The process does not outlive this call.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "minibnn", "train", *words], env=os.environ | (variables or {}),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            said = process.stderr.read().decode(errors="replace")
            used = None
            if hasattr(os, "wait4"):
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            else:
                process.wait()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UserError(f"{what}: {last_words(process.returncode, said)}")
    return time.perf_counter() - start, used


def last_words(code, said):
    """Why a process ended: the signal if one ended it, else its last line, else its exit status. said: its stderr."""
    if code < 0:
        return f"the training was ended by {signal.Signals(-code).name}"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"the training ended with exit status {code}, and said nothing"
