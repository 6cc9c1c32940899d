"""Are two samples drawn from one distribution? The energy distance, and a permutation test that uses it.

    2·E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖,      0 if and only if X and Y have the same distribution

Follows: Székely & Rizzo 2013, "Energy statistics: a class of statistics based on distances", eq. 5 and §6.
"""

import numpy as np
import torch


def energy_distance(a, b):
    """The energy distance of two samples (n, …) and (m, …), unbiased: a number."""
    a, b = a.flatten(1), b.flatten(1)
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (2 * torch.cdist(a, b).mean() - sum(within)).item()


def of_groups(distances, first):
    """The same from all pairwise distances, but never below 0: each point counts as its own neighbour too.

    distances: (N, N), symmetric; first: (N,) bool, which of the N points are X. The others are Y.
    """
    xx, yy, xy = (distances[a][:, b].mean() for a, b in ((first, first), (~first, ~first), (first, ~first)))
    return float(2 * xy - xx - yy)


def permutation_test(x, y, permutations=999, seed=0):
    """Whether x (n, D) and y (m, D) differ: (energy distance, p); p: the share of relabellings that give as much.

    p lies in [1/(permutations + 1), 1]. Under one distribution it is uniform.
    """
    both = torch.cat([x, y]).double()
    distances = torch.cdist(both, both).numpy()
    first, rng = np.arange(len(both)) < len(x), np.random.default_rng(seed)
    measured = of_groups(distances, first)
    shuffled = [of_groups(distances, rng.permutation(first)) for _ in range(permutations)]
    return measured, (1 + sum(value >= measured - 1e-12 for value in shuffled)) / (permutations + 1)
