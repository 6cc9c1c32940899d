"""Whose unconditional prediction should guide a model with an adapter? `python -m minibnn experiment bps --anchors`

"Unconditional Priors Matter" (arXiv 2503.20240) speaks of little gain for adapters such as ControlNet and GLIGEN, which
leave the base as it is. The branch of BPS is one. It is trained as in `bps.py` on 40 pairs and draws the 24 unseen
sketches from the same noise, guided by

    own     ε(∅, y): the steered model with the empty prompt, as BPS draws
    base    ε(∅): the frozen model without the branch, which is the base's unconditional prediction

Criterion (settled before the runs): for each scale w the differences "base − own" of each measure, paired by seed, with
their 95 % t-interval. The base's prediction gains at a scale if the interval of the IoU lies above 0, it harms if the
interval lies below 0, else no difference is shown; the same for subject, colour and background, which tell its price.
"""

from ..lab.intervals import in_words, interval
from ..neighbours import bps
from ..pictures import to_tensor
from ..world import scenes as world
from .bps_judge import judged

SCALES = (1.5, 3.0, 7.5)
ANCHORS = {"own": False, "base": True}  # name: whether the hint is guided too


def measure(sd, judge, branch, tests, seed, steps):
    """{"own 1.5": figures of `judged`, …} of all anchors and scales. tests: as of `bps.world_pairs`."""
    scenes, hints, _, masks = tests
    captions, found = [world.caption(scene) for scene in scenes], {}
    for scale in SCALES:
        for name, guided in ANCHORS.items():
            drawn = bps.draw_steered(
                sd, branch.eval(), hints, captions, steps, scale, seed, len(scenes), guide_hint=guided,
            )
            found[f"{name} {scale:g}"] = judged(judge, to_tensor(drawn), masks, scenes)
    return found


def table(seeds, measures):
    """The means of all seeds, [figures of `measure`], and the differences paired by seed, as Markdown."""
    lines = [f"| w | {' | '.join(f'{m}: own, base, base − own' for m in measures)} |", "|---|" + "---|" * len(measures)]
    for scale in SCALES:
        cells = []
        for name in measures:
            own, base = ([seed[f"{anchor} {scale:g}"][name] for seed in seeds] for anchor in ANCHORS)
            found = interval([b - a for a, b in zip(own, base, strict=True)])
            means = (sum(values) / len(values) for values in (own, base))
            cells.append("{:.3f}, {:.3f}, ".format(*means) + in_words(*found))
        lines.append(f"| {scale:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
