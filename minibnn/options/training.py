"""The options of `train`."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .kinds import as_asked, natural, nonnegative, option, positive, share, whole, words
from .of_runs import resumed_options
from .shared import DTYPES, device_option, model_option, prediction_type_option, seed_option, tokenizer_option


def run_folder(images):
    """Where a run lies unless --out says otherwise: runs/NAMES OF THE PICTURE FOLDERS."""
    return str(Path("runs") / "-".join(Path(folder).resolve().name for folder in images))


@dataclass(frozen=True)
class TrainOptions:
    """Fine-tune a model on a few pictures of one subject, as a Bayesian neural network or plainly."""

    images: list = option(None, "folder with the pictures of your subject; several subjects: a folder each", "what", required=True, nargs="+", metavar="DIR")
    model: str = model_option()
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    prompt: list = option(None, 'caption of your pictures, e.g. "a photo of a sks dog", one for each folder; NAME.txt beside a picture is its own caption, see --no-captions', "what", nargs="+", type=words)
    captions: bool = option(True, "use NAME.txt where there is one, or --prompt for every picture", "what")
    class_prompt: list = option(None, 'the class without the name, e.g. "a photo of a dog", one for all folders or one for each', "what", nargs="+", type=words)
    class_images: str = option(None, "folder of class pictures; missing ones are drawn first [OUT/class_images]", "what", metavar="DIR")
    prior_weight: float = option(None, "weight of the prior-preservation loss; 0: none [{prior_weight}]", "what", type=nonnegative)
    prior_target: str = option(None, "what class pictures teach: their noise, as in DreamBooth; or what the pretrained model predicts for them and, for a quarter, without the prompt, which holds the class better and with dreambooth needs a second copy of the UNet [noise; tiny-v2: pretrained]", "what", choices=("noise", "pretrained"))
    class_count: int = option(None, "how many class pictures [for each picture: {class_pictures_per_picture}]", "what", type=whole)
    class_guidance: float = option(None, "guidance with which class pictures are drawn; 1: none, so that the model does not learn to draw guided pictures by itself [{class_guidance}]", "what", metavar="SCALE")

    method: str = option("dreambooth", "what is trained: all of the UNet; a low-rank correction (lora) or a rotation (oft) of chosen layers", "method", choices=("dreambooth", "lora", "oft"))
    bayes: bool = option(True, "random weights, or the plain baseline", "method")
    where: str = option(None, "dreambooth: which layers are random, joined by commas: paper (those of the authors' scripts; the paper's text has paper,time), norm, cross-attention, time, projections (of SD v2), conv, all; up, mid, down restrict them to those blocks; time-embedding, which lies in none [paper]; oft: up, mid, down: the blocks whose Q is random [all]", "method", metavar="WHERE")
    rank: int = option(None, "lora: rank r of the correction [4; tiny-v2: 8]", "method", type=whole)
    alpha: float = option(None, "lora: the correction is scaled by ALPHA/RANK [RANK]", "method", type=positive)
    blocks: int = option(None, "oft: number of blocks of the rotation; each layer's inputs must divide by it [4]", "method", type=whole)
    coft: float = option(None, "oft: keep each block's rotation within X/√BLOCKS (constrained OFT)", "method", type=positive, metavar="X")
    layers: str = option(None, "lora, oft: ends of the names of the linear layers that are adapted, joined by commas [to_q,to_k,to_v,to_out.0]", "method", metavar="NAMES")
    sigma: float = option(None, "initial standard deviation of random weights [{sigma}]", "method", type=positive)
    kernel: str = option("auto", "what draws the random weights: PyTorch's generator (torch); the Philox stream, the same on every device, in PyTorch (reference) or in Triton kernels (triton); auto: triton on a GPU, or reference if that does not run there; torch on a CPU", "method", choices=("auto", "torch", "reference", "triton"))
    lambda_kl: float = option(0.0, "weight λ of the KL divergence to the prior, a sum over parameters", "method", type=nonnegative)
    prior_sigma: float = option(0.01, "standard deviation of the prior, centred at the start: the pretrained weights; 0 for lora and oft", "method", type=positive)
    kl: str = option("q-p", "direction: q-p as in the paper's Eq. 3, p-q as in its Algorithm 1", "method", choices=("q-p", "p-q"))

    steps: int = option(None, "optimiser steps [for each picture: {steps_per_picture}]", "training", type=whole)
    lr: float = option(None, "learning rate of AdamW [{lr}]", "training", type=positive)
    optimiser: str = option("adamw", "adamw; or adamw-bf16, whose moments are kept in bfloat16, rounded at random: 4 bytes less for each trained number", "training", choices=("adamw", "adamw-bf16"))
    lr_warmup_steps: int = option(0, "the rate rises linearly over the first N steps", "training", type=natural, metavar="N")
    batch_size: int = option(None, "pictures for each forward; as many class pictures beside them [{batch_size}]", "training", type=whole)
    null_dropout: float = option(0.0, "share of the pictures, of subject and class, that are trained with the empty prompt, so that guidance's unconditional prediction is trained too; 0: none", "training", type=share, metavar="P")
    noise_offset: float = option(0.0, "add noise of this standard deviation that is constant over a picture, one number for each latent channel, e.g. 0.1: it trains the mean colour, which white noise hardly does (Guttenberg 2023); 0: none", "training", type=nonnegative, metavar="X")
    noise_spread: float = option(0.0, "vary the strength of each picture's noise by this standard deviation, e.g. 0.1: it trains the strength, as an offset the mean colour; an experiment of minibnn, see tutorials/RESULTS.md; 0: none", "training", type=nonnegative, metavar="X")
    min_snr: float = option(None, "weigh times by their signal-to-noise ratio, cut at this γ, e.g. 5 (Hang et al. 2023), for subject and class [all alike]", "training", type=positive, metavar="GAMMA")
    ema: float = option(None, "keep the exponential moving average of the trained weights, with this decay at most, e.g. 0.99, and draw, save and export that; 0: none [{ema}]", "training", type=share, metavar="DECAY")
    accumulate: int = option(1, "forwards for each optimiser step", "training", type=whole)
    resolution: int = option(None, "pixels of the square crop [{resolution}]", "training", type=whole)
    dtype: str = option(None, "precision of the computation; weights train in float32 [float32; CUDA: bfloat16 or float16]", "training", choices=DTYPES)
    device: str = device_option("training")
    deterministic: bool = option(False, "on a GPU take only kernels that give the same bits twice; slower. On a CPU all do", "training")
    gradient_checkpointing: bool = option(False, "recompute blocks in backward: less memory, more time", "training")
    compile: bool = option(None, "let torch.compile fuse the operations of the training step; it takes minutes at the start, and a compiler [off]", "training")
    seed: int = seed_option("training")

    out: str = option(None, "the run's folder [runs/NAME OF THE PICTURE FOLDER]", "output", metavar="DIR")
    samples: int = option(None, "pictures in samples.png, always the same prompts and seeds; 0: none [8, or one for each of --sample-prompts]", "output", type=natural, metavar="N")
    sample_prompts: str = option(None, "text file with one prompt in each line, for samples.png", "output", metavar="FILE")
    sample_every: int = option(0, "draw samples every N steps; 0: only at the end", "output", type=natural, metavar="N")
    checkpoint_every: int = option(0, "write a checkpoint every N steps; 0: only at the end", "output", type=natural, metavar="N")
    monitor: bool = option(None, "watch fidelity, noise, σ₁ and the gains of guidance while training; keep the most faithful steps [on for tiny and tiny-v2, and with --monitor-every or --monitor-dino]", "output")
    monitor_every: int = option(None, "look every N steps, and before the first [a sixth of all]", "output", type=whole, metavar="N")
    monitor_dino: str = option(None, "facebook/dino-vits16, for the fidelity of photographs", "output", metavar="DIR")
    single_file: bool = option(False, "also write model.safetensors for ComfyUI and AUTOMATIC1111", "output")
    export: str = option(None, "lora: also write files for other programs, joined by commas: kohya (ComfyUI, AUTOMATIC1111), peft", "output", metavar="FORMATS")
    keep_posterior: bool = option(False, "also write posterior.safetensors with μ and σ", "output")
    keep_optimiser: bool = option(None, "keep the checkpoint of a finished run, with the optimiser's state, so that more --steps can follow [if it takes less than 1 GB]", "output")
    resume: bool = option(False, "go on from OUT/checkpoint, with the options of that run; more steps and other output are possible", "output")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} what follows from them: OUT, and on --resume the run's own options.

        Raises UserError when there is no run to resume.
        """
        if given.get("out") is None and given.get("images"):
            given = given | {"out": run_folder(given["images"])}
        if not given.get("resume"):
            return given
        if given.get("out") is None:
            raise UserError("--resume needs --out, the folder of the run that is to go on")
        if given.get("images") and not Path(given["out"], "config.json").exists():
            return given  # the command itself says, more clearly, what is there instead
        of_run = resumed_options(given["out"], TrainOptions)
        if given.get("monitor_every") or given.get("monitor_dino"):  # asking for them asks for the monitor
            of_run.pop("monitor", None)
        return of_run | given
