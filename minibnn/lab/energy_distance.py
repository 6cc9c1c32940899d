"""Are two sets of pictures drawn from one distribution? The energy distance of their features, with a permutation test.

Follows: Székely & Rizzo 2013, "Energy statistics: a class of statistics based on distances", eq. 5.
"""

import numpy as np
import torch


def energy_distance(distances, first):
    """2·E|X − Y| − E|X − X'| − E|Y − Y'|, from all pairwise distances: a number ≥ 0, 0 for the same points.

    distances: (N, N), symmetric; first: (N,) bool, which of the N points are X. The others are Y.
    """
    xx, yy, xy = (distances[a][:, b].mean() for a, b in ((first, first), (~first, ~first), (first, ~first)))
    return float(2 * xy - xx - yy)


def permutation_test(x, y, permutations=999, seed=0):
    """Energy distance of features x (n, D) and y (m, D), and its p-value: the share of relabellings that give as much.

    The p-value lies in [1/(permutations + 1), 1]. Under the same distribution it is uniform.
    """
    both = torch.cat([x, y]).double()
    distances = torch.cdist(both, both).numpy()
    first, rng = np.arange(len(both)) < len(x), np.random.default_rng(seed)
    measured = energy_distance(distances, first)
    shuffled = [energy_distance(distances, rng.permutation(first)) for _ in range(permutations)]
    return measured, (1 + sum(value >= measured - 1e-12 for value in shuffled)) / (permutations + 1)
