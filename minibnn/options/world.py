"""The options of the picture world and of the bundled models."""

from dataclasses import dataclass

from .kinds import DEFAULT, natural, option, whole
from .shared import seed_option


@dataclass(frozen=True)
class WorldOptions:
    """Draw the picture world: a sheet, the few-shot subject, or pairs with hints and captions."""

    out: str = option(None, "write a sheet of random drawings", "what", means="a file", metavar="PNG")
    dog: str = option(None, "write the six pictures of the few-shot subject", "what", metavar="DIR")
    pairs: str = option(None, "write drawings with hints and captions, for `python -m minibnn bps`", "what", metavar="DIR")

    count: int = option(40, "how many pairs", "drawing", means="pairs", type=whole)
    hint: str = option("sketch", "the subject's outline or its area", "drawing", choices=("sketch", "mask"))
    seed: int = seed_option("drawing", "seed of the sheet and the pairs")
    overwrite: bool = option(False, "replace the sheet if it exists", "drawing")


@dataclass(frozen=True)
class PretrainOptions:
    """Make a bundled model of the picture world from nothing; run again to resume."""

    model: str = option("tiny", "which of the two, see world/bundled.py", "what", means="what is made", choices=("tiny", "tiny-v2"))
    work: str = option("runs/pretrain", "folder of the checkpoints", "what", metavar="DIR")
    out: str = option(None, "folder of the finished model", "what", metavar="DIR")

    vae_steps: int = option(None, "steps of training the VAE, with 16 pictures each [tiny: 6500, tiny-v2: 3000]", "training", type=whole)
    decoder_steps: int = option(None, "steps of training its decoder alone, with 16 pictures each [tiny: 0, tiny-v2: 3000]", "training", type=natural)
    text_steps: int = option(None, "steps of training the text encoder, with 32 captions each [1500]", "training", type=whole)
    unet_steps: int = option(None, "steps of training the UNet, with 64 pictures each [tiny: 8200, tiny-v2: 6500]", "training", type=whole)
    pictures: int = option(None, "drawings that the UNet is trained on [tiny: 48000, tiny-v2: 24000]", "training", type=whole)
    processes: int = option(2, "processes of one thread, one for each core; at most 16", "training", type=whole)


@dataclass(frozen=True)
class PretrainTexturedOptions:
    """Make the textured model from nothing; run again to resume."""

    work: str = option("runs/pretrain-textured", "folder of the checkpoint", "what", metavar="DIR")
    out: str = option(None, "folder of the finished model", "what", metavar="DIR")
    images: str = option(None, "photographs instead of drawn materials; the letters of a file's name are its word", "what", metavar="DIR")

    steps: int = option(3000, "training steps, with 32 pictures each", "training", type=whole)
    seed: int = seed_option("training", "another seed, another model")


@dataclass(frozen=True)
class EvaluateOptions:
    """Does a model of the picture world draw what the caption says?"""

    model: str = option(DEFAULT, '"tiny-v2" or "tiny" (bundled), or a diffusers folder or a run that draws the same world', "what", metavar="MODEL")
    captions: int = option(500, "pictures to draw; half as many of held-out combinations", "what", type=whole)
    train_classifier: bool = option(False, "train a new classifier, as the one that comes with minibnn was trained", "how")
    out: str = option("runs/evaluate", "folder of the pictures and figures", "what", metavar="DIR")


@dataclass(frozen=True)
class MeasuresOptions:
    """Show what each measure of the picture world sees."""

    out: str = option(None, "write the energy of clean drawings, as minibnn/assets/clean.json holds it", "what", means="a file", metavar="FILE")


@dataclass(frozen=True)
class EyeOptions:
    """Train the network behind fidelity from nothing, on one core."""

    out: str = option(None, "a .safetensors file", "what", means="a file", required=True, metavar="FILE")
    steps: int = option(1500, "batches of 80 pictures", "what", type=whole)
