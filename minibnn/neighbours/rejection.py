"""Generalised rejection sampling (GRS): which of a model's own samples to keep, by their rewards.

Follows: GRAFT (arXiv 2510.02692, §2): X^1 … X^M are drawn independently from p̄, X^i is kept with a probability that depends
on the rewards. Whatever the rule, a kept sample has the law

    p_acc(x) ∝ p̄(x)·a(x),   a(x) = P(kept | X = x),

which is the exact optimum of  E_p[r̂] − α·KL(p ‖ p̄)  for the *reshaped* reward r̂(x) = α log a(x).   (Lemma 2.3)

Rules take rewards of shape (…, M), one group of M samples in the last dimension, and give True for what is kept.

    rule           a(x); F is the distribution function of the reward under p̄ (continuous), q = 1 − F(r(x))
    threshold      1 if r(x) ≥ c, else 0
    tilt           exp((r(x) − r_max)/α): classical rejection
    top_k          Σ_{j<K} C(M−1, j) q^j (1−q)^{M−1−j}
    best of N      F(r(x))^{N−1}
    binary         r(x)
    deduplicate    one more factor, 1/(kept copies of x): r̂ gains −α log of their number
"""

import math

import torch


def threshold(rewards, minimum):
    """Keep what reaches `minimum`."""
    return rewards >= minimum


def tilt(rewards, alpha, maximum, uniform):
    """Keep with probability exp((r − r_max)/α); uniform: numbers in [0, 1) like the rewards. Raises ValueError if r > r_max."""
    if (rewards > maximum).any():
        raise ValueError(f"a reward of {rewards.max().item():g} is above the maximum {maximum:g}")
    return uniform < torch.exp((rewards - maximum) / alpha)


def top_k(rewards, k):
    """Keep the K best of each group; of equal ones the earlier."""
    order = rewards.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, order, True)


def best_of_n(rewards):
    """Keep the best of each group."""
    return top_k(rewards, 1)


def binary(rewards):
    """Keep the successes, r = 1. Raises ValueError for rewards other than 0 and 1."""
    if not ((rewards == 0) | (rewards == 1)).all():
        raise ValueError("the rule binary needs rewards that are 0 or 1")
    return rewards == 1


def deduplicate(kept, keys, generator):
    """Of the kept samples with the same key keep one, chosen evenly.

    kept (n,) bool; keys: list of n hashable values, what makes two samples "the same" (the paper leaves it open).
    """
    chosen = torch.zeros_like(kept)
    seen = set()
    for i in torch.randperm(len(kept), generator=generator).tolist():
        if kept[i] and keys[i] not in seen:
            seen.add(keys[i])
            chosen[i] = True
    return chosen


# --- probabilities of being kept --------------------------------------------------------------------------------------


def top_k_probability(q, m, k):
    """a = Σ_{j<K} C(M−1, j) q^j (1−q)^{M−1−j}: fewer than K of the M − 1 others are better. q: tensor in [0, 1]."""
    return sum(math.comb(m - 1, j) * q**j * (1 - q) ** (m - 1 - j) for j in range(k))


def best_of_n_probability(f, n):
    """a = F^{N−1}: all others are worse. f: tensor in [0, 1]."""
    return f ** (n - 1)
