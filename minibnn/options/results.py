"""The options of the commands for what a training has left: `sample`, `export`, `report`, `photo-measures`."""

from dataclasses import dataclass

from .kinds import as_asked, natural, nonnegative, option, whole, words
from .shared import DTYPES, device_option, model_option, prediction_type_option, seed_option, tokenizer_option


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
    posterior_samples: int = option(0, "also draw each picture with N draws of the weights; a row shows it at μ, the draws, their mean and their deviation; needs a run with --keep-posterior", "drawing", type=natural, metavar="N")
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
    out: str = option("sample.png", "a PNG file; several pictures make a grid, near to a square or with a row for each prompt, and a folder of the same name", "output", means="a file", metavar="PNG")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)


@dataclass(frozen=True)
class ExportOptions:
    """Write the result of a run as a file that another program opens."""

    run: str = option(None, "a run's folder; for a whole model also a diffusers folder or an LDM file", "what", required=True, word=True, metavar="RUN")
    to: str = option(None, "single-file: a whole model for ComfyUI and AUTOMATIC1111; kohya: a LoRA for them; peft; diffusers", "what", required=True, choices=("single-file", "kohya", "peft", "diffusers"), metavar="PROGRAM")
    base: str = option(None, "a whole model of a run of LoRA or OFT: the model to add it to [what the run was trained from]", "what", metavar="MODEL")
    merge: bool = option(False, "lora, with --to diffusers: a whole model with the LoRA in it", "what")
    dtype: str = option(None, "precision of the weights in the file [as they are in the run: float32]", "what", choices=DTYPES)
    tokenizer: str = tokenizer_option()
    prediction_type: str = prediction_type_option()
    out: str = option(None, "a .safetensors file, for peft and a whole diffusers model a folder [in the run's folder: model.safetensors, lora_kohya.safetensors, adapter_model.safetensors]", "output", metavar="PATH")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)


@dataclass(frozen=True)
class RunReportOptions:
    """Make the page of a training run again: report.html, one file with its pictures, curves, options and command."""

    runs: list = option(None, "folders of training runs", "what", required=True, word=True, metavar="RUN")
    out: str = option(None, "an .html file, for a single run [RUN/report.html]", "output", means="a file", metavar="FILE")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)


@dataclass(frozen=True)
class PhotoOptions:
    """Measure generated photographs: Clip-T, Clip-I, Dino, Lpips and Clip-IQA, each if its network is given."""

    pictures: str = option(None, "folder of generated pictures, in the order of the numbers in their names", "what", required=True, metavar="DIR")
    training: str = option(None, "folder of training pictures, for Clip-I and Dino; without it --clip measures Clip-T alone", "what", metavar="DIR")
    prompts: str = option(None, "text file of prompts, one a line, each for equally many pictures in turn [the prompts that `sample` wrote into the pictures]", "what", metavar="FILE")

    clip: str = option(None, "openai/clip-vit-large-patch14, for Clip-T and Clip-I", "networks", metavar="DIR")
    dino: str = option(None, "facebook/dino-vits16, for Dino", "networks", metavar="DIR")
    lpips: str = option(None, "torchvision's AlexNet and the linear layers of Lpips", "networks", metavar="DIR")
    clip_iqa: str = option(None, "timm/resnet50_clip.openai, for Clip-IQA", "networks", metavar="DIR")
    device: str = device_option("networks")

    out: str = option("photo-measures.json", "a JSON file", "output", means="a file", metavar="FILE")
    overwrite: bool = option(False, "replace OUT if it exists", "output")

    def __post_init__(self):
        as_asked(self)
