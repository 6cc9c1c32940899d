"""What stands beside the matrices of an adapter: its strength, and what would change the computation.

    diffusers   "lora_adapter_metadata" in the header of the file: peft's settings with "unet." and "text_encoder."
                before their names, or without where the file belongs to one network
    peft        adapter_config.json beside adapter_model.safetensors

Follows: diffusers' `_create_lora_config` and peft's `LoraConfig`, `OFTConfig` and `get_pattern_key`.
"""

import math
import re

from ..files.schema import fitting, integer, mapping, number, one_of, optional, record, truth
from ..files.store import parse_json, read_json
from ..files.weights import WeightsError

PARTS = ("unet", "text_encoder")
HEADER = "lora_adapter_metadata"
PEFT_CONFIG, PEFT = "adapter_config.json", "adapter_model.safetensors"
# Settings of peft that we follow, and those that say nothing about the computation after training.
FOLLOWED = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias",
    "oft_block_size", "coft", "eps", "use_cayley_neumann", "num_cayley_neumann_terms",
}
NEUTRAL = {
    "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "module_dropout",
    "fan_in_fan_out", "runtime_config", "megatron_core", "megatron_config", "qalora_group_size", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying", "init_weights",
}
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the other starts change the base model's weights too
KIND = record({
    "r": integer(1), "lora_alpha": number(), "rank_pattern": optional(mapping(integer(1))),
    "alpha_pattern": optional(mapping(number())), "use_rslora": truth, "bias": one_of("none"),
    "peft_type": one_of("LORA", "OFT"), "init_lora_weights": one_of(*STARTS), "coft": truth, "eps": number(0),
    "use_cayley_neumann": truth, "num_cayley_neumann_terms": integer(1), "oft_block_size": integer(0),
})


def read_settings(path, header):
    """{part: settings} of the adapter's file `path` with this header, a dict of strings; {} where nothing is said.

    Raises UserError, naming key and value, for a setting that this code does not follow.
    """
    if path.name == PEFT:
        place = path.with_name(PEFT_CONFIG)
        settings = dict.fromkeys(PARTS, read_json(place))
    else:
        place = f"{HEADER} in the header of {path}"
        settings = _split(fitting(parse_json(header.get(HEADER, "{}"), place), record({}), place))
    for values in settings.values():
        for key, value in values.items():
            if value and key not in FOLLOWED | NEUTRAL:
                raise WeightsError(f"{place}: {key} = {value!r} is not implemented")
        fitting(values, KIND, place)
    return settings


def _split(values):
    """The settings of each part; settings without the name of a part hold for all."""
    common = {key: value for key, value in values.items() if "." not in key}
    return {
        part: common | {k.removeprefix(part + "."): v for k, v in values.items() if k.startswith(part + ".")}
        for part in PARTS
    }


def lora_strength(settings, layer, rank, path):
    """By what B·A is multiplied: α/r, or α/√r for rank-stabilised LoRA (Kalajdzievski 2023); 1 where nothing is said.

    layer: our name of it; rank: that of its matrices. Raises WeightsError when the settings say another rank.
    """
    said = _by_pattern(settings.get("rank_pattern"), layer, settings.get("r", rank))
    if said != rank:
        raise WeightsError(f"{path}: {layer} has rank {rank}, its settings say {said}: the file is damaged")
    alpha = _by_pattern(settings.get("alpha_pattern"), layer, settings.get("lora_alpha", rank))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(patterns, layer, default):
    """The value of the first pattern that matches the layer's name or its end, as peft's `get_pattern_key` has it."""
    for pattern, value in (patterns or {}).items():
        for name in {layer, layer.removeprefix("text_model.")}:
            try:
                if re.match(rf"(.*\.)?({pattern})$", name):
                    return value
            except re.error:
                raise WeightsError(f"the pattern {pattern!r} for layers is not a regular expression") from None
    return default
