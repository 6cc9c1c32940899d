"""The options of each command, one frozen dataclass each; those of the experiments are in `experiments.py`."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .kinds import DEFAULT, natural, nonnegative, option, positive, seed_number, share, whole, words
from .of_runs import resumed_options
from .unfinished import going_on

DTYPES = ("float32", "bfloat16", "float16")


def model_option(more="", default=DEFAULT):
    """--model of every command that opens one; more: what its help adds."""
    return option(default, '"tiny-v2", "tiny" or "textured" (bundled), a diffusers folder, a run, or an LDM .safetensors file' + more, "what", metavar="MODEL")


def tokenizer_option():
    return option(None, "folder with vocab.json and merges.txt, for an LDM file", "what", metavar="DIR")


def prediction_type_option():
    return option(None, "what an LDM file predicts [as it says; SD v2: else as its weights look]", "what", choices=("epsilon", "v_prediction"))


def device_option(group):
    return option(None, "cpu, cuda, cuda:1, mps, ... [cuda if there is one]", group, metavar="DEVICE")


def seed_option(group, help="fixes all that is random"):
    return option(0, help, group, type=seed_number)


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
    class_count: int = option(None, "how many class pictures [for each picture: {class_pictures_per_picture}]", "what", type=whole)
    class_guidance: float = option(None, "guidance with which class pictures are drawn; 1: as the model itself believes, and training on them changes it least [{class_guidance}]", "what", metavar="SCALE")
    null_share: float = option(None, "share of the class pictures that are drawn of the empty prompt and trained with it: they keep the unconditional prediction, from which guidance extrapolates [{null_share}]", "what", type=share, metavar="P")

    method: str = option("dreambooth", "what is trained: all of the UNet; a low-rank correction (lora) or a rotation (oft) of chosen layers", "method", choices=("dreambooth", "lora", "oft"))
    bayes: bool = option(True, "random weights, or the plain baseline", "method")
    where: str = option(None, "dreambooth: which layers are random, joined by commas: paper (those of the authors' scripts; the paper's text has paper,time), norm, cross-attention, time, projections (of SD v2), conv, all; up, mid, down restrict them to those blocks; time-embedding, which lies in none [paper]; oft: up, mid, down: the blocks whose Q is random [all]", "method", metavar="WHERE")
    rank: int = option(None, "lora: rank r of the correction [4]", "method", type=whole)
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
    ema: float = option(None, "keep the exponential moving average of the trained weights, with this decay at most, e.g. 0.99, and draw, save and export that [none]", "training", type=share, metavar="DECAY")
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
        for name in ("images", "prompt", "class_prompt"):  # one subject may be given without a list
            if isinstance(getattr(self, name), (str, Path)):
                object.__setattr__(self, name, [str(getattr(self, name))])

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


@dataclass(frozen=True)
class SampleOptions:
    """Draw pictures with a model or a run."""

    prompt: list = option(None, "one or more prompts", "what", means="what is drawn", required=True, nargs="+", type=words)
    model: str = model_option()
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    adapter: list = option(None, "LoRAs or OFTs to add to MODEL, of any program: runs' folders, or files", "what", nargs="+", metavar="PATH")
    adapter_scale: list = option(None, "strength of each adapter, or one for all; for LoRA only [1]", "what", nargs="+", type=float, metavar="X")
    negative_prompt: str = option("", "what to keep away from", "what")
    unconditional_from: str = option(None, 'take the unconditional prediction of guidance from this base model: a bundled one by name, a folder or a file', "what", metavar="MODEL")

    count: int = option(1, "pictures for each prompt", "drawing", type=whole)
    posterior_samples: int = option(0, "also draw each picture with N draws of the weights, and show mean and deviation; needs a run with --keep-posterior", "drawing", type=natural, metavar="N")
    steps: int = option(None, "sampling steps [{sample_steps}]", "drawing", means="--sample-steps", type=whole)
    guidance: float = option(None, "classifier-free guidance, 1: none [{guidance}]", "drawing", type=float)
    sampler: str = option("ddim", "DDIM, or PNDM as in SD's own configuration", "drawing", choices=("ddim", "pndm"))
    eta: float = option(0.0, "noise added by DDIM: 0 none, 1 as DDPM", "drawing", type=nonnegative)
    width: int = option(None, "pixels [{resolution}]", "drawing", type=whole)
    height: int = option(None, "pixels [{resolution}]", "drawing", type=whole)
    batch_size: int = option(8, "pictures drawn at once", "drawing", means="pictures drawn at once", type=whole)
    compile: bool = option(None, "let torch.compile fuse the operations of the UNet; it takes a minute or more at the start, and a compiler [off]", "drawing")
    seed: int = seed_option("drawing", "the same pictures on every device, up to rounding")
    dtype: str = option(None, "precision of the weights [float32; CUDA: float16]", "drawing", choices=DTYPES)
    device: str = device_option("drawing")
    out: str = option("sample.png", "a PNG file; several pictures make a grid, and a folder of the same name", "output", means="a file", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class ExportOptions:
    """Write the result of a run as a file that another program opens."""

    run: str = option(None, "a run's folder; for a whole model also a diffusers folder or an LDM file", "what", required=True, word=True, metavar="RUN")
    to: str = option(None, "single-file: a whole model for ComfyUI and AUTOMATIC1111; kohya: a LoRA for them; peft; diffusers", "what", required=True, choices=("single-file", "kohya", "peft", "diffusers"), metavar="PROGRAM")
    merge: bool = option(False, "lora, with --to diffusers: a whole model with the LoRA in it", "what")
    dtype: str = option(None, "precision of the weights in the file [as they are in the run: float32]", "what", choices=DTYPES)
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    out: str = option(None, "a .safetensors file, for peft and a whole diffusers model a folder [in the run's folder: model.safetensors, lora_kohya.safetensors, adapter_model.safetensors]", "output", metavar="PATH")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class RunReportOptions:
    """Make the page of a training run again: report.html, one file with its pictures, curves, options and command."""

    runs: list = option(None, "folders of training runs", "what", required=True, word=True, metavar="RUN")
    out: str = option(None, "an .html file, for a single run [RUN/report.html]", "output", means="a file", metavar="FILE")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class GraftOptions:
    """Fine-tune a model on those of its own samples that a reward accepts (GRAFT, P-GRAFT)."""

    reward: str = option(None, "red_thing_on_grass, redness, clip:FOLDER (the CLIP score, by openai/clip-vit-*), or your own as file.py:function", "what", required=True)
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
    rank: int = option(None, "lora: rank r of the correction [4]", "training", type=whole)
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

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} those of the run that --resume goes on with. Raises UserError."""
        settled = {"rule": ("keep", "minimum", "alpha"), "method": ("rank", "layers", "lr")}
        return going_on(given, GraftOptions, GraftOptions.out, settled)


@dataclass(frozen=True)
class PhotoOptions:
    """Measure generated photographs: Clip-T, Clip-I, Dino, Lpips and Clip-IQA, each if its network is given."""

    pictures: str = option(None, "folder of generated pictures, in the order of the numbers in their names", "what", required=True, metavar="DIR")
    training: str = option(None, "folder of training pictures, for Clip-I and Dino", "what", metavar="DIR")
    prompts: str = option(None, "text file of prompts, one a line, each for equally many pictures in turn [the prompts that `sample` wrote into the pictures]", "what", metavar="FILE")

    clip: str = option(None, "openai/clip-vit-large-patch14, for Clip-T and Clip-I", "networks", metavar="DIR")
    dino: str = option(None, "facebook/dino-vits16, for Dino", "networks", metavar="DIR")
    lpips: str = option(None, "torchvision's AlexNet and the linear layers of Lpips", "networks", metavar="DIR")
    clip_iqa: str = option(None, "timm/resnet50_clip.openai, for Clip-IQA", "networks", metavar="DIR")
    device: str = device_option("networks")

    out: str = option("photo-measures.json", "a JSON file", "output", means="a file", metavar="FILE")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


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
    device: str = device_option("training")
    seed: int = seed_option("training")

    sample_steps: int = option(None, "sampling steps [{sample_steps}]", "drawing", type=whole)
    guidance: float = option(None, "classifier-free guidance on the text [{guidance}]", "drawing", type=float)
    guide_hint: bool = option(False, "guidance on text and hint: the unconditional prediction is the frozen model's without the branch", "drawing")
    out: str = option(None, "folder of the result [runs/bps; with --branch: runs/bps-drawn]", "output", metavar="DIR")
    checkpoint_every: int = option(0, "write a checkpoint every N steps; 0: only when the training is stopped", "output", type=natural, metavar="N")
    resume: bool = option(False, "go on with the training that OUT.unfinished holds, with its options; more steps are possible", "output")
    overwrite: bool = option(False, "write into OUT if it exists; without --resume also forget OUT.unfinished", "output")

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

    @staticmethod
    def complete(given):
        """Add to the options given {name: value} those of the training that --resume goes on with. Raises UserError."""
        return going_on(given, RectifiedOptions, "runs/corrector")


@dataclass(frozen=True)
class WorldOptions:
    """Draw the picture world: a sheet, the few-shot subject, or pairs with hints and captions."""

    out: str = option(None, "write a sheet of random drawings", "what", means="a file", metavar="PNG")
    dog: str = option(None, "write the six pictures of the few-shot subject", "what", metavar="DIR")
    pairs: str = option(None, "write drawings with hints and captions, for `python -m minibnn bps`", "what", metavar="DIR")

    count: int = option(40, "how many pairs", "drawing", means="pairs", type=whole)
    hint: str = option("sketch", "the subject's outline or its area", "drawing", choices=("sketch", "mask"))
    seed: int = seed_option("drawing", "seed of the sheet and the pairs")


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

    model: str = option(DEFAULT, '"tiny-v2" or "tiny" (bundled), or a diffusers folder or a run that draws the same world', "what")
    captions: int = option(500, "pictures to draw; half as many of held-out combinations", "what", type=whole)
    train_classifier: bool = option(False, "train a new classifier, as the one that comes with minibnn was trained", "how")
    out: str = option("runs/evaluate", "folder of the pictures and figures", "what", metavar="DIR")


@dataclass(frozen=True)
class ProbeOptions:
    """Look into one model, and beside it into the model that it was trained from."""

    model: str = option(DEFAULT, 'the model to look into: a run, a diffusers folder, an LDM file, or a bundled one by name', "what")
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


@dataclass(frozen=True)
class Eq2Options:
    """Draw what Eq. 2 alone predicts, without any network: for sets of pictures, large to one, and for values of σ₁."""

    images: str = option(None, "folder with the training pictures", "what", required=True, metavar="DIR")
    manifold: str = option(None, "folder with many other pictures: what the pretrained model knows [drawings of the picture world]", "what", metavar="DIR")
    manifold_size: int = option(400, "how many drawings of the world", "what", type=whole)
    model: str = option("tiny", "whose VAE and noise schedule", "what")
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    sigma1: list = option((0.0, 0.1, 0.3, 1.0, 4.8), "values of σ₁, in latents of variance about 1", "what", type=nonnegative, nargs="+", metavar="X")
    measured: str = option(None, "a JSON file of the command sigma1: draw also with the σ₁,t measured there", "what", metavar="JSON")
    steps: int = option(50, "sampling steps (DDIM)", "drawing", means="--sample-steps", type=whole)
    seed: int = seed_option("drawing", "seed of the starting noise, the same for all")
    out: str = option(None, "a PNG file; figures as JSON stand beside it [eq2.png]", "output", means="a file", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")


@dataclass(frozen=True)
class MeasuresOptions:
    """Show what each measure of the picture world sees."""

    out: str = option(None, "write the energy of clean drawings, as minibnn/assets/clean.json holds it", "what", means="a file", metavar="FILE")


@dataclass(frozen=True)
class EyeOptions:
    """Train the network behind fidelity from nothing, on one core."""

    out: str = option(None, "a .safetensors file", "what", means="a file", required=True, metavar="FILE")
    steps: int = option(1500, "batches of 80 pictures", "what", type=whole)
