"""Figures that stand in RESULTS.md, README.md and docs/ are worked out again from the committed results."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minibnn.experiments import graft
from minibnn.experiments.bps import anchors as bps_anchors
from minibnn.experiments.bps import places as bps_places
from minibnn.experiments.corruption import report
from minibnn.experiments.guidance import trainings as guidance
from minibnn.experiments.inverse_noise.report import by_seed, contests
from minibnn.experiments.stage import every_look
from minibnn.experiments.stage import law as stage_law
from minibnn.experiments.stage import report as stage_report
from minibnn.experiments.stage import settings as stage_settings
from minibnn.experiments.stage import tables as stage_tables
from minibnn.files.configs import RECIPE
from minibnn.lab.intervals import interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tutorials" / "results"
PLAIN, PRETRAINED = "ddim-25-g3", "ddim-25-g7.5-base"  # how is drawn: with the model's own ε(∅), or the base's


@cache
def laboratory():
    return report.read_all([RESULTS])


def values(setting, name, step, pictures=4, kind="plain", view=PLAIN, group="other"):
    """A measure of the corruption laboratory after a step: one number for each seed."""
    steps, _, found = report.table(laboratory(), setting, pictures, kind, view, group, name)
    return np.array(found)[:, steps.index(step)]


def nearest(setting, step, **more):
    return values(setting, "nearest", step, group="training", **more).mean()


def change(setting, first, last, name="fidelity", **more):
    return interval(values(setting, name, last, **more) - values(setting, name, first, **more))


def effect(setting, step, **more):
    """BNN − plain, of fidelity."""
    both = [values(setting, "fidelity", step, kind=kind, **more) for kind in ("bnn", "plain")]
    return interval(both[0] - both[1])


def apart(name, views):
    """The largest distance of the mean curves of two ways of drawing the same plain trainings."""
    curves = []
    for view in views:
        _, _, found = report.table(laboratory(), "samplers", 4, "plain", view, "other", name)
        curves.append(np.array(found).mean(0))
    return max(abs(a - b).max() for a in curves for b in curves)


def apart_in_the_end(guidance):
    """Fidelity without guidance − fidelity with it, of the same weights after 800 steps."""
    ends = [values("samplers", "fidelity", 800, view=f"ddim-25-g{g}") for g in ("1", guidance)]
    return interval(ends[0] - ends[1])


def explained(t, before, strong):
    """The share of the loss at t that Eq. 2 explains: the mean before, or the most in fine-tuning; strong: σ₀ = 0.1."""
    shares = [
        100 * row["explained"][row["t"].index(t)] for row in laboratory()
        if (row["step"] == 0) == before and ("sigma-0.1" in row["run"]) == strong
    ]
    return np.mean(shares) if before else max(shares)


def told():
    """Effects of the BNN on fidelity and noise in corruption.md: how many there are, are better, are worse."""
    rows = (RESULTS / "corruption.md").read_text(encoding="utf-8").rsplit("\n\n", 1)[1].splitlines()[2:]
    signs = []
    for row in rows:
        for sign, cell in zip((1, -1), row.split("|")[5:7], strict=True):
            low, high = map(float, re.search(r"\[(\S+), (\S+)\]", cell).groups())
            signs.append(sign * (int(low > 0) - int(high < 0)))
    return signs.count(1), signs.count(-1), len(signs)


@cache
def textured():
    return stage_report.read_runs([RESULTS])


SUBJECTS = ("cat", "coffee", "rocket")


def of_stage(setting, name, beside=None, view=stage_settings.MAIN, step=None, group="training", subjects=SUBJECTS,
             model="textured"):
    """A measure of the textured model, mean over the late steps or at one, minus that of the setting beside it."""
    def of_run(rows):
        if step is None:
            return stage_tables.late(rows, view, group, name)
        return stage_tables.at(rows, step, view, group, name)

    own, other = (stage_tables.of(textured(), each, model) for each in (setting, beside))
    return stage_tables.over_seeds({run: of_run(own[run]) - (of_run(other[run]) if beside else 0) for run in own
                                    if run[0] in subjects and (not beside or run in other)})


def between(setting, first, last, group, name="fidelity", subjects=SUBJECTS):
    """By how much a measure changes from one step to another in the textured model."""
    def at(rows, step):
        return stage_tables.at(rows, step, stage_settings.MAIN, group, name)

    runs = stage_tables.of(textured(), setting, "textured")
    return stage_tables.over_seeds({
        run: at(rows, last) - at(rows, first) for run, rows in runs.items() if run[0] in subjects
    })


def recovers(name, group="training", subjects=("cat",)):
    """From step 800 to 4000 in the long runs."""
    return between("long", 800, 4000, group, name, subjects)


def long_gap(setting="long", subjects=("cat",)):
    """By how much the gain without the prompt lies above that with it at t = 100 in long runs, for each look."""
    runs = stage_tables.of(textured(), setting, "textured")
    return [np.mean([stage_tables.gain_at(rows, step, 100, 0) - stage_tables.gain_at(rows, step, 100, 1)
                     for (subject, _), rows in runs.items() if subject in subjects])
            for step in stage_settings.LONG_LOOKS[1:]]


def test_the_gap_of_gains_stays_open_in_long_runs():
    """As RESULTS.md says, "at every look"."""
    assert min(long_gap()) > 0 and min(long_gap(subjects=SUBJECTS)) > 0


def on_photographs_beyond_flat(name):
    """The change from step 250 of plain runs, mean over the subjects of a seed, minus that of the flat drawing."""
    of_photographs, of_flat = (
        {run: stage_tables.change(rows, stage_settings.MAIN, "training", name)
         for run, rows in stage_tables.of(textured(), setting, "textured").items()} for setting in ("plain", "flat")
    )
    flat = {seed: value for (_, seed), value in of_flat.items()}  # one drawing
    return stage_tables.over_seeds({run: value - flat[run[1]] for run, value in of_photographs.items()})


def rises_of_null(seeds):
    """From step 400 to 800, of each run with the empty prompt and one of these seeds."""
    runs = stage_tables.of(textured(), "null", "textured")
    both = [[stage_tables.at(rows, step, stage_settings.MAIN, "training", "fidelity")
             for (_, seed), rows in runs.items() if seed in seeds] for step in (800, 400)]
    return np.subtract(*both)


def at_equal_loss(setting, name, other="plain", model="textured"):
    """A measure minus that of plain or other runs, where these had the same loss."""
    own, plain = (stage_tables.of(textured(), each, model) for each in (setting, other))
    i = ("fidelity", "noise").index(name)
    return stage_tables.over_seeds({run: stage_tables.late(rows, stage_settings.MAIN, "training", name)
                                    - stage_tables.equal_loss(plain[run], stage_tables.loss_late(rows))[i]
                                    for run, rows in own.items()})


def late_loss(setting):
    """The conditional loss of the late steps, mean over the runs."""
    runs = stage_tables.of(textured(), setting, "textured")
    return np.mean([stage_tables.loss_late(rows) for rows in runs.values()])


def at_their_best(setting, other="plain"):
    """The fidelity of a setting's most faithful looks minus that of other runs'."""
    own, others = (stage_tables.of(textured(), each, "textured") for each in (setting, other))
    return stage_tables.over_seeds({run: stage_tables.best(own[run])[0] - stage_tables.best(others[run])[0]
                                    for run in own})


def by_pretraining(name):
    """What weight noise changes in the late steps of the model of photographs, minus the same in the textured model."""
    runs = [stage_tables.of(textured(), setting, model) for model in ("photographs", "textured")
            for setting in ("bnn", "plain")]
    late = [{run: stage_tables.late(rows, stage_settings.MAIN, "training", name) for run, rows in each.items()}
            for each in runs]
    return stage_tables.over_seeds({run: late[0][run] - late[1][run] - late[2][run] + late[3][run] for run in late[0]})


def of_subject(setting, name, subject):
    """A measure of the textured model's late steps minus that of plain runs, for the seeds of one subject."""
    own, plain = (stage_tables.of(textured(), each, "textured") for each in (setting, "plain"))
    late = [[stage_tables.late(runs[run], stage_settings.MAIN, "training", name) for run in own if run[0] == subject]
            for runs in (own, plain)]
    return interval(np.array(late[0]) - np.array(late[1]))


def from_early(setting, name, model="textured"):
    """From step 250 to the mean of 400 to 800 in the textured model, or one that was pretrained on photographs."""
    runs = stage_tables.of(textured(), setting, model)
    return stage_tables.over_seeds({run: stage_tables.change(rows, stage_settings.MAIN, "training", name)
                                    for run, rows in runs.items()})


def by_pndm(setting, name, beside=None, step=None):
    """Of the runs that were drawn with PNDM at every look.

    Minus another setting over the late steps, at one step, or else the change from step 250 to the late ones.
    """
    own, other = (every_look.drawn(stage_tables.of(textured(), each, "textured"), stage_settings.PNDM)
                  for each in (setting, beside))
    measure = ("training", name)
    if step:
        return np.mean([stage_tables.at(rows, step, stage_settings.PNDM, *measure) for rows in own.values()])
    if beside:
        return stage_tables.over_seeds({run: stage_tables.late(rows, stage_settings.PNDM, *measure)
                                        - stage_tables.late(other[run], stage_settings.PNDM, *measure)
                                        for run, rows in own.items()})
    return stage_tables.over_seeds({run: stage_tables.change(rows, stage_settings.PNDM, *measure)
                                    for run, rows in own.items()})


def by_law_of_pndm(setting):
    """The noise that the gain law predicts of such runs, for each look."""
    own = every_look.drawn(stage_tables.of(textured(), setting, "textured"), stage_settings.PNDM).values()
    return [np.mean([every_look.predicted(rows, step, stage_settings.PNDM) for rows in own])
            for step in stage_settings.LOOKS[1:]]


def recipe_rows(setting):
    rows = [json.loads(line) for folder in (".", "recipe_lora", "recipe_oft")
            for line in (RESULTS / folder / "recipe.jsonl").read_text().splitlines()]
    return [row for row in rows if row["setting"] == setting]


def recipe(setting, name):
    return interval([100 * row["values"][name] for row in recipe_rows(setting)])


def unseen(name):
    """A measure of the first command's recipe on the seeds that had no part in choosing it, in percent."""
    return interval([100 * value for (_, seed), value in recipe_runs("four-captions", name).items() if seed != 0])


def recipe_runs(setting, name):
    """{(subject, seed): a measure} of the runs of a setting of the recipe's experiment."""
    return {(row["subject"], row["seed"]): row["values"][name] for row in recipe_rows(setting)}


def searched(setting, name):
    """{(subject, seed): a measure} of the trainings of a setting that chose a recipe."""
    rows = [json.loads(line) for line in (RESULTS / "recipe_search.jsonl").read_text().splitlines()]
    return {(row["subject"], row["seed"]): row["values"][name] for row in rows if row["setting"] == setting}


def more(name, one="four-captions", other="noise-target"):
    """By how much a measure of the recipe's experiment is higher in one setting than in another."""
    ours, others = recipe_runs(one, name), recipe_runs(other, name)
    return interval([ours[run] - others[run] for run in ours])


LORA = ("lora-taught-1-rank-8", "lora-noise", "lora-alone")
OFT = ("oft-taught-1-longer", "oft-noise", "oft-alone")


def of_pretrained(name):
    """What a measure of the class prompt gives for the pretrained model itself, as recipe.md says."""
    return float(re.search(rf"- \*\*{name}\*\*: .* (\d\.\d+)\n", (RESULTS / "recipe.md").read_text())[1])


def twin(part, table="table1"):
    """Lines of the committed twin of a table of the paper: "rows" or "with − without"."""
    path = RESULTS / table / "tables" / f"{table}.json"
    return json.loads(path.read_text(encoding="utf-8"))[part]


def twin_fidelity(part, row, table="table1"):
    """The line of a row of such a table for its fidelity."""
    (line,) = [line for line in twin(part, table) if (line["row"], line["measure"]) == (row, "fidelity")]
    return line


def by_weight_noise(measure):
    """Differences of DreamBooth, LoRA and OFT with their intervals, one after the other."""
    return [line[end] for line in twin("with − without") if line["measure"] == measure
            for end in ("difference", "low", "high")]


def test_no_difference_of_the_twin_of_table_1_is_shown():
    """As RESULTS.md and docs/paper.md say."""
    lines = twin("with − without")
    assert len(lines) == 12 and all(line["low"] < 0 < line["high"] and line["over"] == "5 seeds" for line in lines)


def test_one_of_20_differences_of_the_twin_of_table_3_is_shown():
    """As RESULTS.md and docs/paper.md say."""
    lines = twin("with − without", "table3")
    shown = [(line["row"], line["measure"]) for line in lines if not line["low"] < 0 < line["high"]]
    assert len(lines) == 20 and shown == [("default", "fidelity")]


def by_default_layers():
    """By how much the fidelity is lower with them in the twin of Table 3, and Table 1's difference."""
    here, there = (twin_fidelity("with − without", row, table)
                   for row, table in (("default", "table3"), ("DreamBooth + BNN", "table1")))
    return [-here["difference"], -here["high"], -here["low"]], [there[end] for end in ("difference", "low", "high")]


def on_two_processors():
    """Fidelity without weight noise on one and the other, then with it."""
    rows = (("none", "table3"), ("DreamBooth", "table1"), ("default", "table3"), ("DreamBooth + BNN", "table1"))
    return [twin_fidelity("rows", row, table)["mean"] for row, table in rows]


def taught(setting):
    """What a row of the table of class pictures says after the subject's share."""
    drifted = recipe_runs(setting, "varied").values()
    means = {name: np.mean([*recipe_runs(setting, name).values()]) for name in ("drift", "clipped", "leak")}
    return sum(p < 0.05 for p in drifted), len(drifted), means["drift"], means["clipped"], 100 * means["leak"]


@cache
def law_by_view():
    """{way of drawing: agreement of predicted and measured noise} in the textured model."""
    points = stage_law.law_points(textured())
    return {name: stage_law.agreement([point for point in points if point[3].name == name])
            for name in {point[3].name for point in points}}


def sketches(pairs, steps=60, other="base 0"):
    """By how much BPS with so many pairs follows sketches better than the base, or another run."""
    found = json.loads((RESULTS / "bps.json").read_text())[f"{steps} steps"]
    return interval([run["IoU"] - found[other][seed]["IoU"] for seed, run in found[f"bps {pairs}"].items()])


def anchors(scale, other="own", measure="IoU"):
    """By how much BPS follows sketches better when the frozen model guides it."""
    seeds = json.loads((RESULTS / "bps_anchors.json").read_text())["seeds"].values()
    return interval([seed[f"base {scale}"][measure] - seed[f"{other} {scale}"][measure] for seed in seeds])


def places(one, other):
    """By how much the IoU of BPS's additions in these places is higher, each at its best."""
    found = json.loads((RESULTS / "bps_places.json").read_text())
    entrants = bps_places.entrants(found["tuning"])
    ours, theirs = (found["test"][bps_places.named(*entrants[name])] for name in (one, other))
    return interval([ours[seed]["IoU"] - theirs[seed]["IoU"] for seed in ours])


def anchored(one, other, scale, measure):
    """By how much a measure of fifteen trainings is higher when this prediction guides, and not the other."""
    rows = [json.loads(line) for line in (RESULTS / "guidance.jsonl").read_text().splitlines()]
    return interval([row["cells"][one][scale][measure] - row["cells"][other][scale][measure] for row in rows])


def falls(figures):
    """The same difference the other way round: (mean, low, high)."""
    mean, low, high = figures
    return -mean, -high, -low


def of_world(what, steps=10, own=None):
    """The distances of a sampler on the world's pictures: one for each seed."""
    rows = json.loads((RESULTS / "inverse_noise.json").read_text())["world"]
    seeds = sorted({row["seed"] for row in rows if "seed" in row})
    return np.array(by_seed([[row for row in rows if row.get("seed") == seed] for seed in seeds], what, steps, own))


def rewards(method, other, measure="reward"):
    seeds = json.loads((RESULTS / "graft.json").read_text())["seeds"].values()
    return interval([seed[method][measure] - seed[other][measure] for seed in seeds])


def rewarded(method):
    seeds = json.loads((RESULTS / "graft.json").read_text())["seeds"].values()
    return np.mean([seed[method]["reward"] for seed in seeds])


def below_ceiling(switch):
    """By how much the reward of P-GRAFT is below what the base makes of the accepted states."""
    seeds = json.loads((RESULTS / "graft.json").read_text())["seeds"].values()
    return interval([seed[f"P-GRAFT {switch}"]["ceiling"] - seed[f"P-GRAFT {switch}"]["reward"] for seed in seeds])


def minutes(method="dreambooth", class_count=None, photos=6):
    """Of the class pictures and of the steps of a training of SD, at the rates that docs/training.md assumes."""
    own = RECIPE | RECIPE["methods"].get(method, {})
    drawn = class_count or photos * own["class_pictures_per_picture"] * (own["prior_weight"] > 0)
    return drawn * 2 * own["sample_steps"] / EVALUATIONS / 60, photos * own["steps_per_picture"] / STEPS / 60


STEPS, EVALUATIONS = 5, 25  # in a second
UNGUIDED, FRESH = stage_settings.SIDE_VIEWS[-1], stage_settings.LAST_VIEWS[1]  # guidance 1; η = 1
SAMPLERS = [[f"{sampler}-g{g}" for sampler in ("ddim-25", "ddim-50", "pndm-50")] for g in ("1", "3", "7.5")]
SAMPLERS[2].append("ddim-250-g7.5")

FIGURES = {  # name: (page, text with a place for each figure, the figures, digits after the point)
    "runs": ("RESULTS", "{} runs, about", lambda: [len({row["run"] for row in laboratory()})], 0),
    "fall": ("RESULTS", "**falls** by {} [{}, {}] at step 100 and recovers by {} [{}, {}]", lambda: [
        -change("base", 0, 100, view=PRETRAINED)[0], *sorted(-x for x in change("base", 0, 100, view=PRETRAINED)[1:]),
        *change("base", 100, 800, view=PRETRAINED)], 3),
    "textured, noise": ("RESULTS", "Under plain fine-tuning noise rises by {} [{}, {}]", lambda: [
        *from_early("plain", "noise")], 1),
    "textured, fall": ("RESULTS", "a fall of fidelity is not shown ({} [{}, {}]), nor one", lambda: [
        *falls(from_early("plain", "fidelity"))], 3),
    "textured, other prompts": ("RESULTS", "to step 400 ({} [{}, {}]), nor a recovery after it ({} [{}, {}])", lambda: [
        *falls(between("plain", 250, 400, "other")), *between("plain", 400, 800, "other")], 3),
    "textured, subjects": ("RESULTS", "rocket {} [{}, {}], cat {} [{}, {}], coffee {} [{}, {}]", lambda: [
        figure for subject in ("rocket", "cat", "coffee") for figure in of_subject("offset", "noise", subject)], 1),
    "textured, least subject": ("RESULTS", "Fidelity is higher for each ({} [{}, {}] for coffee", lambda: [
        *of_subject("offset", "fidelity", "coffee")], 3),
    "textured, six runs": ("RESULTS", "a rise of fidelity after step 400, by {} [{}, {}], which would be", lambda: [
        *interval(rises_of_null((0, 1)))], 3),
    "textured, nine more": ("RESULTS", "fell instead, by {} [{}, {}] by the same count", lambda: [
        *falls(interval(rises_of_null((2, 3, 4))))], 3),
    "textured, all seeds": ("RESULTS", "Over the five seeds nothing is shown (+{} [{}, {}])", lambda: [
        *between("null", 400, 800, "training")], 3),
    "textured, null": ("RESULTS", "neither falls from step 250 to 400 ({} [{}, {}])", lambda: [
        *falls(between("null", 250, 400, "training"))], 3),
    "textured, no recovery": (
        "RESULTS", "neither under plain fine-tuning (+{} [{}, {}]) nor with an offset (+{} [{}, {}])", lambda: [
            *between("plain", 400, 800, "training"), *between("offset", 400, 800, "training")], 3),
    "textured, equal loss": ("RESULTS", "({} [{}, {}] at equal loss) and on other prompts ({} [{}, {}])", lambda: [
        *at_equal_loss("offset", "fidelity"), *of_stage("offset", "fidelity", "plain", group="other")], 3),
    "textured, its noise there": ("RESULTS", "(at equal loss {} [{}, {}], on other prompts {} [{}, {}])", lambda: [
        *at_equal_loss("offset", "noise"), *of_stage("offset", "noise", "plain", group="other")], 1),
    "textured, weight noise, noise at equal loss": ("RESULTS", "more noise is shown (+{} [{}, {}])", lambda: [
        *at_equal_loss("bnn", "noise")], 1),
    "textured, weight noise at equal loss": ("RESULTS", "and less fidelity not ({} [{}, {}])", lambda: [
        *at_equal_loss("bnn", "fidelity")], 3),
    "textured, empty prompt": ("RESULTS", "by the criterion: fidelity is {} [{}, {}] higher", lambda: [
        *of_stage("null", "fidelity", "plain")], 3),
    "textured, empty prompt, noise": ("RESULTS", "higher and the noise {} [{}, {}] lower. At equal loss", lambda: [
        *falls(of_stage("null", "noise", "plain"))], 1),
    "textured, empty prompt elsewhere": ("RESULTS", "no difference of fidelity (+{} [{}, {}])", lambda: [
        *of_stage("null", "fidelity", "plain", group="other")], 3),
    "textured, σ trained, equal loss": ("RESULTS", "nor at equal loss ({} [{}, {}] and +{} [{}, {}])", lambda: [
        *at_equal_loss("bnn-trained", "fidelity", "bnn"),
        *np.round(at_equal_loss("bnn-trained", "noise", "bnn"), 1)], 3),
    "textured, four pictures, noise": ("RESULTS", "by the criterion either: noise rises by {} [{}, {}]", lambda: [
        *from_early("four", "noise")], 1),
    "textured, four pictures": ("RESULTS", "and fidelity rises, too, by {} [{}, {}]", lambda: [
        *from_early("four", "fidelity")], 3),
    "textured, four pictures, weight noise": (
        "RESULTS", "on other prompts as well ({} [{}, {}] and +{} [{}, {}])", lambda: [
            *of_stage("bnn-four", "fidelity", "four", group="other"),
            *np.round(of_stage("bnn-four", "noise", "four", group="other"), 1)], 3),
    "textured, four pictures, weight noise, guidance 1": (
        "RESULTS", "without guidance ({} [{}, {}] and +{} [{}, {}])", lambda: [
            *of_stage("bnn-four", "fidelity", "four", view=stage_settings.SIDE_VIEWS[1]),
            *np.round(of_stage("bnn-four", "noise", "four", view=stage_settings.SIDE_VIEWS[1]), 1)], 3),
    "textured, four pictures, weight noise, equal loss": (
        "RESULTS", "At equal loss neither is shown ({} [{}, {}] and +{} [{}, {}])", lambda: [
            *at_equal_loss("bnn-four", "fidelity", "four"),
            *np.round(at_equal_loss("bnn-four", "noise", "four"), 2)], 3),
    "textured, half the rate": (
        "RESULTS", "Fidelity is {} [{}, {}] higher than plain and the noise {} [{}, {}] lower, also", lambda: [
            *of_stage("half-rate", "fidelity", "plain"),
            *np.round(falls(of_stage("half-rate", "noise", "plain")), 1)], 3),
    "textured, half the rate, equal loss": (
        "RESULTS", "also at equal loss (+{} [{}, {}] and {} [{}, {}])", lambda: [
            *at_equal_loss("half-rate", "fidelity"), *np.round(at_equal_loss("half-rate", "noise"), 1)], 3),
    "textured, half the rate and the empty prompt": (
        "RESULTS", "between the two is shown (+{} [{}, {}] and {} [{}, {}])", lambda: [
            *of_stage("half-rate", "fidelity", "null"), *np.round(of_stage("half-rate", "noise", "null"), 1)], 3),
    "textured, half the rate, its best": ("RESULTS", "most faithful step gains nothing (+{} [{}, {}])", lambda: [
        *at_their_best("half-rate")], 3),
    "textured, half the rate, its rise": ("RESULTS", "the noise still rises (by {} [{}, {}])", lambda: [
        *from_early("half-rate", "noise")], 1),
    "textured, prior preservation, in short": ("RESULTS", "raises fidelity most, by {} [{}, {}], and", lambda: [
        *of_stage("prior", "fidelity", "plain")], 3),
    "textured, prior preservation": (
        "RESULTS", "fidelity is {} [{}, {}] higher than plain and the noise {} [{}, {}] lower, at equal loss", lambda: [
            *of_stage("prior", "fidelity", "plain"),
            *np.round(falls(of_stage("prior", "noise", "plain")), 1)], 3),
    "textured, prior preservation, equal loss": (
        "RESULTS", "lower, at equal loss (+{} [{}, {}] and {} [{}, {}])", lambda: [
            *at_equal_loss("prior", "fidelity"), *np.round(at_equal_loss("prior", "noise"), 1)], 3),
    "textured, prior preservation, other prompts": (
        "RESULTS", "and on other prompts (+{} [{}, {}] and {} [{}, {}]) too", lambda: [
            *of_stage("prior", "fidelity", "plain", group="other"),
            *np.round(of_stage("prior", "noise", "plain", group="other"), 1)], 3),
    "textured, prior preservation, its rise": (
        "RESULTS", "and a rise of the noise is not shown (+{} [{}, {}]). But it is", lambda: [
            *from_early("prior", "noise")], 1),
    "textured, prior preservation, unguided": (
        "RESULTS", "Without it no difference to plain is shown ({} [{}, {}] and +{} [{}, {}])", lambda: [
            *of_stage("prior", "fidelity", "plain", UNGUIDED),
            *np.round(of_stage("prior", "noise", "plain", UNGUIDED), 1)], 3),
    "textured, prior preservation, gains": (
        "RESULTS", "where it was ({}, then {} at t = 100), while that of plain weights rises with the other one "
                   "(to {}). So the guided gain at 7.5 is {} instead of {}", lambda: [
            np.mean([stage_tables.gain_at(rows, step, 100, guidance)
                     for rows in stage_tables.of(textured(), setting, "textured").values()])
            for setting, step, guidance in (("prior", 0, 0), ("prior", 800, 0), ("plain", 800, 0), ("prior", 800, 7.5),
                                            ("plain", 800, 7.5))], 2),
    "textured, prior preservation, weight noise": (
        "RESULTS", "its fidelity is +{} [{}, {}] and its noise {} [{}, {}] away from that without weight noise, with "
                   "DDIM {} [{}, {}] and +{} [{}, {}]", lambda: [
            *by_pndm("prior-bnn", "fidelity", "prior"), *np.round(by_pndm("prior-bnn", "noise", "prior"), 2),
            *of_stage("prior-bnn", "fidelity", "prior"), *np.round(of_stage("prior-bnn", "noise", "prior"), 1)], 3),
    "textured, prior preservation, PNDM": (
        "RESULTS", "noise rises by {} [{}, {}], and a fall of fidelity is not shown ({} [{}, {}]). With", lambda: [
            *np.round(by_pndm("prior", "noise"), 1), *by_pndm("prior", "fidelity")], 3),
    "textured, prior preservation, PNDM, weight noise": (
        "RESULTS", "fidelity falls by {} [{}, {}], and a rise of the noise is not shown (+{} [{}, {}]). (The", lambda: [
            *falls(by_pndm("prior-bnn", "fidelity")), *np.round(by_pndm("prior-bnn", "noise"), 1)], 3),
    "textured, prior preservation, PNDM at each look": (
        "RESULTS", "600 and 800 fidelity is {}, {}, {}, {} and {} and the noise {}, {}, {}, {} and {}, without",
        lambda: [
            *[round(by_pndm("prior", "fidelity", step=step), 2) for step in stage_settings.LOOKS[1:]],
            *[round(by_pndm("prior", "noise", step=step), 1) for step in stage_settings.LOOKS[1:]]], 2),
    "textured, prior preservation, PNDM by the law": (
        "RESULTS", "of a fraction of that size ({}, {}, {}, {}, {})", lambda: by_law_of_pndm("prior"), 1),
    "textured, prior preservation, drawn otherwise": (
        "RESULTS", "does not (fidelity {}, noise {}), nor does drawing with fresh noise, which cures plain weights "
                   "({} and {})", lambda: [np.round(of_stage("prior", name, None, view, 800)[0], digits)
                 for view in stage_settings.LAST_VIEWS[:2] for name, digits in (("fidelity", 2), ("noise", 1))], 2),
    "textured, all layers": (
        "RESULTS", "norms the noise is {} [{}, {}] lower than plain", lambda: [
            *falls(of_stage("bnn-all", "noise", "plain"))], 2),
    "textured, all layers and linear ones": (
        "RESULTS", "and {} [{}, {}] lower than with random linear layers", lambda: [
            *falls(of_stage("bnn-all", "noise", "bnn"))], 1),
    "textured, all layers, loss": ("RESULTS", "But the loss is a third higher ({}, plain {})", lambda: [
        late_loss("bnn-all"), late_loss("plain")], 4),
    "textured, all layers, equal loss": (
        "RESULTS", "at equal loss neither is shown ({} [{}, {}] and {} [{}, {}])", lambda: [
            *at_equal_loss("bnn-all", "fidelity"), *np.round(at_equal_loss("bnn-all", "noise"), 1)], 3),
    "README, coat": ("README", "but in {} % [{}, {}] of them the classifier", lambda: [
        *recipe("four-captions", "leak")], 1),
    "textured, offset": ("RESULTS", "by an offset of the noise, raises fidelity by {} [{}, {}]", lambda: [
        *of_stage("offset", "fidelity", "plain")], 3),
    "textured, weight noise": ("RESULTS", "does neither: fidelity is {} [{}, {}] lower", lambda: [
        *falls(of_stage("bnn", "fidelity", "plain"))], 3),
    "textured, its noise": ("RESULTS", "and the noise higher by {} [{}, {}]. (Five seeds", lambda: [
        *of_stage("bnn", "noise", "plain")], 1),
    "textured, strength": ("RESULTS", "At guidance 1 the noise is {} [{}, {}] lower", lambda: [
        *falls(of_stage("offset-spread", "noise", "offset", UNGUIDED))], 1),
    "textured, fidelity": ("RESULTS", "there (+{} [{}, {}]), and at guidance 3 neither is (+{} [{}, {}]", lambda: [
        *of_stage("offset-spread", "fidelity", "offset", UNGUIDED),
        *of_stage("offset-spread", "fidelity", "offset", stage_settings.SIDE_VIEWS[0])], 3),
    "textured, strength at 3": ("RESULTS", "and {} [{}, {}]), nor at 7.5 (table)", lambda: [
        *of_stage("offset-spread", "noise", "offset", stage_settings.SIDE_VIEWS[0])], 1),
    "half-way": ("RESULTS", "fidelity has fallen by {} [{}, {}] on its way", lambda: [
        *falls(change("base", 0, 50, view=PRETRAINED))], 3),
    "samplers": ("RESULTS", "draw curves that differ by at most {} of fidelity", lambda: [
        max(apart("fidelity", views) for views in SAMPLERS)], 3),
    "samplers' noise": ("RESULTS", "of fidelity and {} of noise at each guidance", lambda: [
        max(apart("noise", views) for views in SAMPLERS)], 2),
    "PNDM, 25 steps": ("RESULTS", "25 steps of PNDM at 7.5 within {}", lambda: [
        apart("fidelity", [*SAMPLERS[2], "pndm-25-g7.5"])], 3),
    "PNDM's noise": ("RESULTS", "25 steps of PNDM at 7.5 within .019 and {}", lambda: [
        apart("noise", [*SAMPLERS[2], "pndm-25-g7.5"])], 2),
    "guidance": ("RESULTS", "fidelity in the end is {}, {}, {} for 1, 3, 7.5", lambda: [
        values("samplers", "fidelity", 800, view=f"ddim-25-g{g}").mean() for g in ("1", "3", "7.5")], 3),
    "guidance, differences": ("RESULTS", "(1 − 3: {} [{}, {}]; 1 − 7.5: {} [{}, {}])", lambda: [
        *apart_in_the_end("3"), *apart_in_the_end("7.5")], 3),
    "running mean, at 800": ("RESULTS", "where the average has {} [{}, {}] more", lambda: [*interval(
        values("views", "noise", 800, view=f"{PLAIN}-average", group="training")
        - values("views", "noise", 800, group="training"))], 3),
    "σ₁ at first": ("RESULTS", "it may rise (.22 → .25; {} [{}, {}] and {} [{}, {}])", lambda: [
        *change("main", 0, 25, "sigma1"), *change("main", 0, 25, "sigma1", pictures=6)], 3),
    "large rate": ("RESULTS", "on other prompts is higher by {} [{}, {}], while", lambda: [*interval(
        values("lr-4e-4", "fidelity", 400) - values("views", "fidelity", 400))], 3),
    "learning": ("RESULTS", "on other prompts by {} [{}, {}] in 400 steps", lambda: [*change("main", 0, 400)], 3),
    "running mean": ("RESULTS", "training-prompt noise {}, {}, {} at 200, 400, 800 against {}, {}, {}", lambda: [
        values("views", "noise", step, view=view, group="training").mean()
        for view in (f"{PLAIN}-average", PLAIN) for step in (200, 400, 800)], 2),
    "small rate": ("RESULTS", "by {} [{}, {}] at step 50 and recovers by {} [{}, {}], with BNN the same", lambda: [
        *falls(change("lr-5e-5", 0, 50)), *change("lr-5e-5", 50, 800)], 3),
    "prior": ("RESULTS", "(nearest {} after 400 steps instead of {})", lambda: [
        nearest("prior", 400), nearest("main", 400)], 2),
    "memorised": ("RESULTS", "is {} after 100 steps with one, {} with two, {} with four, {} with six", lambda: [
        nearest("main", 100, pictures=n) for n in (1, 2, 4, 6)], 2),
    "long": ("RESULTS", "goes on rising to {};", lambda: [values("long", "fidelity", 3200).mean()], 3),
    "long, place": ("RESULTS", "place as asked falls to {}", lambda: [
        values("long", "background", 3200).mean()], 2),
    "BNN at step 100": ("RESULTS", "the only one shown is {} [{}, {}] at step 100", lambda: [
        *effect("base", 100, view=PRETRAINED)], 3),
    "effects": ("RESULTS", 'counts {} "better" and {} "worse" of {} comparisons', told, 0),
    "σ₀ = 0.1": ("RESULTS", "(nearest {} instead of {} at step 400)", lambda: [
        nearest("sigma-0.1", 400, kind="bnn"), nearest("main", 400, kind="bnn")], 2),
    "σ₀": ("RESULTS", "(nearest {}, {}, {} at step 400)", lambda: [
        nearest(setting, 400, kind="bnn") for setting in ("sigma-0.003", "main", "sigma-0.03")], 2),
    "repeated": ("RESULTS", "nearest {} (one picture)", lambda: [nearest("main", 800, pictures=1)], 2),
    "under-training": ("RESULTS", "{} [{}, {}] with four pictures (six seeds), {} [{}, {}] with one", lambda: [
        *effect("pndm", 100), *effect("main", 100, pictures=1)], 3),
    "Eq. 2": ("RESULTS", "{} % of the loss at t = 100 before, at most {} % during fine-tuning; at t = 20 {} %, up to "
              "{} % (σ₀ = 0.1 apart: {} and {} %)", lambda: [
        *(explained(t, before, False) for t in (100, 20) for before in (True, False)),
        *(explained(t, False, True) for t in (100, 20))], 0),
    "Table 3": ("RESULTS", "a fidelity lower by {} [{}, {}] with the default layers; the same runs on another "
                "processor, in Table 1's twin, do not show it ({} [{}, {}])", lambda: sum(by_default_layers(), []), 3),
    "Table 3, shown": ("docs/paper", "lower by {} [{}, {}] with the default layers; of 20", lambda: [
        *by_default_layers()[0]], 3),
    "Table 3 and Table 1": (
        "docs/paper", "is {} here and {} there, with it {} and {}, and the difference there is {} [{}, {}]",
        lambda: on_two_processors() + by_default_layers()[1], 3),
    "BPS": ("RESULTS", "from 12 pairs on (IoU {} [{}, {}], five seeds)", lambda: [*sketches(12)], 3),
    "BPS, longer": ("tutorials/results/bps", "after 180 steps by {} [{}, {}] with 40.", lambda: [
        *sketches(40, 180)], 3),
    "BPS, more pairs": ("tutorials/results/bps", "and shown after 180 ({} [{}, {}])", lambda: [
        *sketches(200, 180, "bps 40")], 3),
    "BPS, anchors": ("RESULTS", "better still (IoU {} [{}, {}] at w = 3, five seeds)", lambda: [*anchors("3")], 3),
    "BPS, every scale": (
        "tutorials/results/guidance", "in IoU by {} [{}, {}] at w = 1.5, {} [{}, {}] at 3 and {} [{}, {}] at 7.5",
        lambda: [*anchors("1.5"), *anchors("3"), *anchors("7.5")], 3),
    "BPS, places": ("RESULTS", "better than ControlNet's ({} [{}, {}]) or T2I-Adapter's ({} [{}, {}])", lambda: [
        *places("all", "skips"), *places("all", "encoder")], 3),
    "BPS, gains": ("tutorials/results/bps", "each at its best rate of four: {} [{}, {}]", lambda: [
        *places("all head-heavy", "all equal")], 3),
    "BPS, control": ("tutorials/results/bps", "more often by {} [{}, {}] at w = 3 and by {} [{}, {}] at 7.5", lambda: [
        *anchors("3", "base caption", "subject"), *anchors("7.5", "base caption", "subject")], 3),
    "guided by the base": ("RESULTS", "it lowers fidelity by {} [{}, {}] at w = 3", lambda: [
        *falls(anchored("base", "own", "3", "fidelity"))], 3),
    "guided by the base, places": ("tutorials/results/guidance", "lost in {} [{}, {}] points more", lambda: [
        *(-100 * anchored("base", "own", "7.5", "place")[i] for i in (0, 2, 1))], 0),
    "guided by the base, control": ("tutorials/results/guidance", "differ in fidelity by {} [{}, {}]", lambda: [
        *anchored("base", "base class", "1.5", "fidelity")], 3),
    "guided by the base, places at 3": ("tutorials/results/guidance", "pictures and at 3 in {} [{}, {}];", lambda: [
        100 * x for x in falls(anchored("base", "own", "3", "place"))], 0),
    "guided by the base, subject": (
        "tutorials/results/guidance", "is seen in {} [{}, {}], {} [{}, {}] and {} [{}, {}] points fewer at 1.5,",
        lambda: [100 * x for w in ("1.5", "3", "7.5") for x in falls(anchored("base", "own", w, "subject"))], 0),
    "GRAFT, random choice": ("tutorials/results/graft", "no change of the reward is shown ({} [{}, {}])", lambda: [
        *rewards("random choice", "base")], 2),
    "GRAFT, ceiling": ("tutorials/results/graft", "at 250 it stays below its ceiling by {} [{}, {}], at 500", lambda: [
        *below_ceiling(250)], 2),
    "GRAFT, diversity": ("tutorials/results/graft", "(GRAFT), {} [{}, {}] below the accepted samples", lambda: [
        *rewards("accepted samples", "GRAFT", "diversity")], 3),
    "GRAFT, switch": ("tutorials/results/graft", "{} with the former and {} with the latter, {} [{}, {}] less",
                      lambda: [rewarded("P-GRAFT 250"), rewarded("P-GRAFT 750"),
                               *rewards("P-GRAFT 250", "P-GRAFT 750")], 2),
    "GRAFT": ("RESULTS", "raises the reward by {} [{}, {}]", lambda: [*rewards("GRAFT", "base")], 2),
    "P-GRAFT": ("RESULTS", "the switch at 250 differs from it by {} [{}, {}]", lambda: [
        *rewards("P-GRAFT 250", "GRAFT")], 2),
    "P-GRAFT, samples": ("RESULTS", "by an energy distance of {} [{}, {}]", lambda: [
        *rewards("GRAFT", "P-GRAFT 250", "distance")], 3),
    "noise correction": ("RESULTS", "not shown to help (better by {} [{}, {}], five seeds)", lambda: [
        *interval(of_world("flow") - of_world("corrected", 10, 20))], 3),
    "noise correction, Gaussian": ("RESULTS", "brings it to {} (better by {} [{}, {}]), one factor to {}", lambda: [
        of_world("gaussian").mean(), *interval(of_world("flow") - of_world("gaussian")), of_world("scaled").mean()], 3),
    "noise correction, the four": (
        "docs/neighbours", "({}; {} without correction). That the network helps ({}) is not shown; in one of five "
        "trainings it harmed. A Gaussian had the smallest distance ({}),", lambda: [
            of_world(*what).mean() for what in (("scaled",), ("flow",), ("corrected", 10, 20), ("gaussian",))], 3),
    "guided by the base, at 1.5": (
        "RESULTS", "noise rises by {} [{}, {}] and the subject is seen less often, by {} [{}, {}].", lambda: [
            *anchored("base", "own", "1.5", "noise"), *falls(anchored("base", "own", "1.5", "subject"))], 3),
    "guided by the base, noise at 1.5": ("docs/neighbours", "but noise rose by {} [{}, {}]", lambda: [
        *anchored("base", "own", "1.5", "noise")], 2),
    "guided by the base, subject at 1.5": (
        "docs/neighbours", "the subject was seen in {} [{}, {}] points fewer of the pictures", lambda: [
            100 * x for x in falls(anchored("base", "own", "1.5", "subject"))], 0),
    "leads, warm-up": ("RESULTS", "two seeds of three dip at step 100 ({}, {}, {})", lambda: [
        *(values("warm-up", "fidelity", 0) - values("warm-up", "fidelity", 100))], 3),
    "leads, batch 4": ("RESULTS", "only the first falls from step 100 to 200 ({}, {}, {})", lambda: [
        *(values("batch-4", "fidelity", 100) - values("batch-4", "fidelity", 200))], 3),
    "README, time": ("README", "would take [{} minutes, {} of them for the class pictures]", lambda: [
        sum(minutes()), minutes()[0]], 0),
    "README, assumed GPU": ("README", "that does {} training steps or {} evaluations", lambda: [STEPS, EVALUATIONS], 0),
    "README, less time": ("README", "{} with `--class-count 200`, and {} with `--method lora`.", lambda: [
        sum(minutes(class_count=200)), sum(minutes("lora"))], 0),
    "rates": ("docs/training", "in a second, {} training steps or {} evaluations", lambda: [STEPS, EVALUATIONS], 0),
    "time": ("docs/training", "1,200: {} minutes | 1,200 steps: {} minutes | {} minutes", lambda: [
        *minutes(), sum(minutes())], 0),
    "less time": ("docs/training", "200 in all: {} minutes | 1,200 steps: {} minutes | {} minutes", lambda: [
        *minutes(class_count=200), sum(minutes(class_count=200))], 0),
    "time of LoRA": ("docs/training", "none | 2,400 steps: {} minutes", lambda: minutes("lora")[1:], 0),
    "time of Table 1": ("docs/paper", "takes {} hours for the steps and {} for the pictures", lambda: [
        1.2e6 / STEPS / 3600, (90_000 + 15_000) * 2 * RECIPE["sample_steps"] / EVALUATIONS / 3600], 0),
    "README, captions": ("README", "asked for in {} % [{}, {}] of the pictures, over ten places", lambda: [
        *recipe("four-captions", "both")], 0),
    "captions": ("docs/training", "| four of six, as in the first command | {} % [{}, {}] | {} % | {} |", lambda: [
        *recipe("four-captions", "both"), recipe("four-captions", "told")[0], 9], 0),
    "no captions": ("docs/training", "| none | {} % ({}, {}, {}) | {} % | {} |", lambda: [
        recipe("plain", "both")[0], *(100 * x for x in recipe_runs("plain", "both").values()),
        recipe("plain", "told")[0], 3], 0),
    "six captions": ("docs/training", "| all six | {} % | {} % ({}, {}, {}) | {} |", lambda: [
        recipe("six-captions", "both")[0], recipe("six-captions", "told")[0],
        *(100 * x for x in recipe_runs("six-captions", "told").values()), 3], 0),
    "captions, other seeds": ("docs/training", "place right in {} % [{}, {}], and none of them drifts", lambda: [
        *unseen("both")], 1),
    "class, two samples": ("docs/training", "at a distance of {}. \"Ends", lambda: [of_pretrained("drift")], 3),
    "class, coat": ("docs/training", "which it does in {} % of the pretrained", lambda: [
        100 * of_pretrained("leak")], 1),
    "captions − none": ("docs/training", "both right in {} [{}, {}] points more than none", lambda: [
        *(100 * x for x in falls(more("both", "plain", "four-captions")))], 0),
    "price of the class": ("docs/training", "right less often is not shown ({} [{}, {}])", lambda: [
        *(100 * x for x in falls(more("both")))], 1),
    "price, subject": ("docs/training", "noise and unguided class pictures, by {} [{}, {}] points", lambda: [
        *(100 * x for x in falls(more("subject")))], 1),
    "price, coat": ("docs/training", "on other dogs {} [{}, {}] points more often", lambda: [
        *(100 * x for x in more("leak"))], 1),
    "target": ("docs/training", "has both right more often than noise by {} [{}, {}] points", lambda: [
        *(100 * x for x in more("both", "weight-four", "weight-four-noise"))], 0),
    "target, nearer": ("docs/training", "nearer to the pretrained model by {} [{}, {}]", lambda: [
        *falls(more("drift", "weight-four", "weight-four-noise"))], 3),
    "LoRA, distance": ("docs/training", "its distance is smaller than with noise by {} [{}, {}]", lambda: [
        *falls(more("drift", *LORA[:2]))], 3),
    "LoRA, coat": ("docs/training", "the coat is seen in {} [{}, {}] points more of the pictures", lambda: [
        *(100 * x for x in more("leak", *LORA[:2]))], 1),
    "LoRA, subject": ("docs/training", "noise: {} [{}, {}] points less; no class pictures: {} [{}, {}] less", lambda: [
        *(100 * x for x in more("both", *LORA[:2])), *(100 * x for x in more("both", *LORA[::2]))], 1),
    "LoRA, subjects": ("docs/training", "in {} % for the cat, in {} for the dog and in {} for the fish.", lambda: [
        100 * np.mean([share for (of, _), share in recipe_runs(LORA[0], "both").items() if of == subject])
        for subject in ("cat", "dog", "fish")], 0),
    "LoRA, card": ("minibnn/assets/tiny-v2/README", "and place are right in {} % [{}, {}] of the pictures", lambda: [
        *recipe(LORA[0], "both")], 0),
    "LoRA, changes": ("CHANGELOG", "in {} % of the pictures of the class prompt, and not in {} %", lambda: [
        recipe(name, "leak")[0] for name in LORA[::2]], 0),
    "OFT, distance": ("docs/training", "its distance is smaller by {} [{}, {}] than with noise", lambda: [
        *falls(more("drift", *OFT[:2]))], 3),
    "OFT, coat": ("docs/training", "and the coat is seen {} [{}, {}] points more often. Again", lambda: [
        *(100 * x for x in more("leak", *OFT[:2]))], 1),
    "OFT, subject": ("docs/training", "noise: {} [{}, {}] points fewer; no class pictures: {} [{}, {}] fewer", lambda: [
        *(100 * x for x in more("both", *OFT[:2])), *(100 * x for x in more("both", *OFT[::2]))], 1),
    "OFT, LoRA": ("docs/training", "(with the teacher by {} [{}, {}] points)", lambda: [
        *(100 * x for x in more("both", LORA[0], OFT[0]))], 1),
    "OFT, card": ("minibnn/assets/tiny-v2/README", "{} % [{}, {}] and {} % ([nine each]", lambda: [
        *recipe(OFT[0], "both"), recipe(OFT[0], "leak")[0]], 0),
    "OFT, half": ("docs/training", "both are right as often ({} % [{}, {}])", lambda: [
        100 * x for x in interval([*searched("oft-taught-1", "both").values()])], 0),
    "OFT, half, place": ("docs/training", "the place is right {} [{}, {}] points more often, and", lambda: [
        *(100 * x for x in interval([share - recipe_runs(OFT[0], "place")[run]
                                     for run, share in searched("oft-taught-1", "place").items()]))], 1),
    "OFT, half, told": ("docs/training", "shows the subject in {} % of the pictures instead of {}", lambda: [
        100 * np.mean([*searched("oft-taught-1", "told").values()]), recipe(OFT[0], "told")[0]], 0),
    "OFT, changes": ("CHANGELOG", "the coat is seen in {} % of those pictures", lambda: [recipe(OFT[0], "leak")[0]], 0),
    "LoRA, options": ("docs/training", "subject and place right in {} instead of {} % of the pictures", lambda: [
        recipe(name, "both")[0] for name in (LORA[0], "four-captions")], 0),
    "LoRA, price": ("docs/training", "in other places, {} [{}, {}] points fewer", lambda: [
        *(100 * x for x in falls(more("both", LORA[0], "four-captions")))], 1),
    "options, coat": ("docs/training", "on other dogs {} points more often", lambda: [100 * more("leak")[0]], 0),
    "options, fresh noise": ("docs/training", "in the textured model ({} → {})", lambda: [
        of_stage("plain", "noise", None, view, 800)[0] for view in stage_settings.views_at(800, 800)
        if view.name in ("ddim-20-g7.5", "ddim-20-g7.5-eta1")], 1),
    "twin of Table 1, fidelity": (
        "docs/paper", "is {} with DreamBooth, {} with LoRA and {} with OFT", lambda: [
            line["mean"] for line in twin("rows") if line["measure"] == "fidelity" and "BNN" not in line["row"]], 2),
    "twin of Table 1, weight noise": (
        "docs/paper", "it is {} [{}, {}], +{} [{}, {}] and {} [{}, {}] away", lambda: by_weight_noise("fidelity"), 3),
    "twin of Table 1, in the ledger": (
        "RESULTS", "of fidelity {} [{}, {}], +{} [{}, {}] and {} [{}, {}]. In", lambda: by_weight_noise("fidelity"), 3),
    "stronger noise": ("RESULTS", "Fidelity is {} [{}, {}] lower than plain; more", lambda: [
        *falls(of_stage("bnn-0.03", "fidelity", "plain"))], 3),
    "stronger noise, noise": (
        "RESULTS", "noise is shown at equal loss (+{} [{}, {}]; otherwise +{} [{}, {}])", lambda: [
            *at_equal_loss("bnn-0.03", "noise"), *of_stage("bnn-0.03", "noise", "plain")], 1),
    "stronger noise, equal loss": ("RESULTS", "less fidelity there too ({} [{}, {}])", lambda: [
        *at_equal_loss("bnn-0.03", "fidelity")], 3),
    "photographs, offset": (
        "RESULTS", "the offset fidelity is {} [{}, {}] higher and the noise", lambda: [
            *of_stage("offset", "fidelity", "plain", model="photographs")], 3),
    "photographs, offset, noise": ("RESULTS", "and the noise {} [{}, {}] lower than plain, and fidelity", lambda: [
        *falls(of_stage("offset", "noise", "plain", model="photographs"))], 1),
    "photographs, offset, coffee": ("RESULTS", "for each subject ({} [{}, {}] for coffee, the least)", lambda: [
        *min((of_stage("offset", "fidelity", "plain", subjects=(subject,), model="photographs")
              for subject in SUBJECTS), key=lambda found: found[0])], 3),
    "photographs, offset, equal loss": (
        "RESULTS", "at equal loss (+{} [{}, {}]) and on other prompts (+{} [{}, {}])", lambda: [
            *at_equal_loss("offset", "fidelity", model="photographs"),
            *of_stage("offset", "fidelity", "plain", group="other", model="photographs")], 3),
    "photographs, offset, noise at equal loss": ("RESULTS", "less noise is again not shown ({} [{}, {}])", lambda: [
        *at_equal_loss("offset", "noise", model="photographs")], 1),
    "photographs, weight noise": ("RESULTS", "less fidelity is not shown (+{} [{}, {}])", lambda: [
        *of_stage("bnn", "fidelity", "plain", model="photographs")], 3),
    "photographs, weight noise, noise": ("RESULTS", "nor more noise ({} [{}, {}])", lambda: [
        *of_stage("bnn", "noise", "plain", model="photographs")], 1),
    "photographs, weight noise, equal loss": ("RESULTS", "at equal loss fidelity is higher, by {} [{}, {}]", lambda: [
        *at_equal_loss("bnn", "fidelity", model="photographs")], 3),
    "photographs, weight noise, in short": ("RESULTS", "and at equal loss fidelity is {} [{}, {}] higher", lambda: [
        *at_equal_loss("bnn", "fidelity", model="photographs")], 3),
    "photographs, weight noise, noise at equal loss": ("RESULTS", "less noise is not shown ({} [{}, {}])", lambda: [
        *at_equal_loss("bnn", "noise", model="photographs")], 1),
    "photographs or not": ("RESULTS", "adds {} [{}, {}] less noise than in the textured model", lambda: [
        *falls(by_pretraining("noise"))], 1),
    "photographs or not, fidelity": ("RESULTS", "of its effects on fidelity is not shown ({} [{}, {}])", lambda: [
        *by_pretraining("fidelity")], 3),
    "photographs, plain": ("RESULTS", "A rise of the noise from step 250 on is not shown (+{} [{}, {}])", lambda: [
        *from_early("plain", "noise", "photographs")], 1),
    "photographs, plain, course": ("RESULTS", "rises from {} at step 100 to {} at 250 and {} at 800", lambda: [
        of_stage("plain", "noise", step=step, model="photographs")[0] for step in (100, 250, 800)], 1),
    "flat": ("RESULTS", "It rises by {} [{}, {}], of five runs of one drawing", lambda: [
        *from_early("flat", "noise")], 1),
    "flat or not": ("RESULTS", "less than on photographs (by {} [{}, {}]) is not shown", lambda: [
        *on_photographs_beyond_flat("noise")], 1),
    "flat, fresh noise": ("RESULTS", "takes most of it away ({} → {} at step 800). So", lambda: [
        of_stage("flat", "noise", step=800)[0], of_stage("flat", "noise", view=FRESH, step=800)[0]], 1),
    "long runs": (
        "RESULTS", "fidelity rises by {} [{}, {}] at guidance 7.5 (five seeds of the cat), and the distance of the "
        "mean colours falls by {} [{}, {}]", lambda: [*recovers("fidelity"), *falls(recovers("tint"))], 3),
    "long, in short": ("RESULTS", "fidelity rises by {} [{}, {}] while the colours", lambda: [
        *recovers("fidelity", subjects=SUBJECTS)], 3),
    "long, colour": ("RESULTS", "{}. The noise stays (", lambda: [
        of_stage("long", "tint", step=4000, subjects=("cat",))[0]], 2),
    "long, no fall": ("RESULTS", "before it is not shown ({} [{}, {}] from step 250", lambda: [
        *between("long", 250, 400, "training", subjects=("cat",))], 3),
    "long, other subjects": ("RESULTS", "rises by {} [{}, {}] for coffee and by {} [{}, {}] for rocket", lambda: [
        *recovers("fidelity", subjects=("coffee",)), *recovers("fidelity", subjects=("rocket",))], 3),
    "long, all subjects": ("RESULTS", "over all fifteen runs by {} [{}, {}]", lambda: [
        *recovers("fidelity", subjects=SUBJECTS)], 3),
    "long, all subjects, noise": ("RESULTS", "is shown for neither (over all {} [{}, {}])", lambda: [
        *recovers("noise", subjects=SUBJECTS)], 1),
    "long, all subjects, other prompts": (
        "RESULTS", "On the other prompts fidelity rises by {} [{}, {}], to {}, and the pictures differ less (by {} "
                   "[{}, {}])",
        lambda: [*recovers("fidelity", "other", SUBJECTS),
                 round(of_stage("long", "fidelity", step=4000, group="other")[0], 2),
                 *falls(recovers("spread", "other", SUBJECTS))], 3),
    "long, coffee's noise": ("RESULTS", "the noise of coffee falls by {} [{}, {}], the one", lambda: [
        *falls(recovers("noise", "other", ("coffee",)))], 1),
    "long, all subjects, fresh noise": ("RESULTS", "draw pictures of fidelity {} and noise {}. A fall", lambda: [
        of_stage("long", "fidelity", view=FRESH, step=4000)[0],
        round(of_stage("long", "noise", view=FRESH, step=4000)[0], 1)], 2),
    "long, all subjects, no fall": ("RESULTS", "not shown over all runs either ({} [{}, {}])", lambda: [
        *between("long", 250, 400, "training")], 3),
    "long, noise": ("RESULTS", "The noise stays ({} [{}, {}])", lambda: [*recovers("noise")], 1),
    "long, gap": ("RESULTS", "lies above that with it at every look (by {} at t = 100 in the end)", lambda: [
        long_gap()[-1]], 3),
    "long, fresh noise": ("RESULTS", "weights are clean (fidelity {}, noise", lambda: [
        of_stage("long", "fidelity", view=FRESH, step=4000, subjects=("cat",))[0]], 2),
    "long, its noise": ("RESULTS", "noise {}). On the other prompts", lambda: [
        of_stage("long", "noise", view=FRESH, step=4000, subjects=("cat",))[0]], 1),
    "long, other prompts": ("RESULTS", "rises more, by {} [{}, {}], to", lambda: [*recovers("fidelity", "other")], 3),
    "long, repeated": ("RESULTS", "to {}, and their pictures differ less", lambda: [
        of_stage("long", "fidelity", step=4000, group="other", subjects=("cat",))[0]], 2),
    "long, spread": ("RESULTS", "their pictures differ less (by {} [{}, {}])", lambda: [
        *falls(recovers("spread", "other"))], 3),
    "long, ledger": ("RESULTS", "the fidelity of pictures of *other* prompts is {} |", lambda: [
        of_stage("long", "fidelity", step=4000, group="other")[0]], 2),
    "long and empty, noise": ("RESULTS", "At step 4000 the noise is {} [{}, {}] lower than without", lambda: [
        *falls(of_stage("long-null", "noise", "long", step=4000))], 1),
    "long and empty, fidelity": ("RESULTS", "lower than without, and fidelity {} [{}, {}] higher", lambda: [
        *of_stage("long-null", "fidelity", "long", step=4000)], 3),
    "long and empty, other prompts": ("RESULTS", "there by {} [{}, {}] and {} [{}, {}]", lambda: [
        *(round(x, 1) for x in falls(of_stage("long-null", "noise", "long", step=4000, group="other"))),
        *of_stage("long-null", "fidelity", "long", step=4000, group="other")], 3),
    "long and empty, falls": ("RESULTS", "of the noise is again not shown ({} [{}, {}])", lambda: [
        *between("long-null", 800, 4000, "training", "noise")], 1),
    "long and empty, rises": ("RESULTS", "while fidelity rises by {} [{}, {}]. The gain", lambda: [
        *between("long-null", 800, 4000, "training")], 3),
    "long and empty, gap": (
        "RESULTS", "at most {} apart at every look (t = 100); without it they are {} to {}", lambda: [
            max(map(abs, long_gap("long-null", SUBJECTS))), min(long_gap("long", SUBJECTS)),
            max(long_gap("long", SUBJECTS))], 3),
    "long and empty, fresh noise": ("RESULTS", "the last weights have a fidelity of {} and a noise of", lambda: [
        of_stage("long-null", "fidelity", view=FRESH, step=4000)[0]], 2),
    "long and empty, fresh noise's noise": ("RESULTS", "and a noise of {} where", lambda: [
        of_stage("long-null", "noise", view=FRESH, step=4000)[0]], 1),
    "long and empty, in short": ("RESULTS", "in the end, by {} [{}, {}], and does not", lambda: [
        *falls(of_stage("long-null", "noise", "long", step=4000))], 1),
    "one draw, stage": ("RESULTS", "nor is a rise of the noise (+{} [{}, {}] and +{} [{}, {}])", lambda: [
        *from_early("batch-1", "fidelity"), *(round(x, 1) for x in from_early("batch-1", "noise"))], 3),
    "one draw": ("RESULTS", "of four draws .0068) fidelity is {} [{}, {}] lower", lambda: [
        *falls(at_equal_loss("batch-1", "fidelity"))], 3),
    "one draw, noise": ("RESULTS", ".130] lower and the noise {} [{}, {}] higher", lambda: [
        *at_equal_loss("batch-1", "noise")], 1),
    "one draw, loss": ("RESULTS", "(its own is {}, that of four draws {})", lambda: [
        late_loss("batch-1"), late_loss("plain")], 4),
    "gain law, fresh noise": ("RESULTS", "in every way of drawing but with fresh noise, {}). But", lambda: [
        law_by_view()["ddim-20-g7.5-eta1"][0]], 2),
    "gain law": ("docs/training", "in every way of drawing but with fresh noise, rank correlation {} at 7.5)", lambda: [
        law_by_view()[stage_settings.MAIN.name][2]], 2),
    "README, class": ("README", "In all {} a permutation test does not tell the class pictures from", lambda: [
        taught("four-captions")[1] + 100 * taught("four-captions")[0]], 0),
}


@cache
def words(page):
    path = ROOT / ("tutorials/RESULTS.md" if page == "RESULTS" else f"{page}.md")
    return " ".join(path.read_text(encoding="utf-8").replace("one of the 15", "1 of the 15").split())


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_text_is_that_of_the_committed_results(name):
    """Texts write .5 for 0.5 where a figure has no whole part, − for a minus, and + where a sign matters."""
    page, template, figures, digits = FIGURES[name]
    number = r"([+−]?\d*\.?\d+)"
    found = re.findall(re.escape(template).replace(r"\{\}", number), words(page))
    assert len(found) == 1, f"{page} does not say once: {template}"
    written = [found[0]] if isinstance(found[0], str) else found[0]
    written = [float(figure.replace("−", "-")) for figure in written]
    expected = figures()
    assert len(written) == len(expected)
    for said, figure in zip(written, expected, strict=True):
        assert abs(said - figure) <= 0.5 * 10**-digits + 1e-9, (template, written, expected)


@pytest.mark.parametrize(
    ("row", "setting"),
    [
        ("the pretrained model's prediction", "four-captions"), ("their noise, drawn without guidance", "noise-target"),
        ("their noise, drawn with guidance 3", "noise-target-guided"),
        ("weight 4: the pretrained model's prediction", "weight-four"),
        ("weight 4: their noise, drawn without guidance", "weight-four-noise"),
        ("LoRA: the pretrained model's prediction", "lora-taught-1-rank-8"),
        ("LoRA: their noise, drawn without guidance", "lora-noise"), ("LoRA: no class pictures", "lora-alone"),
        ("OFT: the pretrained model's prediction", "oft-taught-1-longer"),
        ("OFT: their noise, drawn without guidance", "oft-noise"), ("OFT: no class pictures", "oft-alone"),
    ],
)
def test_the_table_of_what_class_pictures_teach(row, setting):
    mean, low, high = recipe(setting, "both")
    drifted, runs, distance, clipped, leak = taught(setting)
    cells = [f"{mean:.0f} % [{low:.0f}, {high:.0f}]", f"{drifted} of {runs}", f"{distance:.3f}".lstrip("0"),
             f"{clipped:+.1f}".replace("-", "−"), f"{leak:.1f} %"]
    assert f"| {row} | {' | '.join(cells)} |" in words("docs/training")


@pytest.mark.parametrize(
    ("what", "setting"),
    [
        ("plain", "plain"), ("weight noise, σ = .01 held, the paper's linear layers", "bnn"),
        ("weight noise on all layers, σ = .01 held", "bnn-all"),
        ("the empty prompt in 10 % of the steps", "null"), ("half the rate", "half-rate"),
        ("prior preservation", "prior"), ("one draw of time and noise a step instead of four", "batch-1"),
        ("noise offset of .1", "offset"), ("noise offset and weight noise", "offset-bnn"),
        ("noise offset, and strength varied by 10 %", "offset-spread"),
        ("weight noise, σ trained from .01", "bnn-trained"), ("four pictures of the subject", "four"),
        ("four pictures and weight noise", "bnn-four"),
    ],
)
def test_the_table_of_the_textured_model(what, setting):
    runs = stage_tables.of(textured(), setting, "textured")
    beside = stage_settings.SETTINGS[setting].beside
    cells = [what, str(len(runs)), str(len({seed for _, seed in runs}))]
    for name, digits in (("fidelity", 2), ("noise", 1)):
        means = [of_stage(setting, name, step=step)[0] for step in (250, 400, 600, 800)]
        cells.append(", ".join(briefly(mean, digits) for mean in means))
    for name, digits in (("fidelity", 3), ("noise", 1)):
        if not beside:
            cells.append("")
            continue
        mean, low, high = of_stage(setting, name, beside)
        said = f"{briefly(mean, digits, '+')} [{briefly(low, digits)}, {briefly(high, digits)}]"
        said = f"**{said}**" if low > 0 or high < 0 else said
        before = {"offset": "minus offset: ", "bnn": "minus σ held: ", "four": "minus four pictures: "}.get(beside, "")
        cells.append(before + said if name == "fidelity" else said)
    cells.append(briefly(np.mean([stage_tables.colour_gain(rows, 800) for rows in runs.values()]), 2))
    assert " ".join(f"| {' | '.join(cells)} |".split()) in words("RESULTS")


CURES = {  # in the table of RESULTS.md: the weights, and how they are drawn
    "plain": "plain", "weight noise": "bnn", "the empty prompt in 10 % of the steps": "null",
    "half the rate": "half-rate", "prior preservation": "prior", "noise offset of .1": "offset",
    "offset, strength varied": "offset-spread",
}
DRAWN = {
    "DDIM, guidance 7.5": "ddim-20-g7.5", "fresh noise, η = 1": "ddim-20-g7.5-eta1", "guidance 3": "ddim-20-g3",
    "guidance 1": "ddim-20-g1", "start of the picture's mean colour": "ddim-20-g7.5-colour",
    "the same at guidance 1": "ddim-20-g1-colour", "running mean of the weights": "ddim-20-g7.5-average",
    "PNDM": "pndm-20-g7.5", "the pretrained ε(∅)": "ddim-20-g7.5-base",
}


def briefly(figure, digits, sign=""):
    """A figure as RESULTS.md writes it: .5 for 0.5, and − for a minus."""
    return re.sub(r"\b0\.", ".", f"{figure:{sign}.{digits}f}").replace("-", "−")


def test_the_table_of_cures():
    table = (ROOT / "tutorials" / "RESULTS.md").read_text(encoding="utf-8").split("### Cures compared")[1]
    rows = [line for line in table.split("\n### ")[0].splitlines() if line.startswith("|")][2:]
    views = {view.name: view for view in stage_settings.views_at(800, 800)}
    assert len(rows) == 29 and f"for {2 * (len(rows) - 1)} comparisons" in table
    for row in rows:
        weights, drawn = (cell.strip() for cell in row.split("|")[1:3])
        setting, view = CURES[weights], views[DRAWN[drawn]]
        cells = [briefly(of_stage(setting, name, None, view, 800)[0], digits)
                 for name, digits in (("fidelity", 2), ("noise", 1))]
        for name, digits in (("fidelity", 3), ("noise", 1)):
            found = stage_tables.cure(textured(), setting, "textured", view, name)
            if not found:
                cells.append("")
                continue
            mean, low, high = found
            text = f"{briefly(mean, digits, '+')} [{briefly(low, digits)}, {briefly(high, digits)}]"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        assert row == f"| {weights} | {drawn} | {' | '.join(cells)} |"


def plainly(text):
    """A page's text without bold type, with ASCII signs and one space between words."""
    return " ".join(text.replace("*", "").replace("−", "-").split())


def page_of(name):
    return plainly((RESULTS / f"{name}.md").read_text(encoding="utf-8"))


def spread(values, digits=3):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def test_the_table_of_graft_is_what_the_command_prints(capsys):
    graft.print_table(json.loads((RESULTS / "graft.json").read_text())["seeds"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 8
    for row in rows:
        assert plainly(row) in page_of("graft")


def test_the_table_of_inverse_noise_on_the_world():
    plain = of_world("flow")
    rows = {("flow", n, None): f"{n} steps | {cost}" for n, cost in ((10, 329), (20, 657), (40, 1314))}
    for k, cost in ((5, 370), (10, 411), (20, 494)):
        rows["corrected", 10, k] = f"{k} of the corrector + 10 steps | {cost}"
    rows["scaled", 10, None] = "one factor (1.07) + 10 steps | 329"
    rows["gaussian", 10, None] = "Gaussian + 10 steps | 329"
    for key, text in rows.items():
        found = of_world(*key)
        middle, low, high = (f"{x:.3f}" for x in interval(plain - found))
        more = "" if key[0] == "flow" else f"{middle} [{low}, {high}] "
        each = ", ".join(f"{distance:.3f}" for distance in found)
        assert plainly(f"| {text} | {spread(found)} | {each} | {more}|") in page_of("inverse_noise").replace("*", "")
    kept = json.loads((RESULTS / "inverse_noise.json").read_text())
    told = contests({}, kept["world"])
    for what, text in (("gaussian", "world {}, five seeds"), ("scaled", "to the network is shown ({})")):
        [(*_, middle, low, high, count)] = [row for row in told if row[2] == what]
        sign = "+" if what == "scaled" else ""
        assert count == 5
        assert plainly(text.format(f"{sign}{middle:.3f} [{low:.3f}, {high:.3f}]")) in page_of("inverse_noise")


def test_the_tables_of_bps_are_those_of_its_runs():
    """How many pairs, how the places were tuned and how the best did, and who guides."""
    runs = json.loads((RESULTS / "bps.json").read_text())
    for name, text in (("base 0", "sees no sketch | |"), ("bps 12", "additions | 12 |"), ("bps 40", "BPS | 40 |"),
                       ("bps 200", "BPS | 200 |"), ("skip 40", "ControlNet's places) | 40 |"),
                       ("encoder 40", "T2I-Adapter's places) | 40 |")):
        assert f"{text} {spread([run['IoU'] for run in runs['60 steps'][name].values()])} |" in page_of("bps")
    for pairs in (12, 40, 200):
        longer = spread([run["IoU"] for run in runs["180 steps"][f"bps {pairs}"].values()])
        assert f"| BPS | {pairs} | {longer} |" in page_of("bps")
    found = json.loads((RESULTS / "bps_places.json").read_text())
    tuning, best, _ = bps_places.table(found["tuning"], found["test"]).split("\n\n")
    for row in tuning.splitlines()[2:]:
        assert plainly(row) in page_of("bps")
    for row in best.splitlines()[2:]:
        entrant, gains, rate, iou, _ = row.strip("| ").split(" | ")
        text = {"all": f"all: {gains}, {rate}", "all equal": f"all with equal gains: {rate}",
                "all head-heavy": f"all: {gains}, {rate}"}.get(entrant, f"{entrant}: {gains}, {rate}")
        assert f"| {text} | {iou} |" in page_of("bps")
    seeds = list(json.loads((RESULTS / "bps_anchors.json").read_text())["seeds"].values())
    rows = [row.split(" | ") for row in bps_anchors.table(seeds, ["IoU"]).splitlines()[2:]]
    assert len(rows) == 3
    for row in rows:
        assert plainly(" | ".join([row[0], *row[2:]])) in page_of("bps")


def test_what_guidance_shows_over_trainings_it_shows_over_seeds():
    """Subjects of one seed share their random numbers; guidance.md names the differences that this changes."""
    rows = [json.loads(line) for line in (RESULTS / "guidance.jsonl").read_text().splitlines()]
    asked = [("base", "own", scale, measure) for scale in ("1.5", "3", "7.5")
             for measure in ("fidelity", "place", "subject", "noise")]
    asked += [("base", "own", "7.5", "clipped"), ("base", "base class", "1.5", "fidelity"),
              ("base class", "own", "1.5", "fidelity")]
    undone = {}
    for one, other, scale, measure in asked:
        found = {(row["subject"], row["seed"]): row["cells"][one][scale][measure] - row["cells"][other][scale][measure]
                 for row in rows}
        runs, seeds = interval(list(found.values())), stage_tables.over_seeds(found)
        if (runs[1] > 0 or runs[2] < 0) != (seeds[1] > 0 or seeds[2] < 0):
            undone[other, scale, measure] = "({:+.3f} [{:+.3f}, {:+.3f}])".format(*seeds)
    drift = {(row["subject"], row["seed"]): row["drift"]["own"] - row["drift"]["base"] for row in rows}
    assert stage_tables.over_seeds(drift)[1] > 0
    assert undone.keys() == {("own", "3", "place"), ("base class", "1.5", "fidelity")}
    assert all(said in page_of("guidance") for said in undone.values())


def test_the_gains_of_guidance_are_means_of_its_trainings():
    rows = [json.loads(line)["gains"] for line in (RESULTS / "guidance.jsonl").read_text().splitlines()]
    means = {name: np.mean([row[name] for row in rows], axis=0) for name in ("c", "own", "base", "base class")}
    lesson = plainly((ROOT / "tutorials" / "06_guidance.py").read_text(encoding="utf-8"))
    for name, values in means.items():
        label = "c, with the prompt" if name == "c" else f'u of the anchor "{name}"'
        assert f"| {label} | {' | '.join(f'{value:.3f}' for value in values)} |" in page_of("guidance")
        if name != "c":
            guided = [[w * c - (w - 1) * u for w in (3, 7.5)] for c, u in zip(means["c"], values, strict=True)]
            cells = " | ".join(f"{low:.2f}; {high:.2f}" for low, high in guided)
            assert f'| guided by "{name}", w = 3; 7.5 | {cells} |' in page_of("guidance")
    assert f"$u={means['base'][1]:.2f}$ against $c={means['c'][1]:.2f}$ at $t=100$" in lesson
    first, second = (7.5 * means["c"][1] - 6.5 * means[name][1] for name in ("base", "own"))
    assert f"{first:.2f} at $w=7.5$" in lesson and f"({second:.2f} at 7.5)" in lesson


def test_the_law_is_poor_in_every_way_of_drawing():
    """As docs/training.md says."""
    assert [name for name, (own, *_) in law_by_view().items() if own >= 0] == ["ddim-20-g7.5-eta1"]


def test_at_the_later_switches_no_distance_to_the_ceiling_is_shown():
    assert all(low < 0 < high for _, low, high in map(below_ceiling, (500, 750)))


@pytest.mark.parametrize("question", [name for name in guidance.QUESTIONS if "subject" in name or "place" in name])
def test_the_rows_of_subject_and_place_are_those_of_the_trainings(question):
    rows = [json.loads(line) for line in (RESULTS / "guidance.jsonl").read_text().splitlines()]
    name, (one, scale), (other, at) = guidance.QUESTIONS[question]
    cells = []
    for kind in ("dog", "cat", "fish", None):
        own = [row["cells"] for row in rows if kind in (None, row["subject"])]
        mean, low, high = interval([row[one][scale][name] - row[other][at][name] for row in own])
        cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    assert f"| {plainly(question)} | {' | '.join(cells)} |" in page_of("guidance")


@pytest.mark.parametrize(("said", "names", "seed"), [
    ("{:.1f} % with a weight of 1 and rank 4, {:.1f} % with a weight of 3 and 720 steps, {:.1f} % with a weight of 1",
     ("lora-taught-1", "lora-taught-3", "lora-taught-1-rank-8"), 100),
    ("{:.1f} % with them, {:.1f} % with 600 steps and two blocks, {:.1f} % with 600 steps at a rate of 5e-3",
     ("oft-taught-1-longer", "oft-taught-1-blocks-2", "oft-taught-1-rate"), 3),
])
def test_the_trainings_that_chose_the_teacher_of_an_adapter(said, names, seed):
    found = [searched(name, "both") for name in names]
    assert said.format(*(100 * np.mean([*runs.values()]) for runs in found)) in words("docs/training")
    assert all(set(runs) == {(kind, seed) for kind in ("dog", "cat", "fish")} for runs in found)
