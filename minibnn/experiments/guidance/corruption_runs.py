"""What the corruption laboratory knows of guidance's anchor: pairs of drawings of the same trainings.

`experiment corruption` fine-tuned on four pictures of the dog without class pictures, and drew the same weights of the
same seeds at guidance 1, 3 and 7.5, with their own unconditional prediction and with the pretrained model's. Here those
lines are paired by seed, so that the answer costs no new training: at guidance 3 from six seeds, elsewhere from three.
"""

from ...lab.intervals import bold, in_words, interval

STEPS = (100, 400, 800)
GROUPS = {"training": "training prompt", "other": "other prompts"}
DRAWN = {  # what is drawn: (setting, view) of the laboratory
    "none": ("samplers", "ddim-25-g1"), "own 3": ("pndm", "ddim-25-g3"), "base 3": ("base", "ddim-25-g3-base"),
    "own 7.5": ("samplers", "ddim-25-g7.5"), "base 7.5": ("base", "ddim-25-g7.5-base"),
}
PAIRS = (("base 3", "own 3"), ("base 7.5", "own 7.5"), ("base 3", "none"))
MEASURES = ("fidelity", "noise", "background", "subject")


def values(rows, name, step, group, measure):
    """{seed: value} of a measure in the lines of `experiment corruption`."""
    setting, view = DRAWN[name]
    start = f"{setting}-4-plain-"
    return {
        row["run"].removeprefix(start): row[measure] for row in rows
        if row["run"].startswith(start) and (row["view"], row["step"], row["group"]) == (view, step, group)
        and row[measure] is not None
    }


def difference(rows, pair, step, group, measure):
    """(seeds, mean, low, high) of pair[0] − pair[1], paired by seed; None without a common seed."""
    a, b = (values(rows, name, step, group, measure) for name in pair)
    common = sorted(a.keys() & b.keys())
    return (len(common), *interval([a[seed] - b[seed] for seed in common])) if common else None


def table(rows):
    """The differences of all measures, steps and pairs as a Markdown table; bold where the interval excludes 0."""
    head = " | ".join(f"{a} − {b}" for a, b in PAIRS)
    lines = [f"| drawn | measure | step | {head} |", "|---|---|---|" + "---|" * len(PAIRS)]
    for group, words in GROUPS.items():
        for measure in MEASURES:
            for step in STEPS:
                found = [difference(rows, pair, step, group, measure) for pair in PAIRS]
                if None in found:
                    continue
                cells = [bold(f"{in_words(mean, low, high)} ({n})", low, high) for n, mean, low, high in found]
                lines.append(f"| {words} | {measure} | {step} | {' | '.join(cells)} |")
    return "\n".join(lines)
