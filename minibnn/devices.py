"""Which device computes, in which precision, and how it gives the same bits twice."""

import os

import torch

from .errors import UserError


def choose_device(asked=None):
    """--device, or "cuda" if there is one, else "cpu". Raises UserError when it does not exist here."""
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is not one of cpu, cuda, cuda:N")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}; try --device cpu") from None
    return device


def half_dtype(device):
    """The 16-bit type that a CUDA device computes fast: "bfloat16" from compute capability 8 on, else "float16"."""
    # "is_bf16_supported" is also true where bf16 is slowly emulated, as on a T4
    return "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"


def unscaled_dtype(device):
    """Of a training without loss scaling, whose gradients would vanish in float16: "bfloat16" where it is fast, else "float32"."""
    return "bfloat16" if device.startswith("cuda") and half_dtype(device) == "bfloat16" else "float32"


def make_deterministic():
    """The same bits from the same seed also on a GPU, as far as PyTorch has deterministic kernels (it warns otherwise)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
