"""One process at a time in a folder, and what killed processes left there.

But: on a file system without locks, as some network drives are, nothing is locked. Windows has not been tried.
"""

import contextlib
import errno
import json
import os
import re
import socket
import time
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".lock"
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `store.write_whole` calls a file while it is written
WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # the file system has no locks
FAR = 2**30  # Windows forbids others to read what is locked, so that this is a byte beyond the text


@contextlib.contextmanager
def locked(folder, name=LOCK):
    """Inside, the folder, which is made if need be, belongs to this process. name: of the file that is locked.

    Raises UserError, naming the process that has the folder. The operating system opens the lock when a process ends,
    however it ends: one that a dead process left is simply taken over.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder") from None
    who = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
    with file:
        try:
            try:
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), json.dumps(who).encode())  # not through the file's buffer: closing would retry
            except OSError as error:
                raise UserError(f"cannot write to {folder}: {error.strerror}; name another folder") from None
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
                for each in made:
                    each.rmdir()  # only if nothing has been put in


def _open_locked(path):
    """The file, open: it is locked until it is closed. Raises UserError when another process has it, and OSError."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _take(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            text = file.read()
            file.close()
            who = _holder(text)
            raise UserError(f"{path.parent} is in use by {who}; wait for it, or name another folder") from None
        except OSError as error:
            if error.errno not in WITHOUT:
                file.close()
                raise
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its last owner deleted it between the two


def _take(file):
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def _holder(text):
    try:
        who = json.loads(text)
        return f"process {who['process']} on {who['host']}, since {who['since']}"
    except (ValueError, KeyError, TypeError):  # it has just begun to write that
        return "another process"


def remove_leftovers(folder):
    """Delete what writes that were killed left in a folder that is locked, and in those below it."""
    for path in sorted(Path(folder).rglob(".*.tmp")):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()


def lives(process):
    """Whether a process of this machine lives; where that cannot be asked, True.

    One that was killed, and that its parent has not asked about yet, still has its number (for good in a container
    whose first process never asks). On Linux /proc shows that it is dead; on other systems it counts as living until
    its parent asks.
    """
    if os.name == "nt":  # where asking would end the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    with contextlib.suppress(OSError, IndexError):  # there is no such file, or nothing in it
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state not in (b"Z", b"X")
    return True
