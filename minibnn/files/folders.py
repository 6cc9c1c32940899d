"""A folder that is made whole or not at all, in the place of an earlier one if there is one.

    restore(out)                       # what a killed process left
    with new_folder(out) as temporary:
        ...                            # write into `temporary`
"""

import contextlib
import glob
import os
import shutil


def restore(out):
    """Bring back what a killed process was about to replace, and delete what it was making. For the owner of `out`."""
    name = glob.escape(out.name)
    for old in out.parent.glob(f".{name}.*.old"):
        shutil.rmtree(old) if out.exists() else os.replace(old, out)
    for half in out.parent.glob(f".{name}.*.tmp"):
        shutil.rmtree(half)


@contextlib.contextmanager
def new_folder(out):
    """The path of a folder to be made beside `out`, which it replaces when the block ends well; else `out` stays."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    try:
        yield temporary
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
    finally:
        if old.exists() and not out.exists():  # stopped between the two
            os.replace(old, out)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
