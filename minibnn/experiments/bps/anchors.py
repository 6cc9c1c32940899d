"""Whose prediction should guide a model with an adapter? `python -m minibnn experiment bps --part anchors`

"Unconditional Priors Matter" (arXiv 2503.20240) speaks of little gain for adapters such as ControlNet and GLIGEN, which
leave the base as it is. The branch of BPS is one. It is trained as in `pairs.py` on 40 pairs and draws the 24 unseen
sketches from the same noise, guided by

    own           ε(∅, y): the steered model with the empty prompt, as BPS draws
    base          ε(∅): the frozen model without the branch, which is the base's unconditional prediction
    base caption  ε(c): the frozen model with the caption, a control. It is not an unconditional prior and guides on the
                  sketch alone. If it does as well as "base", what helps is more of the sketch's part, not the prior.

Criterion (settled before the runs): for each scale w the differences "base − own" of each measure, paired by seed, with
their 95 % t-interval. The base's prediction gains at a scale if the interval of the IoU lies above 0, it harms if the
interval lies below 0, else no difference is shown; the same for subject, colour and background, which tell its price,
and for "base − base caption", in which an interval of the IoU above 0 says that the prior adds to the sketch's part.
"""

from pathlib import Path

from ...files.schema import mapping
from ...files.store import write_json
from ...lab.intervals import in_words, interval
from ...neighbours import bps
from ...pictures import to_tensor
from ...world import scenes as world
from ..records import kept
from .judge import JUDGED, RESULT, judged
from .variants import SAMPLE_STEPS, TEST_SEED, TESTS, trained, world_pairs

PAIRS = 40
SCALES = (1.5, 3.0, 7.5)
ANCHORS = ("own", "base", "base caption")
CONTRASTS = (("base", "own"), ("base", "base caption"))


def measure(sd, judge, branch, tests, seed):
    """{"own 1.5": figures of `judged`, …} of all anchors and scales. tests: as of `world_pairs`."""
    scenes, hints, _, masks = tests
    captions, found = [world.caption(scene) for scene in scenes], {}
    for scale in SCALES:
        for name in ANCHORS:
            drawn = bps.draw_steered(
                sd, branch, hints, captions, SAMPLE_STEPS, scale, seed, len(scenes), guide_hint=name != "own",
                negatives=captions if name == "base caption" else None,
            )
            found[f"{name} {scale:g}"] = judged(judge, to_tensor(drawn), masks, scenes)
    return found


def compare(sd, judge, options):
    """Do the runs of BpsExperimentOptions that are not there yet, keep them in bps_anchors.json, and print all."""
    path, tests = Path(options.out) / "bps_anchors.json", world_pairs(TESTS, TEST_SEED)
    fixed = {"steps": options.steps, "pairs": PAIRS, "hints": TESTS, "sampling steps": SAMPLE_STEPS}
    seeds = kept(path, fixed, {"seeds": mapping(mapping(RESULT))}).get("seeds", {})
    for seed in options.seeds:
        if str(seed) not in seeds:
            branch = trained(sd, "bps", PAIRS, seed, options.steps)
            seeds[str(seed)] = measure(sd, judge, branch, tests, seed)
            write_json(path, fixed | {"seeds": seeds})
    print(table(list(seeds.values()), JUDGED))


def table(seeds, measures):
    """Means over the seeds, [figures of `measure`], and CONTRASTS paired by seed, as Markdown."""
    names = [f"mean, {anchor}" for anchor in ANCHORS] + [f"{a} − {b}" for a, b in CONTRASTS]
    lines = [f"| w | measure | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for scale in SCALES:
        for name in measures:
            of = {anchor: [seed[f"{anchor} {scale:g}"][name] for seed in seeds] for anchor in ANCHORS}
            cells = [f"{sum(values) / len(values):.3f}" for values in of.values()]
            cells += [in_words(*interval([x - y for x, y in zip(of[a], of[b], strict=True)])) for a, b in CONTRASTS]
            lines.append(f"| {scale:g} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
