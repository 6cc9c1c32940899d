"""Which trainings the paper's tables and figures need, and where in them their numbers are measured: pure functions.

Follows: the paper's §5 and App. H. One training serves all places that it can: the default DreamBooth runs are those
of Table 1, a row of Tables 2 and 3, the 200·n of Fig. 7 and a point of both halves of Fig. 9.

    item     rows                                                         columns
    table1   DreamBooth, LoRA, OFT, each without and with BNN             DreamBooth data set, CelebA
    table2   SD v1.5; v1.4 (λ = 0.1); v2.0 (twice the steps)
    table3   BNN nowhere, in the up blocks, normalisation, by default, + cross-attention, cross-attention
    fig2     without BNN, from 1 … 6 pictures                             steps per picture
    fig7     DreamBooth without and with BNN                              steps per picture
    fig8     the same from more and more pictures (CelebA)                number of pictures
    fig9     with BNN                                                     σ₀; λ
    fig13    DreamBooth without and with BNN: the worst pictures          10 subjects

What the paper's text leaves open is decided here: the columns of the figures (it prints them as pictures alone), the
subject of Fig. 2 (the first), the people of Fig. 8 (the first five; the paper drew five) and the ten of Fig. 13.

Steps are multiples of the recipe's steps per picture (`files/configs.py`: 200, 400 for LoRA), so that the bundled
model and small test models have the same tables at their own size.
"""

import random
from dataclasses import dataclass

from .dataset import PERSON_PICTURES, Subject

ITEMS = ("table1", "table2", "table3", "fig2", "fig7", "fig8", "fig9", "fig13")
METHODS = {"dreambooth": "DreamBooth", "lora": "LoRA", "oft": "OFT"}
MODELS = {"main": "SD v1.5", "v14": "SD v1.4", "v20": "SD v2.0"}
DATA = {"dreambooth": "DreamBooth data set", "celeba": "CelebA"}
WHERE = {  # {source: {row of Table 3: --where}}
    "paper": {  # "all linear layers … except the ones in the cross-attention modules" (§5.3)
        "default": "paper,time,projections", "up": "up,time,time-embedding,projections", "norm": "norm",
        "default + cross-attention": "paper,time,projections,cross-attention", "cross-attention": "cross-attention",
    },
    "authors": {  # their scripts leave the time layers out, but for Table 3's 13.8 % they are needed
        "default": "paper,projections", "up": "up,time,time-embedding,projections", "norm": "norm",
        "default + cross-attention": "paper,projections,cross-attention", "cross-attention": "cross-attention",
    },
}
OFT_WHERE = {"paper": None, "authors": "up"}  # {source: --where of OFT}: their script makes Q random in the up blocks
CELEBA = 1.25  # 250 steps a picture instead of 200 (App. H.1), for all but LoRA
TABLE2_LAMBDA, TABLE2_LONGER = 0.1, 2  # of v1.4; of v2.0 (App. H.2)
FIG2_PICTURES, FIG2_STEPS = (1, 2, 3, 4, 5, 6), (0, 0.125, 0.25, 0.5, 1, 2, 4)  # of 200 a picture: 0, 25, … 800
FIG7_STEPS = (0.5, 0.75, 1, 1.5, 2)  # 100, 150, 200, 300, 400
FIG8_PICTURES, FIG8_SUBJECTS = (1, 2, 5, 10, 15), 5
FIG13_SUBJECTS = 10
SIGMA = 0.01  # σ₀ and the prior's σ (§5)


@dataclass(frozen=True)
class Study:
    """What is to be reproduced, and with what. people: none where there is no CelebA."""

    recipe: dict  # of the model: steps per picture, by method
    source: str  # "paper": what the text says; "authors": what their scripts do
    models: tuple[str, ...]  # names in MODELS; the bundled model stands for all of them, as "main" alone
    subjects: tuple[Subject, ...]
    people: tuple[Subject, ...]
    seeds: tuple[int, ...]
    items: tuple[str, ...]
    sigmas: tuple[float, ...] = ()
    lambdas: tuple[float, ...] = ()
    photographs: bool = True  # False: the twins, which are drawings of the bundled model's world


@dataclass(frozen=True)
class Run:
    """One training; `subject.data` says of which data set."""

    subject: Subject
    pictures: int
    seed: int
    method: str = "dreambooth"
    bayes: bool = False
    model: str = "main"
    where: str = "default"
    sigma: float = SIGMA
    lambda_kl: float = 0.0

    @property
    def name(self):
        """Stable: it says everything in which two runs can differ, but for what all runs of a folder share."""
        parts = [self.subject.data, self.subject.name, f"{self.pictures}p", self.method,
                 "bnn" if self.bayes else "plain"]
        parts += [self.model] * (self.model != "main") + [self.where.replace(" ", "")] * (self.where != "default")
        parts += [f"sigma{self.sigma:g}"] * (self.sigma != SIGMA) + [f"lambda{self.lambda_kl:g}"] * (self.lambda_kl > 0)
        return "-".join([*parts, f"s{self.seed}"])


@dataclass(frozen=True)
class Cell:
    """A measurement that a place of a table is a mean of: after `steps` steps of the run."""

    item: str
    row: str
    column: str | float
    run: Run
    steps: int


def steps_per_picture(recipe, method, data):
    """Of a method, on a data set: `steps_per_picture(RECIPE, "dreambooth", "celeba")` is 250.0."""
    own = (recipe | recipe["methods"].get(method, {}))["steps_per_picture"]
    return own * (CELEBA if data == "celeba" and method != "lora" else 1)


def steps_of(study, run, times=1.0):
    """Optimiser steps of a run, as a multiple of what the paper does."""
    return max(round(times * steps_per_picture(study.recipe, run.method, run.subject.data) * run.pictures), times > 0)


def name_of(method, bayes):
    return METHODS[method] + " + BNN" * bayes


def pictures_of(subject):
    """How many pictures a default run is trained on."""
    return min(subject.pictures, PERSON_PICTURES) if subject.data == "celeba" else subject.pictures


def column_of(study, subject):
    """What a subject's column of Table 1 is called: its data set, of which the bundled model's drawings are none."""
    return DATA[subject.data] if study.photographs else f"drawings: {subject.name}"


def plan(study):
    """The cells of all items of a study, in the order of ITEMS."""
    return [cell for item in ITEMS if item in study.items for cell in PLANS[item](study)]


def trainings(cells):
    """{run: its steps at which something is measured, in order}, in the order of the cells."""
    found = {}
    for cell in cells:
        found.setdefault(cell.run, set()).add(cell.steps)
    return {run: sorted(steps) for run, steps in found.items()}


# --- tables -----------------------------------------------------------------------------------------------------------


def _table1(study):
    for subject in (*study.subjects, *study.people):
        for seed in study.seeds:
            for method in METHODS:
                for bayes in (False, True):
                    run = Run(subject, pictures_of(subject), seed, method, bayes)
                    column = column_of(study, subject)
                    yield Cell("table1", name_of(method, bayes), column, run, steps_of(study, run))


def _table2(study):
    alone = study.models == ("main",)  # the bundled model takes the place of the others
    for subject in study.subjects:
        for seed in study.seeds:
            for model in MODELS if alone else study.models:
                for bayes in (False, True):
                    weight = TABLE2_LAMBDA if model == "v14" and bayes else 0.0
                    run = Run(subject, subject.pictures, seed, bayes=bayes, model="main" if alone else model,
                              lambda_kl=weight)
                    row = (f"as {MODELS[model]}" if alone else MODELS[model]) + " + BNN" * bayes
                    times = TABLE2_LONGER if model == "v20" else 1
                    yield Cell("table2", row, "", run, steps_of(study, run, times))


def _table3(study):
    for subject in study.subjects:
        for seed in study.seeds:
            rows = {"none": Run(subject, subject.pictures, seed)}
            rows |= {
                where: Run(subject, subject.pictures, seed, bayes=True, where=where)
                for where in ("up", "norm", "default", "default + cross-attention", "cross-attention")
            }
            for row, run in rows.items():
                yield Cell("table3", row, "", run, steps_of(study, run))


# --- figures ----------------------------------------------------------------------------------------------------------


def _fig2(study):
    subject = study.subjects[0]
    for seed in study.seeds:
        for n in (n for n in FIG2_PICTURES if n <= subject.pictures):
            run = Run(subject, n, seed)
            for times in FIG2_STEPS:
                column = times * steps_per_picture(study.recipe, "dreambooth", subject.data)
                yield Cell("fig2", f"{n} picture{'s' * (n > 1)}", column, run, steps_of(study, run, times))


def _fig7(study):
    for subject in study.subjects:
        for seed in study.seeds:
            for bayes in (False, True):
                run = Run(subject, subject.pictures, seed, bayes=bayes)
                for times in FIG7_STEPS:
                    column = times * steps_per_picture(study.recipe, "dreambooth", subject.data)
                    yield Cell("fig7", name_of("dreambooth", bayes), column, run, steps_of(study, run, times))


def _fig8(study):
    for subject in (study.people or study.subjects)[:FIG8_SUBJECTS]:
        for seed in study.seeds:
            for n in (n for n in FIG8_PICTURES if n <= subject.pictures):
                for bayes in (False, True):
                    run = Run(subject, n, seed, bayes=bayes)
                    yield Cell("fig8", name_of("dreambooth", bayes), float(n), run, steps_of(study, run))


def _fig9(study):
    for subject in study.subjects:
        for seed in study.seeds:
            usual = {"subject": subject, "pictures": subject.pictures, "seed": seed, "bayes": True}
            for sigma in study.sigmas:
                run = Run(**usual, sigma=sigma)
                yield Cell("fig9", "sigma", sigma, run, steps_of(study, run))
            for weight in study.lambdas:
                run = Run(**usual, lambda_kl=weight)
                yield Cell("fig9", "lambda", weight, run, steps_of(study, run))


def _fig13(study):
    chosen = random.Random(0).sample(study.subjects, min(FIG13_SUBJECTS, len(study.subjects)))
    for subject in sorted(chosen, key=lambda each: each.name):
        for bayes in (False, True):
            run = Run(subject, subject.pictures, study.seeds[0], bayes=bayes)
            yield Cell("fig13", name_of("dreambooth", bayes), subject.name, run, steps_of(study, run))


PLANS = {"table1": _table1, "table2": _table2, "table3": _table3, "fig2": _fig2, "fig7": _fig7, "fig8": _fig8,
         "fig9": _fig9, "fig13": _fig13}
