"""The names that programs give to the tensors of a LoRA, and what a name that we do not read means.

    diffusers        unet.LAYER.lora_A.weight, ….lora_B.weight; earlier unet.LAYER.lora.down.weight, ….lora.up.weight
      text encoder   text_encoder.LAYER.lora_linear_layer.down.weight, ….up.weight, or as above
      before 2023-08 [unet.]….attn1.processor.to_q_lora.down.weight, ….up.weight: also the files of the paper's authors
    peft             base_model.model.LAYER.lora_A.weight, ….lora_B.weight
    kohya's tools    lora_unet_LAYER.lora_down.weight, ….lora_up.weight, ….alpha; lora_te_LAYER.… for the text encoder,
                     with underscores for dots; 1 × 1 convolutions, and LoCon's 3 × 3
    ComfyUI          diffusion_model.LAYER.lora_down.weight, … with the layer's name in the single-file layout

Follows: diffusers' `convert_state_dict_to_diffusers` and kohya's `networks/lora.py`. LAYER is the name in our networks.
"""

import re

from torch import nn

from ..files import ldm

LAYERS = (nn.Linear, nn.Conv2d)
KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
ENDINGS = (  # of the down matrix, and of the up matrix
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".down.weight", ".up.weight"),
)
_TEXT_ATTENTION = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
MEANINGS = (  # what stands in a name that we do not read, and what such a file is
    (r"dora_scale|lora_magnitude_vector", "it is a DoRA, which also changes the length of each weight vector"),
    (r"\.lora_mid\.", "it is a LoCon with a Tucker core (lora_mid)"),
    (r"\.hada_", "it is a LoHa"),
    (r"\.lokr_", "it is a LoKr"),
    (r"\.oft_(blocks|diag)|boft_", "it is an OFT of kohya's tools or LyCORIS; of OFT, peft's files are read"),
    (r"\.diff(_b)?$", "it holds whole differences of weights"),
    (r"\.(a1|a2|b1|b2)\.weight$", "it is a GLoRA"),
    (r"\.on_input$", "it is an (IA)³"),
    (r"lora_[AB]\.bias$", "it is a LoRA with biases"),
    (r"lora_te[123]_|^text_encoder_[23]\.|add_embedding|label_emb", "it was made for SDXL"),
    (r"^(transformer\.|lora_transformer_)|single_blocks|double_blocks|joint_blocks", "it was made for SD 3 or Flux"),
    (r"emb_params|string_to_param", "it is a textual inversion, no LoRA"),
)


def adaptable(network):
    """{name: layer} of the linear layers and convolutions of a network."""
    return {name: layer for name, layer in network.named_modules() if type(layer) in LAYERS}


def lora_names(part, layer, config, names):
    """The names of a layer's down matrix, up matrix and α among `names`; α is None where there is none. None: no LoRA.

    part: "unet" or "text_encoder"; layer: our name, e.g. "mid_block.attentions.0.proj_in"; config: of the network.
    """
    for stem in _stems(part, layer, config):
        for down, up in ENDINGS:
            if stem + down in names and stem + up in names:
                return stem + down, stem + up, stem + ".alpha" if stem + ".alpha" in names else None
    return None


def _stems(part, layer, config):
    """What may stand for a layer's name in a file, before the ending."""
    spellings = [layer]
    if part == "text_encoder":
        short = layer.removeprefix("text_model.")  # as transformers 5 calls it
        before, _, last = layer.rpartition(".")
        spellings += [short, f"{before}.{_TEXT_ATTENTION.get(last, last)}"]
    else:
        spellings.append(re.sub(r"\.(to_q|to_k|to_v|to_out)(\.0)?$", r".processor.\1_lora", layer))
        single = ldm.ldm_name(part, layer + ".weight", config)[0]
        single = single.removeprefix(ldm.PREFIX[part]).removesuffix(".weight")
        yield "diffusion_model." + single
        yield KOHYA_PREFIX[part] + single.replace(".", "_")
    yield KOHYA_PREFIX[part] + layer.replace(".", "_")
    for spelling in dict.fromkeys(spellings):
        yield from (f"{part}.{spelling}", f"base_model.model.{spelling}", spelling)


def meaning(names):
    """What the first of these names that says it shows about its file, in words; "" if none does."""
    return next((words for pattern, words in MEANINGS for name in names if re.search(pattern, name)), "")
