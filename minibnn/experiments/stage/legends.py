"""What the columns of stage.md mean (`tables.py`, `every_look.py`, `law.py`)."""

from ..legends import LIKE_THE_LAST
from .settings import EARLY, LATE, MAIN, SETTINGS, SIDE_VIEWS


def opening(runs):
    """What all tables share. runs: as the tables take them."""
    own = [f"- *{name}*: {SETTINGS[name].what}" for name in SETTINGS if any(key[0] == name for key in runs)]
    return "\n".join([SHARED_BY_ALL, "", "Settings, by which weights are named too:", "", *own])


SHARED_BY_ALL = f"""\
# The corruption stage in the textured model

`python -m minibnn experiment stage-report` makes this page; what it says is in [RESULTS.md](../RESULTS.md). A cell
"a [b, c]" is a mean over seeds with its 95 % t-interval; the runs of one seed share their random numbers, so that its
subjects are averaged first. It is bold where the interval excludes 0. In all tables, unless the list above one says
otherwise, these words mean:

- **setting**, **weights**: how the model was fine-tuned (below)
- **pretrained**: the model with which the training began, the bundled one or one that was pretrained on photographs
- **runs**: number of pairs of a subject and a seed
- **fidelity**: structural similarity (SSIM) of the pictures and the training picture, at most 1
- **noise**: Immerkær's estimate of the noise in the mean of the three colours, above that of the training picture: a
  standard deviation in percent of the way from grey to white
- **tint**: by how much the mean colour differs from the training picture's, as a root mean square; black is −1 and
  white is 1

Four pictures of the training prompt are measured, drawn by {MAIN.steps} steps of DDIM with guidance
{MAIN.guidance:g}, unless a column says otherwise."""

LATER = f"the steps {', '.join(map(str, LATE[:-1]))} and {LATE[-1]}"
SHARED = [None, None, None]  # setting, pretrained, runs

STAGES = [
    *SHARED, "of the pictures", f"change from step {EARLY} to the mean of {LATER}", LIKE_THE_LAST,
    "slopes of the predicted on the true noise, with the prompt (c), with the empty prompt (u) and combined by the "
    "guidance of the row; below 1 noise stays",
    "that slope for the mean colour alone, with the prompt, after the last step", "mean at each of the two steps",
]
LEVELS = [*SHARED, "mean at each of these steps", LIKE_THE_LAST]
PHASES = [
    *SHARED, "*training* for the training prompt, *other* for four prompts with another light or distance",
    "change between two steps", *[LIKE_THE_LAST] * 5,
]
LONG_RUNS = [
    *SHARED[:2], "*all* of them, or one", *SHARED[2:],
    "*training* for the training prompt, *other* for four prompts with another light or distance",
    "mean at each of these steps", LIKE_THE_LAST, LIKE_THE_LAST,
    "the gain without the prompt minus that with it; above 0 guidance leaves noise", "change between two steps",
    LIKE_THE_LAST, LIKE_THE_LAST,
]
EVERY_LOOK = [
    *SHARED, "as in the table of the same weights, drawn otherwise", "mean at each of these steps", LIKE_THE_LAST,
    "the same as the gain law predicts it from the mean gains, beyond what perfect gains leave",
    f"change from step {EARLY} to the mean of {LATER}", LIKE_THE_LAST,
    f"difference to the setting from which it differs in one thing, of the means over {LATER}, paired by subject and "
    "seed", LIKE_THE_LAST,
]
CURES = [
    "one setting minus the other, paired by subject and seed", None, None, f"difference of the means over {LATER}",
    LIKE_THE_LAST,
    "the same, but the other setting is taken where its loss was equal, interpolated between its checkpoints",
    LIKE_THE_LAST, "difference between the checkpoints at which each run was best",
    "the first two differences, for four other prompts", LIKE_THE_LAST,
    "difference of how much the pictures of the other prompts differ: standard deviation of each pixel over the "
    "pictures, mean over the pixels; black is −1 and white is 1",
    f"mean squared error of the predicted noise with the prompt, mean over {LATER}",
]
for view in SIDE_VIEWS:
    CURES += [f"the first two differences, for pictures drawn with guidance {view.guidance:g}", LIKE_THE_LAST]
COMPANIONS = [
    None, None, "checkpoints of all runs after the first step",
    "rank correlation with fidelity over these checkpoints; u and c are the gains without the prompt and with it, and "
    "the loss is the mean squared error of the predicted noise", *[LIKE_THE_LAST] * 4,
]
DRAWINGS = [
    *SHARED,
    "sampler, number of steps and guidance (g); *eta1* with fresh noise at each step, *average* with the running mean "
    "of the weights, *base* with the pretrained model's prediction for the empty prompt, *colour* from starting noise "
    "of the training picture's mean colour",
    "mean after the last step", LIKE_THE_LAST, "difference to the first row of the same weights", LIKE_THE_LAST,
    "difference to the plain weights drawn as in the first row, paired by subject and seed", LIKE_THE_LAST,
]
LAW = [
    None, "checkpoints of all runs after the first step",
    "standard deviation of the noise that the law predicts in the pictures from the mean gains, with the little that "
    "perfect gains leave; black is −1 and white is 1",
    "the same, as measured: *noise* divided by 100 and by √(1/3), because it is that of the mean of three colours",
    "share of the variance of what is measured that the law explains; below 0 the mean alone is nearer",
    "the same of the straight line that fits best", "of the predicted and the measured",
]
