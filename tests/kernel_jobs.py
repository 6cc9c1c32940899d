"""Which kernels are compiled for which GPUs: by test_kernel_compile.py, and by triton_matrix.py for other Tritons.

A job is what `compile_kernels.py` takes. sizes 16: N and K are multiples of 16, as all of SD's are, and Triton compiles
that into the kernel.
"""

MULTIPLYING = ("forward", "dx", "wgrad")
WITHOUT_BIAS = {"bias_mu": None, "bias_sigma": None, "dbias_mu": None, "dbias_sigma": None}
ONES = {"N": 1, "K": 1}  # on a GPU Triton compiles sizes of 1 into the kernel
DSIGMA = {"mu": None}


def job(name, dtype, arch, sizes=16, **fixed):
    return {"name": name, "dtype": dtype, "arch": arch, "sizes": sizes, "fixed": fixed}


NVIDIA = [
    *(job(name, dtype, arch)
      for arch in ("sm_80", "sm_89", "sm_90") for name in MULTIPLYING for dtype in ("bfloat16", "float32")),
    *(job(name, "float16", "sm_80", sizes=1) for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **WITHOUT_BIAS) for name in MULTIPLYING),
    *(job(name, "bfloat16", "sm_80", **ONES) for name in MULTIPLYING),
    # a T4 has no tensor cores for tl.dot: it takes the sample path, whose kernels these are
    *(job("sample", "float16", "sm_75", **fixed) for fixed in ({}, DSIGMA, ONES)),
    *(job(name, "float16", "sm_75") for name in ("draw", "gradient")),
    *(job(name, "bfloat16", "sm_90") for name in ("sample", "draw", "gradient")),
]
AMD = [job(name, "bfloat16", "gfx942") for name in (*MULTIPLYING, "sample", "draw", "gradient")]


def jobs_for(version):
    """The jobs that this version of Triton, such as "3.7.1", can compile: before 3.5 AMD's need an installed ROCm."""
    return NVIDIA + AMD * (tuple(map(int, version.split(".")[:2])) >= (3, 5))
