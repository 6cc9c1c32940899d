"""Every kernel at its table configuration compiles for GPUs that need not be here: no spills, tensor cores in use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_jobs import MULTIPLYING, WITHOUT_BIAS, jobs_for

triton = pytest.importorskip("triton")
if sys.platform != "linux":
    pytest.skip("Triton's compiler is on Linux only", allow_module_level=True)

SHARED_LIMIT = {"sm_75": 64, "sm_80": 163, "sm_89": 99, "sm_90": 227}  # KiB for one block
JOBS = jobs_for(triton.__version__)
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
    # with 3.2 to 3.9 nothing is spilled but by wgrad without bias, outside its loop: 8 with 3.5, 4 with 3.8 and 3.9
    assert result["spills"] <= (8 if wanted["name"] == "wgrad" else 0) and not result.get("spills in the loop")
    assert result["registers"] <= (96 if wanted["name"] in ("sample", "draw", "gradient") else 255)
    assert result["shared"] <= SHARED_LIMIT[wanted["arch"]] * 1024
    on_tensor_cores = result["HGMMA" if wanted["arch"] == "sm_90" else "HMMA"] > 0
    assert on_tensor_cores == (wanted["name"] in MULTIPLYING and wanted["dtype"] != "float32")


def test_spills_would_be_seen(compiled):
    """The negative control: a configuration too large for its warps."""
    assert compiled[-1]["spills"] > 100 and compiled[-1]["spills in the loop"] > 100


def test_the_bias_gradient_costs_nothing_in_the_loop(compiled):
    """A sum over rows in the loop of the weight gradient would more than double its instructions."""
    found = {tuple(job["fixed"]): result["loop"] for job, result in zip(JOBS, compiled, strict=False)
             if (job["name"], job["dtype"], job["arch"], job["sizes"]) == ("wgrad", "bfloat16", "sm_80", 16)}
    assert 0 < found[()] <= 1.1 * found[tuple(WITHOUT_BIAS)]
