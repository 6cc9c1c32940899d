"""Commands in a fork of this process, in which torch is imported already: a tenth of a second instead of five.

`start` forks and returns at once; `Process.wait` gives exit code, stdout and stderr. The child has a process group of
its own, so that a signal to it is like Ctrl-C on a terminal. Only where there is fork: not on Windows.
"""

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from minibnn.__main__ import main


@dataclass
class Process:
    """A forked command. code: as subprocess has it, negative after a signal; None while it runs."""

    pid: int
    stdout: Path
    stderr: Path
    code: int | None = None

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds=120):
        """(exit code, stdout, stderr), once. A process that takes longer is killed, and its code is "hangs"."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = "hangs"
            time.sleep(0.005)
        said = [path.read_text(errors="replace") for path in (self.stdout, self.stderr)]
        shutil.rmtree(self.stdout.parent)
        return self.code, *said

    def send(self, number):
        """Send a signal to the command and the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def start(words, cwd=None, memory=None, before=None, output=None):
    """Run `python -m minibnn WORDS` in a fork.

    memory: limit of the address space in bytes, beyond what the process has now. before: called in the child first.
    output: a file descriptor that takes stdout and stderr, instead of files.
    """
    folder = Path(tempfile.mkdtemp(prefix="forked-", dir=cwd and Path(cwd).parent))
    paths = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, *paths)
    code = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        for descriptor, path in zip((1, 2), paths, strict=True):
            path.touch()
            os.dup2(output if output is not None else os.open(path, os.O_WRONLY), descriptor)
        os.closerange(3, 256)  # the other ends of the parent's pipes among them
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(fd, "wb", closefd=False), encoding="utf-8", write_through=True) for fd in (1, 2)
        )
        os.chdir(cwd or os.getcwd())
        torch.set_num_threads(1)
        if before:
            before()
        if memory:
            limit_memory(memory)
        sys.argv = ["minibnn", *map(str, words)]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def limit_memory(more):
    """Limit this process to so many bytes of address space beyond what it has now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
