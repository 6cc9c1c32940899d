"""Does guidance leave noise in the pictures, for which reason, and what helps? Read from gains by the law of gains.

What counts is the noise that guidance *adds* to what the same model leaves without it, since the latter may be variety:

    added(s, η) = √(max(0, N(s, η)² − N(1, 0)²)),   N(s, η) = `gain_law.predicted_noise` of s·c − (s−1)·u

It is compared with the least noise that is seen: how much of it the latents of a training picture can take before the
measure of noise rises in the decoded picture (`visible_noise`). A remedy is named only if the law says that it works.
"""

import dataclasses

import torch

from .gain_law import predicted_noise
from .gains import guided_gain

LOWER_GUIDANCE = (5.0, 3.0, 2.0, 1.5, 1.0)  # tried from above
LEVELS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)  # of noise in latents, tried from below
NULL_DROPOUT = 0.1  # the share that SD itself was trained with, according to its model card


@dataclasses.dataclass(frozen=True)
class Reading:
    """Mean gains at T times and how the model draws."""

    times: tuple  # T whole numbers, 0 … 999
    c: list  # T numbers: with the prompt
    u: list  # T numbers: without
    abar: torch.Tensor  # (1000,), on the CPU
    steps: int  # of DDIM

    def guided(self, guidance):
        """`guided_gain` at each time, as a list."""
        return [guided_gain(c, u, guidance) for c, u in zip(self.c, self.u, strict=True)]

    def noise(self, guidance, eta=0.0, steps=None, sampler="ddim"):
        """N(s, η): the predicted noise of samples, a standard deviation in units of the latents."""
        return predicted_noise(self.times, self.guided(guidance), self.abar, steps or self.steps, eta, sampler)

    def added(self, guidance, eta=0.0, steps=None):
        """The noise that is there with this guidance and η, and not without guidance and with η = 0."""
        own = self.noise(1.0, steps=steps)
        return max(0.0, self.noise(guidance, eta, steps) ** 2 - own**2) ** 0.5


def lowest(reading, guidance):
    """(time, guided gain, c, u) where the guided gain is lowest."""
    columns = zip(reading.guided(guidance), reading.times, reading.c, reading.u, strict=True)
    gain, t, c, u = min(columns)
    return t, gain, c, u


def reason(reading, guidance):
    """Why this guidance adds noise, if it does: half a sentence, to follow "guidance 7.5 leaves noise: "."""
    t, gain, c, u = lowest(reading, guidance)
    if u <= c:
        return f"its gains, up to {max(reading.guided(guidance)):.2f}, overshoot in {reading.steps} steps"
    without, prompted = apart(u, c, 3)
    return (
        f"its gain is {gain:.2f} at t = {t}, because that of the unconditional prediction, {without}, "
        f"is above that with the prompt, {prompted}"
    )


def apart(a, b, digits):
    """Two different numbers as text, with this many digits or as many as tell them apart."""
    while f"{a:.{digits}f}" == f"{b:.{digits}f}" and digits < 12:
        digits += 1
    return f"{a:.{digits}f}", f"{b:.{digits}f}"


def remedies(reading, guidance, visible):
    """The options of `sample` with which the law expects no visible noise, each alone; [] if there is none anyway."""
    if reading.added(guidance) <= visible:
        return []
    found = ["--eta 1"] if reading.added(guidance, eta=1.0) <= visible else []
    lower = [g for g in LOWER_GUIDANCE if g < guidance and reading.added(g) <= visible]
    more = [k * reading.steps for k in (2, 4) if k * reading.steps < 1000]
    more = [n for n in more if reading.added(guidance, steps=n) <= visible]
    return found + [f"--guidance {g:g}" for g in lower[:1]] + [f"--steps {n}" for n in more[:1]]


def training_remedies(options):
    """The options of `train`, so far not used, that keep the unconditional prediction below the conditional one.

    options: of a run, with the attribute null_dropout; None for a model that is not a run. Random weights are not a
    remedy: in the textured model no change of the guided gain is shown with them, and noise rises.
    """
    return [] if getattr(options, "null_dropout", 0.0) else [f"--null-dropout {NULL_DROPOUT}"]


def verdict(reading, guidance, visible, training):
    """One plain sentence about drawing with this guidance. training: options of `train` to name as remedies."""
    added = reading.added(guidance)
    if added <= visible:
        against = f"{reading.noise(guidance):.2f} by the law of gains, {reading.noise(1.0):.2f} without guidance"
        if visible == float("inf") and added > (1 - reading.abar[0].item()) ** 0.5:  # more than perfect gains leave
            return f"guidance {guidance:g} adds noise to latents ({against}), but the decoder does not show it as noise"
        return f"guidance {guidance:g} adds no visible noise: {against}"
    _, _, c, u = lowest(reading, guidance)
    remedy = {"draw": remedies(reading, guidance, visible), "train": training if u > c else []}
    ways = [f"{verb} with {' or '.join(named)}" for verb, named in remedy.items() if named]
    adds, seen = apart(added, visible, 2)
    added_and_seen = f"it adds {adds}, where {seen} is seen"
    why = f"guidance {guidance:g} leaves noise: {reason(reading, guidance)}"
    return "; ".join(filter(None, [why, added_and_seen, ", or ".join(ways)]))


@torch.no_grad()
def visible_noise(sd, latents, measure, risen):
    """The least noise in the latents of a picture, of LEVELS and between, that raises a measure by `risen`.

    latents: (n, 4, h, w), of which the first is taken. measure(images): (B, 3, H, W) in [-1, 1] -> (B,). Returns a
    standard deviation; inf if even the strongest does not, because the decoder hides it.
    """
    picture = latents[:1].to(sd.device)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0)).to(picture)
    seen = lambda level: measure(sd.decode_latents(picture + level * noise).cpu()).item()  # noqa: E731
    clean, before = seen(0.0), (0.0, 0.0)
    for level in LEVELS:
        rise = seen(level) - clean
        if rise >= risen:
            return before[0] + (level - before[0]) * (risen - before[1]) / (rise - before[1])
        before = level, rise
    return float("inf")
