"""Generalised rejection sampling (GRS): which of a model's own samples to keep, by their rewards.

Follows: GRAFT (arXiv 2510.02692, §2; its lemmas by their numbers in an outline, since the body was not at hand):
X^1 … X^M are drawn independently from p̄, and X^i is kept with a probability that depends on the rewards. Whatever the
rule, a kept sample has the law

    p_acc(x) ∝ p̄(x)·a(x),   a(x) = P(kept | X = x),

which is the exact optimum of  E_p[r̂] − α·KL(p ‖ p̄)  for the *reshaped* reward r̂(x) = α log a(x).   (Lemma 2.3)

Rules take rewards of shape (…, M), one group of M samples in the last dimension, and give True for what is kept.

    rule           a(x); F is the distribution function of the reward under p̄ (continuous), q = 1 − F(r(x))
    threshold      1 if r(x) ≥ c, else 0; the paper's rule for a binary reward, with c = 1
    tilt           exp((r(x) − r_max)/α): classical rejection
    top_k          Σ_{j<K} C(M−1, j) q^j (1−q)^{M−1−j}; best of M for K = 1, where a(x) = F(r(x))^{M−1}
    deduplicate    one more factor, 1/(kept copies of x): r̂ gains −α log of their number
"""

import math

import torch


def threshold(rewards, minimum):
    """Keep what reaches `minimum`."""
    return rewards >= minimum


def tilt(rewards, alpha, maximum, uniform):
    """Keep with probability exp((r − r_max)/α). uniform: numbers in [0, 1), one for each reward.

    Raises ValueError if a reward is above the maximum.
    """
    if (rewards > maximum).any():
        raise ValueError(f"a reward of {rewards.max().item():g} is above the maximum {maximum:g}")
    return uniform < torch.exp((rewards - maximum) / alpha)


def top_k(rewards, k):
    """Keep the K best of each group; of equal ones the earlier."""
    order = rewards.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(rewards, dtype=torch.bool).scatter(-1, order, True)


def top_k_probability(q, m, k):
    """a = Σ_{j<K} C(M−1, j) q^j (1−q)^{M−1−j}: fewer than K of the M − 1 others are better. q: tensor in [0, 1]."""
    return sum(math.comb(m - 1, j) * q**j * (1 - q) ** (m - 1 - j) for j in range(k))


def deduplicate(kept, keys, generator):
    """Of the kept samples with the same key keep one, each with the same probability.

    kept (n,) bool; keys: list of n hashable values, what makes two samples "the same". Which the paper takes we do
    not know: we had only its abstract and an outline.
    """
    chosen = torch.zeros_like(kept)
    seen = set()
    for i in torch.randperm(len(kept), generator=generator).tolist():
        if kept[i] and keys[i] not in seen:
            seen.add(keys[i])
            chosen[i] = True
    return chosen
