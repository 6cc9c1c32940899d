"""Intervals of means over seeds."""

import math

import torch

from ..errors import UserError


def interval(differences):
    """Mean and two-sided 95 % t-interval of n paired differences: (mean, low, high); of one alone (it, −inf, inf).

    Raises UserError where scipy is missing.
    """
    try:
        from scipy import stats
    except ImportError:
        raise UserError('intervals need scipy: pip install -e ".[experiments]"') from None
    values = torch.as_tensor(differences, dtype=torch.float64).cpu().numpy()
    n, mean = len(values), float(values.mean())
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return mean, mean - half, mean + half
