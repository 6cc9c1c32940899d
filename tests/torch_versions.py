"""What tests need of PyTorch that the oldest one that minibnn allows, 2.6, does not have."""

import pytest
import torch

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with PyTorch 2.9")
needs_one_order = pytest.mark.skipif(
    torch.__version__ < "2.7",  # a string that also compares as a version
    reason="a traced backward of PyTorch 2.6 adds up gradients in another order than autograd (fp32: 1e-7, bf16: 2e-3)",
)
