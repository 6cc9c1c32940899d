"""The options of the methods of neighbouring papers: `graft`, `bps`, `flow`, `rectified`."""

from dataclasses import dataclass

from .kinds import as_asked, natural, nonnegative, option, positive, whole, words
from .shared import DTYPES, device_option, model_option, prediction_type_option, seed_option, tokenizer_option
from .unfinished import going_on


@dataclass(frozen=True)
class GraftOptions:
    """Fine-tune a model on those of its own samples that a reward accepts (GRAFT, P-GRAFT)."""

    reward: str = option(None, "red_thing_on_grass, redness, clip:FOLDER (the CLIP score, by openai/clip-vit-*), aesthetic:FOLDER (LAION's aesthetic predictor v2 on CLIP ViT-L/14), or your own as file.py:function", "what", required=True, metavar="REWARD")
    model: str = model_option(default="tiny")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    prompt: list = option(None, "what to draw and learn; for tiny and tiny-v2 each of their subjects on the grass", "what", means="what is drawn", nargs="+", type=words)
    prompts_from: str = option(None, "a text file with one prompt in each line", "what", metavar="FILE")

    candidates: int = option(8, "samples in a group, of one prompt", "choosing", type=whole)
    groups: int = option(4, "groups for each prompt", "choosing", type=whole)
    rule: str = option("top-k", "which of them to learn from", "choosing", choices=("top-k", "threshold", "tilt"))
    keep: int = option(2, "how many of a group, for top-k", "choosing", type=whole)
    minimum: float = option(0.5, "least reward, for threshold", "choosing", type=float)
    alpha: float = option(1.0, "temperature: keep with probability exp((r - r_max) / alpha), for tilt", "choosing", means="a temperature", type=positive)
    deduplicate: bool = option(False, "keep one of pictures that look alike", "choosing")

    method: str = option("dreambooth", "what is trained: all of the UNet, or a low-rank correction of chosen layers (lora)", "training", choices=("dreambooth", "lora"))
    rank: int = option(None, "lora: rank r of the correction [4; tiny-v2: 8]", "training", type=whole)
    layers: str = option(None, "lora: ends of the names of the linear layers that are adapted, joined by commas [to_q,to_k,to_v,to_out.0]", "training", metavar="NAMES")
    switch: int = option(0, "time 0..999 at which the base takes over; 0: never, which is GRAFT", "training", type=natural)
    steps: int = option(300, "optimiser steps", "training", type=whole)
    lr: float = option(None, "learning rate of AdamW [{lr}]", "training", type=positive)
    batch_size: int = option(8, "samples at once, drawing and training", "training", type=whole)
    resolution: int = option(None, "pixels [{resolution}]", "training", type=whole)
    dtype: str = option(None, "precision of the computation, in drawing and training; weights train in float32 [float32; CUDA: bfloat16 or float16]", "training", choices=DTYPES)
    gradient_checkpointing: bool = option(False, "recompute blocks in backward: less memory, more time", "training")
    device: str = device_option("training")
    seed: int = seed_option("training")

    sample_steps: int = option(None, "sampling steps [{sample_steps}]", "drawing", type=whole)
    guidance: float = option(1.0, "classifier-free guidance of all samples, 1: none; the run keeps it", "drawing", type=float)
    eta: float = option(1.0, "noise added by DDIM: 0 none, 1 as DDPM", "drawing", type=nonnegative)

    out: str = option("runs/graft", "the run's folder", "output", metavar="DIR")
    checkpoint_every: int = option(0, "write a checkpoint of the training every N steps; 0: only when it is stopped", "output", type=natural, metavar="N")
    resume: bool = option(False, "go on with what OUT.unfinished holds, with its options; as long as it has no checkpoint of the training, the rule, its number, --deduplicate, the method, the switch, the rate and the steps may be others", "output")
    evaluate: int = option(32, "fresh samples drawn at the end for the mean reward and samples.png; 0: none", "output", type=natural)
    overwrite: bool = option(False, "replace OUT if it is a run of this command; without --resume also forget OUT.unfinished", "output")

    def __post_init__(self):
        as_asked(self)

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} those of the run that --resume goes on with. Raises UserError."""
        settled = {"rule": ("keep", "minimum", "alpha"), "method": ("rank", "layers", "lr")}
        return going_on(given, GraftOptions, GraftOptions.out, settled)


@dataclass(frozen=True)
class BpsOptions:
    """Train a steering branch on pairs of hints and pictures; or, with --branch, draw hints with a trained one."""

    hints: str = option(None, "folder of NAME.hint.png and NAME.txt (caption), for training also NAME.png (picture)", "what", required=True, metavar="DIR")
    branch: str = option(None, "folder of a trained branch: draw instead of train", "what", metavar="DIR")
    model: str = model_option("; stays frozen", "tiny")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    edges: bool = option(False, "take the edges of each NAME.png as its hint; NAME.hint.png is not needed", "what")

    hint_channels: int = option(1, "1: grey hints (sketch, mask), 3: coloured ones (map)", "training", type=int, choices=(1, 3))
    gains: str = option("head-heavy", "16, 8, 4, 2 by level and 16 in the middle, or 1 everywhere", "training", choices=("head-heavy", "equal"))
    steps: int = option(None, "optimiser steps [1000, a trial; tiny and tiny-v2: 400]; the authors' recipe for COCO comes to about 164,000", "training", type=whole)
    lr: float = option(None, "learning rate of AdamW [1e-5; tiny and tiny-v2: 5e-4]", "training", type=positive)
    batch_size: int = option(16, "pairs for each step", "training", type=whole)
    resolution: int = option(None, "pixels of the square crop [{resolution}]", "training", type=whole)
    dtype: str = option(None, "precision of the computation [float32; CUDA: bfloat16 if it is fast there]", "training", choices=("float32", "bfloat16"))
    gradient_checkpointing: bool = option(False, "recompute blocks in backward: less memory, more time", "training")
    device: str = device_option("training")
    seed: int = seed_option("training")

    sample_steps: int = option(None, "sampling steps [{sample_steps}]", "drawing", type=whole)
    guidance: float = option(None, "classifier-free guidance on the text [{guidance}]", "drawing", type=float)
    guide_hint: bool = option(False, "guidance on text and hint: the unconditional prediction is the frozen model's without the branch", "drawing")
    out: str = option(None, "folder of the result [runs/bps; with --branch: runs/bps-drawn]", "output", metavar="DIR")
    checkpoint_every: int = option(0, "write a checkpoint every N steps; 0: only when the training is stopped", "output", type=natural, metavar="N")
    resume: bool = option(False, "go on with the training that OUT.unfinished holds, with its options; more steps are possible", "output")
    overwrite: bool = option(False, "write into OUT if it exists; without --resume also forget OUT.unfinished", "output")

    def __post_init__(self):
        as_asked(self)

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} those of the training that --resume goes on with. Raises UserError."""
        return going_on(given, BpsOptions, "runs/bps")


@dataclass(frozen=True)
class FlowOptions:
    """Draw the world's pictures with a flow, without and with inverse noise correction; or train both (--train)."""

    train: bool = option(False, "train a flow and its corrector instead of drawing (minutes)", "what")
    flow: str = option(None, "folder of a trained flow and corrector [the bundled ones]; with --train only a new corrector is trained for its flow", "what", metavar="DIR")

    pictures: int = option(6000, "drawings that the flow is trained on", "training", type=whole)
    inverted: int = option(3000, "how many of them are inverted for the corrector", "training", type=whole)
    euler_steps: int = option(10, "Euler steps n of the sampler that is corrected", "training", type=whole)
    steps: int = option(1500, "optimiser steps of flow and corrector, of 64 latents", "training", type=whole)
    lr: float = option(2e-3, "learning rate of Adam, falling to 0", "training", type=positive)
    seed: int = seed_option("training", "fixes everything")

    out: str = option(None, "a PNG file; with --train a folder [flow.png; with --train: runs/flow]", "output", metavar="PATH")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class RectifiedOptions:
    """Draw with a rectified flow in Stable Diffusion's layout, without and with inverse noise correction; or train it."""

    model: str = option(None, "a diffusers folder whose UNet predicts a velocity, as XCLiu/2_rectified_flow_from_sd_1_5", "what", required=True, metavar="MODEL")
    prompt: list = option(None, "what to draw; with --train one prompt for the pictures that have no NAME.txt", "what", nargs="+", type=words)
    corrector: str = option(None, "folder of a trained corrector: draw without and with it", "what", metavar="DIR")
    train: bool = option(False, "train a corrector on --images instead of drawing", "what")
    images: str = option(None, "folder of pictures, with captions in NAME.txt; hundreds, not a few", "what", metavar="DIR")

    euler_steps: int = option(None, "Euler steps n of the sampler [25; those of the corrector]", "sampler", means="--sample-steps", type=whole)
    guidance: float = option(None, "classifier-free guidance, 1: none [1.5; that of the corrector]", "sampler", type=float)
    resolution: int = option(None, "pixels [{resolution}; that of the corrector]", "sampler", type=whole)
    count: int = option(1, "pictures for each prompt", "sampler", type=whole)
    corrector_steps: int = option(10, "Euler steps of the corrector", "sampler", type=whole)
    batch_size: int = option(8, "pictures at once", "sampler", type=whole)
    dtype: str = option(None, "precision of the weights in drawing [float32; CUDA: float16]; training is in float32", "sampler", choices=DTYPES)
    device: str = device_option("sampler")
    seed: int = seed_option("sampler")

    channels: list = option((64, 128, 256), "widths of the corrector's levels", "training", type=whole, nargs="+", metavar="N")
    steps: int = option(2000, "optimiser steps of the corrector", "training", type=whole)
    lr: float = option(1e-3, "learning rate of Adam, falling to 0", "training", type=positive)

    out: str = option(None, "a PNG file; with --train a folder [rectified.png; with --train: runs/corrector]", "output", metavar="PATH")
    resume: bool = option(False, "with --train: go on with the inversions that OUT.unfinished holds, with its options", "output")
    overwrite: bool = option(False, "replace OUT if it exists; without --resume also forget OUT.unfinished", "output")

    def __post_init__(self):
        as_asked(self)

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} those of the training that --resume goes on with. Raises UserError."""
        return going_on(given, RectifiedOptions, "runs/corrector")
