"""Work shared out among processes, on one machine or on many that see the same folder: who does what, once.

A process claims a piece of work by making the file NAME.1, which only one process can make. It keeps touching the file.
When it dies, the next one makes NAME.2, which again only one process can make, and so on: nothing is ever renamed or
deleted that another process may own. Whoever claims a piece then checks whether it has been done in the meantime.

    claims, failures = Claims("out/claims"), Failures("out/failed")
    left_out = perform(tasks, claims, failures=failures)

A claim is dead when its process no longer runs on this machine, or when it has not been touched for `patience`
seconds: that is what is seen of another machine's process. A claim that does not say whose it is, is dead after ten
seconds: its process was killed before it had written that.

What fails is noted (`failures.py`) and left out, so that one broken piece of work stops nobody. A process in which
several pieces fail one after the other has itself to blame, and ends.

But: a process that was suspended for longer than these times goes on beside the one that took its place. Therefore
work must leave the same whole files however often it is done.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .failures import describe
from .locks import lives

PATIENCE = 300.0  # seconds without a touch after which another machine's process counts as dead
BEGINNING = 10.0  # seconds in which a process that makes a claim has also written who it is
CLAIM = re.compile(r"(.+)\.(\d+)")
IN_A_ROW = 3  # failures one after the other that end a process


def here():
    """This machine, and within it the space in which process numbers mean something: containers have their own.

    Many machines are called localhost, and so the number of this start of the machine belongs to it.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


class Claims:
    """The claims in a folder, which is made if need be. patience: in seconds. Raises UserError if it cannot be."""

    def __init__(self, folder, patience=PATIENCE):
        self.folder, self.patience = Path(folder), patience
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder") from None

    def take(self, name):
        """A Claim on the work of this name, or None if a living process has it."""
        number = self._last(name)
        if number and self._is_held(self.folder / f"{name}.{number}"):
            return None
        path = self.folder / f"{name}.{number + 1}"
        who = {"process": os.getpid(), "where": here(), "since": time.strftime("%F %T")}
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:  # another process was quicker
            return None
        with os.fdopen(file, "w", encoding="utf-8") as file:
            json.dump(who, file)
        return Claim(path, number + 1, self.patience / 10)

    def holder(self, name):
        """Who has the work of this name, in words, or None."""
        number = self._last(name)
        path = self.folder / f"{name}.{number}"
        if not number or not self._is_held(path):
            return None
        who = _read(path)
        if who is None:  # it has ended in the meantime
            return None
        return f"process {who.get('process', '?')} on {who.get('where', '?').split()[0]}"

    def _last(self, name):
        found = (CLAIM.fullmatch(path.name) for path in self.folder.iterdir())
        return max((int(match[2]) for match in found if match and match[1] == name), default=0)

    def _is_held(self, path):
        try:
            idle = self._now() - path.stat().st_mtime
        except FileNotFoundError:  # it is being given back: how the work ended is seen at the next look
            return True
        if idle > self.patience:
            return False
        who = _read(path)
        if who is None:  # it has just been given back, or cannot be read: that it is touched says enough
            return True
        if not who:
            return idle <= BEGINNING
        return lives(who["process"]) if who.get("where") == here() else True

    def _now(self):
        """The time by the clock of the file system, which may be another machine's."""
        clock = self.folder / f".clock-{socket.gethostname()}-{os.getpid()}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
        return now


def _read(path):
    """What a claim says; {} if its process has just begun to write it, None if it is gone or cannot be read."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return {}
    return who if isinstance(who, dict) and type(who.get("process")) is int else {}


class Claim:
    """`with claims.take(name):` touches the file in a thread, and gives the work back at the end."""

    def __init__(self, path, number, every):
        self.path, self.number, self.every = path, number, every
        self.ended = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._touch, daemon=True)
        self.thread.start()
        return self

    def _touch(self):
        while not self.ended.wait(self.every):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        stem = self.path.name.removesuffix(str(self.number))
        for number in range(1, self.number + 1):  # those of the dead first: a claim stands as long as the work may
            self.path.with_name(f"{stem}{number}").unlink(missing_ok=True)


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A piece of work. `done` looks at files alone, for any process may have done it; needs: names of earlier tasks."""

    name: str
    do: Callable[[], None]
    done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def perform(tasks, claims, first=0, told=print, poll=2.0, failures=None):
    """Do what is not done, together with all other processes that were given the same tasks.

    Returns, when nothing is left to do, the names of the tasks that are left out because they failed, or need one that
    did; without `failures` an exception of a task ends it all. first: at which task this process begins to look, so
    that processes seldom want the same. told: is given a line when a task begins or fails. While all that is left
    belongs to others, it looks every `poll` seconds whether one of them died. Raises UserError after several failures
    in a row.
    """
    order = [*tasks[first:], *tasks[:first]]
    finished, in_a_row, waits = set(), 0, False
    while True:
        finished |= {task.name for task in order if task.name not in finished and task.done()}
        out = impossible(tasks, finished, failures.left_out() if failures else set())
        left = [task for task in order if task.name not in finished and task.name not in out]
        if not left:
            return [task.name for task in tasks if task.name in out]
        for task in left:
            claim = claims.take(task.name) if finished.issuperset(task.needs) else None
            if claim is None:
                continue
            with claim:
                if not task.done():
                    told(f"{len(finished)} of {len(tasks)} are done; now {task.name}")
                    in_a_row = 0 if attempt(task, failures, told) else in_a_row + 1
            if in_a_row == IN_A_ROW:
                why = failures.noted()[task.name]["why"]
                raise UserError(f"{IN_A_ROW} runs failed one after the other, the last, {task.name}, with: {why}")
            waits = False
            break
        else:
            if not waits:
                told(f"{len(left)} of {len(tasks)} are left, all with other processes; "
                     f"{left[0].name} with {claims.holder(left[0].name) or 'one that is just ending'}")
            waits = True
            time.sleep(poll)


def impossible(tasks, finished, failed):
    """The names of the tasks that are not finished and cannot be done: those that failed, and what needs them."""
    out = set()
    for task in tasks:  # what is needed comes earlier
        if task.name not in finished and (task.name in failed or not out.isdisjoint(task.needs)):
            out.add(task.name)
    return out


def attempt(task, failures, told):
    """Do a task; whether that went well. Without `failures` its exceptions are not caught."""
    if failures is None:
        task.do()
        return True
    try:
        task.do()
    except Exception as error:
        failures.note(task.name, error)
        told(f"{task.name} failed, and is left out: {describe(error)}")
        return False
    failures.forget(task.name)
    return True
