"""When is it a corruption stage? The criterion, fixed before the runs that it judges.

    corruption stage   fidelity on other prompts falls below its earlier maximum by more than the seed-to-seed interval,
                       while noise is above both the pretrained model's and the final level, and then both recover
    noise stage        noise rises above both the pretrained model's and the final level by more than the interval

Each is "present" if every difference that it names has an interval above 0; "absent" if at one of them the interval
excludes even the smallest difference that matters (MARGIN); otherwise "undecided".

Intervals are two-sided 95 % t-intervals over seeds of the paired difference between two steps. The steps compared are
picked on the mean curve; picking the lowest of several points favours "present", which is why it also takes recovery.
"""

import math

import torch

MARGIN = {"fidelity": 0.02, "noise": 0.2}  # cosine; 10⁻³ of energy (white noise of a standard deviation of 0.017)
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


def verdict(differences, margin):
    """"present", "absent" or "undecided" of several (mean, low, high) that must all lie above 0."""
    if all(low > 0 for _, low, _ in differences):
        return "present"
    if any(high < margin for (_, _, high), margin in zip(differences, margin, strict=True)):
        return "absent"
    return "undecided"


def noise_stage(noise):
    """noise: (seeds, steps), the first step the pretrained model, the last the final. -> (verdict, {difference: interval}, step index)."""
    noise = torch.as_tensor(noise, dtype=torch.float64)
    peak = int(noise.mean(0)[1:-1].argmax()) + 1
    found = {
        "noise above the pretrained model": interval(noise[:, peak] - noise[:, 0]),
        "noise above the final level": interval(noise[:, peak] - noise[:, -1]),
    }
    return verdict(list(found.values()), [MARGIN["noise"]] * 2), found, peak


def corruption_stage(fidelity, noise):
    """fidelity, noise: (seeds, steps) on other prompts. -> (verdict, {difference: interval}, step index of the dip).

    The dip is the inner step that lies farthest below its earlier maximum on the mean curve.
    """
    fidelity, noise = (torch.as_tensor(v, dtype=torch.float64) for v in (fidelity, noise))
    mean = fidelity.mean(0)
    earlier = mean.cummax(0)
    dip = int((earlier.values - mean)[1:-1].argmax()) + 1
    top = int(earlier.indices[dip])
    found = {
        "fidelity below its earlier maximum": interval(fidelity[:, top] - fidelity[:, dip]),
        "fidelity recovers": interval(fidelity[:, -1] - fidelity[:, dip]),
        "noise above the pretrained model": interval(noise[:, dip] - noise[:, 0]),
        "noise above the final level": interval(noise[:, dip] - noise[:, -1]),
    }
    margins = [MARGIN["fidelity"]] * 2 + [MARGIN["noise"]] * 2
    return verdict(list(found.values()), margins), found, dip
