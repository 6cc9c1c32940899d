"""Command-line options. Imports no torch, so that `--help` answers at once.

Each command's options are one frozen dataclass; argparse is built from its fields, config.json holds them.

But: no configuration files. A run is repeated from the options in its config.json.
"""

import argparse
import dataclasses
import difflib
import os
import signal
import sys
from dataclasses import dataclass, field


def option(default, help, group, **argparse_settings):
    """A dataclass field with what argparse needs. `default=None` means: the model's recipe, or none."""
    return field(default=default, metadata={"help": help, "group": group, "argparse": argparse_settings})


def _whole(text):
    """An integer ≥ 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def _count(text):
    """An integer ≥ 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def _rate(text):
    """A finite number > 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def _weight(text):
    """A finite number ≥ 0."""
    if not 0 <= float(text) < float("inf"):
        raise ValueError
    return float(text)


def _words(text):
    """A text that is not empty."""
    if not text.strip():
        raise ValueError
    return text


_KINDS = {
    _whole: "a whole number of at least 1", _count: "a whole number of at least 0", _rate: "a number above 0",
    _weight: "a number of at least 0", _words: "a text that is not empty", int: "a whole number", float: "a number",
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainOptions:
    """Fine-tune a model on a few pictures of one subject, as a Bayesian neural network or plainly."""

    images: str = option(None, "folder with the pictures of your subject", "what", required=True, metavar="DIR")
    model: str = option("tiny", '"tiny" (bundled), a diffusers folder, a run, or an LDM .safetensors file', "what")
    tokenizer: str = option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")
    prediction_type: str = option(None, "what an LDM file of SD v2 predicts [epsilon]", "what", choices=("epsilon", "v_prediction"))
    prompt: str = option(None, 'caption of your pictures, e.g. "a photo of a sks dog"', "what", type=_words)
    class_prompt: str = option(None, 'the class without the name, e.g. "a photo of a dog"', "what", type=_words)
    class_images: str = option(None, "folder of class pictures; missing ones are drawn first [OUT/class_images]", "what", metavar="DIR")
    prior_weight: float = option(None, "weight of the prior-preservation loss; 0: none [recipe: 1; lora and oft: 0]", "what", type=_weight)
    class_count: int = option(None, "how many class pictures [recipe]", "what", type=_whole)

    method: str = option("dreambooth", "what is trained: all of the UNet; a low-rank correction (lora) or a rotation (oft) of chosen layers", "method", choices=("dreambooth", "lora", "oft"))
    bayes: bool = option(True, "random weights, or the plain baseline", "method")
    where: str = option(None, "dreambooth: which layers are random, joined by commas: paper, norm, cross-attention, time, conv, all; up, mid, down restrict them to those blocks [paper]", "method", metavar="WHERE")
    rank: int = option(None, "lora: rank r of the correction [4]", "method", type=_whole)
    alpha: float = option(None, "lora: the correction is scaled by ALPHA/RANK [RANK]", "method", type=_rate)
    blocks: int = option(None, "oft: number of blocks of the rotation; each layer's inputs must divide by it [4]", "method", type=_whole)
    coft: float = option(None, "oft: keep each block's rotation within X/√BLOCKS (constrained OFT)", "method", type=_rate, metavar="X")
    layers: str = option(None, "lora, oft: ends of the names of the linear layers that are adapted, joined by commas [to_q,to_k,to_v,to_out.0]", "method", metavar="NAMES")
    sigma: float = option(None, "initial standard deviation of random weights [recipe]", "method", type=_rate)
    kernel: str = option(None, "what draws the random weights: PyTorch's generator (torch); the Philox stream, the same on every device, in PyTorch (reference) or in fused Triton kernels (triton) [triton on a GPU, else torch]", "method", choices=("torch", "reference", "triton"))
    lambda_kl: float = option(0.0, "weight λ of the KL divergence to the prior, a sum over parameters", "method", type=_weight)
    prior_sigma: float = option(0.01, "standard deviation of the prior, centred at the start: the pretrained weights; 0 for lora and oft", "method", type=_rate)
    kl: str = option("q-p", "direction: q-p as in the paper's Eq. 3, p-q as in its Algorithm 1", "method", choices=("q-p", "p-q"))

    steps: int = option(None, "optimiser steps [recipe: so many for each picture]", "training", type=_whole)
    lr: float = option(None, "learning rate of AdamW [recipe]", "training", type=_rate)
    lr_warmup_steps: int = option(0, "the rate rises linearly over the first N steps", "training", type=_count, metavar="N")
    batch_size: int = option(1, "pictures for each forward; as many class pictures beside them", "training", type=_whole)
    accumulate: int = option(1, "forwards for each optimiser step", "training", type=_whole)
    resolution: int = option(None, "pixels of the square crop [recipe]", "training", type=_whole)
    dtype: str = option(None, "of the computation; weights train in float32 [float32; CUDA: bfloat16 or float16]", "training", choices=DTYPES)
    device: str = option(None, "cpu, cuda, cuda:1, ... [cuda if there is one]", "training")
    gradient_checkpointing: bool = option(False, "recompute blocks in backward: less memory, more time", "training")
    seed: int = option(0, "fixes everything on one device", "training", type=_count)

    out: str = option(None, "the run's folder [runs/NAME OF THE PICTURE FOLDER]", "output", metavar="DIR")
    samples: int = option(8, "pictures in samples.png, always the same prompts and seeds; 0: none", "output", type=_count, metavar="N")
    sample_every: int = option(0, "draw samples every N steps; 0: only at the end", "output", type=_count, metavar="N")
    checkpoint_every: int = option(0, "write a checkpoint every N steps; 0: only at the end", "output", type=_count, metavar="N")
    monitor: bool = option(None, "watch fidelity, noise and σ₁ while training; keep the most faithful steps [on for the bundled model]", "output")
    monitor_every: int = option(None, "look every N steps, and before the first [a sixth of all]", "output", type=_whole, metavar="N")
    monitor_dino: str = option(None, "facebook/dino-vits16, for the fidelity of photographs", "output", metavar="DIR")
    single_file: bool = option(False, "also write model.safetensors for ComfyUI and AUTOMATIC1111", "output")
    export: str = option(None, "lora: also write files for other programs, joined by commas: kohya (ComfyUI, AUTOMATIC1111), peft", "output", metavar="FORMATS")
    keep_posterior: bool = option(False, "also write posterior.safetensors with μ and σ", "output")
    resume: bool = option(False, "go on from OUT/checkpoint", "output")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class SampleOptions:
    """Draw pictures with a model or a run."""

    prompt: list = option(None, "one or more prompts", "what", required=True, nargs="+", type=_words)
    model: str = option("tiny", '"tiny" (bundled), a diffusers folder, a run, or an LDM .safetensors file', "what")
    tokenizer: str = option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")
    prediction_type: str = option(None, "what an LDM file of SD v2 predicts [epsilon]", "what", choices=("epsilon", "v_prediction"))
    adapter: str = option(None, "a LoRA or OFT to add to MODEL: a run's folder, or a file", "what", metavar="PATH")
    negative_prompt: str = option("", "what to keep away from", "what")
    unconditional_from: str = option(None, 'take the unconditional prediction of guidance from this base model: "tiny", a folder or a file', "what", metavar="MODEL")
    first_prompt: str = option(None, "guide in two steps: towards this part of the prompt by --first-guidance, from there to the whole by --guidance", "what", type=_words)
    first_guidance: float = option(None, "guidance towards --first-prompt [that of --guidance]", "what", type=float)

    count: int = option(1, "pictures for each prompt", "drawing", type=_whole)
    posterior_samples: int = option(0, "also draw each picture with N draws of the weights, and show mean and deviation; needs a run with --keep-posterior", "drawing", type=_count, metavar="N")
    steps: int = option(None, "sampling steps [recipe]", "drawing", type=_whole)
    guidance: float = option(None, "classifier-free guidance, 1: none [recipe]", "drawing", type=float)
    sampler: str = option("ddim", "DDIM, or PNDM as in SD's own configuration", "drawing", choices=("ddim", "pndm"))
    eta: float = option(0.0, "noise added by DDIM: 0 none, 1 as DDPM", "drawing", type=_weight)
    width: int = option(None, "pixels [recipe]", "drawing", type=_whole)
    height: int = option(None, "pixels [recipe]", "drawing", type=_whole)
    batch_size: int = option(8, "pictures drawn at once", "drawing", type=_whole)
    seed: int = option(0, "the same pictures on every device, up to rounding", "drawing", type=_count)
    dtype: str = option(None, "of the weights [float32; CUDA: float16]", "drawing", choices=DTYPES)
    device: str = option(None, "cpu, cuda, cuda:1, ... [cuda if there is one]", "drawing")
    out: str = option("sample.png", "a PNG file; several pictures make a grid, and a folder of the same name", "output", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class GraftOptions:
    """Fine-tune a model on those of its own samples that a reward accepts (GRAFT, P-GRAFT)."""

    reward: str = option(None, "red_thing_on_grass, redness, or your own as file.py:function", "what", required=True)
    model: str = option("tiny", '"tiny" (bundled), a diffusers folder, a run, or an LDM .safetensors file', "what")
    tokenizer: str = option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")
    prediction_type: str = option(None, "what an LDM file of SD v2 predicts [epsilon]", "what", choices=("epsilon", "v_prediction"))
    prompt: list = option(None, "what to draw and learn; for the bundled model each of its subjects on the grass", "what", nargs="+", type=_words)
    prompts_from: str = option(None, "a text file with one prompt in each line", "what", metavar="FILE")

    candidates: int = option(8, "samples in a group, of one prompt", "choosing", type=_whole)
    groups: int = option(4, "groups for each prompt", "choosing", type=_whole)
    rule: str = option("top-k", "which of them to learn from", "choosing", choices=("top-k", "best-of-n", "threshold", "binary", "tilt"))
    keep: int = option(2, "how many of a group, for top-k", "choosing", type=_whole)
    minimum: float = option(0.5, "least reward, for threshold", "choosing", type=float)
    alpha: float = option(1.0, "temperature: keep with probability exp((r - r_max) / alpha), for tilt", "choosing", type=_rate)
    deduplicate: bool = option(False, "keep one of pictures that look alike", "choosing")

    switch: int = option(0, "time 0..999 at which the base takes over; 0: never, which is GRAFT", "training", type=_count)
    realisation: str = option("B", "what P-GRAFT trains on: A the state at the switch with more noise, B the final sample with noise", "training", choices=("A", "B"))
    steps: int = option(300, "optimiser steps", "training", type=_whole)
    lr: float = option(None, "learning rate of AdamW [recipe]", "training", type=_rate)
    batch_size: int = option(8, "samples at once, drawing and training", "training", type=_whole)
    resolution: int = option(None, "pixels [recipe]", "training", type=_whole)
    dtype: str = option(None, "of the computation; weights train in float32 [float32; CUDA: bfloat16 if it is fast there]", "training", choices=("float32", "bfloat16"))
    device: str = option(None, "cpu, cuda, cuda:1, ... [cuda if there is one]", "training")
    seed: int = option(0, "fixes everything on one device", "training", type=_count)

    sample_steps: int = option(None, "sampling steps [recipe]", "drawing", type=_whole)
    guidance: float = option(1.0, "classifier-free guidance of all samples, 1: none; the run keeps it", "drawing", type=float)
    eta: float = option(1.0, "noise added by DDIM: 0 none, 1 as DDPM", "drawing", type=_weight)

    out: str = option("runs/graft", "the run's folder", "output", metavar="DIR")
    evaluate: int = option(32, "fresh samples drawn at the end for the mean reward and samples.png; 0: none", "output", type=_count)
    overwrite: bool = option(False, "replace OUT if it is a run of this command", "output")


@dataclass(frozen=True)
class PhotoOptions:
    """Measure generated photographs: Clip-T, Clip-I, Dino, Lpips and Clip-IQA, each if its network is given."""

    pictures: str = option(None, "folder of generated pictures, in the order of the numbers in their names", "what", required=True, metavar="DIR")
    training: str = option(None, "folder of training pictures, for Clip-I and Dino", "what", metavar="DIR")
    prompts: str = option(None, "text file of prompts, one a line, each for equally many pictures in turn [the prompts that minibnn.sample wrote into the pictures]", "what", metavar="FILE")

    clip: str = option(None, "openai/clip-vit-large-patch14, for Clip-T and Clip-I", "networks", metavar="DIR")
    dino: str = option(None, "facebook/dino-vits16, for Dino", "networks", metavar="DIR")
    lpips: str = option(None, "torchvision's AlexNet and the linear layers of Lpips", "networks", metavar="DIR")
    clip_iqa: str = option(None, "timm/resnet50_clip.openai, for Clip-IQA", "networks", metavar="DIR")
    device: str = option(None, "cpu, cuda, cuda:1, ... [cuda if there is one]", "networks")

    out: str = option("photo-metrics.json", "a JSON file", "output", metavar="FILE")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class BpsOptions:
    """Train a steering branch on pairs of hints and pictures; or, with --branch, draw hints with a trained one."""

    hints: str = option(None, "folder of NAME.hint.png and NAME.txt (caption), for training also NAME.png (picture)", "what", required=True, metavar="DIR")
    branch: str = option(None, "folder of a trained branch: draw instead of train", "what", metavar="DIR")
    model: str = option("tiny", '"tiny" (bundled), a diffusers folder, a run, or an LDM .safetensors file; stays frozen', "what")
    tokenizer: str = option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")

    hint_channels: int = option(1, "1: grey hints (sketch, mask), 3: coloured ones (map)", "training", type=int, choices=(1, 3))
    gains: str = option("head-heavy", "16, 8, 4, 2 by level and 16 in the middle, or 1 everywhere", "training", choices=("head-heavy", "equal"))
    steps: int = option(None, "optimiser steps [1000; bundled model: 400]", "training", type=_whole)
    lr: float = option(None, "learning rate of AdamW [1e-5; bundled model: 5e-4]", "training", type=_rate)
    batch_size: int = option(16, "pairs for each step", "training", type=_whole)
    resolution: int = option(None, "pixels of the square crop [recipe]", "training", type=_whole)
    dtype: str = option(None, "of the computation [float32; CUDA: bfloat16 if it is fast there]", "training", choices=("float32", "bfloat16"))
    device: str = option(None, "cpu, cuda, cuda:1, ... [cuda if there is one]", "training")
    seed: int = option(0, "fixes everything on one device", "training", type=_count)

    sample_steps: int = option(None, "sampling steps [recipe]", "drawing", type=_whole)
    guidance: float = option(None, "classifier-free guidance on the text [recipe]", "drawing", type=float)
    out: str = option(None, "folder of the result [runs/bps; with --branch: runs/bps-drawn]", "output", metavar="DIR")
    overwrite: bool = option(False, "write into OUT if it exists", "output")


@dataclass(frozen=True)
class FlowOptions:
    """Draw the world's pictures with a flow, without and with inverse noise correction; or train both (--train)."""

    train: bool = option(False, "train a flow and its corrector instead of drawing (minutes)", "what")
    flow: str = option(None, "folder of a trained flow and corrector [the bundled ones]", "what", metavar="DIR")

    pictures: int = option(6000, "drawings that the flow is trained on", "training", type=_whole)
    inverted: int = option(3000, "how many of them are inverted for the corrector", "training", type=_whole)
    euler_steps: int = option(10, "Euler steps n of the sampler that is corrected", "training", type=_whole)
    steps: int = option(1500, "optimiser steps of flow and corrector, of 64 latents", "training", type=_whole)
    lr: float = option(2e-3, "learning rate of Adam, falling to 0", "training", type=_rate)
    seed: int = option(0, "fixes everything", "training", type=_count)

    out: str = option("flow.png", "a PNG file; with --train a folder", "output")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class BenchOptions:
    """Time the fused Bayesian linear layer against plain and unfused ones at SD v1.5's shapes, or predict the times."""

    where: str = option("paper", "which layers, as in minibnn.train; linear ones count", "what", metavar="WHERE")
    batch: list = option((1, 4), "batch sizes", "what", nargs="+", type=_whole, metavar="N")
    resolution: int = option(512, "pixels of the picture", "what", type=_whole)
    dtype: str = option("bfloat16", "of the computation", "what", choices=("bfloat16", "float16"))

    predict: bool = option(False, "print what the cost model expects; needs no GPU", "cost model")
    bandwidth: float = option(4.3, "TB/s of a copy, for --predict; H200", "cost model", type=_rate)
    matmul: float = option(790.0, "TFLOP/s of a 16-bit matmul, for --predict; H200", "cost model", type=_rate)

    out: str = option(None, "a JSON file with every layer's figures", "output", metavar="JSON")
    plot: str = option(None, "a picture of time against batch size", "output", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, with the option that was probably meant."""

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def unknown(self, words):
        """Complain about the first word that is no option, and suggest one."""
        wrong = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
        near = difflib.get_close_matches(wrong, self._option_string_actions, 1)
        self.error(f"no option {wrong}; " + (f"did you mean {near[0]}?" if near else f"{self.prog} --help lists all"))


def parse(options_class, prog, argv=None):
    """Command line -> an `options_class`; exits with 2 and one line on a mistake."""
    parser = _Parser(prog=f"python -m {prog}", description=options_class.__doc__, allow_abbrev=False)
    groups, required = {}, []
    for f in dataclasses.fields(options_class):
        name, meta = f.metadata["group"], f.metadata
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        settings, help = dict(meta["argparse"]), meta["help"]
        if settings.pop("required", False):  # checked below: a mistyped option is told first
            required.append(f.name)
            help += " (required)"
        if f.type is bool:
            if f.default is False:
                settings["action"] = "store_true"
            else:
                settings["action"] = argparse.BooleanOptionalAction
                help += " [--bayes]" if f.name == "bayes" else ""
        else:
            if "choices" not in settings:
                settings["type"] = _readable(settings.get("type", f.type if f.type in (int, float) else str))
                settings.setdefault("metavar", {int: "N", float: "X"}.get(f.type, "TEXT"))
            if f.default not in (None, ""):
                help += f" [{f.default}]"
        groups[name].add_argument("--" + f.name.replace("_", "-"), default=f.default, help=help.replace("%", "%%"), **settings)
    values, rest = parser.parse_known_args(argv)
    if rest:
        parser.unknown(rest)
    for name in required:
        if getattr(values, name) is None:
            parser.error(f"--{name} is required; {parser.prog} --help explains it")
    return options_class(**vars(values))


def _readable(kind):
    """A converter whose complaint says what is wanted."""

    def convert(text):
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_KINDS.get(kind, 'valid')}") from None

    return convert


def run(main, options):
    """Call main(options) and turn what a user can cause into one line and an exit code (2, or 130 for Ctrl-C)."""
    import logging

    from torch import OutOfMemoryError

    from .errors import UserError

    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        main(options)
        return
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
    except (OutOfMemoryError, MemoryError):
        message = "out of memory: try --gradient-checkpointing, --dtype bfloat16, a smaller --batch-size or --resolution"
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def answer_ctrl_c_while_importing():
    """Importing torch takes seconds; a Ctrl-C then ends in one word, not in a traceback. `run` undoes this."""

    def stop(*_):
        print("stopped", file=sys.stderr)
        os._exit(130)

    signal.signal(signal.SIGINT, stop)
