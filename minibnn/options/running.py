"""How a command ends: one line and an exit code for whatever a user or a machine can cause, and nothing lost.

    0     done
    2     a mistake, or something that the machine refuses: memory, a full disk, a damaged file, a missing package
    130   Ctrl-C, or the reader of the output is gone, as in `… | head`
    143   SIGTERM: `kill`, the end of a cluster's time;  129   SIGHUP: the terminal was closed

A traceback that still appears is a bug of minibnn.
"""

import atexit
import contextlib
import logging
import os
import re
import signal
import sys

from ..errors import UserError, visible
from . import plain  # noqa: F401  (it registers how to write what a terminal lacks)
from .outputs import check_outputs

LESS_MEMORY = {  # option: what to try, if the command has it
    "gradient_checkpointing": "--gradient-checkpointing", "dtype": "--dtype bfloat16",
    "optimiser": "--optimiser adamw-bf16",
    "batch_size": "a smaller --batch-size", "resolution": "a smaller --resolution",
    "width": "a smaller --width and --height", "draws": "fewer --draws", "processes": "fewer --processes",
}
NO_MEMORY = (  # how libraries without an exception of their own for it say that memory does not suffice
    "out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED", "calculation overflowed",
    "multiplication overflow", "array is too big", "Maximum allowed dimension", "too large to convert",
    "Overflow when unpacking",
)
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received = []  # the signals that have stopped the command


# --- signals ----------------------------------------------------------------------------------------------------------


def on_stop(handler):
    """Let `handler(number, frame)` answer Ctrl-C, SIGTERM and SIGHUP; returns {number: what did so before}.

    A SIGHUP that is ignored, as after `nohup`, stays ignored. Empty where signals cannot be set: outside the main
    thread, as in some notebooks.
    """
    before = {}
    for number in STOPPING:
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, handler)
    return before


def interrupt(number, _frame=None):
    """The answer to a signal that a command gives: KeyboardInterrupt, whatever the signal was."""
    note_signal(number)
    raise KeyboardInterrupt


def note_signal(number):
    """Remember that this signal stopped the command: the first decides the exit code."""
    _received.append(number)


def answer_while_ending(numbers=STOPPING):
    """After the command has spoken its last word a signal ends Python at once, and not by a traceback of its exit."""
    for number in numbers:
        if signal.getsignal(number) == interrupt:
            signal.signal(number, signal.SIG_DFL)


def answer_while_importing():
    """Importing torch takes seconds; a signal then ends in one word, not in a traceback. `run` undoes this."""

    def stop(number, _):
        print("stopped", file=sys.stderr)
        os._exit(128 + number)

    on_stop(stop)


# --- output -----------------------------------------------------------------------------------------------------------


class Output:
    """stdout or stderr of a command. When nobody reads it any more the command is stopped as by Ctrl-C, and saves.

    clean: show control characters, which names of files may hold and a terminal would obey, as \\x1b.
    """

    def __init__(self, stream, clean):
        self.stream, self.clean = stream, clean

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._try(self.stream.write, visible(text, "\n\t") if self.clean else text)

    def flush(self):
        return self._try(self.stream.flush)

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.stream.fileno())  # what is still buffered goes there
            os.close(nothing)
            if not _received:
                signal.raise_signal(signal.SIGINT)
            return 0


@contextlib.contextmanager
def own_output():
    """Inside, what a command prints goes through Output, line by line; what it lacks is spelled (`plain.py`)."""
    _received.clear()  # what stopped an earlier command of this process
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # a notebook's stream has nothing to reconfigure
            stream.reconfigure(errors="plain", line_buffering=True)
    sys.stdout, sys.stderr = Output(sys.stdout, clean=True), Output(sys.stderr, clean=False)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except KeyboardInterrupt:  # nobody reads the last lines
            pass
        finally:
            sys.stdout, sys.stderr = before


class _OneLine(logging.Formatter):
    def format(self, record):
        return visible(super().format(record))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def explain(error, options=None):
    """An exception that a user or a machine can cause, in one line; None for any other. options: of the command."""
    said, kind = " ".join(str(error).split()), type(error).__name__  # by name where the class would need an import
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or any(words in said for words in NO_MEMORY):
        tries = [words for name, words in LESS_MEMORY.items() if hasattr(options, name)]
        return "out of memory" + (f": try {', '.join(tries)}" if tries else "")
    operation, lacks, _ = said.partition(" does not have a deterministic implementation")
    if lacks:
        return f"{operation} has no kernel that gives the same bits twice: leave out --deterministic"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile fails here ({said}): go on with --no-compile"
    if isinstance(error, (UserError, OSError)) or said.startswith("Symlink loop"):  # the latter is pathlib's
        return said
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("minibnn"):
        return f"the package {error.name} is missing: pip install it, or all with pip install -r requirements.txt"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in said:
        text, at = error.object, error.start
        name = re.split(r'[/\\\n"]', text[:at])[-1] + re.split(r'[/\\\n"]', text[at:])[0]
        remedy = "rename that file, or, where a terminal has another encoding, set PYTHONUTF8=1"
        return f"the name {ascii(name)} is not valid UTF-8: {remedy}"
    if isinstance(error, UnicodeError):
        return f"a text is not valid in its encoding ({said}): save it as UTF-8"
    if kind == "SafetensorError":
        return f"a file of weights is damaged ({said})"
    if kind == "JSONDecodeError":
        return f"a file is not valid JSON ({said})"
    if kind in ("BrokenProcessPool", "ProcessExitedException"):
        return f"a worker process was stopped from outside, perhaps for lack of memory ({said}): run the command again"
    return None


@contextlib.contextmanager
def one_line(options=None):
    """Inside, what `explain` knows becomes one line and exit code 2, and a signal one line and 128 + its number."""
    try:
        yield
        return
    except KeyboardInterrupt as stop:
        _say(visible(str(stop)) or "stopped")
        code = 128 + (_received or [signal.SIGINT])[0]
    except Exception as error:
        if (message := explain(error, options)) is None:
            raise
        _say(f"error: {visible(message)}")
        code = 2
    raise SystemExit(code)


def _say(line):
    with contextlib.suppress(KeyboardInterrupt):  # nobody reads it
        print(line, file=sys.stderr)


def run(function, *arguments):
    """Call a command's function, whose last argument is its options. Ends as this file's head says."""
    _received.clear()
    on_stop(interrupt)
    atexit.register(answer_while_ending)  # Ctrl-C until then, because `Output` means by it that nobody reads
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler])
    try:
        with one_line(arguments[-1]):
            if not getattr(arguments[-1], "plan", False):
                check_outputs(arguments[-1])
            function(*arguments)
    finally:
        answer_while_ending([number for number in STOPPING if number != signal.SIGINT])
