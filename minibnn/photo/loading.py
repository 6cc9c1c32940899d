"""The networks that judge photographs. Each comes from a folder that the user has fetched; nothing is downloaded.

CLIP ViT-L/14 and DINO ViT-S/16 are networks of transformers (the extra `[metrics]`), which is imported only when it is
needed. The others are our own (`networks.py`). When a package or a file is missing, one line says how to get it.

But: safetensors only, as everywhere in minibnn.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..files.hollow import hollow
from ..files.ldm import OPENCLIP, ldm_name
from ..files.store import read_json
from ..files.weights import WeightsError, open_weights, read_tensors
from ..networks.text_encoder import TextEncoder, TextEncoderConfig
from ..networks.tokenizer import Tokenizer
from .networks import AestheticHead, ClipIqa, ClipResNet, Lpips

ALEXNET, LINEAR, RN50 = "alexnet-owt-7be5be79", "alex", "open_clip_model"  # names of files
CLIP_FILES = (
    "get it by: hf download openai/clip-vit-large-patch14 config.json preprocessor_config.json model.safetensors "
    "vocab.json merges.txt --local-dir"
)
DINO_FILES = "get it by: hf download facebook/dino-vits16 --revision refs/pr/1 --local-dir"  # main has only a pickle
RN50_FILES = f"get it by: hf download timm/resnet50_clip.openai {RN50}.safetensors vocab.json merges.txt --local-dir"
LPIPS_FILES = (
    f"put in https://download.pytorch.org/models/{ALEXNET}.pth and lpips/weights/v0.1/{LINEAR}.pth of "
    "https://github.com/richzhang/PerceptualSimilarity, both converted to safetensors"
)
AESTHETIC = "sac+logos+ava1-l14-linearMSE"
AESTHETIC_FILES = (
    "put in https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth, converted to safetensors"
)
QUALITY = ("Good photo.", "Bad photo.")  # the prompts of Clip-IQA

# --- networks of transformers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubNetwork:
    """A network of transformers, its picture processor and, for CLIP, our tokenizer."""

    model: torch.nn.Module
    processor: object
    tokenizer: Tokenizer = None


def load_clip(folder, device="cpu"):
    """Read a CLIPModel from a folder of the Hub. Raises UserError that says what to install or to fetch."""
    found = _from_hub("--clip", folder, "clip", ("CLIPModel", "CLIPImageProcessor"), CLIP_FILES, device)
    return HubNetwork(*found, Tokenizer(folder))


def load_dino(folder, device="cpu", option="--dino"):
    """Read a ViTModel from a folder of the Hub. Raises UserError as `load_clip`, naming the option."""
    classes, settings = ("ViTModel", "ViTImageProcessor"), {"add_pooling_layer": False}  # the official file has none
    return HubNetwork(*_from_hub(option, folder, "vit", classes, DINO_FILES, device, **settings))


def _from_hub(option, folder, kind, classes, remedy, device, **settings):
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no reports on the parts of a file that are not needed
    try:
        import transformers
    except ImportError:
        raise UserError(f"{option} needs transformers: pip install transformers") from None
    remedy = f"{remedy} {folder}"
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (Path(folder) / name).is_file():
            raise UserError(f"{option} {folder}: {name} is missing; {remedy}")
    found = read_json(Path(folder) / "config.json").get("model_type")
    if found != kind:
        raise UserError(f"{option} {folder}: config.json is of a model of type {found!r}, not {kind!r}; {remedy}")
    # The authors' processors use PIL. Those on torchvision resize a little differently; since transformers 5 they have
    # the plain names, and those on PIL end with Pil.
    processor_class = getattr(transformers, classes[1] + "Pil", None) or getattr(transformers, classes[1])
    try:
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        model, info = getattr(transformers, classes[0]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
        )
    except Exception as error:  # transformers and safetensors raise many kinds of errors for a damaged file
        raise UserError(f"{option} {folder} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    lacking = sorted(info["missing_keys"])  # transformers would fill them with random numbers
    if lacking:
        example = f"{len(lacking)} weights, e.g. {lacking[0]}"
        raise WeightsError(f"{option} {folder}: model.safetensors lacks {example}; {remedy}")
    return model.float().eval().to(device), processor


# --- our own networks -------------------------------------------------------------------------------------------------


def load_lpips(folder, device="cpu"):
    """Read Lpips from torchvision's AlexNet and the linear layers of Lpips, two files of a folder. Raises UserError."""
    tensors, linear = (read_tensors(_find(folder, name, "--lpips", LPIPS_FILES)) for name in (ALEXNET, LINEAR))
    tensors |= {name.removesuffix(".model.1.weight"): tensor.flatten() for name, tensor in linear.items()}
    with hollow():
        network = Lpips()
    return _fill(network, tensors, f"--lpips {folder}").to(device)


def load_aesthetic_head(folder):
    """Read LAION's head, in its published names, from a folder beside CLIP ViT-L/14. Raises UserError."""
    tensors = read_tensors(path := _find(folder, AESTHETIC, "the folder", AESTHETIC_FILES))
    with hollow():
        network = AestheticHead()
    return _fill(network, tensors, path)


def load_clip_iqa(folder, device="cpu"):
    """Read Clip-IQA from a folder with CLIP's RN50 in OpenAI's names, vocab.json and merges.txt. Raises UserError."""
    path = _find(folder, RN50, "--clip-iqa", f"{RN50_FILES} {folder}")
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    if not {"visual.attnpool.c_proj.weight", "visual.conv3.weight", "text_projection", "logit_scale"} <= tensors.keys():
        raise WeightsError(f"{path} is not CLIP's RN50; {RN50_FILES} {folder}")
    visual = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    blocks = [len({n.split(".")[1] for n in visual if n.startswith(f"layer{level}.")}) for level in range(1, 5)]
    with hollow():
        network = ClipResNet(blocks, len(visual["conv3.weight"]), len(visual["attnpool.c_proj.weight"]))
    anchors = F.normalize(clip_text(tensors, Tokenizer(folder)(QUALITY), path), dim=-1)
    return ClipIqa(_fill(network, visual, path), anchors, tensors["logit_scale"].exp().item()).eval().to(device)


@torch.no_grad()
def clip_text(tensors, ids, path):
    """The text features (B, D) of token ids (B, 77), by the text half of a CLIP file in OpenAI's names."""
    length, width = tensors["positional_embedding"].shape
    config = TextEncoderConfig(
        vocab_size=len(tensors["token_embedding.weight"]), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}),
        num_attention_heads=width // 64, max_position_embeddings=length,
    )
    with hollow():
        encoder = TextEncoder(config)
    ours = {}
    for name in encoder.state_dict():
        key, third = ldm_name("text_encoder", name, config, openclip=True)
        tensor = tensors.get(key.removeprefix(OPENCLIP), torch.empty(0))
        ours[name] = tensor if third is None else tensor.chunk(3)[third]
    states = _fill(encoder, ours, path)(ids)
    at_end = states[torch.arange(len(ids)), ids.argmax(-1)]  # END has the highest id
    return at_end @ tensors["text_projection"]


def _find(folder, stem, option, remedy):
    """The path FOLDER/STEM.safetensors. Raises UserError that says how to get the file, or how to convert a pickle."""
    path = Path(folder) / f"{stem}.safetensors"
    if not path.is_file():
        if path.with_suffix(".pth").exists():
            open_weights(path.with_suffix(".pth"))  # refuses it
        raise UserError(f"{option} {folder}: {path.name} is missing; {remedy}")
    return path


def _fill(network, tensors, path):
    """Put the tensors, as float32, into a network made on the meta device. Raises WeightsError if one does not fit."""
    wanted = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    wrong = [name for name, tensor in wanted.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        example = f"{len(wrong)} tensors missing or of another shape, e.g. {wrong[0]}"
        raise WeightsError(f"{path} holds another network: {example}")
    network.load_state_dict({name: tensors[name].float() for name in wanted}, strict=False, assign=True)
    return network.eval().requires_grad_(False)
