"""Stable Diffusion: tokenizer, text encoder, UNet, VAE and noise schedule together; loading and saving.

Follows: diffusers' `StableDiffusionPipeline` and its folder layout (`model_index.json` and one folder a part).

But: no safety checker, no image-to-image, no inpainting. How pictures are drawn is in `sample.py`.
"""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch

from . import runs, sample, schedule
from .devices import upload
from .errors import UserError
from .files import single_file
from .files.configs import (
    FILES,
    RECIPE_KINDS,
    SD2_TEXT,
    SD2_UNET,
    SD_SCHEDULER,
    check_scheduler,
    complete_recipe,
    official_configs,
)
from .files.headers import family_of
from .files.hollow import hollow
from .files.layouts import single_file_tensors
from .files.schema import fitting, integer, record
from .files.store import ASSETS, read_json, write_json
from .files.weights import WeightsError, open_weights, write_tensors
from .finetune import adapter_reading
from .networks.text_encoder import TextEncoder
from .networks.tokenizer import Tokenizer
from .networks.unet import UNet
from .networks.vae import VAE, sample_latents
from .options.kinds import BUNDLED, DEFAULT

log = logging.getLogger("minibnn")

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None], "image_encoder": [None, None], "safety_checker": [None, None],
    "requires_safety_checker": False,
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}


@dataclasses.dataclass(eq=False, repr=False)
class StableDiffusion:
    """The five parts. `configs`: the official JSON of networks and scheduler; `recipe`: see `complete_recipe`.

    `source`: what it was loaded from and merged with, to be shown. Two models are equal if they are the same object.
    """

    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    configs: dict
    recipe: dict
    source: str = "made in memory"

    def __repr__(self) -> str:
        networks = (self.unet, self.vae, self.text_encoder)
        millions = sum(parameter.numel() for network in networks for parameter in network.parameters()) / 1e6
        family = {"v1": "SD v1", "v2": "SD v2", None: "of no official size"}[family_of(self.unet.config)]
        dtype = str(self.unet.conv_in.weight.dtype).removeprefix("torch.")
        return f"<StableDiffusion {self.source}: {family}, {millions:.4g} M parameters, {self.device}, {dtype}>"

    # --- loading ---

    @classmethod
    def load(cls, path: Path | str, tokenizer: Path | str | None = None, dtype: torch.dtype | None = None,
             prediction_type: str | None = None) -> Self:
        """Load a bundled model by its name (BUNDLED), a diffusers folder, a run of any method, or a single LDM file.

        A P-GRAFT run is opened as its fine-tuned UNet alone; `neighbours.graft_run.open_graft_run` adds the base.

        tokenizer: a folder with vocab.json and merges.txt, which a single file needs.
        dtype: of the weights in memory; None keeps the files' (the bundled model's recipe says float32).
        prediction_type: "epsilon" or "v_prediction", of a single file; None: as it says, or looks (`single_file.py`).
        Raises UserError naming the file, key or value at fault.
        """
        source, path = str(path), place_of(path)
        if path.is_file():
            sd = cls._load_single_file(path, tokenizer, dtype, prediction_type)
        elif not runs.is_adapter_run(path):
            sd = cls._load_folder(path, tokenizer, dtype, prediction_type)
        else:
            sd, options = open_base(path, tokenizer, dtype, prediction_type), runs.options_of(path)
            sd.recipe |= runs.subject_of(options)
            return sd.merge_adapter(path)
        sd.source = source
        return sd

    @classmethod
    def _load_folder(cls, folder, tokenizer, dtype, prediction_type=None):
        if not (folder / "unet").is_dir():
            parts = "unet/, vae/, text_encoder/, tokenizer/, scheduler/"
            raise WeightsError(f"no model in {folder}: a diffusers folder holds {parts}")
        configs = {part: read_json(folder / part / "config.json") for part in FILES}
        configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
        check_scheduler(configs["scheduler"])
        own_type = configs["scheduler"].get("prediction_type", "epsilon")
        if prediction_type not in (None, own_type):
            log.warning("%s says that it predicts %s; that is taken, and not %s", folder, own_type, prediction_type)
        own_recipe = folder / "recipe.json"
        recipe = complete_recipe(read_json(own_recipe, record(RECIPE_KINDS)) if own_recipe.exists() else {})
        dtype = dtype or (getattr(torch, recipe["dtype"]) if recipe["dtype"] else None)
        tokenizer = Tokenizer(tokenizer or folder / "tokenizer")
        parts = {
            part: network.from_file(_weight_file(folder / part, FILES[part]), configs[part], dtype)
            for part, network in (("unet", UNet), ("vae", VAE), ("text_encoder", TextEncoder))
        }
        unet, vae, text = (parts[part].config for part in ("unet", "vae", "text_encoder"))
        if unet.in_channels != vae.latent_channels or unet.cross_attention_dim != text.hidden_size:
            raise UserError(
                f"{folder} is not a text-to-image model: its UNet takes {unet.in_channels} channels and contexts of "
                f"{unet.cross_attention_dim}, VAE and text encoder give {vae.latent_channels} and {text.hidden_size}"
            )
        if not own_recipe.exists():  # SD v2's 768 models say 96
            fitting(configs["unet"], record({"sample_size": integer(1, 2**13)}), folder / "unet" / "config.json")
            recipe["resolution"] = configs["unet"].get("sample_size", 64) * parts["vae"].factor
        tokenizer.check_fits(text.vocab_size, text.max_position_embeddings)
        return cls(**parts, tokenizer=tokenizer, configs=configs, recipe=recipe)

    @classmethod
    def _load_single_file(cls, path, tokenizer, dtype, prediction_type):
        about = single_file.describe(path)
        predicts = prediction_type or about.predicts
        if about.guessed and not prediction_type:
            log.warning("%s does not say what it predicts; by its weights it is %s, else pass the other one "
                        "(--prediction-type)", path, predicts)
        if tokenizer is None:
            folder = "tokenizer/ of the model's diffusers repository, which has vocab.json and merges.txt"
            raise UserError(f"{path} holds no tokenizer: pass a folder (--tokenizer), for instance {folder}")
        official = {"unet": SD2_UNET, "vae": None, "text_encoder": SD2_TEXT} if about.v2 else dict.fromkeys(FILES)
        known = about.configs or official | {"scheduler": SD_SCHEDULER}
        parts = {
            part: network.from_file(path, known[part], dtype)
            for part, network in (("unet", UNet), ("vae", VAE), ("text_encoder", TextEncoder))
        }
        scheduler = known["scheduler"] | {"prediction_type": predicts}
        check_scheduler(scheduler)
        configs = {part: known[part] for part in FILES} if about.configs else official_configs(**parts)
        own = about.configs["recipe"] if about.configs else {}
        recipe = complete_recipe({"resolution": 768 if predicts == "v_prediction" else 512} | own)
        tokenizer, text = Tokenizer(tokenizer), parts["text_encoder"].config
        tokenizer.check_fits(text.vocab_size, text.max_position_embeddings)
        return cls(**parts, tokenizer=tokenizer, configs=configs | {"scheduler": scheduler}, recipe=recipe)

    def merge_adapter(self, path: Path | str, strength: float = 1.0) -> Self:
        """Add a LoRA or OFT, a run's folder or a file, to the weights of UNet and text encoder; returns self.

        strength: multiplies a LoRA; below 0 it does the opposite. Raises WeightsError; then no weight is changed.
        """
        adapter_reading.merge_file({"unet": self.unet, "text_encoder": self.text_encoder}, path, strength)
        self.source += f" + {path}"
        return self

    # --- saving ---

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write the diffusers layout: opens in `diffusers.StableDiffusionPipeline.from_pretrained(folder)`.

        dtype: of the weights on disk; None as in memory. Each file is written whole, model_index.json last. Raises
        UserError for a UNet with random weights or adapters; then nothing is written.
        """
        self._check_plain()
        folder = Path(folder)
        for part in FILES:
            state = getattr(self, part).state_dict()
            write_tensors(folder / part / FILES[part], {k: v.to(dtype or v.dtype) for k, v in state.items()})
            write_json(folder / part / "config.json", self.configs[part])
        write_json(folder / "scheduler" / "scheduler_config.json", self.configs["scheduler"])
        self.tokenizer.save(folder / "tokenizer")
        write_json(folder / "recipe.json", self.recipe)
        scheduler = self.configs["scheduler"].get("_class_name", "PNDMScheduler")
        write_json(folder / "model_index.json", MODEL_INDEX | {"scheduler": ["diffusers", scheduler]})

    def save_single_file(self, path: Path | str, dtype: torch.dtype | None = None,
                         header: dict[str, str] | None = None) -> None:
        """Write one file in the LDM layout, which ComfyUI and AUTOMATIC1111 read. dtype as in `save`.

        header: what else to tell other programs, {str: str}, as of `files/headers.py`. Raises UserError as `save`.
        """
        self._check_plain()
        v2 = self.text_encoder.config.hidden_act == "gelu"  # OpenCLIP's; OpenAI's has quick_gelu
        tensors = single_file_tensors({part: getattr(self, part) for part in FILES}, openclip=v2)
        tensors = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in tensors.items()}
        write_tensors(path, tensors, (header or {}) | single_file.header_of(self.configs, self.recipe))

    def _check_plain(self):
        """Raises UserError if the UNet holds what its official layout has not, because nothing could open the file."""
        with hollow():
            official = type(self.unet)(self.unet.config).state_dict()
        other = next((name for name in self.unet.state_dict() if name not in official), None)
        if other:
            raise UserError(
                f"the UNet holds {other}, which no official file does: finetune.methods.plain_unet(unet) keeps the "
                "means of random weights; adapters are written by finetune.adapter_files"
            )

    # --- computing ---

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ_t of this model's scheduler configuration: (1000,), float32."""
        config = self.configs["scheduler"]
        return schedule.alphas_cumprod(config["beta_start"], config["beta_end"])

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert all networks, as `torch.nn.Module.to`."""
        for network in (self.unet, self.vae, self.text_encoder):
            network.to(*args, **kwargs)
        return self

    @property
    def v_prediction(self) -> bool:
        """True if the UNet predicts v instead of ε; SD v1.5's own file does not mention it."""
        return self.configs["scheduler"].get("prediction_type", "epsilon") == "v_prediction"

    @torch.no_grad()
    def encode_prompts(self, prompts: str | Iterable[str]) -> torch.Tensor:
        """n strings -> (n, 77, d); a single string counts as one of them."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in dict.fromkeys(prompts):
            surplus = len(self.tokenizer.encode(prompt)) - (self.tokenizer.max_length - 2)
            if surplus > 0:
                begins = prompt if len(prompt) <= 80 else f"{prompt[:77]}..."
                log.warning("prompt too long: the last %d tokens of %r are ignored", surplus, begins)
        return self.text_encoder(self.tokenizer(prompts).to(self.device))

    def predict_eps(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """ε̂ for latents x (B, 4, h, w) at times t (B,), whatever the network predicts."""
        out = self.unet(x, t, context)
        if self.v_prediction:
            wide = torch.promote_types(x.dtype, torch.float32)  # 16 bits would round ᾱ to 1 at the smallest times
            return schedule.eps_from_v(x.to(wide), out.to(wide), upload(self.alphas_cumprod, x.device)[t])
        return out

    guided_eps = sample.guided_eps
    generate = sample.generate

    @torch.no_grad()
    def encode_pictures(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> one draw of the scaled latents (B, 4, H/f, W/f) that the UNet sees."""
        mean, logvar = self.vae.encode(images.to(self.vae.quant_conv.weight))
        return sample_latents(mean.float(), logvar.float(), generator) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, f·h, f·w) in [-1, 1], float32."""
        z = (x / self.vae.config.scaling_factor).to(self.vae.quant_conv.weight)
        at_once = max(1, 64 * 64 // (z.shape[2] * z.shape[3]))  # one of 512 × 512 pixels: the decoder takes the memory
        return torch.cat([self.vae.decode(part).float().clamp(-1, 1) for part in z.split(at_once)])


def place_of(model):
    """Where a model is that is named as one of BUNDLED or by its path. Raises UserError when nothing is there."""
    path = ASSETS / model if str(model) in BUNDLED else Path(model)
    if path.exists():
        return path
    raise UserError(f'no model at {path}: give a folder, a .safetensors file, or "{DEFAULT}" for the bundled model; '
                    "minibnn downloads nothing, and docs/training.md#getting-stable-diffusion says how to fetch one")


def open_base(run, tokenizer=None, dtype=None, prediction_type=None):
    """The model that the run in this folder was trained from, opened as that training opened it.

    tokenizer, prediction_type: take the place of those of the run. Raises UserError when the model is not where it was.
    """
    runs.check_bases(run)
    model, own_tokenizer, own_type = runs.base_of(run)
    return StableDiffusion.load(model, tokenizer or own_tokenizer, dtype, prediction_type or own_type)


def _weight_file(folder, name):
    """The weights in a part's folder: full precision first, then the fp16 variant. Raises WeightsError."""
    stem = name.removesuffix(".safetensors")
    for candidate in (name, f"{stem}.fp16.safetensors", f"{stem}.bf16.safetensors", f"{stem}.non_ema.safetensors"):
        if (folder / candidate).exists():
            return folder / candidate
    for index in sorted(folder.glob(f"{stem}*.safetensors.index*.json"), key=lambda path: len(path.name)):
        return index  # full precision has the shortest name
    for pickle in sorted(folder.glob("*.bin")):
        open_weights(pickle)  # raises, and says how to convert it
    raise WeightsError(f"{folder} holds no {name}")
