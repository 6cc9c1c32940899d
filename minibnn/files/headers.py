"""What the header of a file tells other programs: base model, rank, strength and trigger phrase, as strings.

Follows: Stability AI's ModelSpec 1.0.1 (`modelspec.*`), which ComfyUI, AUTOMATIC1111 and SwarmUI show, and kohya's
`ss_*` keys, by which AUTOMATIC1111 tells LoRAs of SD v1 and v2 apart and shows the words of training.

But: no date and no hashes, so that the same training writes the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FAMILIES = {768: "v1", 1024: "v2"}  # width of the context: version of Stable Diffusion


@dataclass(frozen=True)
class About:
    """What is known of a model. family: "v1", "v2", or None for a network of another size, as the bundled one."""

    title: str
    base: str
    family: str | None
    v_prediction: bool
    resolution: int
    prompt: str | None


def family_of(unet_config):
    """The version of Stable Diffusion with a UNet of these sizes, which other programs know; None for any other."""
    official = unet_config.block_out_channels == (320, 640, 1280, 1280)
    return FAMILIES.get(unet_config.cross_attention_dim) if official else None


def about_run(sd, options):
    """About a run with these TrainOptions; sd: the model, or its base."""
    return About(
        Path(options.out).resolve().name, Path(options.model).name, family_of(sd.unet.config), sd.v_prediction,
        options.resolution, options.prompt,
    )


def model_header(about, kind="", implementation="https://github.com/Stability-AI/generative-models"):
    """ModelSpec of a whole model, or of the kind of adapter, as "lora"."""
    names = {"v1": "stable-diffusion-v1", "v2": "stable-diffusion-v2-512", None: "minibnn"}
    name = "stable-diffusion-v2-768-v" if about.family == "v2" and about.v_prediction else names[about.family]
    header = {
        "sai_model_spec": "1.0.1", "architecture": f"{name}/{kind}" if kind else name, "implementation": implementation,
        "title": about.title, "resolution": f"{about.resolution}x{about.resolution}",
        "prediction_type": "v" if about.v_prediction else "epsilon", "implementation_version": "minibnn",
    }
    if about.prompt:
        header["trigger_phrase"] = about.prompt
    return {"modelspec." + key: value for key, value in header.items()}


def lora_header(about, rank, alpha):
    """ModelSpec and kohya's keys for a LoRA of this rank and α."""
    version = {"ss_v2": str(about.family == "v2")} if about.family else {}
    if about.family:
        version["ss_base_model_version"] = f"sd_{about.family}" + "_v" * about.v_prediction
    words = {"ss_tag_frequency": json.dumps({about.title: {about.prompt: 1}})} if about.prompt else {}
    return model_header(about, "lora", "diffusers") | version | words | {
        "ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}",
        "ss_sd_model_name": about.base, "ss_output_name": about.title,
        "ss_resolution": f"({about.resolution}, {about.resolution})",
    }
