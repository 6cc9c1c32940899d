"""Which device computes, in which precision, whether compiled, and how it gives the same bits twice."""

import contextlib
import os

import torch

from .errors import UserError

COMPILER = "inductor"  # torch.compile's backend: C++ on a CPU, Triton on a GPU
SMALL = 50_000_000  # parameters; the bundled UNets have 2.9 and 8.8 million, that of SD v1.5 860 million


def choose_device(asked=None):
    """--device, or "cuda" if there is one, else "cpu". Raises UserError when it does not exist here."""
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {device} is not one of cpu, cuda, cuda:N, mps")
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
    """The type for a training without loss scaling: "bfloat16" where it is fast, else "float32", never "float16"."""
    return "bfloat16" if device.startswith("cuda") and half_dtype(device) == "bfloat16" else "float32"


def training_dtype(device):
    """The type in which layers compute in training and in measuring what is trained: `half_dtype`, else "float32"."""
    return half_dtype(device) if device.startswith("cuda") else "float32"


def drawing_dtype(device):
    """The type of the weights when only pictures are drawn: "float16" on a GPU, else "float32"."""
    return "float16" if device.startswith("cuda") else "float32"


def autocast(device, dtype):
    """A context in which the layers compute in `dtype` (torch.float32: as they are). device: a name or torch.device."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def upload(tensor, device):
    """A tensor of the CPU on the device; the host does not wait for the work that a GPU still has to do."""
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)  # from ordinary memory it would wait
    return tensor.to(device)


def choose_threads(device, network):
    """One thread for a small network on a CPU, unless the user has set OMP_NUM_THREADS.

    With operations so short a second thread does not help training, though it helps drawing; and where other programs
    run, each operation waits for the thread that happens not to run (`python benchmarks/busy.py` measures all three).
    """
    size = sum(parameter.numel() for parameter in network.parameters())
    if str(device) == "cpu" and "OMP_NUM_THREADS" not in os.environ and size < SMALL:
        torch.set_num_threads(1)


@contextlib.contextmanager
def threads_kept():
    """Inside, PyTorch's number of threads may be changed; afterwards it is the caller's again, as in a notebook.

    As a decorator, of a function that is a command: `@threads_kept()`.
    """
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compiled(network):
    """The network, to be called in its place: torch.compile makes fused kernels of it at its first call.

    The network itself, its parameters and their names stay as they are. Each new shape of the inputs is compiled anew.
    """
    return torch.compile(network, backend=COMPILER)


def compile_in_place(network):
    """The same for all calls of the network itself."""
    network.compile(backend=COMPILER)


def check_compiler(device):
    """Raises UserError unless torch.compile works on this device: a function of one line is compiled and called."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=COMPILER)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds: no compiler, no headers of Python, a Python or a device too new or old
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(f"--compile: torch.compile does not work here ({reason}); go on with --no-compile") from None


def make_deterministic(device):
    """The same bits from the same seed also on a GPU, by slower kernels; elsewhere there is nothing to do.

    All kernels or none: a fast backward of attention alone would lose the bits that slow convolutions keep. What has no
    such kernel raises RuntimeError, which `options/running.py` explains.
    """
    if not device.startswith("cuda"):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used, which is later
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
