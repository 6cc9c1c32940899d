"""The options of each experiment, one frozen dataclass each."""

from dataclasses import dataclass

from .kinds import DEFAULT, each_once, nonnegative, option, positive, seed_number, whole, words
from .shared import DTYPES, device_option, prediction_type_option, seed_option, tokenizer_option


def seeds_option(group, help="seeds of training", default=(0, 1, 2)):
    return option(default, help, group, nargs="+", type=seed_number, metavar="N")


@dataclass(frozen=True)
class CorruptionOptions:
    """Fine-tune on 1-6 pictures with and without BNN, and measure pictures, noise and σ₁ on the way."""

    images: str = option("tutorials/dog", "folder of the training pictures; runs take the first of them", "what", metavar="DIR")
    kind: str = option("dog", "the subject's class word", "what")
    word: str = option("sks", "the rare word that names it", "what")
    settings: list = option(("main",), "names of experiments/corruption/settings.py, or all", "what", nargs="+", metavar="NAME")
    pictures: list = option((1, 2, 4, 6), "numbers of training pictures", "what", nargs="+", type=whole, metavar="N")
    seeds: list = seeds_option("what")
    steps: int = option(None, "optimiser steps of each run [800; long: 3200]", "what", type=whole)
    each: int = option(2, "pictures for each of the other prompts", "what", type=whole)
    processes: int = option(1, "runs at once, one thread each", "how", type=whole)
    plan: bool = option(False, "say what would be done, and stop", "how")
    out: str = option("runs/corruption", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class PaperOptions:
    """The paper's tables and figures, on Stable Diffusion or on the bundled model, shared out among processes."""

    model: str = option(DEFAULT, 'SD v1.5, a diffusers folder or an LDM .safetensors file; or "tiny-v2" or "tiny" (bundled): the same tables at their size', "what", metavar="MODEL")
    model_v14: str = option(None, "SD v1.4, for Table 2", "what", metavar="MODEL")
    model_v20: str = option(None, "SD v2.0, for Table 2", "what", metavar="MODEL")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    data: str = option(None, "the DreamBooth data set: a folder for each subject [bundled models: tutorials]", "what", metavar="DIR")
    celeba: str = option(None, "CelebA-HQ: a folder for each person [none: what is subject-driven is left out]", "what", metavar="DIR")
    networks: str = option(None, "folder with clip/, dino/, lpips/ and clip_iqa/, the networks of the photo measures", "what", metavar="DIR")

    only: list = option(None, "tables and figures: table1 table2 table3 fig2 fig7 fig8 fig9 fig13 [all for which there are models and data]", "how much", nargs="+", choices=("table1", "table2", "table3", "fig2", "fig7", "fig8", "fig9", "fig13"), metavar="ITEM")
    classes: list = option(None, "subjects: folders of --data; one that is not of the data set as NAME=CLASS [all 30; bundled models: dog]", "how much", nargs="+", type=words, metavar="NAME")
    seeds: list = option((0, 1, 2, 3, 4), "seeds of training and of drawing", "how much", nargs="+", type=seed_number, metavar="N")
    sigmas: list = option((0.003, 0.01, 0.03, 0.1), "σ₀ of Fig. 9a", "how much", nargs="+", type=positive, metavar="X")
    lambdas: list = option((0.0, 0.001, 0.01, 0.1, 1.0), "λ of Fig. 9b", "how much", nargs="+", type=nonnegative, metavar="X")
    each: int = option(4, "pictures for each prompt, at least 2", "how much", type=whole)
    plan: bool = option(False, "say what would be done and how long it would take here, from about a minute of it; and stop", "how much")

    as_: str = option("paper", "where they differ: what the paper's text says, or what the authors' released scripts do", "how", choices=("paper", "authors"))
    dtype: str = option(None, "precision of training and drawing; weights train in float32 [float32; CUDA: bfloat16 or float16, but float32 with --as authors]", "how", choices=DTYPES)
    device: str = option(None, "cpu, cuda, cuda:1, mps, ... [a GPU for each process of a machine, or the CPU]", "how", metavar="DEVICE")
    kernel: str = option("auto", "what draws the random weights, as for `train`", "how", choices=("auto", "torch", "reference", "triton"))
    gradient_checkpointing: bool = option(False, "less memory, more time", "how")
    sample_steps: int = option(None, "sampling steps [{sample_steps}]", "how", type=whole)
    batch_size: int = option(None, "pictures drawn at once [4; bundled models: 16]", "how", means="pictures drawn at once", type=whole)
    keep_pictures: bool = option(True, "keep all pictures that were measured, and not only the best, average and worst", "how")
    out: str = option("runs/paper", "folder, which all processes must see", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class SdGainsOptions:
    """Is the corruption stage of Stable Diffusion one of guidance, or of the mean colour? Fine-tunes on one photograph."""

    model: str = option(None, "Stable Diffusion: a diffusers folder or an LDM .safetensors file", "what", required=True, metavar="MODEL")
    images: str = option("tutorials/dog", "folder of which the first picture is the photograph", "what", metavar="DIR")
    prompt: str = option("a photo of a sks dog", "caption of the photograph", "what", type=words)
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    arms: list = option(("plain", "null", "offset", "bnn"), "trainings: plain, with --null-dropout 0.1, with --noise-offset 0.1, with Bayesian weights; prior: with 64 class pictures, which needs --class-prompt", "what", nargs="+", choices=("plain", "null", "offset", "bnn", "prior"))
    class_prompt: str = option(None, 'the class without the name, e.g. "a photo of a dog", for the arm prior', "what", type=words)
    steps: int = option(1600, "optimiser steps of each; looked at: 0, 1/32, 1/16, … 1 of them", "training", type=whole)
    lr: float = option(None, "learning rate of AdamW [{lr}]", "training", type=positive)
    gradient_checkpointing: bool = option(False, "less memory, more time", "training")
    device: str = device_option("training")
    seed: int = seed_option("training")
    count: int = option(4, "pictures for each drawing", "drawing", type=whole)
    sample_steps: int = option(None, "sampling steps of DDIM [{sample_steps}]", "drawing", type=whole)
    dino: str = option(None, "facebook/dino-vits16, for fidelity [none is measured]", "drawing", metavar="DIR")
    plan: bool = option(False, "say what would be done, and stop", "output")
    out: str = option("runs/sd-gains", "folder of what is measured", "output", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class ReportOptions:
    """Curves, verdicts and tables of what `experiment corruption` measured."""

    runs: list = option(("runs/corruption",), "folders of the .jsonl files", "what", nargs="+", metavar="DIR")
    out: str = option("runs/report", "folder of tables and pictures", "what", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class StageOptions:
    """Fine-tune the textured model on few pictures, and measure fidelity, noise and gains on the way."""

    settings: list = option(("plain", "bnn"), "names of experiments/stage/settings.py", "what", nargs="+", metavar="NAME")
    images: list = option(tuple(f"tutorials/subjects/{name}" for name in ("cat", "coffee", "rocket")), "folders of the subjects' pictures", "what", nargs="+", metavar="DIR")
    model: str = option("textured", '"textured", or a folder that pretrain-textured made', "what", metavar="MODEL")
    seeds: list = seeds_option("what")
    keep: bool = option(False, "also keep each run's last weights of the UNet", "how")
    plan: bool = option(False, "say what would be done, and stop", "how")
    out: str = option("runs/stage", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class StageReportOptions:
    """Tables, curves and pictures of what `experiment stage` measured."""

    runs: list = option(("runs/stage",), "folders of the .jsonl files", "what", nargs="+", metavar="DIR")
    seed: int = option(0, "seed of the pictures", "what", type=seed_number)
    out: str = option("runs/stage-report", "folder of tables and pictures", "what", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class StageViewsOptions:
    """Draw one fine-tuned textured model with other guidance, other ε(∅) and other noise."""

    weights: str = option("tutorials/results/stage_cat.safetensors", "a UNet that `experiment stage --keep` left", "what", metavar="FILE")
    images: str = option("tutorials/subjects/cat", "folder of the subject; its first picture counts", "what", metavar="DIR")
    model: str = option("textured", "the model before fine-tuning", "what", metavar="MODEL")
    prompt: str = option("a plain photo of sks from afar", "the training prompt", "what", type=words)
    seed: int = seed_option("what", "seed of the starting noise")
    out: str = option("runs/stage-views", "folder of what is measured", "how", metavar="DIR")


@dataclass(frozen=True)
class StageStartsOptions:
    """Do the colour and the strength of the starting noise predict the noise of a fine-tuned textured model's pictures?"""

    weights: list = option(("tutorials/results/stage_cat.safetensors",), "UNets that `experiment stage --keep` left, of one subject", "what", nargs="+", metavar="FILE")
    images: str = option("tutorials/subjects/cat", "folder of the subject; its first picture counts", "what", metavar="DIR")
    model: str = option("textured", "the model before fine-tuning", "what", metavar="MODEL")
    prompt: str = option("a plain photo of sks from afar", "the training prompt", "what", type=words)
    count: int = option(32, "starting noises", "what", means="starting noises", type=whole)
    seed: int = seed_option("what", "seed of the starting noise")
    out: str = option("runs/stage-starts", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class RecipeOptions:
    """Train few-shot subjects with every setting and seed, and let a judge say whether the pictures are right."""

    model: str = option(DEFAULT, "a model of the picture world", "what", metavar="MODEL")
    settings: list = option(("plain", "four-captions"), "names of experiments/recipe/settings.py", "what", nargs="+", metavar="NAME")
    subjects: list = option(("dog", "cat", "fish"), "few-shot subjects", "what", nargs="+", choices=("dog", "cat", "fish"))
    seeds: list = seeds_option("what")
    plan: bool = option(False, "say what would be done, and stop", "how")
    out: str = option("runs/recipe", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class GuidanceOptions:
    """Guidance of fine-tuned models by their own and by the base's unconditional prediction, with controls."""

    subjects: list = option(("dog", "cat", "fish"), "spotted animals of the picture world to fine-tune on", "what", nargs="+", choices=("dog", "cat", "bird", "fish"))
    seeds: list = seeds_option("what", default=(0, 1, 2, 3, 4))
    method: str = option("dreambooth", "method of fine-tuning", "what", choices=("dreambooth", "lora"))
    steps: int = option(400, "optimiser steps of each run", "what", type=whole)
    work: str = option("runs/experiments/guidance", "folder of the trainings", "how", metavar="DIR")
    out: str = option("runs/guidance", "folder of guidance.jsonl and its pictures", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class GraftExperimentOptions:
    """GRAFT and P-GRAFT on the bundled model."""

    seeds: list = seeds_option("what", "seeds of candidates, training and fresh samples", (0, 1, 2, 3, 4, 5))
    groups: int = option(3, "groups of 8 candidates for each of 12 prompts", "what", type=whole)
    steps: int = option(60, "optimiser steps, 8 samples each", "what", type=whole)
    lr: float = option(1e-4, "learning rate of AdamW", "what", type=positive)
    sample_steps: int = option(15, "sampling steps of DDIM with η = 1", "what", type=whole)
    fresh: int = option(4, "fresh samples for each prompt", "what", type=whole)
    out: str = option("runs/graft-experiment", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class InverseNoiseOptions:
    """Inverse noise correction, before and after, at equal and at fewer FLOPs."""

    parts: list = option(("plane", "world"), "what is measured", "what", nargs="+", choices=("plane", "world"))
    flow: str = option(None, "file of the world's flow [the bundled one]", "what", metavar="FILE")
    seeds: list = seeds_option("what", "seeds of the world's correctors", (0, 1, 2, 3, 4))
    euler_steps: int = option(10, "Euler steps n of the sampler that is corrected", "what", type=whole)
    inverted: int = option(800, "drawings that are inverted", "what", type=whole)
    tests: int = option(300, "samples that are compared", "what", type=whole)
    corrector_training: int = option(500, "optimiser steps of each corrector", "what", type=whole)
    bundle: bool = option(False, "keep the corrector of seed 0 beside the flow", "how")
    work: str = option("runs/experiments/inverse_noise", "folder of the inverse noises", "how", metavar="DIR")
    out: str = option("runs/inverse-noise", "folder of what is measured", "how", metavar="DIR")

    __post_init__ = each_once


@dataclass(frozen=True)
class BpsExperimentOptions:
    """Does the picture follow the hint? Branches trained on 12, 40 and 200 pairs of the world draw unseen sketches."""

    part: str = option("pairs", "pairs: from how many pairs does it learn? anchors: whose prediction should guide it? places: are additions everywhere better, each tuned alike?", "what", choices=("pairs", "anchors", "places"))
    seeds: list = seeds_option("what", default=(0, 1, 2, 3, 4))
    steps: int = option(60, "optimiser steps of each branch", "what", type=whole)
    variants: list = option(("base", "bps", "skip", "encoder"), "what the part pairs compares", "what", nargs="+", choices=("base", "bps", "skip", "encoder"))
    work: str = option("runs/experiments/bps", "folder of single runs", "how", metavar="DIR")
    out: str = option("runs/bps-experiment", "folder of bps.json, bps_anchors.json, bps_places.json and bps_STEPS.png", "how", metavar="DIR")

    __post_init__ = each_once
