"""When is it a corruption stage? The criterion, fixed before the runs that it judges.

    corruption stage   fidelity on other prompts falls below its earlier maximum by more than the seed-to-seed interval,
                       while noise is above both the pretrained model's and the final level, and then both recover
    noise stage        noise rises above both the pretrained model's and the final level by more than the interval

Each difference has a two-sided 95 % t-interval over seeds, paired between two steps of the same training. At the step of the
deepest dip (highest peak) of the mean curve the stage is "present" if every interval lies above 0. It is "absent" if at *each*
inner step some interval excludes even the smallest difference that matters (MARGIN); otherwise it is "undecided".

Picking the lowest of several points favours "present", which is why it also takes recovery. Mended after the first runs,
towards "undecided" alone: "absent" had asked for the step of the dip only, and a rising curve's dip was compared with itself.
"""

import torch

from ..lab.intervals import interval

MARGIN = {"fidelity": 0.02, "noise": 0.2}  # cosine; 10⁻³ of energy (white noise of a standard deviation of 0.017)




def verdict(differences, margin):
    """"present", "absent" or "undecided" of several (mean, low, high) that must all lie above 0."""
    if all(low > 0 for _, low, _ in differences):
        return "present"
    if any(high < margin for (_, _, high), margin in zip(differences, margin, strict=True)):
        return "absent"
    return "undecided"


def judge(differences, picked, margins):
    """differences: {inner step: {name: interval}}; picked: the step of the dip or peak. -> "present", "absent" or "undecided"."""
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
    """noise: (seeds, steps), the first step the pretrained model, the last the final. -> (verdict, {difference: interval}, step index)."""
    noise = torch.as_tensor(noise, dtype=torch.float64)
    found = {step: noise_above_both(noise, step) for step in range(1, noise.shape[1] - 1)}
    peak = int(noise.mean(0)[1:-1].argmax()) + 1
    return judge(found, peak, [MARGIN["noise"]] * 2), found[peak], peak


def corruption_stage(fidelity, noise):
    """fidelity, noise: (seeds, steps) on other prompts. -> (verdict, {difference: interval}, step index of the dip).

    The dip is the inner step that lies farthest below its earlier maximum on the mean curve, or, where there is none, rises
    least above it.
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
    return judge(found, dip, [MARGIN["fidelity"]] * 2 + [MARGIN["noise"]] * 2), found[dip], dip
