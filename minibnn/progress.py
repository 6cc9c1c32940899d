"""How far a long piece of work is: a bar where there is a terminal or a notebook, and elsewhere a line a minute.

    for i in progress_bar(range(900), desc="training"): …
    with progress_bar(total=900, desc="training") as bar: bar.update()

In a file of a cluster's job or a pipe a bar would be thousands of lines. Where some steps take longer than others,
`Course` reckons the time to the end, and `bar.to_go`, in seconds, takes it.
"""

import statistics
import sys
import time

from tqdm import tqdm

EVERY = 60  # seconds between two lines


def progress_bar(iterable=None, total=None, desc="", initial=0, disable=False):
    """A tqdm bar, or a Lines, which has of tqdm's what minibnn uses. The arguments are tqdm's."""
    if disable or sys.stderr.isatty() or "ipykernel" in sys.modules:
        return Bar(iterable, desc, total, initial=initial, disable=disable, mininterval=0.5)
    total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
    return Lines(iterable, total, desc, initial)


class Bar(tqdm):
    """A bar whose time to the end may be given, in seconds."""

    to_go = None

    @property
    def format_dict(self):
        """What tqdm shows, with that time in the place of its own, which is the steps that are left by the rate."""
        shown = super().format_dict
        if self.to_go is not None:
            shown |= {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{to_go}, {rate_fmt}{postfix}]",
                      "to_go": self.format_interval(self.to_go)}
        return shown


class Course:
    """The time to the end of a loop of steps that take alike, some followed by longer work.

    total: steps. longer: those after which there is longer work. after: how many times that work follows at the end.
    """

    def __init__(self, total, longer=(), after=0.0, clock=time.monotonic):
        self.total, self.longer, self.after, self.clock = total, frozenset(longer), after, clock
        self.alike, self.long, self.step = [], [], None

    def passed(self, step):
        """Note that a step is done; the longer work that may follow is not."""
        now = self.clock()
        if self.step is not None:
            (self.long if self.step in self.longer else self.alike).append(now - self.before)
        self.before, self.step = now, step

    def to_go(self):
        """Seconds to the end, or None before a step of ordinary length is known."""
        if not self.alike:
            return None
        of_step = statistics.median(self.alike[-50:])
        of_work = max(0.0, statistics.mean(self.long) - of_step) if self.long else 0.0
        works = sum(self.step <= step <= self.total for step in self.longer) + self.after
        return (self.total - self.step) * of_step + works * of_work


class Lines:
    """Writes "training: 300 of 900, 0:05:00, about 0:10:00 to go, loss 0.123" to stderr once a minute."""

    to_go = None

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
            at_this_rate = took / (self.done - self.initial) * (self.total - self.done)
            parts.append(f"about {_clock_time(at_this_rate if self.to_go is None else self.to_go)} to go")
        parts += [f"{name} {value}" for name, value in self.values.items()]
        print(f"{self.desc or 'done'}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _clock_time(seconds):
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
