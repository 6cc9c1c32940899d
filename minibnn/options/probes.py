"""Command lines of `python -m minibnn.corruption`. Imports no torch, so that `--help` answers at once."""

import sys
from dataclasses import dataclass

from .commands import DTYPES, device_option, prediction_type_option, seed_option, tokenizer_option
from .parsing import natural, nonnegative, option, parse, whole, words


@dataclass(frozen=True)
class ProbeOptions:
    """Look into one model, and beside it into the model that it was trained from."""

    model: str = option("tiny", 'the model to look into: a run, a diffusers folder, an LDM file, or "tiny" (bundled)', "what")
    base: str = option(None, "the pretrained model to compare with [what the run was trained from; without a run: none]", "what", metavar="MODEL")
    images: str = option(None, "folder with the training pictures [those of the run]", "what", metavar="DIR")
    picture: int = option(0, "which of them is x′ where a probe uses one, by name from 0", "what", type=natural)
    prompt: str = option(None, "the training prompt [of the run, or the model's recipe]", "what", type=words)
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    t: int = option(100, "the time of probe-local, probe-scaled, probe-blank, and of probe-zero beside 999, 1..999", "measuring", type=whole)
    draws: int = option(32, "draws of noise for each picture and time, at least 2", "measuring", type=whole)
    batch_size: int = option(32, "latents predicted at once", "measuring", type=whole)
    seed: int = seed_option("measuring", "of the noise")
    dtype: str = option(None, "of the weights [float32; CUDA: float16]", "measuring", choices=DTYPES)
    device: str = device_option("measuring")
    out: str = option(None, "a PNG file; figures as JSON stand beside it [COMMAND.png]", "output", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class ModelOptions:
    """Draw what Eq. 2 alone predicts, without any network: for sets of pictures, large to one, and for values of σ₁."""

    images: str = option(None, "folder with the training pictures", "what", required=True, metavar="DIR")
    manifold: str = option(None, "folder with many other pictures: what the pretrained model knows [drawings of the picture world]", "what", metavar="DIR")
    manifold_size: int = option(400, "how many drawings of the world", "what", type=whole)
    model: str = option("tiny", "whose VAE and noise schedule", "what")
    sigma1: list = option((0.0, 0.1, 0.3, 1.0, 4.8), "values of σ₁, in latents of variance about 1", "what", type=nonnegative, nargs="+", metavar="X")
    measured: str = option(None, "a JSON file of the command sigma1: draw also with the σ₁,t measured there", "what", metavar="JSON")
    steps: int = option(50, "sampling steps (DDIM)", "drawing", type=whole)
    seed: int = seed_option("drawing", "of the starting noise, the same for all")
    out: str = option(None, "a PNG file; figures as JSON stand beside it [model.png]", "output", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


COMMANDS = {
    "sigma1": "σ₁,t against t, with intervals, and how much of the loss has the form of Eq. 2 (Fig. 4)",
    "model": "pictures that Eq. 2 alone draws: many pictures, few, one; σ₁ large, small (§3.2)",
    "probe-zero": "x_t = 0 denoised from t = 999 (Fig. 3)",
    "probe-local": "additional noise in a small region at t = 100 (Fig. 5)",
    "probe-scaled": "k times a training picture denoised at t = 100 (Fig. 12)",
    "probe-blank": "a blank picture at t = 100 without a prompt (Fig. 10b)",
}
USAGE = "usage: python -m minibnn.corruption COMMAND [options]\n\n" + "\n".join(f"  {k:13s} {v}" for k, v in COMMANDS.items())


def choose(words):
    """Words of the command line -> (command, options); exits with 2 and one line on a mistake, with 0 on --help."""
    command, *rest = words or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE + "\n\npython -m minibnn.corruption COMMAND --help lists the options of one.")
        raise SystemExit(0)
    if command not in COMMANDS:
        print(f"error: no command {command}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    return command, parse(ModelOptions if command == "model" else ProbeOptions, f"minibnn.corruption {command}", rest)
