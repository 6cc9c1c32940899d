"""The options of the looks into models."""

from dataclasses import dataclass

from .kinds import DEFAULT, as_asked, natural, nonnegative, option, whole, words
from .shared import DTYPES, device_option, model_option, prediction_type_option, seed_option, tokenizer_option


@dataclass(frozen=True)
class ProbeOptions:
    """Look into one model, and beside it into the model that it was trained from."""

    model: str = option(DEFAULT, 'the model to look into: a run, a diffusers folder, an LDM file, or a bundled one by name', "what", metavar="MODEL")
    base: str = option(None, "the pretrained model to compare with [what the run was trained from; without a run: none]", "what", metavar="MODEL")
    images: str = option(None, "folder with the training pictures [those of the run]", "what", metavar="DIR")
    picture: int = option(0, "which of them is x′ where a probe uses one, by name from 0", "what", type=natural)
    prompt: str = option(None, "the training prompt [of the run, or the model's recipe]", "what", type=words)
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    t: int = option(100, "the time of probe-local, probe-scaled, probe-blank, and of probe-zero beside 999, 1..999", "measuring", type=whole)
    draws: int = option(32, "draws of noise for each picture and time, at least 2", "measuring", type=whole)
    batch_size: int = option(32, "latents predicted at once", "measuring", means="latents predicted at once", type=whole)
    seed: int = seed_option("measuring", "seed of the noise")
    dtype: str = option(None, "precision of the weights [float32; CUDA: float16]", "measuring", choices=DTYPES)
    device: str = device_option("measuring")
    out: str = option(None, "a PNG file; figures as JSON stand beside it [COMMAND.png]", "output", means="a file", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)


@dataclass(frozen=True)
class GainsOptions:
    """Does guidance leave noise? The gains of a model's predictions with and without the prompt, and what follows."""

    model: str = model_option()
    images: str = option(None, "folder with the training pictures [those of the run]", "what", metavar="DIR")
    prompt: str = option(None, "the training prompt [of the run, or the model's recipe]", "what", type=words)
    negative_prompt: str = option("", "prompt of the unconditional prediction", "what")
    guidance: list = option(None, "values of classifier-free guidance, 1: none; the verdict is on the last [1, 3 and the model's own: {guidance}]", "what", type=float, nargs="+", metavar="X")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    adapter: str = option(None, "a LoRA or OFT to add to MODEL: a run's folder, or a file", "what", metavar="PATH")
    unconditional_from: str = option(None, 'take the unconditional prediction from this base model: a bundled one by name, a folder or a file', "what", metavar="MODEL")

    times: list = option((20, 100, 300, 600, 900), "times at which gains are measured, 0..999", "measuring", type=natural, nargs="+", metavar="T")
    draws: int = option(4, "draws of noise for each picture and time", "measuring", type=whole)
    steps: int = option(None, "sampling steps of DDIM for which the noise is predicted [{sample_steps}]", "measuring", means="--sample-steps", type=whole)
    batch_size: int = option(16, "latents predicted at once", "measuring", means="latents predicted at once", type=whole)
    seed: int = seed_option("measuring", "seed of the noise")
    dtype: str = option(None, "precision of the weights [float32; CUDA: float16]", "measuring", choices=DTYPES)
    device: str = device_option("measuring")
    out: str = option(None, "a JSON file with the figures [none]", "output", means="a file", metavar="JSON")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)


@dataclass(frozen=True)
class Eq2Options:
    """Draw what Eq. 2 alone predicts, without any network: for sets of pictures, large to one, and for values of σ₁."""

    images: str = option(None, "folder with the training pictures", "what", required=True, metavar="DIR")
    manifold: str = option(None, "folder with many other pictures: what the pretrained model knows [drawings of the picture world]", "what", metavar="DIR")
    manifold_size: int = option(400, "how many drawings of the world", "what", type=whole)
    model: str = option("tiny", "whose VAE and noise schedule", "what", metavar="MODEL")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    sigma1: list = option((0.0, 0.1, 0.3, 1.0, 4.8), "values of σ₁, in latents of variance about 1", "what", type=nonnegative, nargs="+", metavar="X")
    measured: str = option(None, "a JSON file of the command sigma1: draw also with the σ₁,t measured there", "what", metavar="FILE")
    steps: int = option(50, "sampling steps (DDIM)", "drawing", means="--sample-steps", type=whole)
    seed: int = seed_option("drawing", "seed of the starting noise, the same for all")
    out: str = option(None, "a PNG file; figures as JSON stand beside it [eq2.png]", "output", means="a file", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)
