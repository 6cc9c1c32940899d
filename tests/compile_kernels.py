"""Compile the kernels for GPUs that are not here, and print what the machine code looks like.

    python tests/compile_kernels.py          every kernel at its table configuration, as a Markdown table
    python tests/compile_kernels.py JOBS     what JOBS (JSON) asks for, as JSON lines

Run by test_kernel_compile.py in a process of its own, because there the kernels must not be the interpreter's.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import triton
from minibnn_kernels import bayes_linear as b
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def compile_kernel(name, dtype, target, fixed=None, tiles=None, warps=None):
    """The compiled kernel of one table configuration. fixed: arguments known beforehand, such as an absent bias."""
    kernel = getattr(b, f"{name}_kernel")
    bm, bn, bk, table_warps = (b.TILES_FLOAT32 if dtype == "float32" else b.TILES)[kernel]
    constants = {"BM": bm, "BN": bn, "BK": bk, "DOMAIN": 0} | (fixed or {}) | (tiles or {})
    activations = {"x", "y", "dx", "dy", "theta"}
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in ("M", "N", "K", "stream"):
            signature[argument] = "i32"
        elif argument == "seed":
            signature[argument] = "*i64"
        else:
            signature[argument] = "*" + (DTYPES[dtype] if argument in activations else "fp32")
            attributes[(i,)] = [["tt.divisibility", 16]]
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": warps or table_warps, "enable_fp_fusion": False})


def machine_code(compiled):
    """(SASS, registers of a thread) of a cubin, by the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass, usage = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-sass", "-res-usage")
        )
    return sass, int(re.search(r"REG:(\d+)", usage)[1])


def describe(name, dtype, arch, **changes):
    if arch.startswith("gfx"):
        compile_kernel(name, dtype, GPUTarget("hip", arch, 64), **changes)
        return {"kernel": name, "dtype": dtype, "arch": arch}
    compiled = compile_kernel(name, dtype, GPUTarget("cuda", int(arch[3:]), 32), **changes)
    sass, registers = machine_code(compiled)
    return {
        "kernel": name, "dtype": dtype, "arch": arch, "registers": registers, "shared": compiled.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)), "HMMA": len(re.findall(r"\bHMMA\b", sass)),
        "HGMMA": len(re.findall(r"\bHGMMA\b", sass)), "fused": len(re.findall(r"\bFFMA\b", sass)),
    }


def table():
    """What RESULTS.md holds."""
    print("| kernel | dtype | arch | registers | spill instructions | shared memory, KiB | tensor-core instructions |")
    print("|---|---|---|---|---|---|---|")
    jobs = [(name, dtype, arch) for arch in ("sm_80", "sm_86", "sm_89", "sm_90") for name in ("forward", "dx", "wgrad")
            for dtype in ("bfloat16", "float32")]
    for name, dtype, arch in [*jobs, *(("sample", "float16", arch) for arch in ("sm_75", "sm_80", "sm_90"))]:
        d = describe(name, dtype, arch)
        figures = d["registers"], d["spills"], f"{d['shared'] / 1024:.1f}", d["HMMA"] + d["HGMMA"]
        print("|", " | ".join(map(str, (name, dtype, arch, *figures))), "|", flush=True)


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]) if sys.argv[1:] else []:
        print(json.dumps(describe(**job)), flush=True)
    if not sys.argv[1:]:
        table()
