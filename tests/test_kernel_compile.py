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
ONES = {"N": 1, "K": 1}  # on a GPU Triton compiles sizes of 1 into the kernel
DSIGMA = {"mu": None}


def job(name, dtype, arch, sizes=16, **fixed):
    """sizes 16: N and K are multiples of 16, as all of SD's are, and Triton compiles that into the kernel."""
    return {"name": name, "dtype": dtype, "arch": arch, "sizes": sizes, "fixed": fixed}


JOBS = [
    *(job(name, dtype, arch)
      for arch in ("sm_80", "sm_89", "sm_90") for name in MULTIPLYING for dtype in ("bfloat16", "float32")),
    *(job(name, "float16", "sm_80", sizes=1) for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **WITHOUT_BIAS) for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **ONES) for name in MULTIPLYING),
    # a T4 has no tensor cores for tl.dot: it takes the sample path, whose kernels these are
    *(job("sample", "float16", "sm_75", **fixed) for fixed in ({}, DSIGMA, ONES)),
    *(job(name, "float16", "sm_75") for name in ("draw", "gradient")),
    *(job(name, "bfloat16", "sm_90") for name in ("sample", "draw", "gradient")),
    *(job(name, "bfloat16", "gfx942") for name in (*MULTIPLYING, "sample", "draw", "gradient")),
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
    assert result["registers"] <= (96 if wanted["name"] in ("sample", "draw", "gradient") else 255)
    assert result["shared"] <= SHARED_LIMIT[wanted["arch"]] * 1024
    on_tensor_cores = result["HGMMA" if wanted["arch"] == "sm_90" else "HMMA"] > 0
    assert on_tensor_cores == (wanted["name"] in MULTIPLYING and wanted["dtype"] != "float32")


def test_spills_would_be_seen(compiled):
    """The negative control: a configuration too large for its warps."""
    assert compiled[-1]["spills"] > 100


def test_the_bias_gradient_costs_nothing_in_the_loop(compiled):
    """A sum over rows in the loop of the weight gradient would more than double its instructions."""
    found = {tuple(job["fixed"]): result["loop"] for job, result in zip(JOBS, compiled, strict=False)
             if (job["name"], job["dtype"], job["arch"], job["sizes"]) == ("wgrad", "bfloat16", "sm_80", 16)}
    assert 0 < found[()] <= 1.1 * found[tuple(WITHOUT_BIAS)]
