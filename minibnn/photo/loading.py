"""The four networks of the photo measures, each from a folder the user has fetched; nothing is downloaded.

CLIP ViT-L/14 and DINO ViT-S/16 are transformers' (the extra `[metrics]`), imported when first needed; the other two are
ours (`photo_networks.py`). What is absent, a package or a file, is one line that says how to get it.

But: safetensors only, as everywhere in minibnn.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..files.ldm import OPENCLIP, ldm_name
from ..files.store import WeightsError, open_weights, read_json
from ..networks.text_encoder import TextEncoder, TextEncoderConfig
from ..networks.tokenizer import Tokenizer
from .networks import ClipIqa, ClipResNet, Lpips

CLIP_FILES = (
    "get it by: hf download openai/clip-vit-large-patch14 config.json preprocessor_config.json model.safetensors vocab.json "
    "merges.txt --local-dir"
)
DINO_FILES = "get it by: hf download facebook/dino-vits16 --revision refs/pr/1 --local-dir"  # main has only a pickle
RN50_FILES = "get it by: hf download timm/resnet50_clip.openai open_clip_model.safetensors vocab.json merges.txt --local-dir"
ALEXNET, LINEAR, RN50 = "alexnet-owt-7be5be79", "alex", "open_clip_model"
LPIPS_FILES = (
    f"put in https://download.pytorch.org/models/{ALEXNET}.pth and lpips/weights/v0.1/{LINEAR}.pth of "
    "https://github.com/richzhang/PerceptualSimilarity, both to be converted to safetensors"
)
QUALITY = ("Good photo.", "Bad photo.")  # the prompts of Clip-IQA


# --- by transformers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """transformers' CLIPModel, its picture processor, and our tokenizer."""

    model: torch.nn.Module
    processor: object
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Dino:
    """transformers' ViTModel and its picture processor."""

    model: torch.nn.Module
    processor: object


def load_clip(folder, device="cpu"):
    """A folder of the Hub with a CLIPModel -> Clip. Raises UserError: what to install or to fetch."""
    model, processor = _load("--clip", folder, "clip", "CLIPModel", "CLIPImageProcessor", {}, CLIP_FILES)
    return Clip(model.to(device), processor, Tokenizer(folder))


def load_dino(folder, device="cpu", option="--dino"):
    """A folder of the Hub with a ViTModel -> Dino. Errors as `load_clip`; option: what they name."""
    settings = {"add_pooling_layer": False}  # the official file has none
    model, processor = _load(option, folder, "vit", "ViTModel", "ViTImageProcessor", settings, DINO_FILES)
    return Dino(model.to(device), processor)


def _load(option, folder, kind, model_class, processor_class, settings, remedy):
    try:
        import transformers
    except ImportError:
        raise UserError(f"{option} needs transformers: pip install transformers") from None
    remedy = f"{remedy} {folder}"
    for name in ("config.json", "preprocessor_config.json"):
        if not (Path(folder) / name).is_file():
            raise UserError(f"{option} {folder}: {name} is missing; {remedy}")
    _find(folder, "model", option, remedy)
    found = read_json(Path(folder) / "config.json").get("model_type")
    if found != kind:
        raise UserError(f"{option} {folder}: config.json is of a model of type {found!r}, not {kind!r}; {remedy}")
    # Processors on PIL, as the authors': those on torchvision resize a little differently. Before transformers 5 the plain
    # names are PIL's.
    processor_class = getattr(transformers, processor_class + "Pil", None) or getattr(transformers, processor_class)
    try:
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        model, info = getattr(transformers, model_class).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
        )
    except Exception as error:  # whatever transformers and safetensors raise for a damaged file
        raise UserError(f"{option} {folder} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    lacking = sorted(info["missing_keys"])  # transformers would fill them with random numbers
    if lacking:
        raise WeightsError(f"{option} {folder}: model.safetensors lacks {len(lacking)} weights, e.g. {lacking[0]}; {remedy}")
    return model.float().eval(), processor


# --- by ourselves -----------------------------------------------------------------------------------------------------


def load_lpips(folder, device="cpu"):
    """A folder with torchvision's AlexNet and the linear layers of Lpips, as safetensors -> Lpips. Raises UserError."""
    tensors = _read(_find(folder, ALEXNET, "--lpips", LPIPS_FILES))
    linear = _read(_find(folder, LINEAR, "--lpips", LPIPS_FILES))
    tensors |= {name.removesuffix(".model.1.weight"): tensor.flatten() for name, tensor in linear.items()}
    with torch.device("meta"):
        network = Lpips()
    return _fill(network, tensors, f"--lpips {folder}").to(device)


def load_clip_iqa(folder, device="cpu"):
    """A folder with CLIP's RN50 in OpenAI's names, vocab.json and merges.txt -> ClipIqa. Raises UserError."""
    path = _find(folder, RN50, "--clip-iqa", f"{RN50_FILES} {folder}")
    tensors = _read(path)
    if not {"visual.attnpool.c_proj.weight", "visual.conv3.weight", "text_projection", "logit_scale"} <= tensors.keys():
        raise WeightsError(f"{path} is not CLIP's RN50; {RN50_FILES} {folder}")
    visual = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    blocks = [len({n.split(".")[1] for n in visual if n.startswith(f"layer{level}.")}) for level in range(1, 5)]
    with torch.device("meta"):
        network = ClipResNet(blocks, len(visual["conv3.weight"]), len(visual["attnpool.c_proj.weight"]))
    anchors = F.normalize(clip_text(tensors, Tokenizer(folder)(QUALITY), path), dim=-1)
    return ClipIqa(_fill(network, visual, path), anchors, tensors["logit_scale"].exp().item()).eval().to(device)


@torch.no_grad()
def clip_text(tensors, ids, path):
    """ids (B, 77) -> (B, D) by the text half of a CLIP file in OpenAI's names: the state at END, projected."""
    length, width = tensors["positional_embedding"].shape
    config = TextEncoderConfig(
        vocab_size=len(tensors["token_embedding.weight"]), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=len({name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}),
        num_attention_heads=width // 64, max_position_embeddings=length,
    )  # fmt: skip
    with torch.device("meta"):
        encoder = TextEncoder(config)
    ours = {}
    for name in encoder.state_dict():
        key, third = ldm_name("text_encoder", name, config, openclip=True)
        tensor = tensors.get(key.removeprefix(OPENCLIP), torch.empty(0))
        ours[name] = tensor if third is None else tensor.chunk(3)[third]
    states = _fill(encoder, ours, path)(ids)
    return states[torch.arange(len(ids)), ids.argmax(-1)] @ tensors["text_projection"]  # END has the highest id


def _find(folder, stem, option, remedy):
    """FOLDER/STEM.safetensors. Raises UserError: `remedy` if absent; how to convert it if there is only a pickle."""
    path = Path(folder) / f"{stem}.safetensors"
    if not path.is_file():
        if path.with_suffix(".pth").exists():
            open_weights(path.with_suffix(".pth"))  # refuses it
        raise UserError(f"{option} {folder}: {path.name} is missing; {remedy}")
    return path


def _read(path):
    """{name: float32 tensor}."""
    with open_weights(path) as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118


def _fill(network, tensors, path):
    """Put `tensors` into a network made on the meta device, all by name. Raises WeightsError naming what does not fit."""
    wanted = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    wrong = [name for name, tensor in wanted.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if wrong:
        raise WeightsError(f"{path} holds another network: {len(wrong)} tensors missing or of another shape, e.g. {wrong[0]}")
    network.load_state_dict({name: tensors[name] for name in wanted}, strict=False, assign=True)
    return network.eval().requires_grad_(False)
