"""Every kernel at its table configuration compiles for GPUs that need not be here: no spills, tensor cores in use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
if sys.platform != "linux":
    pytest.skip("Triton's compiler is on Linux only", allow_module_level=True)

SHARED_LIMIT = {"sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227}  # KiB for one block
MULTIPLYING = ("forward", "dx", "wgrad")
JOBS = [
    *({"name": name, "dtype": dtype, "arch": arch} for arch in ("sm_80", "sm_86", "sm_89", "sm_90")
      for name in MULTIPLYING for dtype in ("bfloat16", "float32")),
    *({"name": name, "dtype": "float16", "arch": arch} for arch in ("sm_80", "sm_90") for name in MULTIPLYING),
    # a T4 has no tensor cores for tl.dot: it takes the sample path, whose kernels these are
    *({"name": name, "dtype": "float16", "arch": arch} for arch in ("sm_75", "sm_80", "sm_90") for name in ("sample", "times_epsilon")),
    *({"name": name, "dtype": "bfloat16", "arch": "gfx942"} for name in (*MULTIPLYING, "sample", "times_epsilon")),
]  # fmt: skip
TOO_LARGE = {"name": "dx", "dtype": "float32", "arch": "sm_80", "tiles": {"BM": 64, "BN": 64, "BK": 32}, "warps": 4}


@pytest.fixture(scope="module")
def compiled():
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, script, json.dumps([*JOBS, TOO_LARGE])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("i", range(len(JOBS)), ids=["-".join(job.values()) for job in JOBS])
def test_compiles_without_spills_and_with_tensor_cores(compiled, i):
    result, job = compiled[i], JOBS[i]
    assert result["kernel"] == job["name"]
    if job["arch"].startswith("gfx"):
        return  # compiling is what is asked of it
    assert result["spills"] == 0
    assert result["shared"] <= SHARED_LIMIT[job["arch"]] * 1024
    on_tensor_cores = result["HGMMA" if job["arch"] == "sm_90" else "HMMA"] > 0
    assert on_tensor_cores == (job["name"] in MULTIPLYING and job["dtype"] != "float32")


def test_spills_would_be_seen(compiled):
    """The negative control: a configuration too large for its warps."""
    assert compiled[-1]["spills"] > 100
