"""What the header of a file tells other programs: base model, rank, strength and trigger phrase, as strings.

Follows: Stability AI's ModelSpec 1.0.1 (`modelspec.*`), which ComfyUI, AUTOMATIC1111 and SwarmUI show, and kohya's
`ss_*` keys, by which AUTOMATIC1111 tells LoRAs of SD v1 and v2 apart and shows the words of training.

But: no date and no hashes, so that the same training writes the same bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

FAMILIES = {768: "v1", 1024: "v2"}  # width of the context: version of Stable Diffusion
ARCHITECTURES = {"v1": "stable-diffusion-v1", "v2": "stable-diffusion-v2-512", None: "minibnn"}
TRIGGER, ARCHITECTURE = "modelspec.trigger_phrase", "modelspec.architecture"
PREDICTION = "modelspec.prediction_type"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # ModelSpec's words and diffusers'


@dataclass(frozen=True)
class About:
    """What is known of a model. family: "v1", "v2", or None for a network of another size, as the bundled one.

    prompts: those of its training.
    """

    title: str
    base: str
    family: str | None
    v_prediction: bool
    resolution: int
    prompts: tuple


def family_of(unet_config):
    """The version of Stable Diffusion with a UNet of these sizes, which other programs know; None for any other."""
    official = unet_config.block_out_channels == (320, 640, 1280, 1280)
    return FAMILIES.get(unet_config.cross_attention_dim) if official else None


def about_run(sd, options):
    """About a run with these TrainOptions; sd: the model, or its base."""
    title, base = Path(options.out).resolve().name, Path(options.model).name
    return About(title, base, family_of(sd.unet.config), sd.v_prediction, options.resolution, tuple(options.prompt))


def model_header(about, kind="", implementation="https://github.com/Stability-AI/generative-models"):
    """ModelSpec of a whole model, or of an adapter of this kind, as "lora"."""
    name = ARCHITECTURES[about.family]
    if about.family == "v2" and about.v_prediction:
        name = "stable-diffusion-v2-768-v"
    header = {
        "modelspec.sai_model_spec": "1.0.1", ARCHITECTURE: f"{name}/{kind}" if kind else name,
        "modelspec.implementation": implementation, "modelspec.title": about.title,
        "modelspec.resolution": f"{about.resolution}x{about.resolution}",
        PREDICTION: "v" if about.v_prediction else "epsilon",
    }
    return header | ({TRIGGER: ", ".join(about.prompts)} if about.prompts else {})


def lora_header(about):
    """ModelSpec and kohya's keys for a LoRA, without its rank and α."""
    header = model_header(about, "lora", "diffusers") | {
        "ss_network_module": "networks.lora", "ss_sd_model_name": about.base, "ss_output_name": about.title,
        "ss_resolution": f"({about.resolution}, {about.resolution})",
    }
    if about.family:
        header["ss_v2"] = str(about.family == "v2")
        header["ss_base_model_version"] = f"sd_{about.family}" + "_v" * about.v_prediction
    if about.prompts:
        header["ss_tag_frequency"] = json.dumps({about.title: dict.fromkeys(about.prompts, 1)})
    return header


def ours(header):
    """Those keys of a file's header, a dict of strings, that the functions above write."""
    return {key: value for key, value in header.items() if key.startswith(("modelspec.", "ss_"))}


def is_official(header):
    """Whether the file with this header has a size that other programs know; also where the header does not say it."""
    return not header.get(ARCHITECTURE, "").startswith(ARCHITECTURES[None])
