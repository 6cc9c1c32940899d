"""Are additions everywhere better than in fewer places? `python -m minibnn experiment bps --part places`

The places are those of `variants.py`: all of them (BPS), the skips alone, the encoder alone. Each set is tried with
head-heavy and with equal gains at four learning rates, with 40 pairs of each of TUNING_SEEDS; 24 sketches that serve
nothing else tell the IoU. The rates for equal gains are larger, because Adam makes a gain a learning rate of its place.
The setting with the highest mean IoU is then trained with each of --seeds, and draws the 24 test sketches of
`pairs.py`; so is BPS with the gains that it did not choose, at their best rate. Each set of places is tuned with the
same budget.

Criterion (settled before the runs): the differences of IoU "all − skips", "all − encoder" and, with all places,
"head-heavy − equal", paired by seed, with their 95 % t-interval over five seeds; "better" above 0, "worse" below, else
"not shown". A best rate at an end of its list is named, because a better one may lie beyond.
"""

from pathlib import Path

from ...files.schema import mapping
from ...files.store import write_json
from ...lab.intervals import in_words, interval, verdict
from ...progress import progress_bar
from ..records import kept
from .judge import RESULT
from .variants import BATCH, SAMPLE_STEPS, TEST_SEED, TESTS, followed, trained, world_pairs

PAIRS, VALIDATION_SEED, TUNING_SEEDS = 40, 13, (100, 101)
PLACES = {"all": "bps", "skips": "skip", "encoder": "encoder"}  # name: variant
RATES = {"head-heavy": (1e-4, 3e-4, 1e-3, 3e-3), "equal": (3e-4, 1e-3, 3e-3, 1e-2)}
CONTRASTS = (("all", "skips"), ("all", "encoder"), ("all head-heavy", "all equal"))


def one(sd, judge, places, gains, lr, seed, steps, tests):
    """Train a branch for these places, and judge what it draws for the sketches of `tests` (as of `world_pairs`)."""
    branch = trained(sd, PLACES[places], PAIRS, seed, steps, lr, gains)
    return followed(sd, judge, PLACES[places], branch, tests, seed)[0]


def named(places, gains, lr):
    """A setting as bps_places.json names it."""
    return f"{places} {gains} {lr:g}"


def mean_iou(runs):
    return sum(run["IoU"] for run in runs.values()) / len(runs)


def best(tuned, places, gains):
    """The setting of these places with the highest mean IoU, (gains, rate). gains: which ones may be taken."""
    settings = [(own, lr) for own in gains for lr in RATES[own]]
    return max(settings, key=lambda setting: mean_iou(tuned[named(places, *setting)]))


def entrants(tuned):
    """{name: (places, gains, rate)}: each set of places at its best, and all places with either gains at their best."""
    found = {places: (places, *best(tuned, places, RATES)) for places in PLACES}
    return found | {f"all {gains}": ("all", *best(tuned, "all", [gains])) for gains in RATES}


def compare(sd, judge, options):
    """Do the runs of BpsExperimentOptions that are not there yet, keep them in bps_places.json, and print all."""
    path = Path(options.out) / "bps_places.json"
    validation, tests = world_pairs(TESTS, VALIDATION_SEED), world_pairs(TESTS, TEST_SEED)
    fixed = {"steps": options.steps, "pairs": PAIRS, "batch": BATCH, "hints": TESTS, "sampling steps": SAMPLE_STEPS}
    before = kept(path, fixed, dict.fromkeys(("tuning", "test"), mapping(mapping(RESULT))))
    tuned, tested = before.get("tuning", {}), before.get("test", {})

    def add(found, setting, seeds, sketches):
        runs = found.setdefault(named(*setting), {})
        for seed in seeds:
            if str(seed) not in runs:
                runs[str(seed)] = one(sd, judge, *setting, seed, options.steps, sketches)
                write_json(path, fixed | {"tuning": tuned, "test": tested})

    settings = [(places, gains, lr) for places in PLACES for gains in RATES for lr in RATES[gains]]
    for setting in progress_bar(settings, desc="tuning"):
        add(tuned, setting, TUNING_SEEDS, validation)
    for setting in progress_bar(list(dict.fromkeys(entrants(tuned).values())), desc="comparing"):
        add(tested, setting, options.seeds, tests)
    print(table(tuned, tested))


def table(tuned, tested):
    """The tuning, the entrants' mean IoU and CONTRASTS paired by seed, as Markdown. Both as in bps_places.json."""
    lines = ["| places | gains |" + " rate: IoU |" * 4, "|---|---|" + "---|" * 4]
    for places in PLACES:
        for gains, rates in RATES.items():
            cells = [f"{lr:g}: {mean_iou(tuned[named(places, gains, lr)]):.3f}" for lr in rates]
            lines.append(f"| {places} | {gains} | {' | '.join(cells)} |")
    found = {name: (setting, tested[named(*setting)]) for name, setting in entrants(tuned).items()}
    lines += ["", "| entrant | gains | rate | IoU | seeds |", "|---|---|---|---|---|"]
    for name, ((_, gains, lr), runs) in found.items():
        end = ", an end of its list" if lr in (RATES[gains][0], RATES[gains][-1]) else ""
        lines.append(f"| {name} | {gains} | {lr:g}{end} | {mean_iou(runs):.3f} | {len(runs)} |")
    lines += ["", "| question | difference of IoU | verdict |", "|---|---|---|"]
    for a, b in CONTRASTS:
        ours, theirs = found[a][1], found[b][1]
        middle, low, high = interval([ours[seed]["IoU"] - theirs[seed]["IoU"] for seed in ours if seed in theirs])
        lines.append(f"| {a} − {b} | {in_words(middle, low, high)} | {verdict(low, high, 'better', 'worse')} |")
    return "\n".join(lines)
