"""When is it a corruption stage? The criterion, fixed before the runs to which it is applied.

    corruption stage   fidelity on other prompts falls below its earlier maximum by more than the seed-to-seed interval,
                       while noise is above both the pretrained model's and the final level, and then both recover
    noise stage        noise rises above both the pretrained model's and the final level by more than the interval

Each difference has a two-sided 95 % t-interval over seeds, paired between two steps of the same training. At the step
of the deepest dip (highest peak) of the mean curve the stage is "present" if every interval lies above 0. It is
"absent" if at *each* inner step some interval excludes even the smallest difference that matters (MARGIN). Otherwise it
is "undecided".

To pick the lowest of several points favours "present"; that is why recovery is asked for too. The criterion was changed
once, after the first runs, and only so that more is "undecided": at first "absent" was asked for at the step of the dip
alone, and a curve that only rises was compared with itself there.
"""

import torch

from ...lab.intervals import interval

MARGIN = {"fidelity": 0.02, "noise": 0.2}  # cosine; 10⁻³ of energy (white noise of a standard deviation of 0.017)


def verdict(differences, margin):
    """"present", "absent" or "undecided" of several (mean, low, high) that must all lie above 0."""
    if all(low > 0 for _, low, _ in differences):
        return "present"
    if any(high < margin for (_, _, high), margin in zip(differences, margin, strict=True)):
        return "absent"
    return "undecided"


def verdict_at(picked, differences, margins):
    """The verdict at the step of the dip or peak, `picked`, which is "absent" only if it is so at all inner steps.

    differences: {inner step: {name: interval}}.
    """
    outcomes = {step: verdict(list(found.values()), margins) for step, found in differences.items()}
    if outcomes[picked] == "absent" and set(outcomes.values()) != {"absent"}:
        return "undecided"
    return outcomes[picked]


def noise_above_both(noise, step):
    """Intervals of how far the noise at a step lies above both ends."""
    return {
        "noise above the pretrained model": interval(noise[:, step] - noise[:, 0]),
        "noise above the final level": interval(noise[:, step] - noise[:, -1]),
    }


def noise_stage(noise):
    """The verdict on a noise stage, {difference: its interval}, and the index of the step of the peak.

    noise: (seeds, steps), of which the first is the pretrained model and the last the final one.
    """
    noise = torch.as_tensor(noise, dtype=torch.float64)
    found = {step: noise_above_both(noise, step) for step in range(1, noise.shape[1] - 1)}
    peak = int(noise.mean(0)[1:-1].argmax()) + 1
    return verdict_at(peak, found, [MARGIN["noise"]] * 2), found[peak], peak


def corruption_stage(fidelity, noise):
    """The verdict on a corruption stage, {difference: its interval}, and the index of the step of the dip.

    fidelity, noise: (seeds, steps) on other prompts. The dip is the inner step that lies farthest below its earlier
    maximum on the mean curve, or, where there is none, rises least above it.
    """
    fidelity, noise = (torch.as_tensor(v, dtype=torch.float64) for v in (fidelity, noise))
    found = {}
    for step in range(1, fidelity.shape[1] - 1):
        top = int(fidelity[:, :step].mean(0).argmax())
        found[step] = {
            "fidelity below its earlier maximum": interval(fidelity[:, top] - fidelity[:, step]),
            "fidelity recovers": interval(fidelity[:, -1] - fidelity[:, step]),
            **noise_above_both(noise, step),
        }
    dip = max(found, key=lambda step: found[step]["fidelity below its earlier maximum"][0])
    return verdict_at(dip, found, [MARGIN["fidelity"]] * 2 + [MARGIN["noise"]] * 2), found[dip], dip
