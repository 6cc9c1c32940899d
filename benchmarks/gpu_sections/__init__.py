"""The sections of `benchmarks/gpu.py`. Importing it lets minibnn be imported from a checkout that is not installed."""

import importlib.util
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
if importlib.util.find_spec("minibnn_kernels") is None:
    beside = Path(tempfile.mkdtemp(prefix="minibnn-"))
    (beside / "minibnn_kernels").symlink_to(ROOT / "kernels")
    sys.path[1:1] = [str(ROOT), str(beside)]
