"""What to do with a file that was written for another program: its folder there, in words for the end of a command."""

from pathlib import Path

from ..files import headers
from ..finetune.adapter_settings import PEFT

WEB_UIS = {  # kind of file: (folder in ComfyUI, folder in AUTOMATIC1111 and Forge, what to do there)
    "single-file": ("models/checkpoints", "models/Stable-diffusion", ""),
    "kohya": ("models/loras", "models/Lora", ", and write <lora:{stem}:1> in the prompt"),
}
PYTHON = {  # kind of file: (program, call)
    "single-file": ("diffusers", 'StableDiffusionPipeline.from_single_file("{path}")'),
    "kohya": ("diffusers", 'pipe.load_lora_weights("{parent}", weight_name="{name}")'),
    "lora": ("diffusers", 'pipe.load_lora_weights("{parent}", weight_name="{name}")'),
    "diffusers": ("diffusers", 'StableDiffusionPipeline.from_pretrained("{path}")'),
    "peft": ("peft", 'PeftModel.from_pretrained(pipe.unet, "{path}")'),
}


def how_to_open(path, kind, header):
    """A text that names the file, its size, and for each program the folder or the call.

    kind: "single-file", "kohya", "lora" (diffusers' own), "diffusers" (a whole model's folder) or "peft".
    header: of the file, as `files/headers.py` writes it.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = [path / PEFT] if kind == "peft" else list(path.rglob("*.safetensors"))
    lines = [f"{path}: {sum(file.stat().st_size for file in files) / 1e6:.4g} MB"]
    words = {"path": path, "parent": path.parent, "name": path.name, "stem": path.stem}
    if kind in WEB_UIS and headers.is_official(header):
        comfy, automatic, there = WEB_UIS[kind]
        lines.append(f"  ComfyUI: copy it to ComfyUI/{comfy}")
        lines.append(f"  AUTOMATIC1111, Forge: copy it to stable-diffusion-webui/{automatic}{there.format(**words)}")
    elif kind in WEB_UIS:
        lines.append("  warning: no web UI opens it; they know only the sizes of Stable Diffusion v1 and v2")
    program, call = PYTHON[kind]
    if kind == "single-file" and not headers.is_official(header):  # diffusers would take SD's sizes
        call = f"{call[:-1]}, config=FOLDER), FOLDER: a run or diffusers folder of it"
    lines.append(f"  {program}: {call.format(**words)}")
    if prompt := header.get(headers.TRIGGER):
        lines.append(f"  its prompt: {prompt}")
    return "\n".join(lines)
