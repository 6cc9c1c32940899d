"""Intervals of means over seeds."""

import math

import torch

from ..errors import UserError


def require_scipy():
    """scipy.stats. Raises UserError where scipy is missing: commands call it before they compute for long."""
    try:
        from scipy import stats
    except ImportError:
        raise UserError('intervals need scipy: pip install -e ".[experiments]"') from None
    return stats


def interval(differences):
    """Mean and two-sided 95 % t-interval of n paired differences: (mean, low, high).

    With a single difference it is (that difference, −inf, inf). Raises UserError where scipy is missing.
    """
    stats = require_scipy()
    values = torch.as_tensor(differences, dtype=torch.float64).cpu().numpy()
    n, mean = len(values), float(values.mean())
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def bold(text, low, high):
    """The text, in Markdown's bold where the interval [low, high] excludes 0."""
    return f"**{text}**" if low > 0 or high < 0 else text


def verdict(low, high, above, below):
    """`above` or `below` where the whole interval [low, high] lies on that side of 0; else "not shown"."""
    return above if low > 0 else below if high < 0 else "not shown"


def in_words(mean, low, high, digits=3):
    """"+0.050 [+0.010, +0.090]" of a difference and its interval; with a single seed, "+0.050 (one seed)"."""
    if not math.isfinite(low):
        return f"{mean:+.{digits}f} (one seed)"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
