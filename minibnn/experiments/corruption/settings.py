"""What the corruption experiment varies: one factor at a time against "main".

Every setting that was tried is listed here, whether it showed something or not.
"""

import dataclasses
from dataclasses import dataclass

from ..views import View

ALONE = {"prior_weight": 0.0}  # no class pictures: half the time, and the paper's §3.3 does without


@dataclass(frozen=True)
class Setting:
    """One factor changed. options: of the command `train`; views: how checkpoints draw; bayes: without BNN, with it."""

    what: str
    options: dict = dataclasses.field(default_factory=lambda: dict(ALONE))
    views: tuple = (View(),)
    bayes: tuple = (False, True)
    steps: int = 800


SAMPLERS = (
    *(View(sampler, steps, g) for sampler in ("ddim", "pndm") for steps in (25, 50) for g in (1.0, 3.0, 7.5)),
    View("ddim", 250, 7.5),
)
PAPER_VIEWS = (View("pndm", 50, 7.5),)  # SD's default sampler
BASE_VIEWS = (View(base=True), View(guidance=7.5, base=True))
RIVALS = (View(), View(average=True), View(base=True), View(guidance=7.5), View(guidance=7.5, base=True), *PAPER_VIEWS)
SETTINGS = {
    "main": Setting("the recipe's rate, no prior preservation (as in the paper's §3.3)"),
    "views": Setting("main, drawn otherwise: averaged weights, base's ε(∅), guidance 7.5, PNDM", views=RIVALS),
    "long": Setting("main, four times as long", steps=3200),
    "base": Setting("main, drawn with the base's ε(∅)", views=BASE_VIEWS),
    "base-sigma-0.1": Setting("base, σ₀ = 0.1", ALONE | {"sigma": 0.1}, BASE_VIEWS, bayes=(True,)),
    "samplers": Setting("main, drawn with 5 samplers, guidance 1, 3 and 7.5", views=SAMPLERS, bayes=(False,)),
    "pndm": Setting("main, drawn as the paper draws too: PNDM, 50 steps, guidance 7.5", views=(View(), *PAPER_VIEWS)),
    "prior": Setting("with prior preservation", {"prior_weight": 1.0}),
    "lr-5e-5": Setting("a quarter of the rate", ALONE | {"lr": 5e-5}),
    "lr-4e-4": Setting("twice the rate", ALONE | {"lr": 4e-4}, (View(), *PAPER_VIEWS)),
    "warm-up": Setting("the rate rises over 200 steps", ALONE | {"lr_warmup_steps": 200}),
    "batch-4": Setting("four pictures a step", ALONE | {"batch_size": 4}),
    **{f"sigma-{x}": Setting(f"σ₀ = {x}", ALONE | {"sigma": x}, bayes=(True,)) for x in (0.003, 0.03, 0.1)},
    "lambda-1e-6": Setting("λ = 1e-6", ALONE | {"lambda_kl": 1e-6}, bayes=(True,)),
    "lambda-1e-4": Setting("λ = 1e-4", ALONE | {"lambda_kl": 1e-4}, bayes=(True,)),
    **{
        f"where-{where.split('-')[0]}": Setting(f"random: {where}", ALONE | {"where": where}, bayes=(True,))
        for where in ("up", "norm", "cross-attention", "conv", "all")
    },
}


@dataclass(frozen=True)
class Run:
    """One fine-tuning to be measured."""

    setting: str
    pictures: int
    bayes: bool
    seed: int

    @property
    def name(self):
        return f"{self.setting}-{self.pictures}-{'bnn' if self.bayes else 'plain'}-{self.seed}"


def log_spaced(last):
    """0 and the doublings of 25 up to `last`, which is always there."""
    steps = [0]
    while 25 * 2 ** (len(steps) - 1) < last:
        steps.append(25 * 2 ** (len(steps) - 1))
    return [*steps, last]
