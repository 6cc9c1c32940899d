"""What the stage experiment varies against "plain", one factor at a time, and how and when checkpoints are drawn.

Every setting that was tried is listed here, whether it showed something or not. Rate, batch and looks were chosen on
seed 100 of an earlier pretraining, before the runs of the main comparison (seeds 0 to 4): with one picture a step and a
rate of 2e-4 the subject was hardly learned in 1,000 steps, and single runs were erratic.

**Asked before the runs**, of "plain", "bnn", "null", "offset" and "offset-bnn" on three subjects, seeds 0 to 4, at
guidance 7.5 and the training prompt:

1. Is there a corruption stage under plain fine-tuning (the criterion of `report.py`)?
2. Drawn from starting noise whose mean colour is that of the picture (three numbers of 1,728 are replaced), do the
   same weights have higher fidelity and less noise? A trial by hand (seed 100) said so.
3. Trained with a noise offset of 0.1, which gives the mean colour a part in the loss, is fidelity higher and noise
   lower than plain? Trials by hand (coffee with 0.3, cat with 0.1, seed 100) said so.
4. Is the BNN better than plain, and with an offset better than the offset alone?
5. Does the empty prompt in 10 % of the steps lower the noise, as it did on the earlier pretraining?

Asked after those runs and before its own, of "offset-spread" on the same subjects, seeds 0 to 2 (3 and 4 were added
when seeds had become the unit of the intervals):

6. Trained with noise whose strength varies by 10 %, too, is the gain of the strength higher than with the offset alone,
   and the noise lower, at guidance 1 and at 7.5? A trial by hand (cat, seed 100) said yes at 1, and not at 7.5.

And of "bnn-trained", seeds 0 and 1 (2 to 4 were added together with the runs of question 9):

7. Does it change anything that σ is trained, as in the paper, instead of held at 0.01?

Asked after the first six runs of "null", in which fidelity rose from step 400 to 800 and may have fallen before, and
before nine more of seeds 2 to 4, which alone are to answer it:

8. With the empty prompt in 10 % of the steps, does fidelity fall from step 250 to 400, and rise again from 400 to 800,
   as in the paper's third phase, at guidance 7.5 and the training prompt?

And of "four" and "bnn-four" (four pictures of each subject), seeds 0 to 2, before any of their runs:

9. Is there a corruption stage under plain fine-tuning with four pictures, and is the BNN better than plain there?

And of "half-rate", "bnn-all", "prior" and "flat", seeds 0 to 4 as far as they are run, in this order, before any of
their runs:

10. Does half the rate change fidelity and noise as weight noise of 0.01 did, which lowered the one and raised the
    other? Then slower learning would be enough to explain it.
11. With random convolutions and norms, too, is the BNN better than plain, or than the BNN on the linear layers?
12. Does prior preservation with pictures of other materials lower the noise?
13. Does the noise rise on a flat drawing as it does on photographs?

After the runs of "prior", whose pictures at step 800 were clean with DDIM and broken with PNDM, and before they were
made again, drawn with PNDM at every look, and before those of "prior-bnn", seeds 0 to 4 as far as they are run. The
paper has prior preservation and draws with PNDM. From the gains that had been measured the law predicts a noise, above
that of perfect gains and in units of a pixel, of -.01, .04, .06, .09 and .05 at the steps 100, 250, 400, 600 and 800:

14. With prior preservation, are fidelity and noise over the late steps better with the BNN, drawn with PNDM, and drawn
    with DDIM?
15. With prior preservation, drawn with PNDM: is there a corruption stage by the criterion, and a recovery, as the law
    predicts?

And of "long", seeds 0 to 4 of one subject (the cat), before any of its runs; all runs until then had ended at step 800,
where a recovery was not shown:

16. Five times as long, does fidelity rise and the noise fall from step 800 to 4000, at guidance 7.5 and the training
    prompt, as in the paper's third phase?

And of "bnn-0.03", seeds 0 to 4 of the three subjects, before any of its runs:

17. Does weight noise that is three times as strong do what that of 0.01 did (question 4), or the opposite?

And of "long" on the two other subjects, seeds 0 to 4, after the runs of the cat and before any of these:

18. Does what was found of the cat hold for them, too: from step 800 to 4000 fidelity rises, and the noise stays?

And of "plain", "offset" and "bnn" on a model that is pretrained on photographs, seeds 0 to 4 of the three subjects as
far as they are run, before that model was made again (two runs of the cat with an earlier one had shown little):

19. On that model, does the noise rise, is fidelity with the offset higher and the noise lower, and is the BNN better
    than plain (questions 1, 3 and 4)?

And of "long-null", seeds 0 to 4 of the cat, then of the others as far as they are run, before any of its runs (and its
share of empty prompts was changed from 3 % to the 10 % of "null", whose runs it continues). In the runs of "long" the
noise stays, and the gain without the prompt lies above that with it:

20. Does the noise fall from step 800 to 4000 where the empty prompt is trained, too, and is it lower at 4000 than in
    "long"? Is the gain without the prompt no longer above that with it? If the noise falls and the gains do not part,
    their gap is a likely cause of what "long" keeps; if the gains do not part and the noise stays, it is not.

And of "batch-1", seeds 0 to 4 of the three subjects, before any of its runs:

21. With one draw of time and noise a step, as the paper trains, is there a corruption stage by the criterion, and are
    fidelity and noise other than plain?
"""

import dataclasses
from dataclasses import dataclass, replace

from ..views import View

LOOKS = (0, 100, 250, 400, 600, 800)  # optimiser steps
EARLY, LATE = 250, (400, 600, 800)  # the steps that the criterion compares
LONG_LOOKS = (0, 250, 400, 600, 800, 1200, 1800, 2400, 3200, 4000)
PICTURES = 4  # drawn of the training prompt, and as many of other prompts
OTHER_PROMPTS = (
    "a gray photo of sks from afar", "a warm photo of sks from afar", "a cold photo of sks from afar",
    "a plain photo of sks close up",
)
PLAIN = {"bayes": False, "lr": 5e-4, "batch_size": 4, "prior_weight": 0.0}  # options of the command `train`


MAIN = View(steps=20, guidance=7.5)
SIDE_VIEWS = (replace(MAIN, guidance=3.0), replace(MAIN, guidance=1.0))  # only where the criterion compares
PNDM = replace(MAIN, sampler="pndm")
LAST_VIEWS = (  # at the last look
    PNDM, replace(MAIN, eta=1.0), replace(MAIN, average=True), replace(MAIN, base=True),
    replace(MAIN, colour=True), replace(MAIN, guidance=1.0, colour=True),
)


def views_at(step, last):
    """How the checkpoint of this step is drawn, if `last` is the last one: a tuple of Views, MAIN first."""
    return (MAIN, *SIDE_VIEWS * (step in (EARLY, *LATE)), *LAST_VIEWS * (step == last))


@dataclass(frozen=True)
class Setting:
    """One way of fine-tuning. options: those that differ from PLAIN.

    beside: the setting from which it differs in one thing, with which it is compared, if there is one. pictures: how
    many of the subject. fixed_sigma: σ stays at σ₀, instead of being trained at a rate that is 100 times the paper's.
    flat: the subject is a flat drawing, and none of --images. everywhere: ways of drawing besides, at every look.
    """

    what: str
    options: dict = dataclasses.field(default_factory=dict)
    pictures: int = 1
    looks: tuple = LOOKS
    fixed_sigma: bool = True
    flat: bool = False
    everywhere: tuple = ()
    beside: str | None = "plain"


# The layers that the paper's text names: all linear ones but cross-attention. Without the projections of the time, as
# in the authors' script, weight noise of 0.01 moves this network's prediction by 0.0004 only: its attention is small.
BNN = {"bayes": True, "where": "paper,time"}
SETTINGS = {
    "plain": Setting("DreamBooth without BNN, one picture", beside=None),
    "bnn": Setting("BNN on the paper's linear layers, σ = 0.01", BNN),
    "null": Setting("the empty prompt in 10 % of the steps", {"null_dropout": 0.1}),
    "offset": Setting("noise offset 0.1: the mean colour is trained too", {"noise_offset": 0.1}),
    "offset-bnn": Setting(
        "noise offset 0.1 and BNN on the paper's linear layers", BNN | {"noise_offset": 0.1}, beside="offset"
    ),
    "offset-spread": Setting(
        "noise offset 0.1, and noise whose strength varies by 10 %", {"noise_offset": 0.1, "noise_spread": 0.1},
        beside="offset",
    ),
    "bnn-all": Setting("BNN on all layers, σ = 0.01", BNN | {"where": "all"}),
    "bnn-0.03": Setting("BNN on the paper's linear layers, σ = 0.03", BNN | {"sigma": 0.03}),
    "bnn-trained": Setting(
        "BNN on the paper's linear layers, σ₀ = 0.01, trained", BNN, fixed_sigma=False, beside="bnn"
    ),
    "half-rate": Setting("half the rate: is a cure more than slower learning?", {"lr": 2.5e-4}),
    "batch-1": Setting("one draw of time and noise a step", {"batch_size": 1}),
    "prior": Setting(
        "prior preservation with pictures of other materials", {"prior_weight": 1.0}, everywhere=(PNDM,)
    ),
    "prior-bnn": Setting(
        "prior preservation, and BNN on the paper's linear layers", BNN | {"prior_weight": 1.0}, everywhere=(PNDM,),
        beside="prior",
    ),
    "four": Setting("four pictures", pictures=4, beside=None),
    "bnn-four": Setting("four pictures, BNN on the paper's linear layers", BNN, pictures=4, beside="four"),
    "flat": Setting("a flat drawing instead of a photograph", flat=True, beside=None),
    "long": Setting("plain, five times as long", looks=LONG_LOOKS, beside=None),  # until step 800 it is plain
    "long-null": Setting(  # until step 800 it is null
        "the empty prompt in 10 % of the steps, five times as long", {"null_dropout": 0.1}, looks=LONG_LOOKS,
        beside="long",
    ),
}
