"""Networks that are still hollow: they have names and shapes, and a file's tensors take the place of their weights."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode


class _WithoutInitialisation(TorchFunctionMode):
    """Inside, the functions of `torch.nn.init` that PyTorch lets one replace leave their tensor as it is.

    They are those with which our networks' layers draw their weights: normal_, uniform_, kaiming_uniform_, constant_.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """What PyTorch calls instead of its functions."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":  # some built-in functions have none
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextlib.contextmanager
def hollow():
    """Inside, networks are made without memory for their weights, on the device "meta".

    Nothing is initialised: for tensors without values that would be of no use, and the first time PyTorch would import
    its compiler for it, which takes as long as importing PyTorch itself.
    """
    with torch.device("meta"), _WithoutInitialisation():
        yield
