"""Intervals of means over seeds."""

import math

import torch

_T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # of n − 1 degrees
_T975_OF_MORE = 2.228  # of 11, and a little wide beyond


def interval(differences):
    """Mean and two-sided 95 % t-interval of n ≥ 2 paired differences: (mean, low, high). One alone: (it, −inf, inf)."""
    values = torch.as_tensor(differences, dtype=torch.float64)
    n, mean = len(values), values.mean().item()
    if n < 2:
        return mean, -math.inf, math.inf
    half = _T975.get(n, _T975_OF_MORE) * values.std().item() / math.sqrt(n)
    return mean, mean - half, mean + half
