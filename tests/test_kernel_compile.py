"""Every kernel at its table configuration compiles for GPUs that need not be here: no spills, tensor cores in use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
if sys.platform != "linux":
    pytest.skip("Triton's compiler is on Linux only", allow_module_level=True)

SHARED_LIMIT = {"sm_75": 64, "sm_80": 163, "sm_89": 99, "sm_90": 227}  # KiB for one block
MULTIPLYING = ("forward", "dx", "wgrad")
WITHOUT_BIAS = {"bias_mu": None, "bias_sigma": None, "dbias_mu": None, "dbias_sigma": None}
ONES = {"M": 1, "N": 1, "K": 1}  # on a GPU Triton compiles sizes of 1 into the kernel
DSIGMA = {"mu": None}


def job(name, dtype, arch, **fixed):
    return {"name": name, "dtype": dtype, "arch": arch, "fixed": fixed}


JOBS = [
    *(job(name, dtype, arch)
      for arch in ("sm_80", "sm_89", "sm_90") for name in MULTIPLYING for dtype in ("bfloat16", "float32")),
    *(job(name, "float16", "sm_80") for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **WITHOUT_BIAS) for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **ONES) for name in MULTIPLYING),
    # a T4 has no tensor cores for tl.dot: it takes the sample path, whose kernel this is
    *(job("sample", "float16", "sm_75", **fixed) for fixed in ({}, DSIGMA, ONES)),
    job("sample", "float16", "sm_90"),
    *(job(name, "bfloat16", "gfx942") for name in (*MULTIPLYING, "sample")),
]
TOO_LARGE = {"name": "dx", "dtype": "float32", "arch": "sm_80", "tiles": {"BM": 64, "BN": 64, "BK": 32}, "warps": 4}


@pytest.fixture(scope="module")
def compiled():
    script = Path(__file__).with_name("compile_kernels.py")
    command = [sys.executable, script, json.dumps([*JOBS, TOO_LARGE])]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


NAMES = ["-".join([job["name"], job["dtype"], job["arch"], *job["fixed"]]) for job in JOBS]


@pytest.mark.parametrize("i", range(len(JOBS)), ids=NAMES)
def test_compiles_without_spills_and_with_tensor_cores(compiled, i):
    result, wanted = compiled[i], JOBS[i]
    assert result["kernel"] == wanted["name"]
    if wanted["arch"].startswith("gfx"):
        return  # compiling is what is asked of it
    assert result["spills"] == 0
    assert result["shared"] <= SHARED_LIMIT[wanted["arch"]] * 1024
    on_tensor_cores = result["HGMMA" if wanted["arch"] == "sm_90" else "HMMA"] > 0
    assert on_tensor_cores == (wanted["name"] in MULTIPLYING and wanted["dtype"] != "float32")


def test_spills_would_be_seen(compiled):
    """The negative control: a configuration too large for its warps."""
    assert compiled[-1]["spills"] > 100
