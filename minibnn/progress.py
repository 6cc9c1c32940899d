"""How far a long piece of work is: a bar where there is a terminal or a notebook, and elsewhere a line a minute.

    for i in progress_bar(range(900), desc="training"): …
    with progress_bar(total=900, desc="training") as bar: bar.update()

In a file of a cluster's job or a pipe a bar would be thousands of lines.
"""

import sys
import time

from tqdm import tqdm

EVERY = 60  # seconds between two lines


def progress_bar(iterable=None, total=None, desc="", initial=0, disable=False):
    """A tqdm bar, or a Lines, which has of tqdm's what minibnn uses. The arguments are tqdm's."""
    if disable or sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(iterable, desc, total, initial=initial, disable=disable, mininterval=0.5)
    total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
    return Lines(iterable, total, desc, initial)


class Lines:
    """Writes "training: 300 of 900, 0:05:00, about 0:10:00 to go, loss 0.123" to stderr once a minute."""

    def __init__(self, iterable, total, desc, initial, clock=time.monotonic):
        self.iterable, self.total, self.desc, self.clock = iterable, total, desc, clock
        self.initial = self.done = initial
        self.began = self.written = clock()
        self.values = {}

    def __iter__(self):
        for value in self.iterable:
            yield value
            self.update()
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def set_postfix(self, refresh=False, **values):
        """Values for the next line, as text."""
        self.values = values

    def update(self, n=1):
        self.done += n
        if self.clock() - self.written >= EVERY:
            self._write()

    def close(self):
        """The last line, where there were others and it says something new."""
        if self.written > self.began and self.done != self.said:
            self._write()

    def _write(self):
        self.written, self.said = self.clock(), self.done
        took = self.written - self.began
        parts = [f"{self.done} of {self.total}" if self.total is not None else str(self.done), _clock_time(took)]
        if self.total is not None and self.initial < self.done < self.total:
            parts.append(f"about {_clock_time(took / (self.done - self.initial) * (self.total - self.done))} to go")
        parts += [f"{name} {value}" for name, value in self.values.items()]
        print(f"{self.desc or 'done'}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _clock_time(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
