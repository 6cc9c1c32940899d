"""What a single file of a whole model says of itself: which version of Stable Diffusion, and what the UNet predicts.

A file that minibnn wrote holds all configurations in its header. Of others the prediction type is, in this order,

    the header's modelspec.prediction_type           kohya's tools, SwarmUI
    a tensor called v_pred                           ComfyUI
    parameterization: "v" in a .yaml of its name     AUTOMATIC1111: v2-1_768-ema-pruned.yaml beside ….safetensors
    SD v2, and a bias of its last attention varies   ComfyUI's rule for the official files, `SD20.model_type` in
    by more than 0.09                                comfy/supported_models.py
    epsilon

Follows: the programs named above.
"""

import dataclasses
import json
import re
from pathlib import Path

from ..errors import UserError
from . import headers, ldm
from .configs import RECIPE_KINDS
from .layouts import is_single_file
from .schema import fitting, record
from .store import parse_json, read_text
from .weights import WeightsError, open_weights, shapes_of

KEY = "minibnn"  # of the header, with the configurations as JSON
LAST_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
CONFIGS = ("unet", "vae", "text_encoder", "scheduler")


@dataclasses.dataclass(frozen=True)
class Description:
    """v2: it holds SD v2. configs: its configurations and recipe, or None. predicts: "epsilon" or "v_prediction";
    guessed: whether only the rule for official files says so."""

    v2: bool
    configs: dict | None
    predicts: str
    guessed: bool


def describe(path):
    """The Description of a single file. Raises WeightsError, with a hint, for a file that holds no whole model."""
    with open_weights(path) as file:
        shapes, header = shapes_of(file), file.metadata() or {}
        if not is_single_file(shapes):
            hint = "there is no model.diffusion_model.* in it"
            if "lora" in " ".join(shapes):
                hint = "it is a LoRA: pass its base as --model and this as --adapter"
            raise WeightsError(f"{path} is not a whole model: {hint}")
        if "ztsnr" in shapes:
            raise UserError(f"{path}: its noise schedule is rescaled to end at pure noise (ztsnr): not implemented")
        v2 = any(name.startswith(ldm.OPENCLIP) for name in shapes)
        if KEY in header:
            place = f"{KEY} in the header of {path}"
            kinds = dict.fromkeys(CONFIGS, record({})) | {"recipe": record(RECIPE_KINDS)}
            kind = record(kinds, required=kinds)
            configs = fitting(parse_json(header[KEY], place), kind, place)
            return Description(v2, configs, configs["scheduler"].get("prediction_type", "epsilon"), False)
        said = headers.PREDICTIONS.get(header.get(headers.PREDICTION))
        said = said or ("v_prediction" if "v_pred" in shapes else yaml_says(path))
        if said or not v2:
            return Description(v2, None, said or "epsilon", False)
        varies = LAST_BIAS in shapes and file.get_tensor(LAST_BIAS).float().std(correction=0) > 0.09
        return Description(v2, None, "v_prediction" if varies else "epsilon", True)


def yaml_says(path):
    """What the .yaml of the same name beside a file says that it predicts; None without one, or without a word."""
    config = Path(path).with_suffix(".yaml")
    found = config.is_file() and re.search(r"^\s*parameterization:\s*[\"']?(\w+)", read_text(config), re.MULTILINE)
    return {"v": "v_prediction", "eps": "epsilon"}.get(found.group(1)) if found else None


def header_of(configs, recipe):
    """The header's entry from which `describe` reads a model's configurations."""
    return {KEY: json.dumps({part: configs[part] for part in CONFIGS} | {"recipe": recipe})}
