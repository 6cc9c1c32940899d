"""Compile the kernels for GPUs that are not here, and print what the machine code looks like.

    python tests/compile_kernels.py          every kernel at its table configuration, as a Markdown table
    python tests/compile_kernels.py JOBS     what JOBS (JSON) asks for, as JSON lines

Run by test_kernel_compile.py in a process of its own, because there the kernels must not be the interpreter's, and by
triton_matrix.py with other versions of Triton.
"""

import inspect
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
from minibnn_kernels import network
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
TYPES = {"M": "i32", "N": "i32", "K": "i32", "stream": "i32", "seed": "*i64", "table": "*i64", "owners": "*i32"}
KERNELS = {name: getattr(b, f"{name}_kernel") for name in ("sample", "forward", "dx", "wgrad")}
SPILLS = "LDL|STL"  # loads from local memory, and stores to it
KERNELS |= {"draw": network.draw_kernel, "gradient": network.gradient_kernel}


def tiles_of(name, dtype):
    """({constant: value}, warps) of the table configuration."""
    if name in ("draw", "gradient"):
        sizes = zip(("WIDE_N", "WIDE_K", "NARROW_N", "NARROW_K"), (*network.WIDE, *network.NARROW), strict=True)
        return dict(sizes), network.WARPS
    *sizes, warps = (b.TILES_FLOAT32 if dtype == "float32" else b.TILES)[KERNELS[name]]
    return dict(zip(("BM", "BN", "BK"), sizes, strict=True)) | {"BB": 16, "DOMAIN": 0}, warps


def source(kernel, signature, constants, divisible):
    """What triton.compile takes. divisible: numbers of the arguments that are multiples of 16."""
    if "constexprs" in inspect.signature(ASTSource).parameters:
        attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
        return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    from triton.backends.compiler import AttrsDescriptor  # Triton 3.2

    runtime = {name: kind for name, kind in signature.items() if kind != "constexpr"}
    hints = AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
    return ASTSource(fn=kernel, signature=runtime, constants=constants, attrs=hints)


def compile_kernel(name, dtype, target, fixed=None, tiles=None, warps=None, sizes=1):
    """The compiled kernel of one table configuration.

    fixed: arguments known beforehand, such as an absent bias. sizes: 16 when N and K are multiples of 16, as in SD.
    """
    kernel, (constants, table_warps) = KERNELS[name], tiles_of(name, dtype)
    constants |= (fixed or {}) | (tiles or {})
    constants = {argument: value for argument, value in constants.items() if argument in kernel.arg_names}
    signature, divisible = {}, []
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        activation = argument in ("x", "y", "dx", "dy", "theta", "dtheta")
        signature[argument] = TYPES.get(argument, "*" + (DTYPES[dtype] if activation else "fp32"))
        if signature[argument].startswith("*") or (argument in ("N", "K") and sizes == 16):
            divisible.append(i)
    made = source(kernel, signature, constants, divisible)
    return triton.compile(made, target=target, options={"num_warps": warps or table_warps, "enable_fp_fusion": False})


def machine_code(compiled):
    """([(address, instruction)], registers of a thread) of a cubin, by the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        sass, usage = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-sass", "-res-usage")
        )
    code = [(int(place, 16), text) for place, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?;)", sass)]
    return code, int(re.search(r"REG:(\d+)", usage)[1])


def loop(code):
    """The instructions of the innermost loop that multiplies matrices; none if there is no such loop."""
    bodies = []
    for place, text in code:
        jump = re.search(r"\bBRA(?:\.\w+)* (?:`\()?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < place:
            body = [t for p, t in code if int(jump[1], 16) <= p <= place]
            if any(re.search(r"\bH?G?MMA\b", t) or "FFMA" in t for t in body):
                bodies.append(body)
    return min(bodies, key=len, default=[])


def count(pattern, instructions):
    return sum(bool(re.search(rf"\b(?:{pattern})\b", text)) for text in instructions)


def describe(name, dtype, arch, **changes):
    if arch.startswith("gfx"):
        compile_kernel(name, dtype, GPUTarget("hip", arch, 64), **changes)
        return {"kernel": name, "dtype": dtype, "arch": arch}
    compiled = compile_kernel(name, dtype, GPUTarget("cuda", int(arch[3:]), 32), **changes)
    code, registers = machine_code(compiled)
    constants, table_warps = tiles_of(name, dtype)
    constants |= changes.get("tiles") or {}
    threads = 32 * (changes.get("warps") or table_warps)
    result = {"kernel": name, "dtype": dtype, "arch": arch, "registers": registers, "shared": compiled.metadata.shared}
    for key, pattern in (("spills", SPILLS), ("HMMA", "HMMA"), ("HGMMA", "HGMMA"), ("fused", "FFMA")):
        result[key] = count(pattern, (text for _, text in code))
    if name == "sample":  # straight code, each thread once
        work = sum("NOP" not in text for _, text in code)
        result["per normal"] = work * threads / (constants["BN"] * constants["BK"])
    elif "BM" in constants:
        products = constants["BM"] * constants["BN"] * constants["BK"]
        body = loop(code)
        result["loop"], result["per 1000 products"] = len(body), 1000 * len(body) * threads / products
        result["spills in the loop"] = count(SPILLS, body)
    return result


def table():
    """What RESULTS.md holds: each kernel as SD's shapes call it."""
    head = ("kernel", "dtype", "arch", "registers", "spill instructions", "shared memory, KiB",
            "tensor-core instructions", "instructions a normal", "… in 1000 multiply-adds")
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    jobs = [(name, dtype, arch) for arch in ("sm_80", "sm_86", "sm_89", "sm_90") for name in ("forward", "dx", "wgrad")
            for dtype in ("bfloat16", "float32")]
    jobs += [(name, "float16", arch) for name in ("sample", "draw", "gradient") for arch in ("sm_75", "sm_80", "sm_90")]
    for name, dtype, arch in jobs:
        d = describe(name, dtype, arch, sizes=16)
        counts = (f"{d[what]:.0f}" if what in d else "" for what in ("per normal", "per 1000 products"))
        figures = d["registers"], d["spills"], f"{d['shared'] / 1024:.1f}", d["HMMA"] + d["HGMMA"], *counts
        print("|", " | ".join(map(str, (name, dtype, arch, *figures))), "|", flush=True)


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]) if sys.argv[1:] else []:
        print(json.dumps(describe(**job)), flush=True)
    if not sys.argv[1:]:
        table()
