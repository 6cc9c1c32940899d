"""What draws the random weights on this machine, and whether it draws them all at once."""

import importlib.util

import torch

from ..errors import UserError

SMALL = 64 * 2**20  # bytes

def choose_kernel(asked, device, dtype):
    """"torch", "reference" or "triton" for `--kernel`; prints a line when the kernels turn out not to run here.

    asked: one of these, which is kept, or "auto". device: a name; dtype: torch.dtype of the computation. Raises
    UserError when "triton" was asked for and does not run: "auto" then draws the same weights in plain PyTorch.
    """
    if (default_kernel(device) if asked == "auto" else asked) != "triton":
        return default_kernel(device) if asked == "auto" else asked
    from minibnn_kernels.rehearsal import KernelFailure, rehearse

    try:
        rehearse(device, dtype)
    except KernelFailure as error:
        if asked == "triton":
            message = f"--kernel triton does not run here ({error}); --kernel reference draws the same weights"
            raise UserError(message) from None
        print(f"the Triton kernels do not run here ({error}): --kernel reference draws the same weights, more slowly")
        return "reference"
    return "triton"


def default_kernel(device):
    """"triton" on a GPU where it is installed and can compile (from a T4 on), else "torch"."""
    cuda = device.startswith("cuda") and importlib.util.find_spec("triton") is not None
    return "triton" if cuda and torch.cuda.get_device_capability(device) >= (7, 5) else "torch"


def room_at_once(network, ema=0.0, lambda_kl=0.0, itemsize=2):
    """Is there room for drawing a network's weights all at once? On a CPU there is; a GPU is asked what is free.

    The two ways differ in the last bits of their gradients. Where every run is to give the same bits (--deterministic),
    other programs must not decide: then all that this one does not hold itself counts as free.
    ema, lambda_kl: as in TrainOptions. A moving average, or the means of the prior, will be stored, too.
    itemsize: bytes of a number in the dtype of the forward.
    """
    device = next(network.parameters()).device
    if device.type != "cuda":
        return True
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    random = sum(p.numel() for name, p in network.named_parameters() if name.endswith("_sigma"))
    free, total = torch.cuda.mem_get_info(device)
    if torch.are_deterministic_algorithms_enabled():
        free = total - torch.cuda.memory_allocated(device)
    else:
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    later = 4 * trained * (ema > 0) + 4 * random * (lambda_kl > 0)
    return fits_at_once(free - later, trained, random, itemsize)


def fits_at_once(free, trained, random, itemsize=2):
    """Do θ and dθ of `random` numbers, `itemsize` bytes each, fit into `free` bytes beside the rest of a training?

    The rest: 12 bytes for each of `trained` numbers (its gradient and AdamW's two moments), and 4 GiB for activations.
    What is as small as an adapter makes no difference to that, and always fits.
    """
    both = 2 * itemsize * random
    return both < SMALL or free >= 12 * trained + both + 4 * 2**30
