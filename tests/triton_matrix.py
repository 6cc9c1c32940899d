"""Do the kernels compile and agree with the reference on other versions of Triton and numpy?

    python tests/triton_matrix.py                                   every version of Triton that setup.py allows
    python tests/triton_matrix.py --versions 3.6.0 3.9.0 --numpy 2.3.5 2.4.6

For each pair, pip puts Triton and numpy into a folder of their own, which goes before the packages installed here. The
interpreter then runs every kernel against the reference (`kernels/rehearsal.py`, and the fused path), and the compiler
compiles every kernel for GPUs that need not be here (`kernel_jobs.py`). Needs pip and its registry; a version
takes about 1 GB of disk while it is tried.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kernel_jobs import jobs_for

VERSIONS = ("3.2.0", "3.3.1", "3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
COMPILER = Path(__file__).with_name("compile_kernels.py")
AGREE = """
import torch
from minibnn_kernels.bayes_linear import bayes_linear
from minibnn_kernels.rehearsal import rehearse

for dtype in (torch.float32, torch.bfloat16):
    rehearse("cpu", dtype)
parts = [torch.rand(shape).requires_grad_() for shape in ((20, 36), (18, 36), (18, 36), (18,), (18,))]
results = []
for path in ("fused", "mixed", "reference"):
    y = bayes_linear(*parts, seed=torch.tensor([5]), path=path)
    results.append([y, *torch.autograd.grad(y.square().sum(), parts)])
for other in results[:2]:
    for a, b in zip(other, results[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
"""


def run(words, **settings):
    """(exit code, what was printed on stdout, the last line on stderr)."""
    result = subprocess.run(words, capture_output=True, text=True, env=os.environ | settings)
    return result.returncode, result.stdout, (result.stderr.strip().splitlines() or [""])[-1]


def attempt(triton, numpy, folder):
    """(do interpreter and reference agree, how the compiling went, did all of it) with these versions; two in words."""
    jobs = jobs_for(triton)
    packages = [f"triton=={triton}", *([f"numpy=={numpy}"] if numpy else [])]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    for package in packages:
        code, _, error = run([*pip, package])
        if code:
            return f"{package} does not install: {error}", " | ", False
    settings = {"PYTHONPATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    code, _, error = run([sys.executable, "-c", AGREE], TRITON_INTERPRET="1", **settings)
    agree = f"no: {error}" if code else "yes"
    code, printed, error = run([sys.executable, str(COMPILER), json.dumps(jobs)], **settings)
    compiled = [json.loads(line) for line in printed.splitlines()]
    counts = [sum(result.get(key, 0) for result in compiled) for key in ("spills", "spills in the loop")]
    words = f"{len(compiled)} of {len(jobs)} | {counts[0]}, {counts[1]} of them in a loop"
    return agree, words + f"; {error}" * (code != 0), agree == "yes" and not code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=VERSIONS, metavar="TRITON")
    parser.add_argument("--numpy", nargs="+", default=[None], metavar="NUMPY", help="[the installed one]")
    options = parser.parse_args()
    failed = False
    print("| Triton | numpy | interpreter equals reference | compiled | spill instructions |\n|---|---|---|---|---|")
    for triton in options.versions:
        for numpy in options.numpy:
            with tempfile.TemporaryDirectory() as folder:
                agree, compiled, passed = attempt(triton, numpy, Path(folder))
            failed |= not passed
            print(f"| {triton} | {numpy or 'installed'} | {agree} | {compiled} |", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
